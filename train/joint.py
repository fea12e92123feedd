"""Stage 3: the supernet is fine-tuned on the subnets that a trained policy chooses, and the policy on it again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from agents.adaptive import AdaptiveViT
from agents.baselines import FullAgent
from agents.deployed.runs import Deployed
from agents.prance_ppo.algorithm import PrancePPO
from agents.prance_ppo.files import WEIGHTS
from agents.protocol import Agent
from prance_env import PranceVectorEnv
from prance_env.settings import EnvArguments, EnvSettings
from supernet import SubnetConfig, Supernet, from_pretrained, save_pretrained
from supernet.files import write_text
from supernet.reading import check_fields, make_plain
from supernet.staging import finish_commit, staged

from .evaluate import evaluate
from .networks.launch import Team, open_team
from .networks.loop import LAST, train_supernet
from .networks.recipes.images import ImagesRecipe
from .policies.load_agent import load_agent
from .policies.settings import AgentTraining
from .policies.train_agent import NAMES
from .policies.train_prance_ppo import load_last, output_on, save_last
from .reward_options import noted_reward
from .runs.folder import CONFIG, check_settings, noted_fields, open_run, read_config, write_command
from .runs.interrupt import deferred_interrupt
from .runs.pace import SAVE_FREQ, Pace
from .runs.trained import env_of_run

REPORT = "joint.json"
OF_THE_AGENT = (
    *("agent", "source", "init", "num_classes", "img_size", "in_chans"),
    *("embed_dims", "mlp_ratios", "num_heads", "groups", "token_mode", "lln", "order"),
)
"""Settings of `JointRecipe` that are the agent's, which sees and decides what it learned to see and to decide."""
NOT_TYPED = (
    "None of them was typed: the agent's folder has changed since, or an earlier version of this package began the "
    "run; begin another, with another --out"
)
"""What to do about a round that was begun with other settings, though the run was not."""


@dataclass(frozen=True)
class JointRecipe(ImagesRecipe):
    """How a supernet is fine-tuned to a policy."""

    steps: int = 1000
    """Optimiser steps of a round."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    lr: float = 5e-5
    """Peak learning rate of AdamW; 5 % linear warm-up, then cosine to zero."""
    ema_decay: float = 0.99
    """Decay of the averaged weights, which are the ones that are saved."""
    checkpoint_every: int = 250
    """Steps between validations, each with a checkpoint."""
    layer_decay: float = 0.8
    """Factor on the learning rate from a block to the one before it: below 1 for pretrained weights."""
    subnets: int = 0
    """Random subnets a step, beside the full network and those that the policy chooses."""
    smallest: bool = False
    """Whether the narrowest subnet is trained at every step."""
    teacher: str | None = "original"
    """Frozen teacher: original (the network before training), timm:NAME, a supernet's folder, or store:FOLDER."""
    full_teacher: float = 1.0
    """Weight of the teacher in the full network's loss."""
    sub_labels: float = 1.0
    """Weight of the labels in the subnets' losses."""
    agent: str = ""
    """Run folder of the policy (prance train agent), which stays as it is."""

    @cached_property
    def _environment(self) -> EnvSettings:
        return env_of_run(Path(self.agent), "train", self.dataset)

    @cached_property
    def start(self) -> Supernet:
        """The network to begin with, run as the policy knows it: token mode, and whether the first group is decided."""
        net = super().start
        net.run_by(self._environment.config())
        return net

    @property
    def trained(self) -> tuple[str, ...]:
        """Random subnets stand for those of the policy, which may be any."""
        return (*dict.fromkeys([*super().trained, "random"]),)

    @cached_property
    def _policy(self) -> Agent:
        return load_agent(self.agent, self._environment)

    def sandwich(self, net: Supernet, step: int, images: Tensor) -> list[SubnetConfig]:
        """What the policy chooses for these images on the network as it is now, and further subnets for all of them."""
        settings, price = self._environment, None
        if settings.conditioning is not None:
            price = settings.conditioning.draw(np.random.default_rng([self.seed, 4, step]))
        training = net.training
        # As in use: batch norms neither take the batch's statistics nor see it twice.
        adaptive = AdaptiveViT(
            net.eval(), self._policy, settings.observation, settings.normalize_actions, settings.conditioning
        )
        try:
            chosen = adaptive(images, price).subnet
        except ValueError as e:
            with torch.no_grad():
                if bool(torch.isfinite(net(images)).all()):
                    raise
            # The policy is not to blame, it only sees what comes of the weights.
            raise FloatingPointError(f"The network diverges at step {step}; lower --lr (now {self.lr}).") from e
        finally:
            net.train(training)
        return [chosen, *super().sandwich(net, step, images)]


