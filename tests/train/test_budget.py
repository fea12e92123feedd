"""One agent for every budget: training it, its front, and the price that keeps to a budget."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal
from helpers import make_engine, settings_for

from agents.baselines import BaselineAgent
from prance_env import InferenceEngine
from prance_env.settings import EnvSettings
from supernet import Supernet
from train import side_by_side as runner
from train.evaluate import evaluate
from train.evaluate.budget import at_price, calibrate, front_prices
from train.evaluate.rows import read_rows
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.report import plots
from train.runs.folder import read_config, write_command
from train.side_by_side import EvalSettings, run_eval

pytestmark = pytest.mark.usefixtures("few_scenes")

LOW, HIGH = 0.01, 0.3


class Thrifty(BaselineAgent):
    """Chooses sizes by the price alone: a smooth function of it, and so of the mean MACs."""

    rising = False

    def act(self, decision: Any) -> Any:
        raise NotImplementedError

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False):  # type: ignore[no-untyped-def]
        size = 1 - 2 * observation[:, -1:] if not self.rising else 2 * observation[:, -1:] - 1
        return np.repeat(size, self.config.space.action_size, axis=1), None


@pytest.fixture
def settings(digits_net: Supernet) -> EnvSettings:
    return replace(settings_for(make_engine(digits_net, 48)), cost_conditioning=(LOW, HIGH))


def spent(agent: Any, settings: EnvSettings, price: float) -> float:
    return evaluate(agent, at_price(settings, price)).summary()["macs_fraction"]


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.35, 0.5, 0.8, 0.95])
def test_the_price_found_keeps_to_the_budget_and_a_lower_one_does_not(settings: EnvSettings, target: float) -> None:
    agent = Thrifty(settings.config())
    found = calibrate(agent, settings, target, tolerance=0.002)
    assert found.macs_fraction == spent(agent, settings, found.macs_weight) == found.tried[found.macs_weight]
    assert found.macs_fraction <= target
    too_low = [price for price, macs in found.tried.items() if macs > target]
    assert max(too_low) < found.macs_weight
    # Sizes come in steps, so that the tolerance may be out of reach; the bracket is then as narrow as it gets.
    assert found.macs_fraction >= target - 0.002 or found.macs_weight / max(too_low) < 1.001


@pytest.mark.slow
def test_a_budget_that_is_met_early_is_looked_for_no_further(settings: EnvSettings) -> None:
    agent = Thrifty(settings.config())
    rough, fine = (calibrate(agent, settings, 0.5, tolerance).tried for tolerance in (0.2, 0.0))
    assert len(rough) < 5 < len(fine) < 20
    ends = [spent(agent, settings, price) for price in (LOW, HIGH)]
    assert calibrate(agent, settings, ends[0]).macs_weight == LOW
    assert calibrate(agent, settings, ends[0] + 0.001).macs_weight == LOW
    assert calibrate(agent, settings, ends[1]).macs_fraction == ends[1]


@pytest.mark.parametrize("target", [0.05, 1.1, 0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_out_of_reach_is_refused_with_the_range_within_it(settings: EnvSettings, target: float) -> None:
    agent = Thrifty(settings.config())
    reach = f"{spent(agent, settings, HIGH):.3f} to {spent(agent, settings, LOW):.3f}"
    message = reach if target in (0.05, 1.1) else "must be a positive fraction"
    with pytest.raises(ValueError, match=f"target_macs={target:g}.*{message}"):
        calibrate(agent, settings, target)


def test_an_agent_that_spends_more_at_higher_prices_has_no_budgets(settings: EnvSettings) -> None:
    agent = Thrifty(settings.config())
    agent.rising = True
    with pytest.raises(ValueError, match=r"out of this agent's reach.*it spends 1.000 to 0\."):
        calibrate(agent, settings, 0.5)


def test_prices_of_a_front_span_the_range_evenly_on_a_logarithmic_scale(settings: EnvSettings) -> None:
    prices = front_prices(settings)
    assert (len(prices), prices[0], prices[-1]) == (7, LOW, HIGH)
    np.testing.assert_allclose(np.diff(np.log(prices)), np.log(HIGH / LOW) / 6, rtol=1e-3)
    narrow = replace(settings, cost_conditioning=(0.123456, 0.123457))
    assert all(at_price(narrow, price) for price in front_prices(narrow))


def test_a_price_that_cannot_be_chosen_is_refused(settings: EnvSettings) -> None:
    with pytest.raises(ValueError, match=r"macs_weight=0\.5 must lie in \[0\.01, 0\.3\]"):
        at_price(settings, 0.5)
    plain = replace(settings, cost_conditioning=None)
    for use in (lambda: at_price(plain, 0.1), lambda: front_prices(plain), lambda: calibrate(None, plain, 0.5)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="range of --macs-weight"):
            use()


@dataclass(frozen=True, kw_only=True)
class SplitSettings(EnvSettings):
    """Settings with an engine for every split."""

    engines: dict[str, InferenceEngine]

    def engine(self) -> InferenceEngine:
        return self.engines[self.split]


@pytest.fixture
def split_settings(settings: EnvSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SplitSettings:
    """Conditioned settings; the runner finds them, and `Thrifty` in the run folder "thrifty"."""
    net = settings.engine().net
    engines = {"val": make_engine(net, 32), "test": make_engine(net, 48)}
    values = {f.name: getattr(settings, f.name) for f in fields(EnvSettings)}
    given = SplitSettings(**values, engines=engines)

    def from_id(env: str, split: str, cost_conditioning: Any, **others: Any) -> EnvSettings:
        return replace(given, split=split, cost_conditioning=cost_conditioning)

    load = runner.load_agent
    monkeypatch.setattr(runner.EnvSettings, "from_id", from_id)
    monkeypatch.setattr(
        runner, "load_agent", lambda name, *rest: Thrifty(net.config) if "thrifty" in name else load(name, *rest)
    )
    write_command(tmp_path / "thrifty", AgentTraining(macs_weight=(LOW, HIGH)))
    return given


@pytest.mark.slow
def test_the_front_of_one_agent_is_evaluated_written_and_drawn(split_settings: SplitSettings, tmp_path: Path) -> None:
    name = str(tmp_path / "thrifty")
    metrics = run_eval([name, "full"], EvalSettings(resamples=5), tmp_path)
    prices = front_prices(split_settings)
    assert list(metrics) == [*(f"{name} (macs_weight {p:g})" for p in prices), "full"]
    assert [metrics[label]["macs_weight"] for label in list(metrics)[:-1]] == prices
    at_test = replace(split_settings, split="test")
    for price, label in zip(prices, metrics, strict=False):
        assert metrics[label]["macs_fraction"] == spent(Thrifty(split_settings.config()), at_test, price)
        rows = read_rows(tmp_path / f"thrifty-macs_weight-{price:g}.csv")
        assert rows["correct"].mean() == metrics[label]["accuracy"]
    assert len(json.loads((tmp_path / "comparisons.json").read_text())) == 7  # each price with the full network
    again = run_eval([name], EvalSettings(resamples=5, macs_weight=(prices[3], prices[3])))
    assert list(again.values()) == [metrics[f"{name} (macs_weight {prices[3]:g})"]]
    controlled = run_eval([name], EvalSettings(resamples=5, macs_weight=(LOW,), controls=True))
    assert [*controlled][1] == f"{name} (macs_weight {LOW}) (shuffled)"


def test_the_picture_has_a_line_for_one_agent_and_points_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots.plt, "close", figures.append)
    spots = {"runs/a (1)": (0.6, 0.9), "runs/a (2)": (0.3, 0.7), "full": (1.0, 0.95), "b": (0.4, 0.8)}
    metrics = {name: {"macs_fraction": x, "accuracy": y} for name, (x, y) in spots.items()}
    plots.plot_fronts(metrics, {"runs/a": ["runs/a (1)", "runs/a (2)"]}, "val", tmp_path / "front.png")
    (axes,) = figures[0].axes
    found = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert found == {"a": [[0.3, 0.7], [0.6, 0.9]], "full network": [[1.0, 0.95]], "b": [[0.4, 0.8]]}
    assert axes.get_ylabel() == "accuracy on val"
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_budget_is_calibrated_on_validation_images_and_then_evaluated(
    split_settings: SplitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    monkeypatch.setattr(
        runner, "calibrate", lambda a, env, target: splits.append(env.split) or calibrate(a, env, target)
    )
    found = run_eval([str(tmp_path / "thrifty"), "full"], EvalSettings(resamples=5, target_macs=0.6))
    calibrated, full = found
    expected = calibrate(Thrifty(split_settings.config()), replace(split_settings, split="val"), 0.6)
    assert found[calibrated]["macs_weight"] == expected.macs_weight
    assert splits == ["val"]
    assert found[calibrated]["n_images"] == 48
    assert "macs_weight" not in found[full]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two hardly trained agents for a range of prices, and one for a single price."""
    folder = tmp_path_factory.mktemp("runs")
    short = AgentTraining(n_envs=64, total_timesteps=1, macs_weight=(LOW, HIGH))
    for algo in ("ppo", "prance_ppo"):
        train_agent(replace(short, algo=algo), folder / algo, progress_bar=False)
    train_agent(replace(short, macs_weight=0.05), folder / "single", progress_bar=False)
    return folder


