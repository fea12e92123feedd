"""The elastic network against itself, image by image, and against a naive oracle."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mode_nets import assert_gradients_are_sums_over_images, computed_together
from torch import Tensor, nn

from supernet import GroupChoice, InferenceState, SubnetConfig, Supernet, freeze
from supernet.macs import head_macs, remaining_macs

Images = Callable[[Supernet, int], Tensor]


def random_subnets(net: Supernet, batch_size: int) -> SubnetConfig:
    """Random subnets; the first keeps every patch, the second is the smallest."""
    subnet = SubnetConfig.random(net.space, batch_size, torch.Generator().manual_seed(7))
    subnet.keep_rate[0] = 1
    subnet.embed_dim[1], subnet.mlp_ratio[1], subnet.keep_rate[1] = vars(SubnetConfig.min(net.space)).values()
    return subnet


def naive_logits(net: Supernet, image: Tensor, subnet: SubnetConfig) -> Tensor:
    """One normalised image through full-size weights, with masks over channels, heads, hidden units and patches.

    Only for `token_mode="prune"` with a class token; `test_supernet_modes.py` has an oracle for the others.
    """
    config, space = net.config, net.config.space
    full = config.embed_dim

    def norm(layer: Any, x: Tensor, width: int) -> Tensor:
        active = x[:, :width]
        scaled = (active - active.mean(1, keepdim=True)) / (
            active.var(1, correction=0, keepdim=True) + layer.eps
        ).sqrt()
        return F.pad(scaled * layer.weight[:width] + layer.bias[:width], (0, full - width))

    def mask(size: int, active: int) -> Tensor:
        return (torch.arange(size) < active).float()

    patches = nn.Sequential.forward(net.patch_embed, image[None])[0].flatten(1).T
    x = torch.cat([net.cls_token[0], patches]) + net.pos_embed[0]
    alive = torch.ones(len(x), dtype=torch.bool)
    index = 0
    for group, blocks in enumerate(space.groups):
        for i in range(blocks):
            block: Any = net.blocks[index]
            width = int(subnet.embed_dim[0, index])
            hidden = int(width * float(subnet.mlp_ratio[0, index]))
            tied = len(space.num_heads) > 1
            heads = space.num_heads[space.embed_dims.index(width)] if tied else space.num_heads[0]
            channels = mask(full, width)

            x = x * channels
            qkv = norm(block.norm1, x, width) @ block.qkv.weight.T + block.qkv.bias
            q, k, v = qkv.view(len(x), space.num_heads[-1], 3, config.head_dim).unbind(2)
            logits = torch.einsum("qhc,khc->hqk", q, k) / math.sqrt(config.head_dim)
            attention = logits.masked_fill(~alive, -math.inf).softmax(-1)
            out = torch.einsum("hqk,khc->qhc", attention, v) * mask(space.num_heads[-1], heads)[:, None]
            x = x + (out.flatten(1) @ block.proj.weight.T + block.proj.bias) * channels

            if group > 0 and i == 0:
                kept = max(1, math.ceil(float(subnet.keep_rate[0, group - 1]) * (int(alive.sum()) - 1)))
                patch_scores = attention[:heads, 0, 1:].mean(0).masked_fill(~alive[1:], -1)
                alive = torch.zeros_like(alive)
                alive[0] = True
                alive[patch_scores.topk(kept).indices + 1] = True

            hidden_units = F.gelu(norm(block.norm2, x, width) @ block.fc1.weight.T + block.fc1.bias)
            update = hidden_units * mask(len(block.fc1.bias), hidden) @ block.fc2.weight.T + block.fc2.bias
            if i < blocks - 1 or group == len(space.groups) - 1:
                x = x + update * channels
            elif config.lln:
                x = x @ block.lln.weight.T + block.lln.bias + update
            else:
                x = x + update
            index += 1
    return norm(net.norm, x, width)[0] @ net.head.weight.T + net.head.bias


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= 1e-5


def snapshot(state: InferenceState) -> dict[str, Any]:
    return copy.deepcopy(vars(state))


def assert_same_state(state: InferenceState, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if value is None:
            assert getattr(state, name) is None, name
        else:
            assert torch.equal(torch.as_tensor(getattr(state, name)), torch.as_tensor(value)), name


def test_every_image_of_a_mixed_batch_equals_the_naive_oracle(any_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(any_net, 24), random_subnets(any_net, 24)
    logits = any_net(images, subnet)
    assert logits.std(dim=0).min() > 0.1
    assert_close(logits, torch.stack([naive_logits(any_net, images[i], subnet[i]) for i in range(24)]))


def test_a_first_group_of_any_size_equals_the_naive_oracle_and_its_extracted_network(
    any_net: Supernet, random_images: Images
) -> None:
    images, subnet, first = random_images(any_net, 12), random_subnets(any_net, 12), any_net.space.groups[0]
    generator = torch.Generator().manual_seed(11)
    for name, values in (("embed_dim", any_net.space.embed_dims), ("mlp_ratio", any_net.space.mlp_ratios)):
        sizes = getattr(subnet, name)
        sizes[:, :first] = torch.tensor(values, dtype=sizes.dtype)[
            torch.randint(len(values), (12, first), generator=generator)
        ]
    logits = any_net(images, subnet)
    assert_close(logits, torch.stack([naive_logits(any_net, images[i], subnet[i]) for i in range(12)]))
    assert_close(logits, torch.cat([any_net.extract(subnet[i])(images[i : i + 1]) for i in range(12)]))
    state = any_net.begin(images, subnet.group(any_net.space, 0))
    assert_close(any_net.finish(state, subnet), logits)
    counted = state.macs + remaining_macs(any_net.config, 1, state.num_tokens, subnet)
    assert torch.equal(torch.from_numpy(counted), any_net.macs(subnet))


@pytest.mark.slow
def test_a_mixed_batch_equals_every_image_alone_and_its_extracted_network(
    any_net: Supernet, random_images: Images
) -> None:
    images, subnet = random_images(any_net, 32), random_subnets(any_net, 32)
    logits = any_net(images, subnet)
    assert_close(logits, torch.cat([any_net(images[i : i + 1], subnet[i]) for i in range(32)]))
    assert_close(logits, torch.cat([any_net.extract(subnet[i])(images[i : i + 1]) for i in range(32)]))


def test_permuting_the_batch_permutes_the_logits(any_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(any_net, 32), random_subnets(any_net, 32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    assert_close(any_net(images[order], subnet[order]), any_net(images, subnet)[order])


@pytest.mark.slow
def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_its_images(
    any_net: Supernet, random_images: Images
) -> None:
    net = copy.deepcopy(any_net).requires_grad_(True)
    images, subnet = random_images(net, 16), random_subnets(net, 16)
    assert_gradients_are_sums_over_images(net, images, subnet, 1e-4)


def test_steps_equal_forward_and_spend_the_counted_macs(any_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(any_net, 12), random_subnets(any_net, 12)
    state = any_net.begin(images)
    assert state.group == 1
    for group in range(1, len(any_net.space.groups)):
        state = any_net.run_group(state, group, subnet.group(any_net.space, group))
    assert_close(any_net.finish(state), any_net(images, subnet))
    total = torch.from_numpy(state.macs + head_macs(any_net.config, state.embed_dim, state.num_tokens))
    assert torch.equal(total, any_net.macs(subnet))
    assert torch.equal(torch.from_numpy(state.embed_dim), subnet.embed_dim[:, -1])


def test_result_to_go_is_the_subnet_whose_remaining_groups_are_full(any_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(any_net, 12), random_subnets(any_net, 12)
    full, space = SubnetConfig.full(any_net.space, 12), any_net.space
    state = any_net.begin(images)
    for group in range(1, len(space.groups) + 1):
        start = space.blocks(group - 1).stop
        rest_full = SubnetConfig(
            torch.cat([subnet.embed_dim[:, :start], full.embed_dim[:, start:]], dim=1),
            torch.cat([subnet.mlp_ratio[:, :start], full.mlp_ratio[:, start:]], dim=1),
            torch.cat([subnet.keep_rate[:, : group - 1], full.keep_rate[:, group - 1 :]], dim=1),
        )
        assert_close(any_net.finish(state), any_net(images, rest_full))
        assert_close(any_net.finish(state, subnet), any_net(images, subnet))
        assert torch.equal(torch.from_numpy(any_net.macs_to_go(state)), any_net.macs(rest_full))
        if group < len(space.groups):
            state = any_net.run_group(state, group, subnet.group(space, group))


def test_states_are_never_mutated(digits_net: Supernet, random_images: Images) -> None:
    subnet = random_subnets(digits_net, 8)
    choices = [subnet.group(digits_net.space, g) for g in range(4)]
    before_choices = copy.deepcopy(choices)
    state = digits_net.run_group(digits_net.begin(random_images(digits_net, 8)), 1, choices[1])
    before = snapshot(state)
    for use in (
        lambda: digits_net.run_group(state, 2, choices[2]),
        lambda: digits_net.finish(state),
        lambda: digits_net.finish(state, subnet),
        lambda: digits_net.forward_head(state),
        lambda: digits_net.class_attention(state, choices[2]),
        lambda: state[[0, 3]].tokens.zero_(),
        lambda: state[2:5].tokens.zero_(),
        lambda: state.kept(),
    ):
        use()
        assert_same_state(state, before)
    assert all(torch.equal(a.embed_dim, b.embed_dim) for a, b in zip(choices, before_choices, strict=True))


def test_a_detached_state_has_no_gradients(digits_net: Supernet, random_images: Images) -> None:
    net = copy.deepcopy(digits_net).requires_grad_(True)
    state = net.begin(random_images(net, 2), key_mean=True)
    assert state.key_mean is not None
    assert state.tokens.requires_grad
    assert not any(v.requires_grad for v in vars(state.detach()).values() if isinstance(v, torch.Tensor))


def test_indexing_a_state_selects_reorders_and_repeats_images(digits_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(digits_net, 9), random_subnets(digits_net, 9)
    state = digits_net.run_group(digits_net.begin(images), 1, subnet.group(digits_net.space, 1))
    logits = digits_net.finish(state, subnet)
    alone = digits_net.run_group(digits_net.begin(images[4:5]), 1, subnet[4].group(digits_net.space, 1))
    assert torch.equal(state[[4]].patch_token, alone.patch_token)
    for index in ([4], [5, 2, 2, 8, 0, 5], slice(3, 7), torch.tensor([8, 7]), torch.arange(9) % 2 == 0):
        chosen = torch.arange(9)[index]
        picked = state[index]
        assert len(picked) == len(chosen)
        assert picked.macs.tolist() == [state.macs[i] for i in chosen]
        assert torch.equal(picked.kept(), state.kept()[chosen])
        assert_close(digits_net.finish(picked, subnet[chosen]), logits[chosen])


def test_the_patches_that_stay_are_those_that_the_class_token_attends_to_most(
    any_net: Supernet, random_images: Images
) -> None:
    patches, batch = any_net.config.num_patches, 16
    subnet = random_subnets(any_net, batch)
    state = any_net.begin(random_images(any_net, batch))
    assert state.patch_token.tolist() == [list(range(1, patches + 1))] * batch
    for group in range(1, len(any_net.space.groups)):
        choice = subnet.group(any_net.space, group)
        attention = any_net.class_attention(state, choice).split(state.num_tokens.tolist())
        before = state.patch_token
        state = any_net.run_group(state, group, choice)
        for i, (scores, kept) in enumerate(zip(attention, state.kept(), strict=True)):
            assert math.isclose(scores.sum(), 1, abs_tol=1e-5)
            count = max(1, math.ceil(float(choice.keep_rate[i]) * (len(scores) - 1)))
            assert int(kept.sum()) == count == state.num_tokens[i] - 1
            best = (scores[1:].topk(count).indices + 1).tolist()
            assert kept.tolist() == [int(token) in best for token in before[i]]
            assert state.patch_token[i][kept].tolist() == list(range(1, count + 1))
            assert (state.patch_token[i][~kept] == -1).all()


def test_no_subnet_is_the_full_one_and_one_subnet_serves_every_image(any_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(any_net, 3), random_subnets(any_net, 4)[3]
    assert_close(any_net(images), any_net(images, SubnetConfig.full(any_net.space)))
    assert_close(any_net(images, subnet), any_net(images, subnet.expand(3)))
    assert_close(any_net.finish(any_net.begin(images), subnet), any_net(images, subnet))


def test_bytes_and_floats_of_the_same_picture_give_the_same_logits(any_net: Supernet, random_images: Images) -> None:
    pixels, config = (random_images(any_net, 4) * 255).byte(), any_net.config
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    normalised = (pixels.float() / 255 - mean) / std
    assert_close(any_net(pixels), any_net(normalised))
    assert_close(any_net.extract(SubnetConfig.full(any_net.space))(pixels), any_net(normalised))
    assert (any_net(pixels) - any_net(pixels.float() / 255)).abs().max() > 0.1


def test_the_head_at_a_boundary_reads_the_class_token_of_full_width(
    digits_net: Supernet, random_images: Images
) -> None:
    subnet = random_subnets(digits_net, 5)
    state = digits_net.run_group(digits_net.begin(random_images(digits_net, 5)), 1, subnet.group(digits_net.space, 1))
    first = torch.stack([tokens[0] for tokens in state.tokens.split(state.num_tokens.tolist())])
    assert torch.equal(state.class_token, first)
    assert_close(digits_net.forward_head(state), digits_net.head(digits_net.norm(first)))


def test_a_fresh_boundary_map_changes_nothing(random_images: Images, digits_net: Supernet) -> None:
    torch.manual_seed(0)
    fresh = freeze(Supernet(digits_net.config))
    plain = freeze(Supernet(replace(digits_net.config, lln=False)))
    plain.load_state_dict({k: v for k, v in fresh.state_dict().items() if ".lln." not in k})
    images, subnet = random_images(fresh, 8), random_subnets(fresh, 8)
    assert_close(plain(images, subnet), fresh(images, subnet))


def test_threads_with_different_subnets_do_not_disturb_each_other(digits_net: Supernet, random_images: Images) -> None:
    images, subnets = random_images(digits_net, 16), random_subnets(digits_net, 32)
    parts = [subnets[:16], subnets[16:]]
    alone = [digits_net(images, subnet) for subnet in parts]
    together = computed_together(digits_net, images, parts, 10)
    for expected, results in zip(alone, together, strict=True):
        for logits in results:
            assert_close(logits, expected)


def test_extracted_networks_own_their_weights(digits_net: Supernet, random_images: Images) -> None:
    images, subnet = random_images(digits_net, 2), SubnetConfig.full(digits_net.space)
    before = digits_net(images)
    static = digits_net.extract(subnet)
    for parameter in static.parameters():
        parameter.data.zero_()
    assert torch.equal(digits_net(images), before)
    assert static(images).abs().max() == 0


@pytest.mark.slow
def test_an_extracted_network_exports_with_a_free_batch_size(digits_net: Supernet, random_images: Images) -> None:
    subnet = random_subnets(digits_net, 8)[5]
    static = digits_net.extract(subnet)
    free = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(static, (random_images(digits_net, 4),), dynamic_shapes=free).module()
    for batch_size in (2, 7):
        images = random_images(digits_net, batch_size)
        assert_close(exported(images), digits_net(images, subnet))


def changed(subnet: SubnetConfig, name: str, place: Any, value: float) -> SubnetConfig:
    tensor = getattr(subnet, name).clone()
    tensor[place] = value
    return replace(subnet, **{name: tensor})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x, s: net(x, changed(s, "embed_dim", (1, 4), 20)), r"embed_dim=20 .*block 4 .*\[16, 32, 48, 64\]"),
        (
            lambda net, x, s: net(x, changed(s, "embed_dim", (0, 0), 20)),
            r"embed_dim=20 of image 0, block 0 .*\[16, 32, 48, 64\]",
        ),
        (lambda net, x, s: net(x, changed(s, "mlp_ratio", (2, 9), 3)), r"mlp_ratio=3.0 of image 2.*\[0.5, 1.0, 2.0\]"),
        (lambda net, x, s: net(x, changed(s, "mlp_ratio", (2, 9), math.nan)), "mlp_ratio=nan"),
        (lambda net, x, s: net(x, replace(s, keep_rate=s.keep_rate[:, :2])), "2 keep rates.*3 decisions"),
        (lambda net, x, s: net(x, SubnetConfig(s.embed_dim[:, 1:], s.mlp_ratio[:, 1:], s.keep_rate)), "9 blocks.*10"),
        (lambda net, x, s: net(x, s[:2]), "batch of 3 images got 2 subnets; pass 1 or 3"),
        (lambda net, x, s: net(x[:, :, :40, :40]), r"\(3, 1, 40, 40\).*\(B, 1, 48, 48\)"),
        (lambda net, x, s: net(x.expand(-1, 3, -1, -1)), r"\(3, 3, 48, 48\).*\(B, 1, 48, 48\)"),
        (lambda net, x, s: net(x[0]), r"\(1, 48, 48\).*\(B, 1, 48, 48\)"),
        (lambda net, x, s: net(x[:0]), r"\(0, 1, 48, 48\).*B >= 1"),
        (lambda net, x, s: net((x * 255).long()), r"int64.*uint8 in 0\.\.255, or normalised floats"),
        (lambda net, x, s: net.run_group(net.begin(x), 2, s.group(net.space, 2)), "group=2.*before group 1 of 4"),
        (
            lambda net, x, s: net.run_group(net.forward_features(x), 4, s.group(net.space, 3)),
            "group=4.*before group 4 of 4",
        ),
        (lambda net, x, s: net.run_group(net.begin(x), 1, s[:1].group(net.space, 1)), r"\(1, 3\).*takes \(3, 3\)"),
        (
            lambda net, x, s: net.run_group(
                net.begin(x), 1, replace(GroupChoice.full(net.space, 1, 3), keep_rate=torch.tensor([1, 1.5, math.nan]))
            ),
            r"keep_rate holds \[1.5, nan\].*\(0, 1\]",
        ),
        (
            lambda net, x, s: net.run_group(
                net.begin(x), 1, replace(GroupChoice.full(net.space, 1, 3), embed_dim=torch.full((3, 3), 100))
            ),
            r"embed_dim=100 .*\[16, 32, 48, 64\]",
        ),
        (lambda net, x, s: net.finish(net.begin(x), s[:2]), "batch of 3 images got 2 subnets"),
        (lambda net, x, s: net.finish(net.begin(x), changed(s, "embed_dim", (1, 4), 20)), "embed_dim=20"),
        (lambda net, x, s: net.extract(s), r"one subnet, not 3"),
        (lambda net, x, s: net.extract(changed(s, "embed_dim", (0, 4), 20)[0]), "embed_dim=20"),
        (lambda net, x, s: net.macs(changed(s, "embed_dim", (0, 4), 20)), "embed_dim=20"),
        (lambda net, x, s: net.params(changed(s, "mlp_ratio", (0, 4), 7)), "mlp_ratio=7"),
    ],
)
def test_a_wrong_call_says_what_was_wrong_and_what_is_allowed(
    digits_net: Supernet, random_images: Images, call: Callable[[Supernet, Tensor, SubnetConfig], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(digits_net, random_images(digits_net, 3), random_subnets(digits_net, 3))
