"""Whole networks in every token mode: with and without a class token, with the first group decided or not.

The authors' modes run under the authors' rules (`prance_embed_dim`), in networks with a class token as theirs are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import random_net
from oracles import Token, evit, evit_fused, prune_then_merge, tome
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import supernet.convert.authors  # noqa: F401  registers the authors' modes
from supernet import GroupChoice, SearchSpace, SubnetConfig, Supernet, SupernetConfig
from supernet.arrays import Ints
from supernet.macs import head_macs
from supernet.plan import next_widths
from supernet.tokens.modes import TOKEN_MODES, Assignment, TokenMode, combine

OURS = ["prune", "prune_fused", "merge", "prune_merge", "tome"]
SIZED = ["merge", "prune_merge", "tome"]
AUTHORS = ["prune", "merge", "prune_merge"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "class-token": {"lln": True},
    "patches-only": {"class_token": False, "global_pool": "avg", "fc_norm": True, "lln": False},
    "avg-of-clip": {"global_pool": "avg", "pre_norm": True, "act": "quick_gelu", "norm_eps": 1e-5, "lln": True},
    "authors": {"prance_embed_dim": 32, "norm_eps": 1e-5, "lln": True},
}
BATCH = 10


def make_config(mode: str, architecture: str, decide_first: bool) -> SupernetConfig:
    space = SearchSpace(
        (2, 2) if decide_first else (1, 2, 2),
        embed_dims=(8, 16, 24),
        mlp_ratios=(1.1, 2.0),
        num_heads=(2,) if architecture == "authors" else (1, 2, 3),
        min_keep_rate=0.05,
        token_mode=mode,
        decide_first_group=decide_first,
    )
    return SupernetConfig(space, 24, 4, 3, 5, head_dim=8, **ARCHITECTURES[architecture])


CASES = {
    f"{mode}-{architecture}-{'first' if first else 'later'}": (mode, architecture, first)
    for architecture in ARCHITECTURES
    for mode in (AUTHORS if architecture == "authors" else OURS)
    for first in (False, True)
}


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def net(request: pytest.FixtureRequest) -> Supernet:
    """A random frozen supernet for every mode, architecture and first group."""
    return random_net(make_config(*request.param))


@pytest.fixture(scope="module", params=[*OURS, *(f"prance_{mode}" for mode in AUTHORS)])
def mode_net(request: pytest.FixtureRequest) -> Supernet:
    """One network with a class token for every mode."""
    mode = request.param
    authors = mode.startswith("prance_")
    return random_net(make_config(mode.removeprefix("prance_"), "authors" if authors else "class-token", True))


def images_for(net: Supernet, batch_size: int = BATCH, seed: int = 0) -> Tensor:
    c = net.config
    return torch.randn(batch_size, c.in_chans, c.img_size, c.img_size, generator=torch.Generator().manual_seed(seed))


def subnets_for(net: Supernet, batch_size: int = BATCH, seed: int = 1) -> SubnetConfig:
    """Random subnets; the first is full, the second the smallest, the third keeps all patches."""
    drawn = SubnetConfig.random(net.space, batch_size, torch.Generator().manual_seed(seed))
    for image, extreme in enumerate((SubnetConfig.full(net.space), SubnetConfig.min(net.space))):
        for name in ("embed_dim", "mlp_ratio", "keep_rate"):
            getattr(drawn, name)[image] = getattr(extreme, name)[0]
    drawn.keep_rate[2:3] = 1
    return drawn


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= tolerance


# ---- an independent network -------------------------------------------------------------------------------------


def naive_reduction(
    mode: str, x: Tensor, scores: Tensor, keys: Tensor, sizes: list[float], rates: list[float], prefix: int, ours: bool
) -> list[Token]:
    """One image's tokens after a decision, by the formulas of `oracles`."""
    patches = len(x) - prefix
    kept = [patches]
    for rate in rates:
        # The authors count the class token, round down, and would leave no patch.
        kept.append(max(1, math.ceil(rate * kept[-1] - 1e-6) if ours else math.floor(rate * (kept[-1] + 1)) - 1))
    arrays = [t.detach().double().numpy() for t in (x, scores, keys)]
    values, score, key, size = *arrays, np.array(sizes)
    if not ours:
        survive = {"prune": kept[-1], "merge": patches, "prune_merge": kept[1]}[mode]
        return prune_then_merge(values, score, values, size, survive, kept[-1], prefix, weighted=False, ranked=True)
    if mode == "prune":
        return evit(values, score, size, kept[-1], prefix)
    if mode == "prune_fused":
        whole = kept[-1] + 1 >= patches
        return (evit if whole else evit_fused)(values, score, size, patches if whole else kept[-1], prefix)
    if mode == "tome":
        return tome(values, key, size, kept[-1] + prefix, prefix)
    survive = kept[1] if mode == "prune_merge" else patches
    return prune_then_merge(values, score, values, size, survive, kept[-1], prefix)


