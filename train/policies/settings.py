"""What `prance train agent` is told: the settings of the training of an agent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prance_env.rewards.config import RewardConfig
from prance_env.rewards.prices import CostConditioning
from prance_env.settings import EnvArguments, EnvSettings
from supernet.reading import check_fields, make_plain

from ..options import EnvironmentOptions, Observation, choice
from ..reward_options import MACS_WEIGHT, RewardName, RewardTerms, TrainingTerms, reward_arguments
from .registry import ALGORITHMS, Algorithm

PAPER = "paper"

AlgorithmName = Annotated[str, choice(lambda: ALGORITHMS)]


def _presets() -> list[str]:
    return list(dict.fromkeys(preset for name in ALGORITHMS for preset in ALGORITHMS[name].presets))


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What an agent is to learn, whatever algorithm trains it."""

    env: str = "Prance-Digits-v0"
    """Environment id."""
    observation: Observation = "cls"
    """What the agent sees; constant: only which decision it is, which learns one static subnet."""
    total_timesteps: int | None = None
    """Decisions, three an image, or four with --decide-first-group, rounded up to whole rollouts (prance_ppo: about
    1,536); what suits the algorithm if not given."""
    n_envs: int | None = None
    """Images at a time; what suits the algorithm if not given."""
    macs_weight: float | tuple[float, float] | None = None
    """Price of all MACs of the full network, in accuracy: a higher one gives a cheaper, less accurate agent. Two: one
    agent for all prices between them, which prance eval then chooses from. 0.05, or the paper's, if not given."""
    reward: RewardName | None = None
    """potential: dense, with the same best policy as a reward at the end only; paper: PRANCE's; or one that you have
    registered (--import). potential if not given."""
    latency_table: str | None = None
    """File that prance profile wrote: --macs-weight is then the price of the full network's milliseconds."""
    reward_terms: TrainingTerms = field(default_factory=RewardTerms)
    """Changes of the reward."""
    environment: EnvironmentOptions = field(default_factory=EnvArguments)
    """What else the environment takes; as its id says if not given."""

    def __post_init__(self) -> None:
        for name in ("total_timesteps", "n_envs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1; leave it out for what suits the algorithm.")
        EnvSettings.check_id(self.env)
        if self.macs_weight is None:
            object.__setattr__(self, "macs_weight", self._usual_price())

    def _usual_price(self) -> float:
        if self.reward != PAPER:
            return MACS_WEIGHT
        return RewardConfig.paper(EnvSettings.from_id(self.env, **self.environment).config()).macs_weight

    @property
    def cost_conditioning(self) -> tuple[float, float] | None:
        """The range of prices, None if there is but one."""
        return self.macs_weight if isinstance(self.macs_weight, tuple) else None

    @property
    def reward_arguments(self) -> dict[str, Any]:
        """The environment's argument `reward`."""
        price = None if isinstance(self.macs_weight, tuple) else self.macs_weight
        return reward_arguments(self.reward, price, self.latency_table, self.reward_terms)

    @property
    def env_arguments(self) -> EnvArguments:
        """Arguments of the environment that an agent is trained in."""
        own: EnvArguments = {"observation": self.observation, "reward": self.reward_arguments}
        return {**self.environment, **own, "cost_conditioning": self.cost_conditioning}


@dataclass(frozen=True, kw_only=True)
class AgentTraining(TrainingTask):
    """Settings of agent training.

    Raises:
        ValueError: If the algorithm or the preset is unknown, or the range of prices is not 0 < low < high.
        FileNotFoundError: If there is no such file of hyper-parameters.
        ModuleNotFoundError: If the algorithm needs sb3-contrib, and that is missing.
    """

    algo: AlgorithmName = "ppo"
    """Stable-Baselines3's, or prance_ppo: PRANCE's, faster, and saved without pickles; tqc and trpo need
    `pip install -e '.[contrib]'`."""
    preset: Annotated[str, choice(_presets)] = "tuned"
    """Settings of prance_ppo: what learns best here, or the paper's, with the paper's reward."""
    conf_file: str | None = None
    """Hyper-parameters of a Stable-Baselines3 algorithm, a YAML file in rl-zoo's format such as `prance tune` writes;
    this package's preset if not given."""
    reward: RewardName | None = None
    """potential: dense, with the same best policy as a reward at the end only; paper: PRANCE's; or one that you have
    registered (--import). potential if not given, but paper with --preset paper."""
    seed: int = 0
    """Fixes everything."""
    eval_freq: int = 0
    """Decisions between two validations: TensorBoard gets curves and pictures of episodes, and the agent with the
    highest return is kept as `best` in the run folder; 0: none. What is trained does not depend on it."""
    eval_images: int = 512
    """Validation images, evenly spaced in the split."""

    def __post_init__(self) -> None:
        make_plain(self, "environment", "macs_weight")
        check_fields(self)
        if self.reward is None and self.preset == PAPER:
            object.__setattr__(self, "reward", PAPER)
        super().__post_init__()
        if self.eval_freq < 0 or self.eval_images < 1:
            raise ValueError(
                f"eval_freq={self.eval_freq} must be 0 (no validations) or more decisions, and "
                f"eval_images={self.eval_images} at least 1."
            )
        if self.preset not in self.algorithm.presets:
            others = {name: sorted(p) for name in ALGORITHMS if len(p := ALGORITHMS[name].presets) > 1}
            known = ", ".join(f"{name} has {presets}" for name, presets in others.items())
            raise ValueError(f"preset={self.preset!r} is unknown to {self.algo}; {known}, others 'tuned'.")
        CostConditioning.from_plain(self.cost_conditioning)
        self.algorithm.check(self.algo, self.conf_file, self.env)
        self._check_env_kwargs()

    def _check_env_kwargs(self) -> None:
        """Hyper-parameters that were chosen for another environment are refused, not used as if for this one."""
        own: dict[str, Any] = dict(self.env_arguments)
        for name, value in self.algorithm.env_kwargs(self.conf_file, self.env).items():
            now = own.get(name)
            if isinstance(value, dict) and isinstance(now, dict):
                differ = {k: v for k, v in value.items() if v != now.get(k) and (k in now or k != "macs_weight")}
            else:
                differ = {} if value == now else {name: value}
            if differ:
                raise ValueError(
                    f"{self.conf_file}: env_kwargs has {name}={value!r}, but this run has {now!r}; pass the options "
                    f"that give it (--macs-weight, ...), or take {sorted(differ)} out of the file."
                )

    @property
    def algorithm(self) -> Algorithm:
        """What `algo` names."""
        return ALGORITHMS[self.algo]

    @property
    def timesteps(self) -> int:
        """Decisions, also if none are given."""
        if self.total_timesteps is not None:
            return self.total_timesteps
        return self.algorithm.timesteps(self.conf_file, self.env)
