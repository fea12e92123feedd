"""Token modes that users register: a function, or a module with learned parameters that gives soft shares."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_net
from mode_nets import (
    BATCH,
    assert_close,
    assert_exports_with_a_free_batch_size,
    images_for,
    make_config,
    naive,
    subnets_for,
)
from oracles import Token
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet import (
    SubnetConfig,
    Supernet,
    SupernetConfig,
    TokenMode,
    freeze,
    from_pretrained,
    list_token_modes,
    load_static,
    register_token_mode,
    save_pretrained,
    save_static,
    token_mode,
)
from supernet.arrays import Ints
from supernet.tokens.modes import Assignment, column, combine, holders, total_size

pytestmark = pytest.mark.usefixtures("own_modes")


def pool(
    scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
) -> Assignment:
    """Neighbours in reading order are averaged until few enough remain: a pooling that no mode of ours does."""
    assert scores is None
    assert metric is None
    position = torch.arange(size.shape[1])
    n, kept = (torch.as_tensor(values)[:, None] for values in (lengths, counts[:, -1]))
    into = prefix + (position - prefix) * (kept - prefix) // (n - prefix)
    into = torch.where(position < prefix, position, into)
    return torch.where(position < n, into, -1).expand_as(size), size


def test_a_mode_of_ones_own_needs_one_function() -> None:
    register_token_mode("pool", TokenMode(pool, uses_scores=False, sized=True))
    net = Supernet(make_config("pool", "class-token", True)).eval()
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    assert_close(torch.cat([net(images[i : i + 1], subnet[i]) for i in range(BATCH)]), logits)
    assert_close(torch.cat([net.extract(subnet[i])(images[i : i + 1]) for i in range(BATCH)]), logits)
    assert state.kept().all()
    assert (state.patch_token.diff(dim=1) >= 0).all()


# ---- registering ------------------------------------------------------------------------------------------------


def test_a_decorator_registers_like_the_function_and_returns_what_it_decorates() -> None:
    assert register_token_mode("pool", uses_scores=False, sized=True)(pool) is pool
    assert token_mode("pool") == TokenMode(pool, uses_scores=False, sized=True)
    assert "pool" in list_token_modes()
    assert "pool" not in list_token_modes(authors=True)
    register_token_mode("pool", TokenMode(pool, uses_scores=False, sized=True))  # the same again
    assert SubnetConfig.full(make_config("pool", "class-token", True).space).keep_rate.shape == (1, 2)


def test_a_taken_name_is_refused_and_the_modes_stay_as_they_were() -> None:
    before = token_mode("prune")
    with pytest.raises(ValueError, match=r"'prune' is taken; registered are \['merge', 'merge_above', 'prune', "):
        register_token_mode("prune")(pool)
    assert token_mode("prune") is before


def test_the_authors_version_of_a_mode_is_another_one_of_the_same_name() -> None:
    assert list_token_modes(authors=True) == ["merge", "prune", "prune_merge"]
    assert token_mode("merge", authors=True).always
    assert not token_mode("merge").always
    with pytest.raises(ValueError, match=r"token_mode='tome' is not one of the authors'; choose one of \['merge', "):
        token_mode("tome", authors=True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TokenMode(), ValueError, "needs a function `assign`.*or a `module`"),
        (lambda: TokenMode(pool, module=Clusters), ValueError, "and not both"),
        (lambda: TokenMode(pool, metric="values"), ValueError, r"metric='values' is unknown.*'tokens', 'keys'"),
        (lambda: register_token_mode("x", speed=3)(pool), TypeError, "speed"),
        (lambda: register_token_mode("x", TokenMode(pool), sized=True), TypeError, r"\['sized'\] belong into the"),
    ],
)
def test_modes_that_cannot_be_are_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
    assert "x" not in list_token_modes()


def test_places_where_shares_were_announced_are_refused() -> None:
    register_token_mode("pool", uses_scores=False, soft=True)(pool)
    net = Supernet(make_config("pool", "class-token", True))
    with pytest.raises(ValueError, match=r"pool.* gave the shape .* with soft=True a token mode gives shares"):
        net(images_for(net), subnets_for(net))


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (lambda into, weight: None, r"gave one NoneType; .* places and weights, such as \(places, None\)"),
        (lambda into, weight: into, r"gave one Tensor; .* places and weights"),
        (lambda into, weight: (into.numpy(), weight), r"gave places of the type ndarray; expected a tensor"),
        (lambda into, weight: (into.float(), weight), r"gave torch\.float32; .* torch\.int64, as \.long\(\)"),
    ],
)
def test_an_answer_of_another_kind_is_refused_by_name(gives: Any, words: str, own_modes: None) -> None:
    def places(*given: Any) -> Any:
        return gives(*pool(*given))

    register_token_mode("wrong", uses_scores=False)(places)
    net = Supernet(make_config("wrong", "class-token", True)).eval()
    with pytest.raises(ValueError, match=rf"places.* {words}"):
        net(images_for(net), subnets_for(net))


def _few(into: Tensor, counts: Ints, prefix: int) -> Tensor:
    return torch.where(into == torch.as_tensor(counts)[:, -1:] - 1, -1, into)


def _many(into: Tensor, counts: Ints, prefix: int) -> Tensor:
    return torch.arange(into.shape[1]).expand_as(into)


def _away(into: Tensor, counts: Ints, prefix: int) -> Tensor:
    return into.roll(1, dims=1)


def _joined(into: Tensor, counts: Ints, prefix: int) -> Tensor:
    return torch.where(into == prefix, 0, into)


@pytest.mark.parametrize("wrong", [_few, _many, _away, _joined])
@torch.no_grad()
def test_places_that_would_mix_images_are_refused(wrong: Any, own_modes: None) -> None:
    def places(*given: Any) -> Assignment:
        into, weight = pool(*given)
        return wrong(into, given[4], given[5]), weight

    register_token_mode("wrong", uses_scores=False, sized=True)(places)
    net = random_net(make_config("wrong", "class-token", True))
    subnet = replace(SubnetConfig.full(net.space, 2), keep_rate=torch.full((2, 2), 0.5))
    patches = net.config.num_patches
    message = (
        rf"places.* gave image 0 of the \d .* in the places \[.*asked were {1 + patches // 2}:.* by the first 1 tokens"
    )
    with pytest.raises(ValueError, match=message):
        net(images_for(net, 2), subnet)
    with pytest.raises(ValueError, match=message):
        net.extract(subnet[0])(images_for(net, 1))


def test_two_tokens_in_one_place_without_weights_are_refused() -> None:
    register_token_mode("wrong", uses_scores=False)(lambda *given: (pool(*given)[0], None))
    net = Supernet(make_config("wrong", "class-token", True)).eval()
    with pytest.raises(ValueError, match="no place by two tokens without weights"):
        net(images_for(net), subnets_for(net))


# ---- soft shares and learned parameters -----------------------------------------------------------------------


class Clusters(nn.Module):
    """Learned centres in a learned embedding; every patch is shared among as many of them as are to stay."""

    def __init__(self, config: SupernetConfig, embed_dim: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(embed_dim, 4))
        self.centres = nn.Parameter(torch.randn(config.num_patches, 4))

    def forward(
        self, scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
    ) -> Assignment:
        assert scores is None
        assert metric is not None
        device, most = metric.device, int(counts.max()) - prefix
        width = metric.shape[2]
        alike = metric[:, prefix:] @ self.embed[:width] @ self.centres[:most].T / width**0.5
        place, row = torch.arange(most, device=device), torch.arange(metric.shape[1], device=device)
        gone = (place >= column(counts[:, -1], device) - prefix)[:, None]
        shares = alike.masked_fill(gone, float("-inf")).softmax(2)
        shares = nn.functional.pad(shares, (prefix, 0, prefix, 0))
        new = torch.arange(prefix + most, device=device)
        shares = shares + ((row[:, None] == new) & (new < prefix))
        return shares * (row < column(lengths, device))[..., None], size


def clusters_macs(num_tokens: Ints, counts: Ints, dims: Ints, prefix: int) -> Ints:
    return 4 * (num_tokens - prefix) * (dims + counts[:, -1] - prefix)


def shared_out(x: Tensor, sizes: list[float], rates: list[float], block: Any) -> list[Token]:
    """`Clusters` on one image with a class token, in loops."""
    patches = len(x) - 1
    kept = max(1, math.ceil(rates[0] * patches - 1e-6))
    values = x.detach().double().numpy()
    if kept == patches:
        return [Token(values[i], sizes[i], (i,)) for i in range(len(x))]
    embed, centres = (t.detach().double().numpy() for t in (block.reduce.embed, block.reduce.centres))
    shares = []
    for value in values[1:]:
        point = [sum(v * e for v, e in zip(value, embed[: len(value), j], strict=True)) for j in range(4)]
        alike = np.array([sum(p * c for p, c in zip(point, centre, strict=True)) for centre in centres[:kept]])
        alike = alike / math.sqrt(len(value))
        shares.append(np.exp(alike - alike.max()) / np.exp(alike - alike.max()).sum())
    tokens = [Token(values[0], sizes[0], (0,))]
    for j in range(kept):
        weights = [share[j] * size for share, size in zip(shares, sizes[1:], strict=True)]
        members = tuple(i + 1 for i, share in enumerate(shares) if share.argmax() == j)
        mean = sum(w * value for w, value in zip(weights, values[1:], strict=True)) / sum(weights)
        tokens.append(Token(mean, float(sum(weights)), members))
    return tokens


@pytest.fixture(params=[False, True], ids=["later", "first"])
def net(request: pytest.FixtureRequest, own_modes: None) -> Supernet:
    """A random network whose tokens become learned clusters."""
    settings: dict[str, Any] = {"metric": "tokens", "uses_scores": False, "sized": True, "macs": clusters_macs}
    register_token_mode("clusters", soft=True, **settings)(Clusters)
    return random_net(make_config("clusters", "class-token", request.param))


def test_every_image_of_a_mixed_batch_is_shared_out_as_in_loops(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    expected = [naive(net, images[i], subnet[i], shared_out) for i in range(BATCH)]
    assert_close(logits, torch.stack([logit for logit, _, _ in expected]))
    assert state.patch_token.tolist() == [holder for _, holder, _ in expected]
    assert state.size is not None
    assert_close(state.size, torch.tensor([size for _, _, sizes in expected for size in sizes]))
    for size in state.size.split(state.num_tokens.tolist()):
        assert size.sum().item() == pytest.approx(net.config.num_tokens)
        assert size[0] == 1
    assert (state.num_tokens < net.config.num_tokens).any()


def test_a_class_token_passes_a_soft_reduction_bit_for_bit_in_any_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x, size = torch.randn(2, 9, 5, generator=generator), torch.ones(2, 9)
    shares, weight = Clusters(make_config("prune", "class-token", True), 5)(
        None, x, size, np.array([9, 7]), np.array([[4], [3]]), 1
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        new = combine(x.to(dtype), shares, 4, weight, prefix=1)
        assert (new.shape, new.dtype) == ((2, 4, 5), dtype)
        assert torch.equal(new[:, 0], x[:, 0].to(dtype))
    assert total_size(size, shares, 4)[:, 0].tolist() == [1, 1]
    assert total_size(size, shares, 4)[1, 3] == 0  # the second image keeps only three
    assert holders(shares)[1, 7:].tolist() == [-1, -1]


def test_it_costs_what_pytorch_counts_on_extracted_networks_that_equal_it(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits = net(images, subnet)
    for i in range(BATCH):
        static = net.extract(subnet[i])
        assert_close(static(images[[i, 0]])[:1], logits[i : i + 1])
        assert sum(p.numel() for p in static.parameters()) == net.params(subnet[i]).item()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            static(images[i : i + 1])
        assert counter.get_total_flops() == 2 * net.macs(subnet[i]).item()
    assert net.params(subnet).tolist() == [net.params(subnet[i]).item() for i in range(BATCH)]
    assert net.macs(subnet).tolist() == [net.macs(subnet[i]).item() for i in range(BATCH)]
    end = net.forward_features(images, subnet)
    assert net.macs_to_go(end).tolist() == net.macs(subnet).tolist()
    whole = replace(subnet, keep_rate=torch.ones_like(subnet.keep_rate))
    saved = net.params(subnet) < net.params(whole)
    assert not saved.any()
    assert (net.params(subnet) > net.params(whole)).any()  # where nothing is reduced, no module is needed


def test_an_image_alone_is_bit_for_bit_as_in_a_batch_of_its_kind_and_mean_keys_follow_the_tokens(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    group, choice = net.space.first_decided, subnets_for(net).group(net.space, net.space.first_decided)
    state = net.run_group(net.begin(images, key_mean=True), group, choice)
    assert state.key_mean is not None
    for i in range(BATCH):
        alone = net.run_group(net.begin(images[[i]], key_mean=True), group, subnet[i].group(net.space, group))
        assert_close(state[[i]].tokens, alone.tokens)
        assert_close(state[[i]].padded_key_mean(40), alone.padded_key_mean(40))


def test_gradients_reach_the_module_and_are_those_of_the_extracted_network(net: Supernet) -> None:
    net = copy.deepcopy(net).double().requires_grad_(True)
    images, subnet = images_for(net).double(), subnets_for(net)
    (net(images, subnet) ** 2).sum().backward()
    modules = [name for name, _ in net.named_parameters() if ".reduce." in name]
    starts = [net.space.blocks(g).start for g in range(net.space.first_decided, len(net.space.groups))]
    assert modules == [f"blocks.{i}.reduce.{part}" for i in starts for part in ("embed", "centres")]
    parameters = dict(net.named_parameters())
    for name, p in parameters.items():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert all(parameters[name].grad.abs().max() > 0 for name in modules)  # type: ignore[union-attr]
    net.zero_grad()
    static = net.extract(subnet[5])
    (net(images, subnet[5]) ** 2).sum().backward()
    (static(images) ** 2).sum().backward()
    theirs = dict(static.named_parameters())
    for name in ("pos_embed", *(name for name in modules if name in theirs)):
        a, b = parameters[name].grad, theirs[name].grad
        assert a is not None
        assert b is not None
        cut = a[tuple(slice(n) for n in b.shape)]
        assert (cut - b).abs().max() <= 1e-5 * b.abs().max(), name


@torch.no_grad()
def test_its_weights_are_saved_and_loaded_with_the_others(net: Supernet, tmp_path: Path) -> None:
    images, subnet = images_for(net), subnets_for(net)
    save_pretrained(net, tmp_path / "net")
    # Frozen as the other is: torch.matmul takes another kernel where a weight could need a gradient.
    assert torch.equal(freeze(from_pretrained(tmp_path / "net"))(images, subnet), net(images, subnet))
    static = net.extract(subnet[4])
    assert any(".reduce." in name for name in static.state_dict())
    save_static(static, tmp_path / "static")
    assert torch.equal(load_static(tmp_path / "static")(images), static(images))
    plain = random_net(replace(net.config, space=replace(net.space, token_mode="prune")))
    save_pretrained(plain, tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text((tmp_path / "net" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"missing blocks\.\d\.reduce\.embed"):
        from_pretrained(tmp_path / "plain")


def test_weights_without_its_parameters_do_not_run_by_it_and_weights_with_them_run_by_any_other(net: Supernet) -> None:
    plain = copy.deepcopy(random_net(replace(net.config, space=replace(net.space, token_mode="prune"))))
    starts = [net.space.blocks(g).start for g in range(net.space.first_decided, len(net.space.groups))]
    message = rf"token_mode='clusters' has learned parameters, which blocks \{starts} .* made for 'prune'"
    with pytest.raises(ValueError, match=message):
        plain.run_by(net.config)
    assert plain.space.token_mode == "prune"
    before, other = net.config, copy.deepcopy(net)
    other.run_by(plain.config)
    images, subnet = images_for(net), subnets_for(net)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if ".reduce." not in k})
    assert torch.equal(other(images, subnet), plain(images, subnet))
    other.run_by(before)
    assert torch.equal(other(images, subnet), net(images, subnet))


@pytest.mark.slow
def test_its_extracted_networks_export_with_a_free_batch_size(net: Supernet) -> None:
    assert_exports_with_a_free_batch_size(net, subnets_for(net)[4])
