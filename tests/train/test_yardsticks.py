"""The yardsticks as a whole: fronts, their files, and where an agent stands between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import make_engine, settings_for
from image_files import engine_with_a_stand_in

from agents import BaselineAgent, FullAgent, StaticAgent
from prance_env import InferenceEngine
from prance_env.images.loading import load_dataset
from supernet import SubnetConfig, Supernet
from train import side_by_side as runner
from train.evaluate import evaluate
from train.play import played_by_full
from train.search.noisy_copies import NoisyCopy
from train.side_by_side import EvalSettings, run_eval
from train.yardsticks import compute as maker
from train.yardsticks.compare_designs import DesignSettings, run_designs
from train.yardsticks.compute import YardstickSettings, run_yardsticks
from train.yardsticks.fronts import FRONTS, Front, Point, Yardsticks, accuracy_at, agents_in, hull, macs_at
from train.yardsticks.headroom import HeadroomSettings, run_headroom
from train.yardsticks.leaderboard import BenchmarkSettings, run_benchmark
from train.yardsticks.standing import standing

pytestmark = pytest.mark.usefixtures("few_scenes")

IMAGES = 36


def front(*points: tuple[float, int], images: int = 100) -> Front:
    """Points of equal MACs for all images, right about the first so many."""
    correct = np.stack([np.arange(images) < right for _, right in points])
    macs = np.stack([np.full(images, macs) for macs, _ in points])
    return Front(np.geomspace(0.01, 1, len(points))[::-1], correct, macs, (None,) * len(points))


def point(macs: float, right: int, images: int = 100) -> Point:
    """An agent of equal MACs for all images."""
    return Point(np.arange(images), np.zeros(images, int), np.arange(images) < right, np.full(images, macs))


@pytest.fixture
def made() -> Yardsticks:
    """The static front costs .4 at 80 % and .8 at 90 %; per stratum half of it; the oracle is at .1."""
    fronts = {
        "static": front((0.2, 60), (0.4, 80), (0.8, 90)),
        "per_stratum": front((0.2, 80), (0.4, 90)),
        "confidence": front((0.3, 80), (0.6, 90)),
        "oracle": front((0.05, 75), (0.15, 95)),
        "oracle_lucky": front((0.05, 99), (0.05, 100)),
    }
    ones = np.zeros(100, dtype=int)
    return Yardsticks(np.arange(100), ones, ones, fronts, {"split": "test"})


def test_the_hull_is_what_mixing_reaches() -> None:
    rng = np.random.default_rng(0)
    macs, accuracy = rng.random(20), rng.random(20)
    xs, ys = hull(macs, accuracy)
    assert xs[0] == macs.min()
    assert ys[-1] == accuracy.max()
    assert (np.diff(xs) > 0).all()
    assert (np.diff(np.diff(ys) / np.diff(xs)) < 0).all()
    for a in range(20):
        for b in range(20):
            for share in (0.0, 0.3, 1.0):
                mixed = share * accuracy[a] + (1 - share) * accuracy[b]
                assert np.interp(share * macs[a] + (1 - share) * macs[b], xs, ys) >= mixed - 1e-12
    assert [macs_at(xs, ys, y) for y in ys] == pytest.approx(xs)
    assert macs_at(macs, accuracy, 2.0) == xs[-1]
    assert np.isnan(macs_at(macs, accuracy, -1.0))
    assert macs_at(np.array([0.5, 0.5]), np.array([0.7, 0.9]), 0.9) == 0.5


def test_an_agent_is_measured_at_its_own_accuracy(made: Yardsticks) -> None:
    found = standing(point(0.3, 85), made, price=0.02, resamples=50)
    at = {"static": 0.6, "per_stratum": 0.3, "confidence": 0.45, "oracle": 0.1}
    assert {k: found["macs_at_equal_accuracy"][k] for k in at} == pytest.approx(at)
    assert found["macs_at_equal_accuracy"]["oracle_lucky"] is None
    assert found["saved"] == pytest.approx(0.5)
    assert found["saved_against_confidence"] == pytest.approx(1 / 3)
    assert found["headroom_won"] == pytest.approx(1)
    assert found["way_to_oracle"] == pytest.approx(0.6)
    for key in ("saved", "way_to_oracle"):
        low, high = found[f"{key}_interval"]
        assert low < found[key] < high
    assert found["macs_weight"] == 0.01
    assert found["regret"] == pytest.approx(0.1 + 0.01 * 0.15)
    assert found["beyond_static"] is False
    beyond = standing(point(0.4, 96), made, resamples=20)
    assert beyond["beyond_static"] is True
    assert beyond["saved"] == pytest.approx(0.5)  # against the most accurate static subnet
    below = standing(point(0.1, 50), made, resamples=20)
    assert below["saved"] is below["headroom_won"] is below["saved_interval"] is None
    json.dumps([found, beyond, below], allow_nan=False)


def test_a_price_of_nothing_is_nearest_to_the_lowest(made: Yardsticks) -> None:
    lowest = float(np.nanmin(made.fronts["oracle"].price))
    assert made.point("oracle", 0.0)[0] == lowest
    assert standing(point(0.3, 85), made, price=0.0, resamples=20)["macs_weight"] == lowest


@pytest.mark.parametrize(
    ("noted", "price"), [({"macs_weight": 0}, 0), ({"macs_weight": [0.01, 0.3]}, 0.05), ({}, 0.05)]
)
def test_an_agent_is_judged_at_its_own_price(
    noted: dict[str, Any], price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "trained_settings", lambda name: noted)
    assert runner.trained_price("runs/agent") == price


def test_networks_of_any_sizes_are_another_front(made: Yardsticks) -> None:
    fronts = {**made.fronts, "free": front((0.1, 80), (0.2, 90))}
    found = standing(point(0.3, 85), replace(made, fronts=fronts), resamples=20)
    assert found["saved"] == pytest.approx(0.5)
    assert found["saved_against_free"] == pytest.approx(-1.0)  # they need .15
    assert accuracy_at(np.array([0.1, 0.3]), np.array([0.6, 0.8]), 0.2) == pytest.approx(0.7)
    assert np.isnan(accuracy_at(np.array([0.1, 0.3]), np.array([0.6, 0.8]), 0.05))


def test_no_headroom_is_no_share(made: Yardsticks) -> None:
    fronts = {**made.fronts, "per_stratum": made.fronts["static"]}
    found = standing(point(0.3, 85), replace(made, fronts=fronts), resamples=20)
    assert found["headroom_won"] is found["headroom_won_interval"] is None
    assert found["saved"] == pytest.approx(0.5)


def test_intervals_leave_out_resamples_that_no_front_reaches(made: Yardsticks) -> None:
    low, high = standing(replace(point(0.3, 61), correct=np.arange(100) >= 39), made, resamples=50)["saved_interval"]
    assert low < high


def test_other_images_are_refused(made: Yardsticks) -> None:
    with pytest.raises(ValueError, match=r"100 other images \(split 'test'\)"):
        standing(point(0.3, 40, images=50), made)


def test_files_come_back_or_are_refused(made: Yardsticks, tmp_path: Path) -> None:
    made = replace(
        made, fronts={k: replace(f, price=np.array([*f.price[:-1], np.nan])) for k, f in made.fronts.items()}
    )
    made.save(tmp_path)
    loaded = Yardsticks.load(tmp_path)
    assert loaded.settings == made.settings
    for name in FRONTS:
        for key, value in vars(made.fronts[name]).items():
            np.testing.assert_array_equal(getattr(loaded.fronts[name], key), value)
    rows = json.loads((tmp_path / "yardsticks.json").read_text())["fronts"]["static"]
    assert rows[-1] == {"price": None, "accuracy": 0.9, "macs_fraction": pytest.approx(0.8)}
    text, data = (tmp_path / "yardsticks.json").read_text(), (tmp_path / "outcomes.npz").read_bytes()
    without = json.loads(text)
    del without["fronts"]["oracle"]
    short = json.loads(text)
    short["fronts"]["static"].pop()
    for broken in (text[:50], "[]", json.dumps(without), json.dumps(short), json.dumps({"fronts": 3})):
        (tmp_path / "yardsticks.json").write_text(broken)
        with pytest.raises(ValueError, match=r"damaged.* run `prance yardsticks` again"):
            Yardsticks.load(tmp_path)
    (tmp_path / "yardsticks.json").write_text(text)
    for damaged in (data[:100], b"", b"PK" + data[50:]):
        (tmp_path / "outcomes.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged yardsticks"):
            Yardsticks.load(tmp_path)
    np.savez(tmp_path / "outcomes.npz", index=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="damaged yardsticks"):
        Yardsticks.load(tmp_path)
    (tmp_path / "outcomes.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"outcomes\.npz; `prance yardsticks --out"):
        Yardsticks.load(tmp_path)


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_yardsticks_know_their_own_images_where_one_is_broken(tmp_path: Path) -> None:
    engine, labels = engine_with_a_stand_in(tmp_path)
    made = Yardsticks(*played_by_full(engine, np.arange(12)), {}, {})
    assert made.label.tolist() == labels
    fresh = InferenceEngine(engine.net, load_dataset(str(tmp_path), "val", engine.config, on_error="skip"))
    made.check(fresh)
    for other in (replace(made, index=made.index[::-1]), replace(made, index=np.arange(12))):
        with pytest.raises(ValueError, match=r"for the 12 images of .*, not for these"):
            other.check(fresh)


def test_yardsticks_of_other_images_are_refused_before_anybody_plays(
    made: Yardsticks, engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.save(tmp_path)
    monkeypatch.setattr(runner.EnvSettings, "from_id", lambda *a, **k: settings_for(engine))
    monkeypatch.setattr(runner, "evaluate", Mock(side_effect=AssertionError("somebody played")))
    with pytest.raises(ValueError, match=r"for the 100 images of .*, not for these"):
        run_eval(["full", "random"], EvalSettings(yardsticks=str(tmp_path)))


def test_only_agents_that_yardsticks_wrote_are_known_as_theirs(tmp_path: Path) -> None:
    rows = [{"price": None}] + [{"price": 1, "agent": n} for n in ("static-0.1.json", None, "runs/static-a.json", "a")]
    (tmp_path / "yardsticks.json").write_text(json.dumps({"fronts": {"static": rows}}))
    assert agents_in(tmp_path) == {"static-0.1.json"}
    (tmp_path / "yardsticks.json").write_text("[]")
    assert agents_in(tmp_path) == agents_in(tmp_path / "none") == set()


def test_settings_out_of_range_are_refused() -> None:
    for name in ("num_subnets", "oracle_subnets", "copies", "sweeps", "seed"):
        with pytest.raises(ValueError, match=rf"{name}=-1 must be at least"):
            YardstickSettings(**{name: -1})


@pytest.mark.parametrize("command", ["yardsticks", "designs", "headroom", "benchmark"])
def test_token_modes_with_thresholds_are_refused_before_anything_is_computed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker.EnvSettings, "engine", Mock(side_effect=AssertionError("something is computed")))
    monkeypatch.setattr("train.yardsticks.leaderboard.train_agent", Mock(side_effect=AssertionError("trained")))
    taken: dict[str, Any] = {"environment": {"token_mode": "merge_above"}}
    run: dict[str, Callable[[], object]] = {
        "yardsticks": lambda: run_yardsticks(YardstickSettings(**taken), tmp_path),
        "designs": lambda: run_designs(DesignSettings(**taken), tmp_path),
        "headroom": lambda: run_headroom(HeadroomSettings(**taken), tmp_path),
        "benchmark": lambda: run_benchmark(BenchmarkSettings.digits(yardsticks=YardstickSettings(**taken)), tmp_path),
    }
    with pytest.raises(ValueError, match=r"token_mode='merge_above'.*such as 'prune'"):
        run[command]()
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def engine(digits_net: Supernet) -> InferenceEngine:
    """Noise before a random supernet, which every settings lead to."""
    return make_engine(digits_net, IMAGES)


@pytest.fixture
def run(engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Yardsticks]:
    """`run_yardsticks` on the small engine."""
    monkeypatch.setattr(maker.EnvSettings, "from_id", lambda *a, **k: settings_for(engine))
    monkeypatch.setattr(maker, "noisy_copy", lambda settings, seed: NoisyCopy(engine.dataset, seed, 0.02))
    monkeypatch.setattr(maker, "PRICES", np.array([0.1, 0.3, 1.0]))
    monkeypatch.setattr(maker, "CONFIDENCE_PRICES", np.array([0.3]))
    monkeypatch.setattr("train.yardsticks.static_designs.SHARES", (0.6,))
    monkeypatch.setattr("train.search.confidence.NUM_CANDIDATES", 4)

    def made(out: Path, **changes: Any) -> Yardsticks:
        short: dict[str, Any] = {"num_subnets": 12, "oracle_subnets": 6, "copies": 2, "sweeps": 1, "designs": False}
        return run_yardsticks(YardstickSettings(**(short | changes)), out)

    return made


@pytest.mark.slow
def test_all_yardsticks_are_agents_or_bounds_on_the_same_images(
    run: Callable[..., Yardsticks], engine: InferenceEngine, tmp_path: Path
) -> None:
    made = run(tmp_path, designs=True)
    assert list(made.fronts) == [*FRONTS, "deepmad", "nvit", "free"]
    for name, gradients in (("deepmad", False), ("nvit", True), ("free", True)):
        assert (made.fronts[name].macs_fraction <= 0.6).all()
        taken = made.settings["methods"][name]
        assert taken["gradients"] == gradients
        assert taken["cpu_seconds"] > 0
        assert (taken["images"] == 0) == (name == "deepmad")
    stands = standing(point(0.5, 30, images=IMAGES), replace(made, label=np.zeros(IMAGES, int)), resamples=10)
    assert "saved_against_free" in stands
    score = {n: (f.correct - 0.3 * f.macs_fraction).mean(axis=1) for n, f in made.fronts.items()}
    at = {n: int(np.flatnonzero(made.fronts[n].price == 0.3)[0]) for n in FRONTS}
    best = {n: score[n][at[n]] for n in FRONTS}
    # Chosen and judged on the same images here, each of these knows more than the one before.
    assert best["static"] <= best["per_stratum"] <= best["oracle_lucky"]
    assert best["static"] <= best["confidence"] <= best["oracle_lucky"]
    assert best["oracle"] <= best["oracle_lucky"]
    for name in ("static", "confidence"):
        for i, file in enumerate(made.fronts[name].agent):
            result = evaluate(BaselineAgent.load(tmp_path / str(file)), settings_for(engine))
            np.testing.assert_array_equal(result.correct, made.fronts[name].correct[i])
            np.testing.assert_array_equal(result.macs_fraction, made.fronts[name].macs_fraction[i])
    assert (made.fronts["static"].macs_fraction[-1] == 1).all()
    for file, macs in zip(made.fronts["static"].agent, made.fronts["static"].macs_fraction[:, 0], strict=True):
        if "macs" in str(file):
            lowest = float(str(file).removeprefix("static-macs-").removesuffix(".json"))
            assert lowest <= macs < lowest + 0.05
    per_stratum = made.fronts["per_stratum"].macs_fraction
    for stratum in range(3):
        assert (np.ptp(per_stratum[:, engine.dataset.difficulty.numpy() == stratum], axis=1) == 0).all()
    assert made.settings["search"][-1]["num_subnets"] == 12
    assert json.loads((tmp_path / "yardsticks.json").read_text())["seed"] == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_yardsticks(run: Callable[..., Yardsticks], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    rows = [{"price": None, "agent": name} for name in ("static-macs-9.json", "../a/static-full.json", "mine.json")]
    (tmp_path / "b" / "yardsticks.json").write_text(json.dumps({"fronts": {"static": rows}}))  # of earlier ones
    for name in ("static-macs-9.json", "static-mine.json", "mine.json"):
        (tmp_path / "b" / name).write_text("{}")
    first, again = run(tmp_path / "a"), run(tmp_path / "b")
    files = ({path.name for path in (tmp_path / name).iterdir()} for name in "ab")
    assert next(files) | {"static-mine.json", "mine.json"} == next(files)
    for name in FRONTS:
        np.testing.assert_array_equal(first.fronts[name].correct, again.fronts[name].correct)
        np.testing.assert_array_equal(first.fronts[name].macs_fraction, again.fronts[name].macs_fraction)
    assert (tmp_path / "a" / "confidence-0.3.json").read_text() == (tmp_path / "b" / "confidence-0.3.json").read_text()


@pytest.mark.slow
def test_learned_static_agents_join_and_others_do_not(
    run: Callable[..., Yardsticks], engine: InferenceEngine, tmp_path: Path
) -> None:
    subnet = SubnetConfig.random(engine.config.space, 1)
    StaticAgent(subnet, engine.config).save(tmp_path / "learned.json")
    made = run(tmp_path, also_static=(str(tmp_path / "learned.json"),)).fronts["static"]
    assert made.agent[-1] == str(tmp_path / "learned.json")
    np.testing.assert_allclose(made.macs_fraction[-1], engine.net.macs(subnet).item() / engine.full_macs)
    with pytest.raises(ValueError, match=r"random is not static.*--observation constant"):
        run(tmp_path, also_static=("random",))


@pytest.mark.slow
def test_prance_eval_says_where_agents_stand(
    run: Callable[..., Yardsticks], engine: InferenceEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(tmp_path)
    settings = EvalSettings(resamples=20, yardsticks=str(tmp_path))
    names = ["full", str(tmp_path / "static-0.3.json")]
    metrics = run_eval(names, settings, tmp_path / "eval")
    for name in names:
        assert metrics[name]["yardsticks"]["macs_weight"] == 0.1  # the nearest to .05
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text()) == metrics
    full = evaluate(FullAgent(engine.config), settings_for(engine))
    assert metrics["full"]["yardsticks"] == standing(full, made, resamples=20)
    other = replace(made, full_prediction=(made.full_prediction + 1) % 10)
    other.save(tmp_path)
    with pytest.raises(ValueError, match=r"another supernet .* disagree on 100.0% of the images"):
        run_eval(["full"], settings)
    monkeypatch.setattr(
        runner.EnvSettings, "from_id", lambda *a, **k: settings_for(make_engine(engine.net, IMAGES - 1))
    )
    with pytest.raises(ValueError, match=r"for the 36 images of env='Prance-Digits-v0', split='test'"):
        run_eval(["full"], settings)
