"""The kinds of files that are damaged: how a valid one is made, and what using it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm

from agents import AdaptiveViT, FullAgent, PrancePPO, PrancePPOConfig, StaticAgent, make_sb3
from agents.baselines import BaselineAgent
from agents.sb3.checkpoint import save_model
from agents.sb3.hyperparams import read_preset
from agents.sb3.policy_file import load_policy, save_policy
from agents.sb3.saved import load_model
from prance_env import make_sb3_env
from prance_env.images.loading import load_dataset
from prance_env.rewards.latency import LatencyTable, load_latency_table
from prance_env.settings import EnvSettings
from supernet import (
    SubnetConfig,
    Supernet,
    create_supernet,
    from_pretrained,
    load_static,
    save_pretrained,
    save_static,
)
from supernet.archives import load_state
from supernet.convert.texts import TextEmbeddings
from supernet.ordering import UnitOrder
from train.commands.train_agent import TrainAgent
from train.evaluate.replay import run_validate
from train.networks.logit_store import LogitStore, StoreInfo
from train.networks.ordering import load_order, save_order
from train.networks.subnet_choice import choose_subnet
from train.policies.settings import AgentTraining
from train.policies.tune import read_ranges
from train.runs.folder import write_command
from train.runs.progress import Progress, read_progress
from train.runs.trained import env_of_run
from train.side_by_side import EvalSettings, run_eval
from train.yardsticks.fronts import FRONTS, Front, Yardsticks

from .run_kinds import subjects_of_runs
from .subject import Subject


def subjects() -> dict[str, Subject]:
    """All kinds, by name."""
    net = create_supernet("digits", EnvSettings.from_id().checkpoint)
    config, space = net.config, net.config.space
    sizes = (len(space.groups) - 1, len(space.embed_dims), len(space.mlp_ratios), 2)
    table = LatencyTable(
        *("cpu", "2", 1, 8, [*space.groups], [*space.embed_dims], [*space.mlp_ratios], [2, config.num_tokens]),
        *(1.0, 1.0, np.ones(sizes).tolist()),
    )
    static = StaticAgent(SubnetConfig.min(space, 1), config)
    ppo = PrancePPO("Prance-Digits-v0", PrancePPOConfig(n_envs=4, hidden=(8,)))
    sb3 = make_sb3("ppo", make_sb3_env("Prance-Digits-v0", n_envs=4), seed=0)
    hyperparams = {"n_envs": 4, "n_timesteps": 64, "policy": "MlpPolicy", **read_preset("ppo").hyperparams}
    preset = yaml.safe_dump({"default": {**hyperparams, "env_kwargs": {}}})

    images = torch.zeros(2, config.in_chans, config.img_size, config.img_size)
    return {
        "supernet": Subject(
            lambda f: save_pretrained(net, f), "config.json", lambda f: _finite(from_pretrained(f)(images))
        ),
        "weights": Subject(
            lambda f: save_pretrained(net, f), "model.safetensors", lambda f: _finite(from_pretrained(f)(images))
        ),
        "static": Subject(lambda f: static.save(f / "a.json"), "a.json", lambda f: BaselineAgent.load(f / "a.json")),
        "full": Subject(
            lambda f: FullAgent(config).save(f / "a.json"), "a.json", lambda f: BaselineAgent.load(f / "a.json")
        ),
        "agent": Subject(ppo.save, "config.json", lambda f: _look(PrancePPO.load(f))),
        "agent's weights": Subject(ppo.save, "model.safetensors", lambda f: _look(PrancePPO.load(f))),
        "policy": Subject(lambda f: save_policy(sb3, f / "p", {}), "p", lambda f: _look(load_policy(f / "p"))),
        "latency": Subject(
            lambda f: table.save(f / "l.json"),
            "l.json",
            lambda f: _finite(load_latency_table(str(f / "l.json")).full_ms(space)),
        ),
        "preset": Subject(
            lambda f: (f / "p.yml").write_text(preset),
            "p.yml",
            lambda f: AgentTraining(conf_file=str(f / "p.yml")).timesteps,
        ),
        "ranges": Subject(
            lambda f: (f / "r.yml").write_text("ppo: {gamma: {low: 0.9, high: 1.0}, n_epochs: [1, 2]}"),
            "r.yml",
            lambda f: read_ranges("ppo", f / "r.yml"),
        ),
        "run": Subject(
            lambda f: write_command(f, AgentTraining()),
            "config.yml",
            lambda f: (TrainAgent.resumed(f), env_of_run(f, "val")),
        ),
        "settings": Subject(_rows, "settings.json", lambda f: run_validate(f / "full.csv")),
        "rows": Subject(_rows, "full.csv", lambda f: run_validate(f / "full.csv")),
        "image": Subject(_images, "val/0/a.png", lambda f: load_dataset(str(f), "val", config).fetch(np.arange(1))),
        **_subjects_of_results(net),
        **_subjects_with_weights(net, ppo, sb3),
        **subjects_of_runs(net, ppo),
    }


def _subjects_of_results(net: Supernet) -> dict[str, Subject]:
    """What searches, stores and exports leave."""
    config, smallest = net.config, SubnetConfig.min(net.config.space, 1)
    info = StoreInfo(num_images=3, num_classes=4, top_k=2, epochs=1, images="these", view={"img_size": 8}, teacher="it")
    zeros = np.zeros(4, dtype=np.int64)
    point = Front(np.ones(1), np.ones((1, 4), bool), np.ones((1, 4)), (None,))
    fronts = Yardsticks(zeros, zeros, zeros, dict.fromkeys(FRONTS, point), {"split": "val"})
    images = torch.zeros(1, config.in_chans, config.img_size, config.img_size)

    def fill(folder: Path) -> None:
        LogitStore.create(folder, info).write(0, np.arange(3), torch.eye(4)[:3])

    def read(folder: Path) -> None:
        store = LogitStore.open(folder)
        targets, seeds = store.targets(0, np.arange(3)), store.seeds(0, np.arange(3))
        _finite(targets)
        if not torch.equal(targets, torch.eye(4)[:3]) or seeds.tolist() != [0, 1, 2]:
            raise AssertionError("it gives other records than were written")

    return {
        "static network": Subject(
            lambda f: save_static(net.extract(smallest), f), "static.json", lambda f: _finite(load_static(f)(images))
        ),
        "subnet": Subject(
            lambda f: (f / "s.json").write_text(smallest.to_json()),
            "s.json",
            lambda f: _finite(net(images, choose_subnet(config, str(f / "s.json")))),
        ),
        "store": Subject(fill, "store.json", read),
        "store's progress": Subject(fill, "progress.json", read),
        "store's records": Subject(fill, "epoch_0000.bin", read),
        "yardsticks": Subject(fronts.save, "yardsticks.json", lambda f: _plain(Yardsticks.load(f))),
        "outcomes": Subject(fronts.save, "outcomes.npz", lambda f: _plain(Yardsticks.load(f))),
        "progress": Subject(lambda f: Progress().write(f, 1, 2), "progress.json", read_progress),
    }


def _subjects_with_weights(net: Supernet, ppo: PrancePPO, sb3: BaseAlgorithm) -> dict[str, Subject]:
    """What a training goes on from, and files of tensors; what is loaded of them is what was written."""
    images = torch.zeros(2, net.config.in_chans, net.config.img_size, net.config.img_size)
    state = {"net": net.state_dict(), "step": 3}
    order = UnitOrder(*(torch.arange(n) for n in (32, 4, 64)))
    texts = TextEmbeddings(("cat", "dog"), torch.eye(2, 4), 100.0)
    model = AdaptiveViT(net, ppo)
    expected = model(images).logits

    def same(found: dict[str, Any], written: dict[str, Any]) -> None:
        torch.testing.assert_close(found, written, rtol=0, atol=0)

    def adaptive(folder: Path) -> None:
        same({"logits": AdaptiveViT.from_pretrained(folder)(images).logits}, {"logits": expected})

    return {
        "checkpoint": Subject(
            lambda f: torch.save(state, f / "last.pt"), "last.pt", lambda f: same(load_state(f / "last.pt"), state)
        ),
        "model of SB3": Subject(
            lambda f: save_model(sb3, f / "model.zip"), "model.zip", lambda f: _look(load_model(f / "model.zip"))
        ),
        # Other numbers are another model, which is as right.
        "adaptive model": Subject(
            model.save_pretrained, "config.json", lambda f: _finite(AdaptiveViT.from_pretrained(f)(images).logits)
        ),
        "adaptive model's weights": Subject(model.save_pretrained, "model.safetensors", adaptive),
        "order": Subject(
            lambda f: save_order(order, f / "o"), "o", lambda f: same(vars(load_order(f / "o")), vars(order))
        ),
        "text embeddings": Subject(
            lambda f: texts.save(f / "t"),
            "t",
            lambda f: same({"text": TextEmbeddings.load(f / "t").vectors}, {"text": texts.vectors}),
        ),
    }


def _plain(fronts: Yardsticks) -> None:
    for price in (0.01, 1.0):
        _finite(fronts.point("static", price)[0])


def _look(agent: Any) -> None:
    seen = np.zeros((2, *agent.observation_space.shape), np.float32)
    _finite(agent.predict(seen, deterministic=True)[0])


def _rows(folder: Path) -> None:
    run_eval(["full"], EvalSettings(split="val", resamples=10), folder)


def _images(folder: Path) -> None:
    (folder / "val" / "0").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 40, 3)).astype(np.uint8)).save(folder / "val" / "0" / "a.png")


def _finite(values: Any) -> None:
    if not np.isfinite(np.asarray(values.detach() if isinstance(values, torch.Tensor) else values)).all():
        raise AssertionError("it gives NaN or inf")
