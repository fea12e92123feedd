"""The authors' selector against what their code computed (tests/fixtures/ppo.npz, see its README)."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from agents import PrancePPO, PrancePPOConfig, PranceSelector, load_prance_selector
from agents.authors_selector import exploration_std
from agents.prance_ppo.policy import GaussianPolicy
from agents.prance_ppo.rollout import gae
from prance_env.rewards.config import RewardConfig, accuracy_term
from prance_env.spaces import decode_actions
from supernet import GroupChoice, SearchSpace, create_supernet, supernet_config

RECORDED = np.load(Path(__file__).parent.parent / "fixtures" / "ppo.npz")
MODES = {"prune": 1, "prune_merge": 2}
SUPERNETS = {"T": "prance_vit_tiny", "S": "prance_vit_small", "B": "prance_vit_base"}


def weights(mode: str, part: str) -> dict[str, Tensor]:
    """The recorded "actor" or "critic"."""
    prefix = f"{mode}/{part}/"
    return {k.removeprefix(prefix): torch.from_numpy(RECORDED[k]) for k in RECORDED if k.startswith(prefix)}


def selector(mode: str = "prune", **settings: Any) -> PranceSelector:
    """The recorded actor and critic."""
    source = {"actor": weights(mode, "actor"), "critic": weights(mode, "critic")}
    return load_prance_selector(source, MODES[mode], **settings)


def recorded(name: str, mode: str = "prune") -> NDArray[Any]:
    """One recorded array."""
    return RECORDED[f"{mode}/{name}"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize_actions", [False, True])
def test_actions_and_values_are_the_authors(mode: str, normalize_actions: bool) -> None:
    agent, states = selector(mode, normalize_actions=normalize_actions), recorded("states", mode)
    actions, state = agent.predict(states, state="kept", deterministic=True)
    assert state == "kept"
    assert all(agent.action_space.contains(a) for a in actions)
    unit = decode_actions(actions, normalize_actions)
    np.testing.assert_allclose(unit, recorded("mu", mode), atol=1e-6, rtol=0)
    np.testing.assert_allclose(unit, recorded("take_action_eval", mode), atol=1e-6, rtol=0)
    np.testing.assert_allclose(agent.value(states), recorded("value", mode)[:, 0], atol=1e-6, rtol=0)
    for row, action in zip(states, actions, strict=True):
        np.testing.assert_allclose(agent.predict(row, deterministic=True)[0], action, atol=1e-6)


def test_noise_has_the_asked_deviation_and_the_authors_schedule() -> None:
    np.testing.assert_allclose(
        [exploration_std(int(s)) for s in RECORDED["std_steps"]], RECORDED["std_values"], atol=1e-12
    )
    agent = selector(std=exploration_std(4000), seed=3)
    state = np.repeat(recorded("states")[:1], 4000, axis=0)
    actions, _ = agent.predict(state)
    inside = np.abs(recorded("mu")[0] - 0.5).argmin()
    assert actions[:, inside].std() == pytest.approx(0.15, rel=0.05)
    assert actions.min() == 0
    np.testing.assert_array_equal(actions, selector(std=0.15, seed=3).predict(state)[0])
    assert not np.array_equal(actions, selector(std=0.15, seed=4).predict(state)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SUPERNETS)
def test_actions_stand_for_the_authors_choices(mode: str, size: str) -> None:
    space = supernet_config(SUPERNETS[size]).space
    tiny = SearchSpace(space.groups, space.embed_dims, space.mlp_ratios, space.num_heads, min_keep_rate=1e-9)
    np.testing.assert_array_equal(space.embed_dims, RECORDED[f"choices_{size}/embed_dim"])
    for block, rolled in ((3, 0), (6, 2), (9, 3)):
        action = np.roll(recorded("hand_action", mode), rolled, axis=0)
        choice = GroupChoice.from_actions(tiny, torch.from_numpy(decode_actions(action, False))[:, : space.action_size])
        group = slice(block, block + 3)
        np.testing.assert_array_equal(choice.embed_dim, recorded(f"a2c_{size}_float/embed_dim", mode)[:, group])
        np.testing.assert_array_equal(choice.mlp_ratio, recorded(f"a2c_{size}_float/mlp_ratio", mode)[:, group])
        if size == "T":
            rates = recorded("a2c_T_float/prune_granularity", mode)[:, block]
            np.testing.assert_allclose(choice.keep_rate, rates, atol=1e-8)


@pytest.mark.skipif(not hasattr(RewardConfig, "paper"), reason="this version has no preset of the paper's reward")
def test_rewards_are_the_authors() -> None:
    accuracy, target, flops = (recorded(f"reward_hard/{k}") for k in ("in_acc", "in_target_acc", "in_flops"))
    keep_rate = recorded("hand_action")[:, -1]
    full_macs = create_supernet("prance_vit_tiny").macs().item()
    reward = RewardConfig.paper(supernet_config("prance_vit_tiny"))  # type: ignore[attr-defined, unused-ignore]
    unused = np.zeros(len(flops))
    found = accuracy_term(reward.accuracy, accuracy == 100, target == 100, unused, unused)
    found = found - reward.macs_weight * flops / full_macs - reward.token_weight * keep_rate
    np.testing.assert_allclose(found, recorded("reward_hard/out_total_reward"), atol=1e-6)


def flat_update() -> dict[str, Tensor]:
    """What the authors' update does before its epochs, on three steps of four images in one list, step by step."""
    critic = selector().policy
    data = {k: torch.from_numpy(recorded(f"update/{k}")) for k in ("states", "next_states", "rewards", "dones")}
    with torch.no_grad():
        values, later = critic.value(data["states"]), critic.value(data["next_states"])
    target = data["rewards"].float() + 0.9 * later * ~data["dones"]
    advantage, running = torch.zeros(12), 0.0
    for i in reversed(range(12)):
        running = float(target[i] - values[i]) + 0.81 * running  # also from one image to another
        advantage[i] = running
    return {"values": values, "later": later, "target": target, "advantage": advantage, **data}


