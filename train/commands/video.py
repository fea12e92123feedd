"""`prance video`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from prance_env.settings import EnvArguments

from ..options import Split, Threads, Trust, check_file, noted_options, set_threads
from ..own_modules import Imports


@dataclass(frozen=True, kw_only=True)
class Video:
    """Episodes of an agent as an MP4 and a GIF: what is kept of each image, the widths, the MACs, the answer.

    MP4 needs the extra: pip install -e '.[video]'; without it there is the GIF.

    For example:

        prance video --agent runs/agent
        prance video --agent runs/agent/best --split val --images 0 7 12 --fps 1 --out best
        prance video --agent runs/any-budget --macs-weight 0.05
        prance video --agent runs/agent --dataset pictures --split val
    """

    agent: str
    """Run folder of `prance train agent`, or what else prance eval takes."""
    env: str | None = None
    """Environment id; that of the training, or Prance-Digits-v0, if not given."""
    split: Split = "test"
    """Where the images are from."""
    images: tuple[int, ...] = ()
    """Their numbers in the split; if none, one of each stratum, the easiest first, or of each class if there is one,
    twelve at most."""
    macs_weight: float | None = None
    """For an agent that was trained with a range of prices; the middle of the range if not given."""
    fps: float = 2.0
    """Frames a second: one before and after each decision, the last one for twice as long."""
    out: Path = Path("episodes")
    """Files; the suffixes .mp4 and .gif are put behind it, if it does not end with one of them."""
    trust: Trust = False
    environment: Annotated[EnvArguments, noted_options("as in the agent's training")] = field(
        default_factory=EnvArguments
    )
    """What else the environment takes."""
    threads: Threads = 1
    imports: Imports = ()

    def run(self) -> None:
        """Runs the command.

        Raises:
            ValueError: If a number is out of range, a file cannot be written, or the reward of the agent's training is
                a function of a module that nobody has imported.
            PermissionError: If a file's folder may not be changed.
        """
        from ..evaluate.budget import at_price, front_prices
        from ..evaluate.scoring import scoring_of
        from ..policies.load_agent import load_agent
        from ..report.episodes import of_every_kind
        from ..report.video import episode_frames, has_moviepy, write_gif, write_mp4
        from ..runs.folder import plain
        from ..runs.trained import environment_of, settings_for

        set_threads(self.threads)
        if not 0 < self.fps <= 60:
            raise ValueError(f"--fps {self.fps} must be more than 0 and at most 60.")
        out = self.out.with_suffix("") if self.out.suffix.lower() in (".gif", ".mp4") else self.out
        files = [out.with_name(f"{out.name}{suffix}") for suffix in (".gif", *([".mp4"] if has_moviepy() else []))]
        for file in files:
            check_file(file, file.suffix)
        env = environment_of(self.agent, settings_for([self.agent], plain(self)), self.split, self.environment)
        if env.conditioning is not None:
            env = at_price(env, front_prices(env, 3)[1] if self.macs_weight is None else self.macs_weight)
        elif self.macs_weight is not None:
            raise ValueError(f"{self.agent} was not trained for a range of prices; leave --macs-weight out.")
        scoring = scoring_of([self.agent], None)
        reward = scoring.rewards[self.agent]
        if reward is None:
            raise ValueError(scoring.remarks[0])
        env = replace(env, reward=reward)
        agent = load_agent(self.agent, env, trust=self.trust)
        source = env.engine().dataset
        if bad := [i for i in self.images if not 0 <= i < len(source)]:
            raise ValueError(f"--images {bad[0]} is none of the {len(source)} of the split {self.split}, from 0.")
        images = np.array(self.images, dtype=np.int64) if self.images else of_every_kind(source)
        frames = episode_frames(agent, env, images)
        out.parent.mkdir(parents=True, exist_ok=True)
        for file, write in zip(files, (write_gif, write_mp4), strict=False):
            write(frames, file, self.fps)
        print(f"Written to {' and '.join(map(str, files))}: {len(images)} episodes")
        if len(files) == 1:
            print("MP4 needs MoviePy: pip install -e '.[video]'.")
