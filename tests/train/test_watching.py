"""`prance plot` and `prance video`: curves of seeds together, episodes as moving pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import prance, refusal
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from agents import FullAgent
from prance_env.settings import EnvSettings
from train.policies import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.report import curves as module
from train.report import video
from train.report.curves import grouped, is_run, plot_learning_curves, plot_runs, together
from train.report.style import KNOWN, fit, looks
from train.runs.folder import write_command

pytestmark = pytest.mark.usefixtures("few_scenes")


def fake_run(out: Path, values: list[float], **settings: Any) -> Path:
    """A run folder with a curve."""
    write_command(out, AgentTraining(**settings))
    with SummaryWriter(str(out / "ppo_1")) as writer:
        for step, value in enumerate(values):
            writer.add_scalar("rollout/ep_rew_mean", value, 100 * step)
    return out


@pytest.mark.slow
def test_runs_of_the_same_settings_but_the_seed_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (fake_run(tmp_path / f"ppo-{seed}", [0.0, 1.0, 2.0 + seed], seed=seed) for seed in (0, 1))
    c = fake_run(tmp_path / "dear", [1.0, 1.0], macs_weight=0.2)
    (tmp_path / "notes").mkdir()
    assert grouped([a, c, b]) == {"ppo, macs_weight=0.05": [a, b], "ppo, macs_weight=0.2": [c]}
    assert grouped([a, b]) == {"ppo": [a, b]}
    assert [is_run(tmp_path / name) for name in ("dear", "notes")] == [True, False]
    prance(monkeypatch, "plot", *sorted(tmp_path.iterdir()), "--out", tmp_path / "new" / "curves.png")
    assert f"ppo, macs_weight=0.05: {a}, {b}" in capsys.readouterr().out
    assert Image.open(tmp_path / "new" / "curves.png").size[0] > 300
    assert "None of" in refusal(monkeypatch, "plot", tmp_path / "notes")
    assert "There is no nowhere" in refusal(monkeypatch, "plot", "nowhere")
    write_command(tmp_path / "new", AgentTraining())
    assert "nothing is logged there yet" in refusal(monkeypatch, "plot", tmp_path / "new")


def test_folders_of_other_programs_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(monkeypatch)
    run = fake_run(tmp_path / "run", [0.0, 1.0])
    for name, text in {"list": "- a\n- b\n", "seed": "algo: ppo\nseed: abc\n", "torn": "{", "other": "lr: 1"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_text(text)
    with pytest.warns(UserWarning, match="left out: ") as told:
        prance(monkeypatch, "plot", *sorted(tmp_path.iterdir()), "--out", tmp_path / "new" / "curves.png")
    assert [str(warning.message).split(" is left out")[0] for warning in told] == [
        str(tmp_path / name) for name in ("list", "seed", "torn")
    ]
    with pytest.warns(UserWarning, match="left out: "):
        assert not is_run(tmp_path / "torn")
    assert is_run(run)


def test_curves_of_seeds_are_compared_as_far_as_all_of_them_are() -> None:
    long = np.array([0, 10, 20, 30]), np.array([0.0, 1.0, 2.0, 3.0])
    short = np.array([0, 5, 20]), np.array([0.0, 1.0, 4.0])
    steps, values = together([long, short])
    assert steps.tolist() == [0, 10, 20]
    np.testing.assert_allclose(values, [[0, 1, 2], [0, 2, 4]])


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures of curves that are going to be drawn."""
    kept: list[Any] = []
    monkeypatch.setattr(module, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def legend(figure: Any) -> list[str]:
    """What a figure says that it shows."""
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_runs_whose_paths_end_alike_are_drawn_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    curve = np.array([1, 2]), np.array([0.5, 0.6])
    runs = {"runs/x/best": {"rollout/ep_rew_mean": curve}, "runs/y/best": {"eval/return": curve}, "runs/z": {}}
    plot_learning_curves(runs, tmp_path / "x.png")
    assert legend(kept[0]) == ["runs/x/best", "runs/y/best"]
    settings = {"a": "runs/t1/best.yml", "b": "runs/t2/best.yml"}
    folders = [fake_run(tmp_path / name, [0.0, 1.0]) for name in settings]
    for folder, file in zip(folders, settings.values(), strict=True):
        (folder / "config.yml").write_text(f"algo: ppo\nconf_file: {file}\n")
    plot_runs(folders, tmp_path / "x.png")
    assert legend(kept[1]) == [f"ppo, conf_file={file}" for file in settings.values()]


def test_a_setting_that_is_null_is_one_that_is_not_noted(tmp_path: Path) -> None:
    notes = {"a": "seed: 0", "b": "seed: 1\nn_envs: null", "c": "macs_weight: 0.2"}
    for name, more in notes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yml").write_text(f"algo: ppo\n{more}\n")
    a, b, c = (tmp_path / name for name in notes)
    assert grouped([a, b]) == {"ppo": [a, b]}
    assert grouped([a, b, c]) == {"ppo, macs_weight=None": [a, b], "ppo, macs_weight=0.2": [c]}


def test_runs_without_steps_in_common_are_drawn_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    steps = {"a": [10, 20], "b": [50, 100]}
    for seed, (name, at) in enumerate(steps.items()):
        write_command(tmp_path / name, AgentTraining(seed=seed))
        with SummaryWriter(str(tmp_path / name / "ppo_1")) as writer:
            for step in at:
                writer.add_scalar("eval/return", 1.0, step)
    plot_runs([tmp_path / name for name in steps], tmp_path / "x.png")
    (axes,) = kept[0].axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [*steps.values()]
    assert legend(kept[0]) == ["SB3 PPO (2 seeds)"]


def test_everything_has_a_look_of_its_own_which_is_the_same_in_every_figure() -> None:
    assert (
        looks(["PrancePPO", "static"])["PrancePPO"] == looks(["x", "prance_ppo"])["prance_ppo"] == KNOWN["prance_ppo"]
    )
    many = looks([*KNOWN, *(f"runs/{i}" for i in range(12))])
    assert many["runs/3"].label == "3"
    shared = ["runs/x/best", "runs/y/best", "runs/z", "z", "full", "full network"]
    assert [look.label for look in looks(shared).values()] == shared
    seen = [(look.colour, look.marker) for look in list(many.values())[len(KNOWN) :]]
    assert len(set(seen)) == 12
    assert not set(seen) & {(look.colour, look.marker) for look in KNOWN.values()}
    assert fit([0.0, 1.0], 0.1) == (-0.1, 1.1)
    assert fit([2.0])[0] < 2 < fit([2.0])[1]


def filmed(monkeypatch: pytest.MonkeyPatch) -> list[EnvSettings]:
    """What is filmed of agents that choose everything."""
    shown: list[EnvSettings] = []

    def frames(agent: Any, settings: EnvSettings, images: Any) -> list[Any]:
        shown.append(settings)
        return [np.zeros((2, 2, 3), dtype=np.uint8)]

    monkeypatch.setattr(load_agent, "load_agent", lambda name, env, trust: FullAgent(env.config()))
    monkeypatch.setattr(video, "episode_frames", frames)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    return shown


def test_a_film_shows_the_reward_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = filmed(monkeypatch), tmp_path / "film"
    own: dict[str, dict[str, Any]] = {
        "paper": {"reward": "paper"},
        "terms": {"reward_terms": {"mode": "terminal", "token_weight": 0.1}, "macs_weight": 0.3},
    }
    for name, settings in own.items():
        write_command(tmp_path / name, AgentTraining(**settings))
        prance(monkeypatch, "video", "--agent", tmp_path / name, "--out", out)
        assert shown[-1].reward == AgentTraining(**settings).env_arguments["reward"]
    prance(monkeypatch, "video", "--agent", "full", "--out", out)
    assert shown[-1].reward_config.macs_weight == 0.05
    write_command(tmp_path / "mine", AgentTraining())
    (tmp_path / "mine" / "config.yml").write_text("algo: ppo\nreward_terms: {function: 'mine:reward'}\n")
    said = refusal(monkeypatch, "video", "--agent", tmp_path / "mine", "--out", out)
    assert "--import mine" in said


def test_files_of_a_film_that_cannot_be_written_are_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = filmed(monkeypatch)
    (tmp_path / "file").touch()
    (tmp_path / "folder.gif").mkdir()
    for out, words in (("file/film", "file is a file"), ("folder.gif", "folder.gif is a folder")):
        assert words in refusal(monkeypatch, "video", "--agent", "full", "--out", tmp_path / out)
    assert not shown


@pytest.mark.slow
def test_episodes_become_a_gif_and_an_mp4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, settings = tmp_path / "run", AgentTraining(algo="prance_ppo", n_envs=16, total_timesteps=48)
    train_agent(settings, run, progress_bar=False)
    few = ("--images", 3, 200, "--out", tmp_path / "films" / "two")
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    prance(monkeypatch, "video", "--agent", run, *few)
    assert "pip install -e '.[video]'" in capsys.readouterr().out
    with Image.open(tmp_path / "films" / "two.gif") as film:
        assert (film.n_frames, film.size) == (8, (512, 256))  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[video\]'"):
        video.write_mp4([], tmp_path / "x.mp4", 2)
    assert "--images 256 is none of the 256" in refusal(monkeypatch, "video", "--agent", run, "--images", 256)
    nowhere = refusal(monkeypatch, "video", "--agent", run, "--dataset", tmp_path / "nowhere", "--import", "json")
    assert str(tmp_path / "nowhere") in nowhere
    assert "no_such" in refusal(monkeypatch, "video", "--agent", run, "--import", "no_such")
    assert "Prance-Digit-v0" in refusal(monkeypatch, "video", "--agent", "full", "--env", "Prance-Digit-v0")
    assert "--fps 0.0 must be" in refusal(monkeypatch, "video", "--agent", run, "--fps", 0)
    assert "leave --macs-weight out" in refusal(monkeypatch, "video", "--agent", run, "--macs-weight", 1)
    monkeypatch.undo()
    pytest.importorskip("moviepy")
    prance(monkeypatch, "video", "--agent", "random", *few, "--fps", 4)
    assert (tmp_path / "films" / "two.mp4").read_bytes()[4:8] == b"ftyp"
    prance(monkeypatch, "video", "--agent", "random", "--images", 3, "--out", tmp_path / "films" / "one.mp4")
    assert sorted(p.name for p in (tmp_path / "films").iterdir()) == ["one.gif", "one.mp4", "two.gif", "two.mp4"]