def naive(net: Supernet, image: Tensor, subnet: SubnetConfig) -> tuple[Tensor, list[int], list[float]]:
    """One normalised image by sliced weights: logits, the token that holds each patch, and the sizes of the tokens."""
    c, space = net.config, net.space
    prefix, full, ours = int(c.class_token), space.embed_dims[-1], c.prance_embed_dim is None
    head_count = dict(zip(space.embed_dims, space.num_heads if len(space.num_heads) > 1 else [2] * 3, strict=True))

    def norm(layer: Any, x: Tensor) -> Tensor:
        w = x.shape[1]
        scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + c.norm_eps).sqrt()
        return scaled * layer.weight[:w] * (1 if ours else math.sqrt(w / 32)) + layer.bias[:w]

    def width(x: Tensor, w: int) -> Tensor:
        return F.pad(x, (0, w - x.shape[1])) if x.shape[1] < w else x[:, :w]

    def activation(x: Tensor) -> Tensor:
        return x / (1 + (-1.702 * x).exp()) if c.act == "quick_gelu" else x * (1 + (x / math.sqrt(2)).erf()) / 2

    x = nn.Sequential.forward(net.patch_embed, image[None])[0].flatten(1).T
    if net.cls_token is not None:
        x = torch.cat([net.cls_token[0], x])
    x = x + net.pos_embed[0]
    x = norm(net.norm_pre, x) if c.pre_norm else x
    sizes, holder = [1.0] * len(x), list(range(prefix, len(x)))
    index, decision = 0, 0
    for group, blocks in enumerate(space.groups):
        for i in range(blocks):
            block: Any = net.blocks[index]
            w = int(subnet.embed_dim[0, index])
            heads, hidden = head_count[w], int(w * float(subnet.mlp_ratio[0, index]) + 1e-6)
            x = width(x, w)
            rows = heads * 3 * c.head_dim
            qkv = norm(block.norm1, x) @ block.qkv.weight[:rows, :w].T + block.qkv.bias[:rows]
            q, k, v = qkv.view(len(x), heads, 3, c.head_dim).unbind(2)
            bias = torch.tensor(sizes).log()
            attention = (torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(c.head_dim) + bias).softmax(-1)
            out = torch.einsum("hqk,khc->qhc", attention, v).flatten(1)
            x = x + out @ block.proj.weight[:w, : out.shape[1]].T + block.proj.bias[:w]
            if i == 0 and (group or space.decide_first_group):
                query = q[0] if prefix else q.mean(0)
                logits = torch.einsum("hc,khc->hk", query, k) / math.sqrt(c.head_dim) + bias
                rates = subnet.keep_rate[0, decision].reshape(-1).tolist()
                scores = logits.softmax(-1).mean(0)
                tokens = naive_reduction(space.token_mode, x, scores, k.mean(1), sizes, rates, prefix, ours)
                decision += 1
                x = torch.from_numpy(np.stack([token.x for token in tokens])).to(x.dtype)
                sizes = [token.size if space.token_mode in SIZED else 1.0 for token in tokens]
                went = {old: new for new, token in enumerate(tokens) for old in token.members}
                holder = [went.get(token, -1) for token in holder]
            h = activation(norm(block.norm2, x) @ block.fc1.weight[:hidden, :w].T + block.fc1.bias[:hidden])
            boundary = i == blocks - 1 and group < len(space.groups) - 1
            given = full if boundary else w
            if not ours and index + 1 < space.depth:
                given = int(subnet.embed_dim[0, index + 1])
            if boundary and c.lln:
                x = x @ block.lln.weight[:given, :w].T + block.lln.bias[:given]
            x = width(x, given) + h @ block.fc2.weight[:given, :hidden].T + block.fc2.bias[:given]
            index += 1
    weight = torch.tensor(sizes[prefix:])[:, None] / sum(sizes[prefix:])
    if c.global_pool == "token":
        features = norm(net.norm, x[:1])
    elif c.fc_norm:
        features = norm(net.norm, (x[prefix:] * weight).sum(0, keepdim=True))
    else:
        features = (norm(net.norm, x[prefix:]) * weight).sum(0, keepdim=True)
    assert net.head is not None
    return features[0] @ net.head.weight[:, : features.shape[1]].T + net.head.bias, holder, sizes


