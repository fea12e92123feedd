"""A model that is saved and loaded, asked for budgets and shown pictures is the one that was evaluated."""

from __future__ import annotations

import copy
import io
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from adaptive_models import pixels, prance_ppo, price_minded, saved, says
from helpers import make_engine, settings_for
from noise_envs import TINY
from PIL import Image
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import Actor, SACPolicy
from wrapped_agents import CASES, IMAGES, Settings, learned, native, noisy_presets

from agents import AdaptiveViT, ConfidenceAgent, ConfidenceRule, FullAgent, load_prance_selector, make_sb3
from agents import adaptive as module
from agents.deployed.convert import plain_agent
from agents.deployed.networks import NetworkPolicy, NetworkSpec
from agents.deployed.pictures import checked_names
from agents.deployed.prediction import Prediction
from agents.fitting import Interface, fitted
from agents.sb3.policy_file import load_policy, save_policy
from prance_env import EnvSettings
from supernet import Supernet
from train.evaluate import evaluate


@pytest.fixture
def model(digits_net: Supernet) -> AdaptiveViT:
    """A model for a range of prices, which matter to it."""
    return price_minded(digits_net)


def test_rows_name_the_class_that_is_the_label() -> None:
    logits = torch.tensor([[0.0, 1e-9, -1.0], [1.0, 0.0, 1.0]])  # of which the first have the same probability
    found = Prediction(logits, None, np.ones(2), np.ones((2, 1)), 1, ("a", "b", "c"))  # type: ignore[arg-type]
    rows = [*found.rows(2)]
    assert [row["label"] for row in rows] == found.labels.tolist() == [1, 0]
    assert [[t["class"] for t in row["top"]] for row in rows] == [["b", "a"], ["a", "c"]]


def test_names_are_by_label() -> None:
    for names in (["a", "b"], {1: "b", 0: "a"}, {"1": "b", "0": "a"}):
        assert checked_names(names, 2) == ("a", "b")  # type: ignore[arg-type]
    for wrong in ({1: "b", 2: "a"}, {"cat": "a", "dog": "b"}):
        with pytest.raises(ValueError, match=r"has no name for the label 0; .* for each label from 0 to 1"):
            checked_names(wrong, 2)  # type: ignore[arg-type]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_models_of_sb3_are_saved_without_pickles_and_choose_the_same(name: str, tiny: Settings, tmp_path: Path) -> None:
    agent, env = CASES[name](tiny)
    if "Vec" in type(env).__name__ and hasattr(env, "training"):
        env.training = False
    settings = EnvSettings.from_id("Prance-Digits-v0", **tiny)
    before = AdaptiveViT.from_settings(settings, agent)
    after = saved(before, tmp_path)
    assert isinstance(after.agent, NetworkPolicy)
    assert says(after, pixels(settings)) == says(before, pixels(settings))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", [SAC, TD3])
def test_squashed_actions_are_saved_as_they_are(kind: Any, tiny: Settings, tmp_path: Path) -> None:
    agent = learned(kind("MlpPolicy", native()(tiny), learning_starts=0, seed=0, device="cpu"))
    settings = EnvSettings.from_id("Prance-Digits-v0", **tiny)
    before = AdaptiveViT.from_settings(settings, agent)
    assert says(saved(before, tmp_path), pixels(settings)) == says(before, pixels(settings))


def test_agents_of_this_package_are_saved(any_net: Supernet, tmp_path: Path) -> None:
    settings = settings_for(make_engine(any_net, IMAGES))
    config = any_net.config
    size = config.space.action_size
    rule = ConfidenceRule("max_prob", (0.3,), ((1.0,) * size, (0.2,) * size))
    rules = [rule] * config.space.num_decisions
    for agent in (prance_ppo(Interface(config)), FullAgent(config), ConfidenceAgent(rules, config)):
        before = AdaptiveViT(any_net, agent)
        after = saved(before, tmp_path / type(agent).__name__)
        assert says(after, pixels(settings)) == says(before, pixels(settings))
        expected = evaluate(agent, settings)
        assert after(pixels(settings)).labels.tolist() == expected.prediction.tolist()


