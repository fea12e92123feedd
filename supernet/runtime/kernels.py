"""Triton kernels of the tiled runtime: one launch per layer for a batch in which every image has sizes of its own.

Sizes stand in device memory, so that the host neither waits for them nor launches anything per size. What is said of
`supernet.runtime.tiles.TileBatch` holds here: tokens lie packed, image after image, in buffers of a fixed number of
rows, of which the first `total` are in use; programs beyond these return at once. Channels beyond an image's own hold
anything in buffers that these kernels write, but for those up to the next multiple of 16, which are zero: products
then read whole vectors.

They run on GPUs of compute capability 8.0 and later (below it, products would be scalar code), and without one in
Triton's interpreter (`TRITON_INTERPRET=1`), which accepts what no compiler does: `python -m tools.compile_kernels`
compiles them without a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

_compiled = triton.jit(
    # What changes with the number of images: told of their values and alignments, Triton would compile a kernel anew
    # for the last batch of an epoch. Nothing is read through these that would gain by it.
    do_not_specialize=("num_images", "capacity", "tiles", "most"),
    do_not_specialize_on_alignment=(
        *("first", "second", "lengths", "perm", "perm_image", "row_image", "into"),
        *("kdim", "ndim", "have", "width", "zoom", "heads", "cu", "cu_after", "total"),
    ),
)


@_compiled
def permutation_kernel(
    first, second, lengths, cu, perm, perm_image, num_images, capacity, MOST: tl.constexpr, CHUNK: tl.constexpr
):
    """Rows by size: of the h-th order the images by `first`, then `second` (orders, B), then as they come.

    `perm` (orders, capacity) gets the rows of image after image, `perm_image` the images. An image counts the tokens of
    those before it, which takes less time than sorting would.
    """
    i, h = tl.program_id(0), tl.program_id(1)
    major, minor = first + h * num_images, second + h * num_images
    own = tl.load(major + i).to(tl.int64) * 1048576 + tl.load(minor + i)
    at = tl.zeros((), tl.int64) + h * capacity
    for s in range(0, num_images, CHUNK):
        j = s + tl.arange(0, CHUNK)
        there = j < num_images
        key = tl.load(major + j, mask=there, other=0).to(tl.int64) * 1048576 + tl.load(minor + j, mask=there, other=0)
        before = there & ((key < own) | ((key == own) & (j < i)))
        at += tl.sum(tl.load(lengths + j, mask=before, other=0), 0)
    begin, end = tl.load(cu + i), tl.load(cu + i + 1)
    j = tl.arange(0, MOST)
    tl.store(perm + at + j, begin + j, mask=j < end - begin)
    tl.store(perm_image + at + j, tl.zeros((MOST,), tl.int32) + i, mask=j < end - begin)


@_compiled
def norm_kernel(
    x, out, gain, shift, row_image, width, have, zoom, total, num_images, ldx, ldo, channels, eps,
    FIRST: tl.constexpr, GAIN: tl.constexpr, ZOOM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Layer norm of each row over the `width` of its image; of its channels only the first `have` are there.

    With FIRST of every image's first row only, which `row_image` then names; they lie one after the other in `out`, all
    of which is written, zeros beyond an image's width.
    """
    t = num_images if FIRST else tl.load(total)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS >= t:
        return
    used = r < t
    looked_up = tl.load(row_image + r, mask=used, other=0)
    image, row = (r, looked_up) if FIRST else (looked_up, r)
    w = tl.load(width + image, mask=used, other=1)
    there = tl.minimum(tl.load(have + image, mask=used, other=0), w)
    c = tl.arange(0, BLOCK)
    inside = (c[None, :] < w[:, None]) & used[:, None]
    at = row[:, None].to(tl.int64) * ldx + c[None, :]
    # Masks end at multiples of 16: one whose alignment the compiler cannot see makes a load scalar.
    whole = (there + 15) // 16 * 16
    v = tl.load(x + at, mask=used[:, None] & (c[None, :] < whole[:, None]) & (c[None, :] < channels), other=0.0)
    v = tl.where(c[None, :] < there[:, None], v.to(tl.float32), 0.0)
    mean = tl.sum(v, 1) / w
    d = tl.where(inside, v - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(d * d, 1) / w + eps)
    if ZOOM:
        scale = scale * tl.load(zoom + image, mask=used, other=1.0)
    y = d * scale[:, None]
    if GAIN:
        g = tl.load(gain + c, mask=c < channels, other=0.0).to(tl.float32)
        b = tl.load(shift + c, mask=c < channels, other=0.0).to(tl.float32)
        y = tl.where(inside, y * g[None, :] + b[None, :], 0.0)
    end = w * 0 + ldo if FIRST else (w + 15) // 16 * 16
    to = r[:, None].to(tl.int64) * ldo + c[None, :]
    tl.store(
        out + to, y.to(out.dtype.element_ty), mask=used[:, None] & (c[None, :] < end[:, None]) & (c[None, :] < ldo)
    )