def test_every_image_of_a_mixed_batch_equals_the_naive_oracle(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    assert logits.std(dim=0).min() > 0.1
    sizes = torch.ones(len(state.tokens)) if state.size is None else state.size
    expected = [naive(net, images[i], subnet[i]) for i in range(BATCH)]
    assert_close(logits, torch.stack([logit for logit, _, _ in expected]))
    assert state.patch_token.tolist() == [holder for _, holder, _ in expected]
    assert [size.tolist() for size in sizes.split(state.num_tokens.tolist())] == [size for _, _, size in expected]


# ---- batches ----------------------------------------------------------------------------------------------------


def test_a_mixed_batch_equals_every_image_alone_in_any_order_and_its_extracted_network(net: Supernet) -> None:
    images, subnet = images_for(net), subnets_for(net)
    logits = net(images, subnet)
    assert_close(torch.cat([net(images[i : i + 1], subnet[i]) for i in range(BATCH)]), logits)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))
    assert_close(net(images[order], subnet[order]), logits[order])
    for i in range(BATCH):
        static = net.extract(subnet[i])
        assert_close(static(images[[i, 0]])[:1], logits[i : i + 1])
        assert sum(p.numel() for p in static.parameters()) == net.params(subnet[i]).item()
    assert net.params(subnet).tolist() == [net.params(subnet[i]).item() for i in range(BATCH)]


def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_its_images(net: Supernet) -> None:
    net = copy.deepcopy(net).double().requires_grad_(True)
    images, subnet = images_for(net).double(), subnets_for(net)
    weights = torch.randn(BATCH, net.config.num_classes, generator=torch.Generator().manual_seed(3))

    (net(images, subnet) * weights).sum().backward()
    together = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    assert len(together) == len(list(net.parameters()))
    net.zero_grad()
    for i in range(BATCH):
        (net(images[i : i + 1], subnet[i]) * weights[i]).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max()
        assert scale > 0, name
        assert (together[name] - parameter.grad).abs().max() <= 1e-5 * scale, name


def test_gradients_are_those_of_the_extracted_network(mode_net: Supernet) -> None:
    net = copy.deepcopy(mode_net).double().requires_grad_(True)
    images, subnet = images_for(net).double(), subnets_for(net)[5]
    static = net.extract(subnet)
    (net(images, subnet) ** 2).sum().backward()
    (static(images) ** 2).sum().backward()
    ours, theirs = dict(net.named_parameters()), dict(static.named_parameters())
    for name in ("pos_embed", "patch_embed.0.weight"):
        a, b = ours[name].grad, theirs[name].grad
        assert a is not None
        assert b is not None
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


