"""Keep rates that were rounded to float32, as actions are, keep as many patches as those that were not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import random_net
from mode_nets import make_config

from prance_env.spaces import decode_actions, encode_actions
from supernet import SubnetConfig, Supernet, runtime
from supernet.arrays import Floats
from supernet.config import with_space
from supernet.plan import plan_subnet
from supernet.tokens.modes import kept_tokens


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("lowest", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("patches", [16, 49, 196, 576, 1370])
def test_every_count_is_kept(patches: int, lowest: float, normalised: bool) -> None:
    kept = np.arange(max(1, np.ceil(lowest * patches)), patches + 1)
    exact, before = kept / patches, np.full(len(kept), patches)
    decoded = decode_actions(encode_actions((exact - lowest) / (1 - lowest), normalised), normalised)
    for rates in (exact, exact.astype(np.float32).astype(np.float64), lowest + (1 - lowest) * decoded):
        assert kept_tokens(before, rates, 0).tolist() == kept.tolist()
        on_device = kept_tokens(torch.from_numpy(before), torch.from_numpy(rates), 0)  # type: ignore[arg-type]
        assert on_device.tolist() == kept.tolist()


@pytest.fixture(scope="module")
def net() -> Supernet:
    """49 patches, two decisions."""
    config = with_space(make_config("prune", "class-token", False), min_keep_rate=0.0)
    return random_net(replace(config, img_size=7 * config.patch_size))


@pytest.fixture(scope="module")
def played(net: Supernet) -> tuple[SubnetConfig, list[int]]:
    """Small subnets that keep a count at the first decision and no fewer later, played as actions; the counts."""
    kept = np.arange(1, 50, 4)
    smallest = SubnetConfig.min(net.space, len(kept))
    rates: Floats = np.stack([kept / 49, np.ones(len(kept))], axis=1)
    unit = replace(smallest, keep_rate=torch.from_numpy(rates)).to_actions(net.space).numpy()
    again = SubnetConfig.from_actions(net.space, torch.from_numpy(decode_actions(encode_actions(unit, True), True)))
    return again, [1 + k for k in kept.tolist()]


def test_plans_and_static_networks_keep_as_many(net: Supernet, played: tuple[SubnetConfig, list[int]]) -> None:
    subnet, tokens = played
    assert plan_subnet(net.config, subnet)[-1].num_left.tolist() == tokens
    assert [net.extract(subnet[i]).block_sizes[-1].tokens for i in range(len(subnet))] == tokens


def test_tiles_keep_as_many(net: Supernet, played: tuple[SubnetConfig, list[int]]) -> None:
    pytest.importorskip("triton")
    subnet, tokens = played
    shape = (len(subnet), net.config.in_chans, net.config.img_size, net.config.img_size)
    for way in ("segments", "tiles"):
        with torch.no_grad(), runtime.use(way):
            assert net.forward_features(torch.zeros(shape), subnet).num_tokens.tolist() == tokens


def test_a_rate_that_was_rounded_below_the_lowest_is_its_action() -> None:
    space = with_space(make_config("prune", "class-token", False), min_keep_rate=0.7).space
    rates = torch.full((1, space.num_decisions), 0.7)
    assert rates.double().max() < 0.7
    rounded = replace(SubnetConfig.full(space), keep_rate=rates)
    assert rounded.to_actions(space)[0, :, -1].tolist() == [0] * space.num_decisions
    with pytest.raises(ValueError, match=r"has no action: the smallest is 0.7"):
        replace(rounded, keep_rate=rates - 1e-6).to_actions(space)