@dataclass(frozen=True)
class JointSettings:
    """What `prance train joint` does."""

    agent: str
    """Run folder of the policy (prance train agent): its supernet is trained, and judged, on its images."""
    rounds: int = 1
    """Rounds; in each the supernet is trained, and then the policy, if --agent-timesteps is above 0."""
    agent_timesteps: int = 0
    """Decisions of further policy training a round (algorithm prance_ppo only)."""
    split: str = "val"
    """Images on which the pair is evaluated before and after."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `JointRecipe`."""

    def __post_init__(self) -> None:
        make_plain(self, *(f.name for f in fields(JointSettings)))
        check_fields(self)
        # As YAML gives it back, so that both compare equal.
        object.__setattr__(self, "changes", {k: [*v] if isinstance(v, tuple) else v for k, v in self.changes.items()})
        if wrong := sorted(set(self.changes) & set(OF_THE_AGENT)):
            raise ValueError(
                f"changes={ {name: self.changes[name] for name in wrong} } would make another supernet than the one "
                "that the agent knows; leave them out, or train an agent on the other one first."
            )

    def environment(self, split: str) -> EnvSettings:
        """That of the agent, but for what `changes` says of the images, and of broken ones."""
        seen = env_of_run(Path(self.agent), split, self.changes.get("dataset"))
        return replace(seen, on_error=self.changes.get("on_error", seen.on_error))

    def recipe(self, agent: str, source: str) -> JointRecipe:
        """The recipe of a round."""
        seen = self.environment("train")
        if seen.dataset is None:
            raise ValueError(f"{self.agent} says nothing of its images; train an agent with --dataset.")
        changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.changes.items()}
        own = {"dataset": seen.dataset, "on_error": seen.on_error, "agent": agent, "source": source}
        return JointRecipe(**{**changes, **own})