# ---- step by step -----------------------------------------------------------------------------------------------


def test_steps_spend_the_counted_macs_and_lead_to_the_same_logits(net: Supernet) -> None:
    images, subnet, config, space = images_for(net), subnets_for(net), net.config, net.space
    end = net.forward_features(images, subnet)
    assert (end.macs + head_macs(config, end.token_dim)).tolist() == net.macs(subnet).tolist()
    assert net.macs_to_go(end).tolist() == net.macs(subnet).tolist()
    state = net.begin(images, next_dim=next_widths(config, 0, subnet))
    assert state.group == (0 if space.decide_first_group else 1)
    while state.group < len(space.groups):
        if not config.prance_embed_dim:
            assert_close(net.finish(state), net(images, decided_until(net, subnet, state.group)))
            assert net.macs_to_go(state).tolist() == net.macs(decided_until(net, subnet, state.group)).tolist()
        choice, next_dim = subnet.group(space, state.group), next_widths(config, state.group, subnet)
        state = net.run_group(state, state.group, choice, next_dim)
    assert_close(net.forward_head(state), net(images, subnet))
    assert state.embed_dim.tolist() == subnet.embed_dim[:, -1].tolist()
    for name, value in vars(end).items():
        same = getattr(state, name)
        assert (value is None) == (same is None), name
        if value is not None:
            assert_close(torch.as_tensor(same).double(), torch.as_tensor(value).double())


def decided_until(net: Supernet, subnet: SubnetConfig, group: int) -> SubnetConfig:
    """The subnets with everything from `group` on at full size."""
    full, block = SubnetConfig.full(net.space, len(subnet)), net.space.blocks(group).start
    decision = group - net.space.first_decided
    return SubnetConfig(
        torch.cat([subnet.embed_dim[:, :block], full.embed_dim[:, block:]], dim=1),
        torch.cat([subnet.mlp_ratio[:, :block], full.mlp_ratio[:, block:]], dim=1),
        torch.cat([subnet.keep_rate[:, :decision], full.keep_rate[:, decision:]], dim=1),
    )


@pytest.mark.parametrize("mode", AUTHORS)
@pytest.mark.parametrize("first", [False, True])
def test_the_authors_hand_on_the_full_width_while_the_next_is_not_decided(mode: str, first: bool) -> None:
    net = random_net(make_config(mode, "authors", first))
    images, subnet, space = images_for(net), subnets_for(net), net.space
    state = net.begin(images)
    assert_close(net.finish(state), net(images))
    assert net.macs_to_go(state).tolist() == net.macs().expand(BATCH).tolist()
    state = net.run_group(state, space.first_decided, subnet.group(space, space.first_decided))
    assert (state.token_dim == space.embed_dims[-1]).all()
    rest = net.macs_to_go(state)
    after = net.finish(state, subnet)
    last = net.run_group(state, state.group, subnet.group(space, state.group))
    assert_close(net.forward_head(last), after)
    assert net.macs_to_go(last).tolist() == (last.macs + last.token_dim * net.config.num_classes).tolist()
    assert rest[0] == net.macs().item()
    assert rest[1] > net.macs_to_go(last)[1]