@_compiled
def product_kernel(
    a, weight, bias, residual, out, perm, perm_image, kdim, ndim, have, total, lda, ldw, ldr, ldo, out_features,
    tiles_n,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, PAD: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out[r, n] = act(sum_k a[r, k] weight[n, k] + bias[n]) (+ residual[r, n]) for k < kdim, n < ndim of r's image.

    Rows reach their tile through `perm`, which lists them by size, so that nearly every tile is of one size. A tile
    runs k up to the largest size of its rows and leaves if its columns lie beyond the widest.
    """
    pid_m, pid_n = _tile(tiles_n, GROUP)
    t = tl.load(total)
    if pid_m * BM >= t:
        return
    rm = pid_m * BM + tl.arange(0, BM)
    used = rm < t
    rows = tl.load(perm + rm, mask=used, other=0)
    image = tl.load(perm_image + rm, mask=used, other=0)
    n = tl.where(used, tl.load(ndim + image), 0)
    if pid_n * BN >= tl.max(n, 0):
        return
    k_own = tl.where(used, tl.load(kdim + image), 0)
    k_most = tl.max(k_own, 0)
    # Up to the smallest size of the tile nothing is masked, and beyond it masks end at multiples of 16 where the
    # weights do: a mask whose alignment the compiler cannot see makes every load scalar.
    common = (tl.min(tl.where(used, k_own, k_most), 0) // BK) * BK
    k_end = k_most
    if PAD:
        k_own = (k_own + 15) // 16 * 16
        k_end = (k_most + 15) // 16 * 16
    rk = tl.arange(0, BK)
    rn = pid_n * BN + tl.arange(0, BN)
    pa = a + rows[:, None].to(tl.int64) * lda + rk[None, :]
    pb = weight + tl.where(rn < out_features, rn, 0)[None, :] * ldw + rk[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, common, BK):
        acc = tl.dot(tl.load(pa + k), tl.load(pb + k), acc, input_precision=PRECISION)
    for k in range(common, k_most, BK):
        va = tl.load(pa + k, mask=(k + rk)[None, :] < k_own[:, None], other=0.0)
        vb = tl.load(pb + k, mask=(k + rk)[:, None] < k_end, other=0.0)
        acc = tl.dot(va, vb, acc, input_precision=PRECISION)
    acc += tl.load(bias + rn, mask=rn < out_features, other=0.0)[None, :].to(tl.float32)
    acc = _activated(acc, ACT)
    if RESIDUAL:
        there = tl.minimum(tl.load(have + image, mask=used, other=0), n)
        near = (there + 15) // 16 * 16
        at = rows[:, None].to(tl.int64) * ldr + rn[None, :]
        r = tl.load(residual + at, mask=(rn[None, :] < near[:, None]) & (rn[None, :] < ldr), other=0.0)
        acc += tl.where(rn[None, :] < there[:, None], r.to(tl.float32), 0.0)
    acc = tl.where(rn[None, :] < n[:, None], acc, 0.0)
    end = (n + 15) // 16 * 16
    to = rows[:, None].to(tl.int64) * ldo + rn[None, :]
    tl.store(out + to, acc.to(out.dtype.element_ty), mask=(rn[None, :] < end[:, None]) & (rn[None, :] < ldo))


@_compiled
def full_product_kernel(
    a, weight, bias, residual, out, total, lda, ldw, ldr, ldo, in_features, out_features, tiles_n,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`product_kernel` where all rows have all inputs and outputs: they are taken as they lie, nothing is looked up."""
    pid_m, pid_n = _tile(tiles_n, GROUP)
    t = tl.load(total)
    if pid_m * BM >= t:
        return
    rm = pid_m * BM + tl.arange(0, BM)
    rk = tl.arange(0, BK)
    rn = pid_n * BN + tl.arange(0, BN)
    row = tl.where(rm < t, rm, 0)[:, None].to(tl.int64)
    pa = a + row * lda + rk[None, :]
    pb = weight + tl.where(rn < out_features, rn, 0)[None, :] * ldw + rk[:, None]
    acc = tl.zeros((BM, BN), tl.float32)
    common = in_features // BK * BK
    for k in range(0, common, BK):
        acc = tl.dot(tl.load(pa + k), tl.load(pb + k), acc, input_precision=PRECISION)
    for k in range(common, in_features, BK):
        va = tl.load(pa + k, mask=(k + rk)[None, :] < in_features, other=0.0)
        vb = tl.load(pb + k, mask=(k + rk)[:, None] < in_features, other=0.0)
        acc = tl.dot(va, vb, acc, input_precision=PRECISION)
    acc += tl.load(bias + rn, mask=rn < out_features, other=0.0)[None, :].to(tl.float32)
    acc = _activated(acc, ACT)
    inside = (rm < t)[:, None] & (rn[None, :] < out_features)
    if RESIDUAL:
        acc += tl.load(residual + row * ldr + rn[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * ldo + rn[None, :], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _tile(tiles_n, GROUP: tl.constexpr):
    """Which tile of rows and of outputs a program computes: GROUP tiles of rows are run one after the other."""
    pid = tl.program_id(0)
    per_group = GROUP * tiles_n
    return (pid // per_group) * GROUP + (pid % per_group) % GROUP, (pid % per_group) // GROUP


@triton.jit
def _activated(x, ACT: tl.constexpr):
    """None, GELU, GELU by tanh, or x * sigmoid(1.702 x): `supernet.layers.ACTIVATIONS`."""
    if ACT == 1:
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    if ACT == 2:
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    if ACT == 3:
        x = x * tl.sigmoid(1.702 * x)
    return x


@_compiled
def attention_kernel(
    qkv, out, scores, log_size, cu, heads, scale, ldq, ldo, capacity, tiles,
    SIZED: tl.constexpr, SCORES: tl.constexpr, CLASS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Softmax attention of one head over one image, for a block of its queries, with the heads and tokens it has.

    `scores` (heads, capacity) sums to the mean over heads of what the class token (without CLASS: the mean query)
    attends to; it is zero for heads that an image has not. `scale` holds log2(e), `log_size` is a natural logarithm.
    """
    b, pid, h = tl.program_id(0) // tiles, tl.program_id(0) % tiles, tl.program_id(1)
    first = tl.load(cu + b)
    n = tl.load(cu + b + 1) - first
    if pid * BM >= n:
        return
    c = tl.arange(0, BLOCK)
    inner = c < HEAD
    own_heads = tl.load(heads + b)
    if h >= own_heads:
        if SCORES and pid == 0:
            for k in range(0, n, BN):
                rn = k + tl.arange(0, BN)
                tl.store(scores + h * capacity + first + rn, tl.zeros((BN,), tl.float32), mask=rn < n)
        return
    rm = pid * BM + tl.arange(0, BM)
    base = qkv + first.to(tl.int64) * ldq + h * 3 * HEAD
    q = tl.load(base + rm[:, None] * ldq + c[None, :], mask=(rm[:, None] < n) & inner[None, :], other=0.0)
    m = tl.full((BM,), float("-inf"), tl.float32)
    l = tl.zeros((BM,), tl.float32)  # noqa: E741
    acc = tl.zeros((BM, BLOCK), tl.float32)
    for k in range(0, n, BN):
        rn = k + tl.arange(0, BN)
        there = rn < n
        kt = tl.load(base + HEAD + rn[None, :] * ldq + c[:, None], mask=there[None, :] & inner[:, None], other=0.0)
        s = tl.dot(q, kt, input_precision=PRECISION) * scale
        if SIZED:
            s += tl.load(log_size + first + rn, mask=there, other=0.0)[None, :] * 1.4426950408889634
        s = tl.where(there[None, :], s, float("-inf"))
        new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
        shrink = tl.exp2(m - new)
        l = l * shrink + tl.sum(p, 1)  # noqa: E741
        v = tl.load(base + 2 * HEAD + rn[:, None] * ldq + c[None, :], mask=there[:, None] & inner[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        m = new
    to = (first + rm)[:, None].to(tl.int64) * ldo + h * HEAD + c[None, :]
    tl.store(out + to, (acc / l[:, None]).to(out.dtype.element_ty), mask=(rm[:, None] < n) & inner[None, :])
    if SCORES and pid == 0:
        own = scores + h * capacity + first
        _class_scores(base, own, log_size + first, n, own_heads, scale, ldq, inner, c, SIZED, CLASS, BN, HEAD, BLOCK)


@triton.jit
def _class_scores(
    base, scores, log_size, n, heads, scale, ldq, inner, c,
    SIZED: tl.constexpr, CLASS: tl.constexpr, BN: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the class token (without CLASS: the mean query) of one image attends to in one of so many heads, a part of
    their mean."""
    query = tl.load(base + c, mask=inner, other=0.0).to(tl.float32)
    if not CLASS:
        query = tl.zeros((BLOCK,), tl.float32)
        for k in range(0, n, BN):
            rn = k + tl.arange(0, BN)
            at = base + rn[:, None] * ldq + c[None, :]
            query += tl.sum(tl.load(at, mask=(rn[:, None] < n) & inner[None, :], other=0.0).to(tl.float32), 0)
        query = query / n
    top, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    for k in range(0, n, BN):
        rn = k + tl.arange(0, BN)
        s = _query_logits(base + HEAD, query, log_size, rn, n, scale, ldq, inner, c, SIZED)
        new = tl.maximum(top, tl.max(s, 0))
        total = total * tl.exp2(top - new) + tl.sum(tl.exp2(s - new), 0)
        top = new
    for k in range(0, n, BN):
        rn = k + tl.arange(0, BN)
        s = _query_logits(base + HEAD, query, log_size, rn, n, scale, ldq, inner, c, SIZED)
        tl.store(scores + rn, tl.exp2(s - top) / (total * heads), mask=rn < n)


@triton.jit
def _query_logits(keys, query, log_size, rn, n, scale, ldq, inner, c, SIZED: tl.constexpr):
    """Logits of one query row against the keys `rn`, to the base 2; -inf beyond the last."""
    at = keys + rn[:, None] * ldq + c[None, :]
    k = tl.load(at, mask=(rn[:, None] < n) & inner[None, :], other=0.0).to(tl.float32)
    s = tl.sum(k * query[None, :], 1) * scale
    if SIZED:
        s += tl.load(log_size + rn, mask=rn < n, other=0.0) * 1.4426950408889634
    return tl.where(rn < n, s, float("-inf"))


@_compiled
def combine_kernel(x, out, source, begins, share, total, ldx, ldo, channels, BLOCK: tl.constexpr):
    """out[r] = sum of share[s] * x[s] over s = source[begins[r] : begins[r + 1]], always in that order."""
    r = tl.program_id(0)
    if r >= tl.load(total):
        return
    c = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.load(begins + r), tl.load(begins + r + 1)):
        row = tl.load(source + i).to(tl.int64)
        acc += tl.load(share + row) * tl.load(x + row * ldx + c, mask=c < channels, other=0.0).to(tl.float32)
    tl.store(out + r.to(tl.int64) * ldo + c, acc.to(out.dtype.element_ty), mask=c < channels)


@_compiled
def move_kernel(
    x, out, into, row_image, cu, cu_after, total, most, ldx, ldo, channels, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Takes every row to its new place: of `into` (images, most), place in the image's shorter sequence; -1 is none."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    t = tl.load(total)
    if tl.program_id(0) * ROWS >= t:
        return
    used = r < t
    image = tl.load(row_image + r, mask=used, other=0)
    place = tl.load(into + image.to(tl.int64) * most + r - tl.load(cu + image), mask=used, other=-1)
    stays = used & (place >= 0)
    c = tl.arange(0, BLOCK)
    inside = stays[:, None] & (c[None, :] < channels)
    to = (tl.load(cu_after + image) + place)[:, None] * ldo + c[None, :]
    tl.store(out + to, tl.load(x + r[:, None].to(tl.int64) * ldx + c[None, :], mask=inside, other=0.0), mask=inside)
