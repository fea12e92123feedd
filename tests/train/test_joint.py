"""Stage 3: the subnets that the policy chooses are trained, and the pair is judged before and after."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from command_line import prance, refusal
from helpers import random_net
from image_files import image_folder
from training_nets import CONFIG, assert_equal_weights, saved_net

from agents.prance_ppo.algorithm import PrancePPO
from prance_env.images.config import DatasetConfig
from prance_env.settings import EnvSettings
from supernet import SubnetConfig, Supernet, from_pretrained, save_pretrained
from train.evaluate import evaluate
from train.joint import JointRecipe, JointSettings, run_joint
from train.networks.launch import Team
from train.policies.load_agent import load_agent
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent
from train.policies.train_prance_ppo import load_last
from train.runs.folder import read_config
from train.runs.trained import env_of_run

SHORT: dict[str, Any] = {"steps": 2, "batch_size": 6, "checkpoint_every": 1, "val_images": 12}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> dict[str, Path]:
    """Run folders of barely trained agents: for one price, and for a range of prices."""
    root = tmp_path_factory.mktemp("agents")
    environment: Any = {"checkpoint": saved_net(root / "net"), "dataset": str(folder)}
    for name, price in {"one": 0.05, "many": (0.01, 0.3)}.items():
        settings = AgentTraining(
            env="Prance-Tiny-v0",
            algo="prance_ppo",
            n_envs=6,
            total_timesteps=12,
            macs_weight=price,
            environment=environment,
        )
        train_agent(settings, root / name, progress_bar=False)
    return {name: root / name for name in ("one", "many")}


@pytest.mark.parametrize("name", ["one", "many"])
def test_the_subnets_of_a_step_are_those_that_the_policy_chooses(
    name: str, agents: dict[str, Path], folder: Path
) -> None:
    run = agents[name]
    settings = env_of_run(run, "train")
    recipe = JointRecipe(source=str(settings.checkpoint), dataset=str(folder), agent=str(run), subnets=1, **SHORT)
    net = recipe.make_net()
    images = settings.engine().dataset.fetch(np.arange(36))
    chosen, random = recipe.sandwich(net, 0, images)
    assert len(chosen) == 36
    assert len(random) == 1
    if name == "one":
        played = evaluate(load_agent(str(run), settings), settings)
        expected = SubnetConfig.from_actions(net.space, torch.from_numpy(played.actions))
        assert torch.equal(chosen.embed_dim, expected.embed_dim)
        assert torch.allclose(chosen.keep_rate, expected.keep_rate)


def test_the_policy_is_asked_as_in_use_and_leaves_batch_norms_alone(folder: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, stem="conv")
    save_pretrained(random_net(config), tmp_path / "net")
    environment: Any = {"checkpoint": str(tmp_path / "net"), "dataset": str(folder)}
    training = AgentTraining(
        env="Prance-Tiny-v0", algo="prance_ppo", n_envs=6, total_timesteps=12, environment=environment
    )
    train_agent(training, tmp_path / "agent", progress_bar=False)
    settings = env_of_run(tmp_path / "agent", "train")
    recipe = JointRecipe(source=str(tmp_path / "net"), dataset=str(folder), agent=str(tmp_path / "agent"), **SHORT)
    net = recipe.make_net().train()
    before = {name: b.clone() for name, b in net.named_buffers()}
    (chosen,) = recipe.sandwich(net, 0, settings.engine().dataset.fetch(np.arange(36)))
    assert net.training
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    played = evaluate(load_agent(str(tmp_path / "agent"), settings), settings)
    expected = SubnetConfig.from_actions(net.space, torch.from_numpy(played.actions))
    assert torch.equal(chosen.embed_dim, expected.embed_dim)


def test_prices_are_drawn_as_in_the_training_of_the_agent(
    agents: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    class Asked:
        def __init__(self, *args: Any) -> None: ...

        def __call__(self, images: torch.Tensor, price: float) -> SimpleNamespace:
            asked.append(price)
            return SimpleNamespace(subnet=None)

    monkeypatch.setattr("train.joint.AdaptiveViT", Asked)
    source = str(env_of_run(agents["many"], "train").checkpoint)
    recipe = JointRecipe(source=source, dataset=str(folder), agent=str(agents["many"]), **SHORT)
    for step in range(300):
        recipe.sandwich(recipe.start, step, torch.zeros(1))
    assert 0.01 <= min(asked) <= max(asked) <= 0.3
    middle = (0.01 * 0.3) ** 0.5
    assert np.mean(np.array(asked) < middle) == pytest.approx(0.5, abs=0.1)


def test_supernet_and_policy_are_trained_in_rounds_and_judged(agents: dict[str, Path], tmp_path: Path) -> None:
    settings = JointSettings(agent=str(agents["one"]), rounds=2, agent_timesteps=12, changes=SHORT)
    report = run_joint(settings, tmp_path)
    assert json.loads((tmp_path / "joint.json").read_text()) == report
    assert set(report["before"]) == set(report["after"]) == {"full", "policy"}
    before = env_of_run(agents["one"], "val")
    assert report["before"]["policy"] == evaluate(load_agent(str(agents["one"]), before), before).summary()
    net = from_pretrained(tmp_path)
    assert torch.equal(net.pos_embed, from_pretrained(tmp_path / "round_2" / "supernet").pos_embed)
    assert not torch.equal(net.pos_embed, from_pretrained(str(before.checkpoint)).pos_embed)
    assert report["agent"] == str(tmp_path / "round_2" / "agent")
    assert env_of_run(tmp_path / "round_2" / "agent", "val").checkpoint == str(tmp_path / "round_2" / "supernet")
    assert run_joint(settings, tmp_path, resume=True) == report
    with pytest.raises(FileExistsError, match="--resume"):
        run_joint(settings, tmp_path)


def test_the_device_judges_and_trains_the_policy_as_well(
    agents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, trained = list[str](), list[tuple[str, str]]()

    def noted(agent: Any, settings: EnvSettings) -> Any:
        judged.append(settings.device)
        return evaluate(agent, settings)

    def loaded(last: Path, env: Any, device: str = "cpu") -> PrancePPO:
        trained.append((env.settings.device, device))
        return load_last(last, env, device)

    monkeypatch.setattr("train.joint.evaluate", noted)
    monkeypatch.setattr("train.joint.load_last", loaded)
    settings = JointSettings(agent=str(agents["one"]), agent_timesteps=12, changes=SHORT | {"steps": 1})
    run_joint(settings, tmp_path, device="cpu:0")  # in place of a GPU
    assert judged == ["cpu:0"] * 4
    assert trained == [("cpu:0", "cpu:0")]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 60}, ValueError, "holds 36 images, fewer than batch_size=60"),
        ({"teacher": "{five}"}, ValueError, "gives 5 logits, the supernet 3"),
        ({"split": "test"}, ValueError, "split='test' is not in"),
        ({"dataset": "{other}"}, ValueError, r"class_names\.txt' lacks the classes \['class_3'\]"),
        ({"lr": 1e30}, FloatingPointError, "lower --lr"),
    ],
)
def test_what_cannot_be_trained_on_is_said_and_the_rest_goes_on(
    changes: dict[str, Any], error: type[Exception], message: str, agents: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    save_pretrained(Supernet(replace(CONFIG, num_classes=5)), tmp_path / "five")
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "train" / "class_1").rename(tmp_path / "other" / "train" / "class_3")
    places = {"{five}": str(tmp_path / "five"), "{other}": str(tmp_path / "other")}
    wrong = SHORT | {k: places.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    out, split = tmp_path / "out", wrong.pop("split", "val")
    with pytest.raises(error, match=message):
        run_joint(JointSettings(agent=str(agents["one"]), split=split, changes=wrong), out)
    assert not (out / "joint.json").exists()
    assert split == "val" or not (out / "round_1").exists()


def test_the_network_runs_as_the_agent_knows_it(folder: Path, tmp_path: Path) -> None:
    environment: Any = {"checkpoint": saved_net(tmp_path / "net"), "dataset": str(folder), "token_mode": "merge"}
    settings = AgentTraining(
        env="Prance-Tiny-v0", algo="prance_ppo", n_envs=6, total_timesteps=12, environment=environment
    )
    train_agent(settings, tmp_path / "agent", progress_bar=False)
    run_joint(JointSettings(agent=str(tmp_path / "agent"), changes=SHORT | {"steps": 1}), tmp_path / "joint")
    assert from_pretrained(tmp_path / "net").space.token_mode == "prune"
    assert from_pretrained(tmp_path / "joint").space.token_mode == "merge"


@pytest.mark.parametrize("change", [{"order": "taylor"}, {"token_mode": "merge"}, {"lln": True}, {"source": "x"}])
def test_the_supernet_stays_the_one_that_the_agent_knows(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f"changes=.*'{name}': .*another supernet than the one that the agent knows"):
        JointSettings(agent="agent", changes=SHORT | change)
    words = ["train", "joint", "--agent", "x", "--out", tmp_path / "out", f"--{name.replace('_', '-')}", value]
    assert "nrecognized" in refusal(monkeypatch, *words[: 7 + (value is not True)])


def test_a_joint_run_goes_on_with_nothing_but_its_folder(
    agents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = JointSettings(agent=str(agents["one"]), rounds=2, changes={**SHORT, "crop_scale": (0.5, 1.0)})
    whole = run_joint(settings, tmp_path / "whole")
    learning_rate = JointRecipe.learning_rate

    def interrupt(self: JointRecipe, step: int) -> float:
        if "round_1" in self.source:  # in the second round
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(self, step)

    monkeypatch.setattr(JointRecipe, "learning_rate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_joint(settings, tmp_path / "parts")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other values of \['rounds'\]"):
        run_joint(replace(settings, rounds=3), tmp_path / "parts", resume=True)
    prance(monkeypatch, "train", "joint", "--resume", "--out", tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "joint.json").read_text()) | {"agent": whole["agent"]} == whole
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run_joint(settings, tmp_path / "none", resume=True)


def test_the_training_of_the_policy_goes_on_where_it_was_stopped(
    agents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = JointSettings(agent=str(agents["one"]), agent_timesteps=1600, changes=SHORT)
    whole = run_joint(settings, tmp_path / "whole")
    update, updates = PrancePPO._update, 0

    def interrupt(self: PrancePPO, rollout: Any) -> dict[str, float]:
        nonlocal updates
        updates += 1
        if updates == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, rollout)

    monkeypatch.setattr(PrancePPO, "_update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_joint(settings, tmp_path / "parts")
    assert not (tmp_path / "parts" / "round_1" / "agent" / "model").exists()
    parts = run_joint(settings, tmp_path / "parts", resume=True)
    assert updates == 2
    assert parts | {"agent": whole["agent"]} == whole
    first, second = (PrancePPO.load(tmp_path / run / "round_1" / "agent" / "model") for run in ("whole", "parts"))
    assert first.num_timesteps == second.num_timesteps
    for name, value in first.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name])


def test_the_command_prints_both_sides(
    agents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "joint", "--agent", agents["many"], "--out", tmp_path, "--steps", 1, "--batch-size", 6]
    prance(monkeypatch, *words, "--val-images", 6)
    text = capsys.readouterr().out
    assert "accuracy before" in text
    assert f"Supernet written to {tmp_path}" in text


def test_of_several_processes_only_the_main_one_writes_and_says_something(
    agents: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.joint.open_team", lambda device: Team(torch.device(device), rank=1, size=2))
    monkeypatch.setattr("train.joint.evaluate", Mock(side_effect=AssertionError("the main process judges")))
    monkeypatch.setenv("RANK", "1")
    words = ["train", "joint", "--agent", agents["one"], "--out", tmp_path, "--steps", 1, "--batch-size", 6]
    prance(monkeypatch, *words, "--val-images", 6)
    assert [path.name for path in tmp_path.iterdir()] == ["round_1"]
    assert "Supernet written" not in capsys.readouterr().out


def test_other_images_than_the_agents_are_trained_on_if_they_are_named(
    agents: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "others")
    words = ["--agent", agents["one"], "--dataset", tmp_path / "others", "--steps", 1, "--batch-size", 6]
    prance(monkeypatch, "train", "joint", *words, "--val-images", 6, "--out", tmp_path / "run")
    trained_on = read_config(tmp_path / "run" / "round_1" / "supernet")["dataset"]
    assert trained_on == str(tmp_path / "others")
    assert env_of_run(agents["one"], "train").dataset == str(folder)


def test_images_that_somebody_elses_agent_names_are_not_asked_for_where_others_are_named(
    agents: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(agents["one"], tmp_path / "agent"))
    (run / "config.yml").write_text(yaml.safe_dump({**read_config(run), "dataset": "hfds/somebody/pictures"}))
    (run / "system.json").write_text(json.dumps({"written_by": {"host": "elsewhere"}}))
    settings = JointSettings(str(run), agent_timesteps=12, changes={**SHORT, "steps": 1, "dataset": str(folder)})
    run_joint(settings, tmp_path / "joint")
    assert read_config(tmp_path / "joint" / "round_1" / "agent")["dataset"] == str(folder)
    with pytest.raises(ValueError, match="would be fetched from the network"):
        run_joint(replace(settings, changes=SHORT), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_broken_images_are_met_as_in_the_training_of_the_agent(agents: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(agents["one"], tmp_path / "agent"))
    with (run / "config.yml").open("a") as f:
        f.write("on_error: skip\n")
    source = str(env_of_run(run, "train").checkpoint)
    assert JointSettings(str(run)).recipe(str(run), source).on_error == "skip"
    assert JointSettings(str(run), changes={"on_error": "raise"}).recipe(str(run), source).on_error == "raise"
    assert JointSettings(str(agents["one"])).recipe(str(agents["one"]), source).on_error == "raise"


def test_images_that_were_moved_are_the_agents_at_their_new_place(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("class_2\nclass_0\nclass_1\n")
    dataset = {"name": str(image_folder(tmp_path / "before")), "class_map": str(tmp_path / "map.txt"), "crop_pct": 0.5}
    training = AgentTraining(
        env="Prance-Tiny-v0",
        algo="prance_ppo",
        n_envs=6,
        total_timesteps=6,
        environment={"checkpoint": saved_net(tmp_path / "net"), "dataset": dataset},
    )
    train_agent(training, tmp_path / "agent", progress_bar=False)
    (tmp_path / "before").rename(tmp_path / "now")
    changes = {**SHORT, "steps": 1, "dataset": str(tmp_path / "now")}
    settings = JointSettings(agent=str(tmp_path / "agent"), rounds=2, agent_timesteps=6, changes=changes)
    report = run_joint(settings, tmp_path / "joint")
    moved = env_of_run(tmp_path / "agent", "val", str(tmp_path / "now"))
    assert moved.dataset_config == DatasetConfig(**{**dataset, "name": str(tmp_path / "now")})
    assert report["before"]["policy"] == evaluate(load_agent(str(tmp_path / "agent"), moved), moved).summary()
    for part in ("supernet", "agent"):
        noted = read_config(tmp_path / "joint" / "round_2" / part)["dataset"]
        assert DatasetConfig.from_value(noted) == moved.dataset_config
    names = (tmp_path / "joint" / "round_1" / "agent" / "class_names.txt").read_text()
    assert names == (tmp_path / "agent" / "class_names.txt").read_text() == "class_2\nclass_0\nclass_1\n"
    begun = tmp_path / "joint" / "round_1" / "supernet" / "config.yml"  # by a version that noted no more than the place
    begun.write_text(yaml.safe_dump({**read_config(begun.parent), "dataset": str(tmp_path / "now")}))
    with pytest.raises(ValueError, match=r"other values of \['dataset'\]: .* None of them was typed: .* another --out"):
        run_joint(settings, tmp_path / "joint", resume=True)


def test_only_a_policy_that_can_go_on_is_trained_further(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("algo: ppo\nenv: Prance-Digits-v0\n")
    with pytest.raises(ValueError, match="was not trained by prance_ppo"):
        run_joint(JointSettings(agent=str(tmp_path), agent_timesteps=1), tmp_path / "out")
    assert EnvSettings.from_id().split == "train"