def test_the_token_of_every_patch_really_holds_it(net: Supernet) -> None:
    """Sizes count patches, tokens are reached without gaps, the class token holds none, and no patch comes back."""
    config, mode, space = net.config, net.space.token_mode, net.space
    subnet, state = subnets_for(net), net.begin(images_for(net))
    prefix, kept = config.num_prefix_tokens, state.kept()
    assert kept.all()
    while state.group < len(space.groups):
        state = net.run_group(state, state.group, subnet.group(space, state.group))
        assert (state.size is not None) == (mode in SIZED)
        ends = np.cumsum(state.num_tokens)
        for i, n in enumerate(state.num_tokens):
            holders = state.patch_token[i][state.kept()[i]]
            count = torch.bincount(holders, minlength=int(n))
            assert len(count) == n
            assert (count[:prefix] == 0).all()
            assert (count[prefix:] > 0).all()
            if mode in SIZED:
                assert state.size is not None
                size = state.size[ends[i] - n : ends[i]]
                assert size[prefix:].tolist() == count[prefix:].tolist()
                assert (size[:prefix] == 1).all()
            elif mode == "prune":
                assert (count[prefix:] == 1).all()
            else:
                assert (count[prefix:-1] == 1).all() or state.group - space.first_decided > 1
                assert state.kept()[i].all()
        assert not (state.kept() & ~kept).any()
        kept = state.kept()
    assert kept.all() == (mode not in ("prune", "prune_merge"))


def test_indexing_a_state_selects_reorders_and_repeats_images(net: Supernet) -> None:
    images, subnet, space = images_for(net), subnets_for(net), net.space
    state = net.begin(images)
    group = state.group
    state = net.run_group(state, group, subnet.group(space, group))
    logits, rest = net.finish(state, subnet), net.macs_to_go(state)
    alone = net.run_group(net.begin(images[4:5]), group, subnet[4].group(space, group))
    assert torch.equal(state[[4]].patch_token, alone.patch_token)
    assert_close(state[[4]].tokens, alone.tokens)
    if state.size is not None:
        assert alone.size is not None
        assert_close(torch.as_tensor(state[[4]].size), alone.size)
    for index in ([4], [5, 2, 2, 8, 0, 5], slice(3, 7), torch.tensor([8, 7]), torch.arange(BATCH) % 2 == 0):
        chosen = torch.arange(BATCH)[index]
        picked = state[index]
        assert len(picked) == len(chosen)
        assert torch.equal(picked.patch_token, state.patch_token[chosen])
        assert picked.token_dim.tolist() == [state.token_dim[i] for i in chosen]
        assert net.macs_to_go(picked).tolist() == [rest[i] for i in chosen]
        assert_close(net.finish(picked, subnet[chosen]), logits[chosen])


def test_mean_keys_are_those_of_the_last_block_and_follow_the_tokens(mode_net: Supernet) -> None:
    net, subnet, images = mode_net, subnets_for(mode_net), images_for(mode_net)
    plain = net.run_group(net.begin(images), 0, subnet.group(net.space, 0))
    state = net.run_group(net.begin(images, key_mean=True), 0, subnet.group(net.space, 0))
    assert torch.equal(state.tokens, plain.tokens)
    assert plain.key_mean is None
    assert state.key_mean is not None
    assert state.key_mean.shape == (int(state.num_tokens.sum()),)
    padded = state.padded_key_mean(net.config.num_tokens)
    for i, n in enumerate(state.num_tokens):
        alone = net.run_group(net.begin(images[[i]], key_mean=True), 0, subnet[i].group(net.space, 0))
        assert alone.key_mean is not None
        assert_close(padded[i, :n], alone.key_mean)
        assert (padded[i, n:] == 0).all()
        assert_close(state[[i]].padded_key_mean(int(n))[0], alone.key_mean)
    keys: list[Tensor] = []
    static: Any = net.extract(subnet[3])
    last = net.space.blocks(0)[-1]
    static.blocks[last].qkv.register_forward_hook(lambda module, inputs, output: keys.append(output))
    static(images[3:4])
    heads = net.space.heads(int(subnet.embed_dim[3, last]))
    expected = keys[0].view(-1, heads, 3, net.config.head_dim)[:, :, 1].mean((1, 2))
    assert_close(padded[3, : state.num_tokens[3]], expected)