def run_joint(
    settings: JointSettings, out: Path, resume: bool = False, device: str = "cpu", save_freq: float = SAVE_FREQ
) -> dict[str, Any]:
    """Fine-tunes supernet and policy to each other.

    Of several processes that train the supernet together, the main one trains the policy, judges, and writes. The
    others do not wait for what it says in the end, which can take longer than processes wait for each other.

    Args:
        settings: What is done.
        out: Run folder; `model.safetensors` and `config.json` in the end, `joint.json`, and a folder for each round.
        resume: Go on with an interrupted run.
        device: Torch device, which trains and judges; as of `train_supernet`.
        save_freq: Seconds between two checkpoints, of a supernet or of a policy.

    Returns:
        What is written to `joint.json`: accuracy and MACs of the full network and of the policy, before and after;
        nothing in the other processes.

    Raises:
        FileExistsError: If `out` holds a run and `resume` is False, or another process writes to it.
        FileNotFoundError: If there is no agent, or nothing to resume.
        ValueError: If the policy cannot be trained further, or the run was begun with other settings.
    """
    if settings.agent_timesteps and read_config(Path(settings.agent)).get("algo") != "prance_ppo":
        raise ValueError(
            f"{settings.agent} was not trained by prance_ppo, which alone goes on; leave --agent-timesteps."
        )
    first = settings.environment(settings.split)
    agent, source = settings.agent, str(first.checkpoint or first.supernet)
    team, report = open_team(device), dict[str, Any]()
    place = str(team.device)
    first = replace(first, device=place)
    may_change = settings.recipe(agent, source).may_change
    with ExitStack() as stack:
        if team.is_main:
            last = out / "round_1" / "supernet" / LAST
            stack.enter_context(open_run(out, settings, last, resume, [out / REPORT], may_change=may_change))
            # What does not fit is said before hours of training, after which both are judged.
            load_agent(agent, first), first.engine()
        for number in range(1, settings.rounds + 1):
            agent, source = _round(settings, agent, source, out / f"round_{number}", team, device, save_freq)
        if team.is_main:
            report = {"split": settings.split, "before": _judged(settings.agent, first)}
            report |= {"after": _judged(agent, replace(first, checkpoint=source)), "agent": agent}
            report["rounds"] = settings.rounds
            with staged(out) as stage:
                save_pretrained(from_pretrained(source), stage)
                write_text(stage / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def _round(
    settings: JointSettings, agent: str, source: str, folder: Path, team: Team, device: str, save_freq: float
) -> tuple[str, str]:
    """Trains the supernet, and then the policy, from where they were stopped; returns the agent's folder and its."""
    recipe, out = settings.recipe(agent, source).prepared(), folder / "supernet"
    begun = (out / CONFIG).exists()
    if begun and team.is_main:
        check_settings(out, recipe, NOT_TYPED, "round", recipe.may_change)
    train_supernet(recipe, out, device, begun, save_freq)
    if not settings.agent_timesteps:
        return agent, str(out)
    if team.is_main:
        changes: EnvArguments = {"checkpoint": str(out), "dataset": recipe.dataset, "device": str(team.device)}
        if "on_error" in settings.changes:
            changes["on_error"] = recipe.on_error
        _further_trained(Path(agent), changes, settings.agent_timesteps, folder / "agent", save_freq)
    return str(_awaited(folder / "agent", team)), str(out)


def _judged(agent: str, settings: EnvSettings) -> dict[str, dict[str, float]]:
    """Summaries of the full network and of the policy; at the middle of its prices, if it has several."""
    if settings.conditioning is not None:
        low, high = settings.conditioning.low, settings.conditioning.high
        settings = replace(settings, cost_conditioning=(low, high, (low * high) ** 0.5))
    full = FullAgent(settings.config(), settings.observation, settings.normalize_actions)
    pair = {"full": full, "policy": load_agent(agent, settings)}
    return {name: evaluate(each, settings).summary() for name, each in pair.items()}


def _awaited(agent: Path, team: Team) -> Path:
    """A run folder, once its policy is there."""
    # Processes that wait for each other give up after some minutes, and policies take longer.
    while not (agent / "model" / WEIGHTS).is_file():
        time.sleep(1)
    team.wait()
    return agent


def _further_trained(run: Path, changes: EnvArguments, timesteps: int, out: Path, save_freq: float) -> None:
    """Writes a run folder with the policy after more training in another environment, unless it is there and done."""
    finish_commit(out)
    last, model = (out / name for name in NAMES)
    if (model / WEIGHTS).is_file():
        return
    noted = noted_fields(run, AgentTraining, images=False) or {}
    noted_reward(noted, str(run))
    environment = {**noted["environment"], **changes}
    training = AgentTraining(**{**noted, "total_timesteps": timesteps, "environment": environment})
    chosen = EnvSettings.from_id(training.env, **training.env_arguments)
    arguments, device = {f.name: getattr(chosen, f.name) for f in fields(chosen)}, str(chosen.device)
    begun = PrancePPO.load(run / model.name)
    end = begun.num_timesteps + timesteps
    env = PranceVectorEnv(begun.config.n_envs, AutoresetMode.SAME_STEP, output_on(device), **arguments)
    agent, pace = load_last(last if last.exists() else run / model.name, env, device), Pace(save_freq)
    with deferred_interrupt() as interrupted:

        def after_update(agent: PrancePPO) -> bool:
            if agent.num_timesteps < end and (interrupted() or pace.due()):
                with staged(out) as stage:
                    save_last(agent, stage / last.name)
            return not interrupted()

        agent.learn(end - agent.num_timesteps, after_update, progress_bar=True, reset_num_timesteps=False)
        if agent.num_timesteps >= end:
            write_command(out, training)
            Deployed(chosen, chosen.dataset_config).note_class_names(out)
            with staged(out) as stage:
                save_last(agent, stage / last.name)
                agent.save(stage / model.name)
        interrupted.heed()