@pytest.mark.parametrize("kind", ["network", "sb3", "selector"])
def test_loading_an_agent_leaves_torchs_generator_where_it_is(kind: str, tiny: Settings, tmp_path: Path) -> None:
    if kind == "network":
        interface = Interface(TINY)
        agent: Any = prance_ppo(interface)
        load: Any = partial(plain_agent, agent, interface)
    elif kind == "sb3":
        save_policy(make_sb3("ppo", native()(tiny), seed=0), tmp_path / "policy.safetensors", {})
        load = partial(load_policy, tmp_path / "policy.safetensors")
    else:
        sizes = {"fc1": (8, 17), "fc2": (8, 8), "fc_mu": (7, 8)}
        actor = {f"{name}.weight": torch.ones(size) for name, size in sizes.items()}
        load = partial(load_prance_selector, actor | {f"{n}.bias": torch.ones(s[0]) for n, s in sizes.items()})
    before = torch.get_rng_state()
    load()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_measured_is_saved_and_in_the_card(model: AdaptiveViT, tmp_path: Path) -> None:
    settings = settings_for(make_engine(model.net, 32))
    images = pixels(settings, 32)
    model.calibrate(images, settings.engine().dataset.labels, prices=5, timed=2)
    after = saved(model, tmp_path)
    assert after.calibration == model.calibration
    assert after.names == tuple("abcdefghij")
    assert says(after, images, "40%") == says(model, images, "40%")
    card = (tmp_path / "README.md").read_text()
    assert model.calibration is not None
    assert model.calibration.full_accuracy == 0.5
    for figure in [*model.calibration.accuracy, model.calibration.full_accuracy]:
        assert f"{figure:.2%}" in card
    loaded = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert loaded.data.library_name == "prance-env"