# ---- costs ------------------------------------------------------------------------------------------------------


def test_macs_equal_pytorchs_count_on_a_hundred_extracted_networks_of_every_mode(net: Supernet) -> None:
    """Seventeen for each of six networks a mode, fifty for the two of each of the authors' modes."""
    number = 50 if net.config.prance_embed_dim else 17
    image, subnet = images_for(net, 1), subnets_for(net, number, seed=4)
    counted = []
    for one in (subnet[i] for i in range(number)):
        static = net.extract(one)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            static(image)
        counted.append(counter.get_total_flops())
    assert (2 * net.macs(subnet)).tolist() == counted
    assert len(set(counted)) > number // 2


@pytest.mark.parametrize("mode", OURS)
def test_pytorch_counts_the_full_networks_macs_when_the_supernet_itself_runs(mode: str) -> None:
    net = random_net(make_config(mode, "class-token", False))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(images_for(net, 3))
    assert counter.get_total_flops() == 3 * 2 * int(net.macs())


def peak_memory(run: Callable[[], Any]) -> int:
    """Most bytes that were allocated at once during `run`, by PyTorch's own account; the same in every run."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [(e.start_ns(), e.nbytes()) for e in results.kineto_results.events() if e.name() == "[memory]"]
    assert events
    return int(np.cumsum([size for _, size in sorted(events, key=lambda event: event[0])]).max())


@pytest.mark.parametrize("mode", OURS)
def test_subnets_of_half_the_macs_need_less_memory_than_the_full_network(mode: str) -> None:
    space = SearchSpace((2, 2, 2), (32, 48, 64), (1.0, 2.0, 4.0), (4,), 0.1, mode, decide_first_group=True)
    net = random_net(SupernetConfig(space, 48, 4, 3, 7, head_dim=16, lln=False))
    images, drawn = images_for(net, 16), SubnetConfig.random(space, 4000, torch.Generator().manual_seed(5))
    share = net.macs(drawn) / net.macs()
    half = (share - 0.5).abs().argsort()[:16]
    subnet = drawn[half]
    assert len({one.to_json() for one in (subnet[i] for i in range(16))}) == 16
    assert 0.4 < share[half].mean() < 0.6
    with torch.no_grad():
        assert peak_memory(lambda: net(images, subnet)) < 0.9 * peak_memory(lambda: net(images))
    trained = copy.deepcopy(net).requires_grad_(True)
    training = peak_memory(lambda: trained(images, subnet).sum().backward())
    assert training < 0.75 * peak_memory(lambda: trained(images).sum().backward())


# ---- no state ---------------------------------------------------------------------------------------------------


def test_no_attribute_of_any_module_changes_during_a_forward_pass(
    net: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, subnet = images_for(net, 4), subnets_for(net, 4)
    static = net.extract(subnet[3])
    for root in (net, static):
        modules = dict(root.named_modules())
        attributes = {name: copy.copy(vars(module)) for name, module in modules.items()}
        inner = {
            (name, key): copy.copy(value)
            for name, module in modules.items()
            for key, value in vars(module).items()
            if isinstance(value, dict | list | set)
        }
        tensors = {name: (t, t._version, t.clone()) for name, t in root.state_dict(keep_vars=True).items()}

        def refuse(module: nn.Module, name: str, value: object) -> None:
            raise AssertionError(f"{type(module).__name__}.{name} was set to {value!r}")

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "__setattr__", refuse)
            if root is static:
                static(images)
            else:
                choice = subnet.group(net.space, net.space.first_decided)
                first = net.run_group(net.begin(images), net.space.first_decided, choice)
                net.forward_head(first)
                net.class_attention(net.begin(images), choice)
                net.finish(first, subnet)
                net(images, subnet)
        assert dict(root.named_modules()).keys() == modules.keys()
        for name, module in root.named_modules():
            assert modules[name] is module
            now = vars(module)
            assert now.keys() == attributes[name].keys()
            assert all(now[key] is attributes[name][key] for key in now), name
            assert all(now[key] == inner[name, key] for key in now if isinstance(now[key], dict | list | set)), name
        for name, tensor in root.state_dict(keep_vars=True).items():
            same, version, value = tensors[name]
            assert tensor is same
            assert tensor._version == version
            assert torch.equal(tensor, value), name


def test_no_state_or_choice_or_image_is_changed(net: Supernet) -> None:
    images, subnet, space = images_for(net), subnets_for(net), net.space
    group = space.first_decided
    state = net.run_group(net.begin(images, key_mean=True), group, subnet.group(space, group))
    kept = copy.deepcopy((images, vars(subnet), vars(state)))
    for use in (
        lambda: net.run_group(state, group + 1, subnet.group(space, group + 1)) if group + 1 < len(space.groups) else 0,
        lambda: net.finish(state),
        lambda: net.finish(state, subnet),
        lambda: net.forward_head(state),
        lambda: net.pooled(state),
        lambda: net.macs_to_go(state),
        lambda: net(images, subnet),
        lambda: state[[0, 3]].tokens.zero_(),
    ):
        use()
        assert torch.equal(images, kept[0])
        for now, before in ((vars(subnet), kept[1]), (vars(state), kept[2])):
            for name, value in before.items():
                assert (now[name] is None) == (value is None), name
                if value is not None:
                    assert torch.equal(torch.as_tensor(now[name]), torch.as_tensor(value)), name


def test_two_threads_with_different_subnets_do_not_disturb_each_other(net: Supernet) -> None:
    images, subnets = images_for(net), subnets_for(net, 2 * BATCH)
    parts = [subnets[:BATCH], subnets[BATCH:]]
    alone = [net(images, subnet) for subnet in parts]
    barrier = Barrier(2)

    def run(subnet: SubnetConfig) -> list[Tensor]:
        barrier.wait(timeout=30)
        return [net(images, subnet) for _ in range(4)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(run, parts))
    for expected, results in zip(alone, together, strict=True):
        for logits in results:
            assert_close(logits, expected)


# ---- options of the architecture --------------------------------------------------------------------------------


def test_rate_one_in_every_decision_is_the_full_network_whatever_the_mode() -> None:
    for architecture in ("class-token", "patches-only", "avg-of-clip"):
        for first in (False, True):
            nets = [random_net(make_config(mode, architecture, first)) for mode in OURS]
            images = images_for(nets[0], 3)
            logits = [one(images) for one in nets]
            assert all(torch.equal(other, logits[0]) for other in logits[1:])
            assert {one.macs().item() for one in nets} == {nets[0].macs().item()}


def test_without_classifier_the_features_are_what_the_classifier_would_read() -> None:
    for architecture in ("class-token", "patches-only", "avg-of-clip"):
        net = random_net(make_config("merge", architecture, True))
        bare = Supernet(replace(net.config, num_classes=0)).eval()
        bare.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("head.")})
        images, subnet = images_for(net), subnets_for(net)
        features = bare(images, subnet)
        assert features.shape == (BATCH, net.config.embed_dim)
        assert net.head is not None
        assert_close(features @ net.head.weight.T + net.head.bias, net(images, subnet))
        assert (features[1, net.space.embed_dims[0] :] == 0).all()
        head = net.macs(subnet) - bare.macs(subnet)
        assert head.tolist() == (subnet.embed_dim[:, -1] * net.config.num_classes).tolist()
        static = bare.extract(subnet[1])
        assert_close(static(images)[1], features[1, : net.space.embed_dims[0]])
        assert sum(p.numel() for p in static.parameters()) == bare.params(subnet[1]).item()


def test_a_state_from_its_tokens_is_the_state_that_began(net: Supernet) -> None:
    images = images_for(net, 3)
    state = net.begin(images, key_mean=True)
    assert state.key_mean is not None
    again = net.begun(state.tokens.view(3, net.config.num_tokens, -1), state.key_mean.view(3, -1))
    for name, value in vars(state).items():
        if value is None:
            assert getattr(again, name) is None
        else:
            assert torch.equal(torch.as_tensor(getattr(again, name)), torch.as_tensor(value)), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", OURS)
def test_extracted_networks_of_every_mode_export_with_a_free_batch_size(mode: str) -> None:
    net = random_net(make_config(mode, "class-token", True))
    subnet = subnets_for(net)[4]
    free = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(net.extract(subnet), (images_for(net, 4),), dynamic_shapes=free).module()
    for batch_size in (2, 7):
        images = images_for(net, batch_size)
        assert_close(exported(images), net(images, subnet))


def test_a_mode_of_ones_own_needs_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours in reading order are averaged until few enough remain: a pooling that no mode of ours does."""

    def pool(
        scores: Tensor | None, metric: Tensor | None, size: Tensor, lengths: Ints, counts: Ints, prefix: int
    ) -> Assignment:
        assert scores is None
        assert metric is None
        position = torch.arange(size.shape[1])
        n, kept = (torch.as_tensor(values)[:, None] for values in (lengths, counts[:, -1]))
        into = prefix + (position - prefix) * (kept - prefix) // (n - prefix)
        into = torch.where(position < prefix, position, into)
        return torch.where(position < n, into, -1).expand_as(size), size

    monkeypatch.setitem(TOKEN_MODES, "pool", TokenMode(pool, uses_scores=False, sized=True))
    net = Supernet(make_config("pool", "class-token", True)).eval()
    images, subnet = images_for(net), subnets_for(net)
    logits, state = net(images, subnet), net.forward_features(images, subnet)
    assert_close(torch.cat([net(images[i : i + 1], subnet[i]) for i in range(BATCH)]), logits)
    assert_close(torch.cat([net.extract(subnet[i])(images[i : i + 1]) for i in range(BATCH)]), logits)
    assert state.kept().all()
    assert (state.patch_token.diff(dim=1) >= 0).all()


