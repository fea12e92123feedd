"""`prance train agent`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from ..options import SaveFreq, Threads, Trust, narrowed, set_threads
from ..own_modules import Imports
from ..policies.algorithm import HYPERPARAMS
from ..policies.settings import AgentTraining
from ..policies.train_agent import train_agent
from ..policies.validation import BEST, best_row
from ..reward_options import noted_reward
from ..runs.folder import noted_fields
from ..runs.pace import SAVE_FREQ


@dataclass(frozen=True, kw_only=True)
class TrainAgent(AgentTraining):
    """Stage 2: train an agent on a frozen supernet.

    For example:

        prance train agent --out runs/agent
        prance train agent --out runs/agent --algo prance_ppo
        prance train agent --out runs/agent --eval-freq 20000
        prance train agent --out runs/sac --algo sac
        prance train agent --out runs/static --algo prance_ppo --observation constant
        prance train agent --out runs/cheap --macs-weight 0.15 --total-timesteps 500000
        prance train agent --out runs/any-budget --algo prance_ppo --macs-weight 0.01 0.3 --total-timesteps 800000
        prance train agent --out runs/merge --token-mode merge
        prance train agent --out runs/mine --env Prance-Tiny-v0 --checkpoint runs/supernet --dataset /data/imagenet
        prance train agent --out runs/paper --algo prance_ppo --preset paper
        prance train agent --out runs/fast --latency-table latency.json --macs-weight 0.1
        prance train agent --out runs/own --import my_rewards --reward frugal --reward.mode terminal
        prance train agent --out runs/agent --resume
        prance train agent --out runs/agent --resume --total-timesteps 800000
    """

    out: Path
    """Run folder."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, with its settings; more --total-timesteps extend it."""
    save_freq: SaveFreq = SAVE_FREQ
    trust: Trust = False
    threads: Threads = 1
    imports: Imports = ()

    @classmethod
    def resumed(cls, out: Path) -> Self | None:
        """The options of the run in a folder; None if there is none."""
        noted = noted_fields(out, AgentTraining)
        if noted is None:
            return None
        noted_reward(noted, str(out))
        if (conf_file := noted.get("conf_file")) is not None and not Path(conf_file).is_file():
            noted["conf_file"] = str(out / HYPERPARAMS)
        return cls(**noted, out=out, resume=True)

    def run(self) -> None:
        """Runs the command."""
        set_threads(self.threads)
        train_agent(narrowed(self, AgentTraining), self.out, self.resume, save_freq=self.save_freq, trust=self.trust)
        print(f"Agent written to {self.out}; evaluate it with: prance eval --agent {self.out}")
        if row := best_row(self.out):
            found = f"return {row['return']:.4f} after {row['timesteps']:,} decisions"
            print(f"Best on validation images is {self.out / BEST}: {found}")
