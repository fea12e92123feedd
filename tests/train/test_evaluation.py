"""What an evaluation says of an agent: shares of the full network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import make_engine, random_net, settings_for
from noise_envs import TINY

from agents import FullAgent, StaticAgent
from supernet import SubnetConfig
from train.evaluate import evaluate


@pytest.mark.parametrize("changes", [{"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}])
def test_shares_are_of_the_full_networks_patches_and_parameters(changes: dict[str, Any]) -> None:
    engine = make_engine(random_net(replace(TINY, **changes)), 6)
    config, smallest = engine.config, SubnetConfig.min(engine.config.space)
    agents = FullAgent(config), StaticAgent(smallest, config)
    full, small = (evaluate(agent, settings_for(engine)) for agent in agents)
    assert (full.patches == 1).all()
    assert (full.params_fraction == 1).all()
    np.testing.assert_allclose(small.params_fraction, engine.net.extract(smallest).params() / full.params)
    assert (small.patches * config.num_patches >= 1).all()
