"""An adaptive network as one ONNX file picks, counts and answers what its menu does in PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_models import PRICES, prance_ppo, price_minded
from command_line import prance, refusal
from helpers import make_engine, random_net, settings_for
from rich.console import Console
from stable_baselines3 import DQN, SAC
from wrapped_agents import CASES, IMAGES, Settings, learned, native

from agents import AdaptiveViT
from agents.fitting import Interface
from prance_env import EnvSettings
from supernet import Supernet, supernet_config
from train.deploy import export as command
from train.deploy.opening import Opened
from train.networks import onnx_runner
from train.networks.export_adaptive import Checked, compare, export_adaptive
from train.networks.onnx_runner import AdaptiveModel

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
# PyTorch's exporter takes seconds for a stem.
pytestmark = pytest.mark.slow


def exported(model: AdaptiveViT, images: torch.Tensor, out: Path, budgets: Any = (), **more: Any) -> AdaptiveModel:
    """A model that was exported and has been found equal."""
    checked = export_adaptive(model, images, out, [*budgets], **more)
    assert checked.images == len(images)
    assert checked.same == checked.labels == 1
    assert checked.difference <= 1e-4 * max(1.0, checked.allowed / 1e-4)
    return AdaptiveModel(out if out.suffix else out / "model.onnx")


def test_networks_of_every_kind_are_one_graph(any_net: Supernet, tmp_path: Path) -> None:
    images = make_engine(any_net, 24).dataset.fetch(np.arange(24))
    model = AdaptiveViT(any_net, prance_ppo(Interface(any_net.config)))
    model.make_menu(images, 5)
    exported(model, images, tmp_path / "model.onnx", uint8=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    # Every weight stands in the file once, however many entries use it.
    size = (tmp_path / "model.onnx").stat().st_size
    weights = 4 * sum(p.numel() for p in any_net.parameters()) + 4 * 140_000  # the policy's
    assert size < weights + 700_000


@pytest.mark.parametrize("name", ["multi-discrete", "presets", "all"])
def test_policies_of_every_kind_are_in_the_graph(name: str, tiny: Settings, tmp_path: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", **tiny)
    images = settings.engine().dataset.fetch(np.arange(IMAGES))
    agent, env = CASES[name](tiny)
    if hasattr(env, "norm_obs"):
        env.training = False
    model = AdaptiveViT.from_settings(settings, agent)
    model.make_menu(images, 4)
    exported(model, images, tmp_path / "a.onnx")


def test_squashed_actions_are_in_the_graph(tiny: Settings, tmp_path: Path) -> None:
    settings = EnvSettings.from_id("Prance-Digits-v0", **tiny)
    agent = learned(SAC("MlpPolicy", native()(tiny), learning_starts=0, seed=0, device="cpu"))
    model = AdaptiveViT.from_settings(settings, agent)
    images = settings.engine().dataset.fetch(np.arange(IMAGES))
    model.make_menu(images, 4)
    exported(model, images, tmp_path / "a.onnx")
    assert DQN is not None


def test_nan_is_no_agreement(digits_net: Supernet, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_engine(digits_net, 4).dataset.fetch(np.arange(4))
    menu = AdaptiveViT(digits_net, prance_ppo(Interface(digits_net.config))).make_menu(images, 2)
    answers = [menu(image[None]) for image in images]

    class Broken:
        def __init__(self, *given: Any, **more: Any) -> None:
            self.left = iter(answers)

        def __call__(self, *given: Any) -> dict[str, Any]:
            a, logits = next(self.left), np.full((1, 10), np.nan)
            assert a.picked is not None
            return {"picked": a.picked[0], "logits": logits, "macs": a.macs[0], "patches": a.patches[0]}

    monkeypatch.setattr(onnx_runner, "AdaptiveModel", Broken)
    checked = compare(menu, Path("model.onnx"), images, [], True)
    assert checked.same == 1
    assert not checked.difference <= checked.allowed


def test_a_price_is_an_input_and_the_runner_needs_no_torch(digits_net: Supernet, tmp_path: Path) -> None:
    images = make_engine(digits_net, 30).dataset.fetch(np.arange(30))
    model = price_minded(digits_net)
    model.make_menu(images, 6)
    run = exported(model, images, tmp_path, [0.01, 0.1, 1.0])
    assert run.about["prices"] == [PRICES.low, PRICES.high]
    assert run.about["classes"] == [*"abcdefghij"]
    # Nobody who has the file alone knows what the supernet says.
    assert run.about["pictures"] == {
        **{"img_size": 48, "in_chans": 1, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
        "fill": [],
    }
    assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "run.py"}
    for price in (None, 0.005, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"price={price} must lie in \[0\.01, 1\.0\], the range"):
            run(np.zeros((1, 1, 48, 48), np.float32), price)
    np.save(tmp_path / "image.npy", images[0].numpy())
    code = (
        "import sys, runpy; sys.modules.update(torch=None); sys.argv = ['run.py', 'image.npy', '0.1'];"
        "runpy.run_path('run.py', run_name='__main__')"
    )
    done, refused = (
        subprocess.run([sys.executable, "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
        for words in (code, code.replace("'0.1'", "'2'"))
    )
    assert done.returncode == 0, done.stderr
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "price=2.0 must lie in [0.01, 1.0], the range that the agent was trained for.\n"
    menu = model.menu
    assert menu is not None
    expected = menu(images[:1], 0.1)
    assert done.stdout.split()[:2] == [model.names[expected.labels[0]], str(expected.macs[0])]


def test_a_file_that_answers_differently_is_not_kept(digits_net: Supernet, tmp_path: Path) -> None:
    images = make_engine(digits_net, 6).dataset.fetch(np.arange(6))
    model = AdaptiveViT(digits_net, prance_ppo(Interface(digits_net.config)))
    menu = model.make_menu(images, 4)
    menu.left[0][:] = np.maximum(menu.left[0] - 1, 2)  # as if the graph dropped one more
    with pytest.raises(ValueError, match=r"PyTorch|was not kept"):
        export_adaptive(model, images, tmp_path / "model.onnx", [])
    assert [*tmp_path.iterdir()] == []


def test_networks_without_such_a_graph_are_told_why(tmp_path: Path) -> None:
    config = supernet_config("digits")
    net = random_net(replace(config, space=replace(config.space, token_mode="merge")))
    images = make_engine(net, 4).dataset.fetch(np.arange(4))
    model = AdaptiveViT(net, prance_ppo(Interface(net.config)))
    with pytest.raises(ValueError, match="has no menu"):
        export_adaptive(model, images, tmp_path, [])
    model.make_menu(images, 2)
    with pytest.raises(ValueError, match=r"one ONNX file: the graph knows no token_mode='merge' \(only 'prune'\)"):
        export_adaptive(model, images, tmp_path, [])


def test_the_command_takes_saved_models_and_says_what_is_wrong(
    digits_net: Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = price_minded(digits_net)
    model.save_pretrained(tmp_path / "bare")
    words = ("export", "--adaptive", str(tmp_path / "bare"), "--out", str(tmp_path / "model.onnx"))
    assert "was saved without a menu" in refusal(monkeypatch, *words)
    assert "--subnet is for one subnet" in refusal(monkeypatch, *words, "--subnet", "min")
    model.make_menu(make_engine(digits_net, 20).dataset.fetch(np.arange(20)), 3)
    model.save_pretrained(tmp_path / "whole")
    prance(monkeypatch, "export", "--adaptive", str(tmp_path / "whole"), "--out", str(tmp_path / "model.onnx"))
    assert "the same entries for 100.00%" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "model.onnx").is_file()
    words = ("export", "--adaptive", str(tmp_path / "whole"), "--out")
    prance(monkeypatch, "export", "--subnet", "min", "--out", str(tmp_path / "one"))
    for out in ("one", "one/model.onnx"):
        said = refusal(monkeypatch, *words, str(tmp_path / out))
        assert "one holds model.onnx of something else than an export of an adaptive network; pass another" in said
    (tmp_path / "alone").mkdir()
    for out in ("alone/model.onnx", "alone", "alone", "alone/model.onnx"):
        prance(monkeypatch, *words, str(tmp_path / out))
    assert {p.name for p in (tmp_path / "alone").iterdir()} == {"model.onnx", "run.py"}
    (tmp_path / "other.onnx").write_text("mine")
    assert "holds other.onnx of something else" in refusal(monkeypatch, *words, str(tmp_path / "other.onnx"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.py").write_text("mine")
    assert "mine holds run.py of something else" in refusal(monkeypatch, *words, str(tmp_path / "mine"))


def test_a_file_is_checked_on_other_images_than_the_menu_was_made_of(
    digits_net: Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(make_engine(digits_net, 2048))
    opened = Opened(price_minded(digits_net), lambda: settings)
    taken: list[torch.Tensor] = []

    def export(model: AdaptiveViT, images: torch.Tensor, *rest: Any) -> Checked:
        taken.append(images)
        return Checked(len(images), 1, 0, 1e-4, 1)

    monkeypatch.setattr(command, "export_adaptive", export)
    monkeypatch.setattr(command, "report", lambda *args: None)
    command.export_model(opened, tmp_path, False, 0, Console())
    made, checked = ({image.numpy().tobytes() for image in images} for images in (opened.images()[0], *taken))
    assert (len(made), len(checked), len(made & checked)) == (1024, 256, 0)