def test_files_that_are_damaged_are_refused(
    model: AdaptiveViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        AdaptiveViT.from_pretrained(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(FileNotFoundError, match="There is no folder"):  # next to a folder: no name of the hub
        AdaptiveViT.from_pretrained(f"{tmp_path.name}/agnet")
    whole, weights = (tmp_path / "config.json").read_text(), (tmp_path / "model.safetensors").read_bytes()
    for text in ("{}", whole.replace('"network"', '"pickle"'), whole.replace('"Tanh"', '"Dropout"')):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="does not describe an AdaptiveViT"):
            AdaptiveViT.from_pretrained(tmp_path)
    for text in ("null", "3", "[]", "[" * 100_000, whole[:200]):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json.*save the model again"):
            AdaptiveViT.from_pretrained(tmp_path)
    larger = json.loads(whole)
    sizes = [layer for layer in larger["policy"]["layers"] if isinstance(layer, list)]
    sizes[0][1] = sizes[1][0] = 10**9  # which would take terabytes
    (tmp_path / "config.json").write_text(json.dumps(larger))
    with pytest.raises(ValueError, match=r"model\.safetensors.*1000000000"):
        AdaptiveViT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(whole)
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        AdaptiveViT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        AdaptiveViT.from_pretrained(tmp_path)


def test_agents_of_unknown_kinds_run_but_are_not_saved(digits_net: Supernet, tiny: Settings, tmp_path: Path) -> None:
    class Mine:
        def predict(self, observation: Any, deterministic: bool = False) -> tuple[Any, None]:
            return np.zeros((len(observation), digits_net.space.action_size), np.float32), None

    engine = make_engine(digits_net, 2)
    model = AdaptiveViT(digits_net, Mine())
    assert len(model(engine.dataset.fetch(np.arange(2)))) == 2
    with pytest.raises(ValueError, match="class Mine runs, but how to save it"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    odd = PPO("MlpPolicy", native()(tiny), policy_kwargs={"activation_fn": torch.nn.Hardswish}, device="cpu")
    interface = Interface.of(EnvSettings.from_id("Prance-Digits-v0", **tiny))
    with pytest.raises(ValueError, match="has the layer Hardswish"):
        plain_agent(fitted(odd, interface), interface)


def test_policies_derived_from_those_of_sb3_are_not_saved_as_their_layers(tiny: Settings) -> None:
    class MyActor(Actor):
        """May do anything with its layers."""

    class WithMyActor(SACPolicy):
        def make_actor(self, features_extractor: Any = None) -> MyActor:
            return MyActor(**self._update_features_extractor(self.actor_kwargs, features_extractor))

    class MyPolicy(SACPolicy):
        """May do anything with its actor."""

    class MyNetwork(QNetwork):
        """May do anything with its layers."""

    class WithMyNetwork(DQNPolicy):
        def make_q_net(self) -> MyNetwork:
            return MyNetwork(**self._update_features_extractor(self.net_args, features_extractor=None))

    interface = Interface.of(EnvSettings.from_id("Prance-Digits-v0", **tiny))
    for algorithm, policy, env in (
        (SAC, WithMyActor, native()(tiny)),
        (SAC, MyPolicy, native()(tiny)),
        (DQN, WithMyNetwork, native(noisy_presets)(tiny)),
    ):
        agent = algorithm(policy, env, buffer_size=100, device="cpu")
        with pytest.raises(ValueError, match=rf"policy {policy.__name__} runs, but cannot be saved without pickling"):
            plain_agent(fitted(agent, interface), interface)


def test_the_hub_gets_the_folder_and_gives_it_back(
    model: AdaptiveViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"

    class Repo:
        repo_id = "me/mine"

    def upload(self: Any, folder_path: Path, **rest: Any) -> str:
        Path(folder_path).rename(hub)
        return "a commit"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *a, **k: Repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert model.push_to_hub("me/mine") == "a commit"
    assert {p.name for p in hub.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", lambda filename, **k: str(hub / filename))
    monkeypatch.setattr(module, "snapshot_download", lambda name, **k: str(hub))
    images = make_engine(model.net, 4).dataset.fetch(np.arange(4))
    assert says(AdaptiveViT.from_pretrained("me/mine"), images, 0.1) == says(model, images, 0.1)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_of_all_kinds_are_the_same_images(model: AdaptiveViT, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)
    picture, path = Image.fromarray(array), tmp_path / "a.png"
    picture.save(path)
    kinds: list[Any] = [path, str(path), path.read_bytes(), picture, array, array[None], array[..., None]]
    kinds += [torch.from_numpy(array), np.repeat(array[..., None], 3, axis=2)]
    found = model.predict(kinds, 0.1, batch_size=4)
    assert len(found) == len(kinds)
    assert len({*found.labels.tolist()}) == len({*found.macs.tolist()}) == 1
    row = next(model.predict(path, 0.1).rows(top=3))
    assert row["class"] == "abcdefghij"[row["label"]] == row["top"][0]["class"]
    assert 0 < row["macs_fraction"] <= 1
    assert json.loads(json.dumps(row)) == row
    fits = make_engine(model.net, 3).dataset.fetch(np.arange(3))
    assert says(model, fits, 0.1)[0] == model.predict(fits, 0.1).labels.tolist()


def test_pictures_that_cannot_be_read_are_named(model: AdaptiveViT, tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:200])
    (tmp_path / "text.png").write_text("hello")
    for picture, message in {
        tmp_path / "cut.jpg": r"cut\.jpg cannot be read as a picture",
        tmp_path / "text.png": r"text\.png cannot be read as a picture",
        tmp_path / "none.png": r"none\.png: there is no such file",
        b"": "picture 0 cannot be read",
    }.items():
        with pytest.raises(ValueError, match=message):
            model.predict(picture, 0.1)
    with pytest.raises(ValueError, match="float64 of the shape"):
        model.predict(np.zeros((4, 4)), 0.1)
    with pytest.raises(ValueError, match="There are no pictures"):
        model.predict([], 0.1)


def test_pictures_in_postscript_are_run_by_no_other_program(
    model: AdaptiveViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **named: called.append(args))
    Image.fromarray(np.zeros((60, 60), np.uint8)).save(tmp_path / "page.eps", "EPS")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    for picture in (tmp_path / "page.png", (tmp_path / "page.png").read_bytes()):
        with pytest.raises(ValueError, match="cannot be read as a picture: cannot identify"):
            model.predict(picture, 0.1)
    assert called == []


# ---- wherever it runs -----------------------------------------------------------------------------------------------


def test_modes_of_torch_and_threads_change_no_choice(model: AdaptiveViT) -> None:
    images = make_engine(model.net, 16).dataset.fetch(np.arange(16))
    expected = says(model, images, 0.1)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            assert says(model, images, 0.1) == expected
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(says(model, images, 0.1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images, 0.1)
    assert np.mean(rounded.labels == expected[0]) >= 0.75
    assert isinstance(rounded.probabilities.sum(), np.floating)
    state = model.forward_features(images, 0.1)
    torch.testing.assert_close(model.forward_head(state), model(images, 0.1).logits)


def test_a_policy_keeps_its_precision(model: AdaptiveViT, tmp_path: Path) -> None:
    half = saved(model, tmp_path).to(torch.bfloat16)
    assert half.net.pos_embed.dtype == torch.bfloat16
    assert {t.dtype for t in half.agent.state_dict().values()} == {torch.float32}  # type: ignore[union-attr]


def test_an_agent_that_is_a_module_keeps_its_precision_beside_a_network_in_another(
    tiny: Settings, tmp_path: Path
) -> None:
    save_policy(make_sb3("ppo", native()(tiny), seed=0), tmp_path / "policy.safetensors", {})
    settings = EnvSettings.from_id("Prance-Digits-v0", **tiny)
    model = AdaptiveViT.from_settings(settings, load_policy(tmp_path / "policy.safetensors"))
    assert isinstance(model.agent, torch.nn.Module)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.net.pos_embed.dtype == torch.bfloat16
    assert {t.dtype for t in half.agent.state_dict().values()} == {torch.float32}  # type: ignore[attr-defined]
    assert half(pixels(settings)).logits.dtype == torch.bfloat16
    assert {t.device.type for t in copy.deepcopy(model).to("meta").agent.parameters()} == {"meta"}


def test_what_is_said_of_a_nonsensical_policy_is_short() -> None:
    data = {"layers": "é" * 1000, "output": "x" * 1000, "columns": None, "normalised": None, "tables": []}
    with pytest.raises(ValueError, match="no description of a policy's network") as refused:
        NetworkSpec.from_dict(data)
    assert len(str(refused.value)) < 500