@pytest.mark.slow
def test_agents_for_a_range_of_prices_see_them_and_are_loaded_as_such(runs: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", split="val", cost_conditioning=(LOW, HIGH))
    for algo in ("ppo", "prance_ppo"):
        agent = load_agent(str(runs / algo), settings)
        observation = np.zeros((2, *settings.spaces()[0].shape), np.float32)
        observation[1, -1] = 1
        cheap, dear = agent.predict(observation, deterministic=True)[0]
        assert not np.array_equal(cheap, dear)
        assert read_config(runs / algo)["macs_weight"] == [LOW, HIGH]
    with pytest.raises(ValueError, match="was trained with"):
        load_agent(str(runs / "single"), settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agent", "full", "--macs-weight", "0.1"), "None of the agents ['full'] was trained for a range of prices"),
        (("--agent", "{runs}/single", "--target-macs", "0.4"), "None of the agents"),
        (("--agent", "{runs}/ppo", "--macs-weight", "0.5"), "macs_weight=0.5 must lie in [0.01, 0.3]"),
        (("--agent", "{runs}/ppo", "--macs-weight", "0.1", "--target-macs", "0.4"), "choose one"),
        (("--agent", "{runs}/ppo", "--target-macs", "0.01"), "out of this agent's reach"),
    ],
)
def test_what_cannot_be_chosen_ends_with_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refusal(monkeypatch, "eval", *(a.format(runs=runs) for a in arguments))


@pytest.mark.parametrize("bad", [("0.3", "0.01"), ("0", "0.1"), ("0.1", "0.1")])
def test_a_range_of_prices_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[str, str]
) -> None:
    out = tmp_path / "run"
    assert "0 < low < high" in refusal(monkeypatch, "train", "agent", "--out", out, "--macs-weight", *bad)
    assert not out.exists()


def test_a_run_for_a_range_of_prices_is_resumed_with_that_range_only(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = AgentTraining(n_envs=64, total_timesteps=1, macs_weight=(LOW, HIGH), algo="prance_ppo")
    with pytest.raises(ValueError, match="macs_weight"):
        train_agent(replace(settings, macs_weight=(LOW, 0.2)), runs / "prance_ppo", resume=True, progress_bar=False)
    train_agent(settings, runs / "prance_ppo", resume=True, progress_bar=False)
    assert "more --total-timesteps extend it" in capsys.readouterr().out
