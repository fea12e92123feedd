"""Whole networks in every token mode, group by group; and that no call changes what it was given."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_net
from mode_nets import AUTHORS, BATCH, SIZED, assert_close, computed_together, images_for, make_config, subnets_for
from torch import Tensor, nn

from supernet import SubnetConfig, Supernet
from supernet.macs import head_macs
from supernet.plan import next_widths


def test_steps_spend_the_counted_macs_and_lead_to_the_same_logits(net: Supernet) -> None:
    images, subnet, config, space = images_for(net), subnets_for(net), net.config, net.space
    end = net.forward_features(images, subnet)
    assert (end.macs + head_macs(config, end.token_dim, end.num_tokens)).tolist() == net.macs(subnet).tolist()
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


def test_two_threads_with_different_subnets_do_not_disturb_each_other(mode_net: Supernet) -> None:
    net = mode_net
    images, subnets = images_for(net), subnets_for(net, 2 * BATCH)
    parts = [subnets[:BATCH], subnets[BATCH:]]
    alone = [net(images, subnet) for subnet in parts]
    together = computed_together(net, images, parts, 4)
    for expected, results in zip(alone, together, strict=True):
        for logits in results:
            assert_close(logits, expected)