def test_combining_keeps_the_dtype_of_the_tokens() -> None:
    x, into = torch.randn(1, 4, 3, dtype=torch.float16), torch.tensor([[0, 1, 1, -1]])
    for weight in (None, torch.ones(1, 4)):
        assert combine(x, into if weight is not None else torch.tensor([[0, 1, -1, -1]]), 2, weight).dtype == x.dtype


@pytest.mark.parametrize("mode", OURS)
def test_half_precision_stays_near_single(mode: str) -> None:
    net = random_net(make_config(mode, "class-token", False))
    images, subnet = images_for(net), subnets_for(net)
    subnet.keep_rate[:] = 1
    half = copy.deepcopy(net).bfloat16()
    logits = half(images.bfloat16(), subnet)
    assert logits.dtype == torch.bfloat16
    reference = net(images, subnet)
    assert (logits.float() - reference).abs().max() < 0.1 * reference.abs().max()
    dropped = half(images.bfloat16(), subnets_for(net))
    assert dropped.isfinite().all()


def test_a_choice_for_the_first_group_is_what_the_subnet_says() -> None:
    net = random_net(make_config("merge", "class-token", False))
    images, subnet = images_for(net), subnets_for(net)
    subnet.embed_dim[:, 0] = torch.tensor(net.space.embed_dims)[torch.arange(BATCH) % 3]
    choice = subnet.group(net.space, 0)
    assert torch.equal(choice.embed_dim[:, 0], subnet.embed_dim[:, 0])
    assert (choice.keep_rate == 1).all()
    assert_close(net.finish(net.begin(images, choice), subnet), net(images, subnet))
    full = GroupChoice.full(net.space, 0, BATCH)
    assert torch.equal(net.begin(images, full).tokens, net.begin(images).tokens)