def test_targets_are_the_authors_and_advantages_are_not_mixed_between_images() -> None:
    flat = flat_update()
    np.testing.assert_allclose(flat["target"], recorded("update/td_target")[:, 0], atol=1e-6)
    deltas = flat["target"] - flat["values"]
    np.testing.assert_allclose(deltas, recorded("update/td_delta")[:, 0], atol=1e-6)
    np.testing.assert_allclose(flat["advantage"], recorded("update/advantage_flat")[:, 0], atol=1e-5)

    ends = flat["dones"].view(3, 4)
    arguments = [flat[k].float().view(3, 4) for k in ("rewards", "values", "later")]
    ours = gae(arguments[0], arguments[1], arguments[2] * ~ends, ends, 0.9, 0.9)
    d = deltas.view(3, 4)
    torch.testing.assert_close(ours[2], d[2])
    torch.testing.assert_close(ours[1], d[1] + 0.81 * d[2])
    torch.testing.assert_close(ours[0], d[0] + 0.81 * d[1] + 0.81**2 * d[2])
    theirs = flat["advantage"].view(3, 4)
    assert theirs[2, 3] == pytest.approx(ours[2, 3].item(), abs=1e-6)  # the end of the list is the end of an episode
    assert (theirs - ours).flatten()[:-1].abs().min() > 1e-3


def test_the_authors_update_scores_every_number_of_an_action_alone() -> None:
    """Their ten epochs, rebuilt from the description, so that all that differs from `PrancePPO` is accounted for."""
    flat, policy = flat_update(), selector().policy
    actions = torch.from_numpy(recorded("update/actions")).float()
    advantage = (flat["advantage"] - flat["advantage"].mean()) / (flat["advantage"].std() + 1e-5)

    def log_prob() -> Tensor:
        return torch.distributions.Normal(policy.mean(flat["states"]), 0.3).log_prob(actions)

    old = log_prob().detach()
    optimizers = [
        (net, torch.optim.Adam(net.parameters(), rate, eps=1e-5))
        for net, rate in ((policy.actor, 1e-4), (policy.critic, 5e-3))
    ]
    for _ in range(10):
        ratio, weight = (log_prob() - old).exp(), advantage[:, None]
        actor_loss = -torch.min(ratio * weight, ratio.clamp(0.8, 1.2) * weight).mean()
        critic_loss = torch.nn.functional.mse_loss(policy.value(flat["states"]), flat["target"])
        for (net, optimizer), loss in zip(optimizers, (actor_loss, critic_loss), strict=True):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
    states = torch.from_numpy(recorded("states"))
    np.testing.assert_allclose(policy.mean(states).detach(), recorded("update/mu_after"), atol=1e-5)
    np.testing.assert_allclose(policy.value(states).detach(), recorded("update/value_after")[:, 0], atol=1e-4)


@pytest.mark.parametrize("layout", ["state_dict", "dict", "flat", "safetensors", "actor_only"])
def test_weights_are_found_in_every_usual_file(tmp_path: Path, layout: str) -> None:
    actor, critic = weights("prune", "actor"), weights("prune", "critic")
    path = tmp_path / ("weights.safetensors" if layout == "safetensors" else "weights.pth")
    prefixed = {f"actor.{k}": v for k, v in actor.items()} | {f"critic.{k}": v for k, v in critic.items()}
    if layout == "safetensors":
        save_file(prefixed, path)
    else:
        content = {"state_dict": actor, "dict": {"actor": actor, "critic": critic}, "flat": prefixed}
        torch.save(content.get(layout, {"actor": actor}), path)
    agent = load_prance_selector(path)
    np.testing.assert_allclose(agent.predict(recorded("states"), deterministic=True)[0], recorded("mu"), atol=1e-6)
    if layout in ("dict", "flat", "safetensors"):
        np.testing.assert_allclose(agent.value(recorded("states")), recorded("value")[:, 0], atol=1e-6)
    else:
        with pytest.raises(ValueError, match="no critic"):
            agent.value(recorded("states"))


class Surprise:
    """What a pickle may hold: code."""

    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_files_that_are_not_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "actor.pth"
    for content in (pickle.dumps(Surprise(), 2), b"\x80", b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"actor\.pth is damaged"):
            load_prance_selector(path)
    torch.save({"actor": Surprise()}, path)
    with pytest.raises(ValueError, match=r"actor\.pth is damaged, or a pickle that holds more than tensors"):
        load_prance_selector(path)
    assert "must never run" not in capsys.readouterr().out
    torch.save(weights("prune", "actor"), path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"actor\.pth is damaged"):
        load_prance_selector(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(ValueError, match="holds a list"):
        load_prance_selector(path)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
        load_prance_selector(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_prance_selector(tmp_path / "nowhere.pth")


def test_weights_that_do_not_fit_are_listed() -> None:
    actor, critic = weights("prune", "actor"), weights("prune", "critic")
    missing = {k: v for k, v in actor.items() if k not in ("fc1.weight", "fc_mu.bias")} | {"fc9.bias": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"missing actor fc1.weight; missing actor fc_mu.bias; unexpected actor fc9.bias"
    ):
        load_prance_selector(missing)
    with pytest.raises(ValueError, match=r"fc_mu.weight has the shape \(7, 64\) instead of \(8, 64\)"):
        load_prance_selector(actor, num_rates=2)
    with pytest.raises(ValueError, match=r"fc2.bias has the shape \(3,\) instead of \(64,\)"):
        load_prance_selector({**actor, "fc2.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"critic fc1.weight has the shape \(64, 65\) instead of \(64, 60\)"):
        load_prance_selector({"actor": {**actor, "fc1.weight": torch.zeros(64, 60)}, "critic": critic})
    with pytest.raises(ValueError, match=r"fc1\.weight holds NaN"):
        load_prance_selector({**actor, "fc1.weight": torch.full((64, 65), torch.nan)})
    with pytest.raises(ValueError, match=r"fc1\.bias is a float, not a tensor"):
        load_prance_selector({**actor, "fc1.bias": 3.0})
    with pytest.raises(ValueError, match="not matrices"):
        load_prance_selector({**actor, "fc1.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="actor is a list"):
        load_prance_selector({"actor": [1]})
    with pytest.raises(ValueError, match=r"parts \['critic'\]"):
        load_prance_selector({"critic": critic})
    with pytest.raises(ValueError, match="num_rates=3"):
        load_prance_selector(actor, num_rates=3)
    with pytest.raises(ValueError, match="std=0"):
        load_prance_selector(actor, std=0)
    with pytest.raises(ValueError, match=r"shape \(2, 9\).*\(65,\) or \(B, 65\)"):
        load_prance_selector(actor).predict(np.zeros((2, 9), dtype=np.float32))


@pytest.mark.parametrize("with_critic", [True, False])
def test_a_saved_selector_comes_back_the_same(tmp_path: Path, with_critic: bool) -> None:
    source = {"actor": weights("prune_merge", "actor")} | (
        {"critic": weights("prune_merge", "critic")} if with_critic else {}
    )
    agent = load_prance_selector(source, 2, normalize_actions=True, std=0.2, seed=5)
    agent.save(tmp_path / "agent.safetensors")
    loaded = PranceSelector.load(tmp_path / "agent.safetensors")
    states = recorded("states", "prune_merge")
    np.testing.assert_array_equal(loaded.predict(states)[0], agent.predict(states)[0])
    assert loaded.has_critic == with_critic
    assert (loaded.num_rates, loaded.normalize_actions, loaded.std, loaded.seed) == (2, True, 0.2, 5)
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "agent.safetensors").read_bytes()


def test_damaged_selectors_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    selector().save(path)
    whole = path.read_bytes()
    save_file(weights("prune", "actor"), tmp_path / "foreign.safetensors")
    for content in (whole[:-10], b"", b"{}", whole.replace(b"num_rates", b"num_rites")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"agent\.safetensors is not a PranceSelector's file"):
            PranceSelector.load(path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors is not"):
        PranceSelector.load(tmp_path / "foreign.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PranceSelector.load(tmp_path / "nowhere")


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_prance_ppo_can_start_from_the_selector(low: float) -> None:
    agent = selector()
    actions = gym.spaces.Box(low, 1.0, (7,), np.float32)
    learner = PrancePPO(None, PrancePPOConfig.paper(hidden=(64, 64)), spaces=(agent.observation_space, actions))
    agent.copy_to(learner.policy)
    found, _ = learner.predict(recorded("states"), deterministic=True)
    np.testing.assert_allclose(decode_actions(found, low == -1), recorded("mu"), atol=1e-6)
    np.testing.assert_allclose(
        learner.policy.value(torch.from_numpy(recorded("states"))).detach(), recorded("value")[:, 0], atol=1e-6
    )
    for other in (
        GaussianPolicy(65, actions, (32, 64)),
        GaussianPolicy(65, actions, (64, 64), "tanh"),
        GaussianPolicy(60, actions, (64, 64)),
    ):
        with pytest.raises(ValueError, match=r"hidden=\(64, 64\)\).*\(65,\).*\(7,\)"):
            agent.copy_to(other)
