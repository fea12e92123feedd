"""`prance video`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from prance_env.settings import EnvArguments

from ..options import Split, Threads, Trust, noted_options, set_threads
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
            ValueError: If a number is out of range.
        """
        from ..evaluate.budget import at_price, front_prices
        from ..policies.load_agent import load_agent
        from ..report.episodes import of_every_kind
        from ..report.video import episode_frames, has_moviepy, write_gif, write_mp4
        from ..reward_options import reward_arguments
        from ..runs.folder import plain
        from ..runs.trained import environment_of, settings_for, trained_settings

        set_threads(self.threads)
        if not 0 < self.fps <= 60:
            raise ValueError(f"--fps {self.fps} must be more than 0 and at most 60.")
        env = environment_of(self.agent, settings_for([self.agent], plain(self)), self.split, self.environment)
        if env.conditioning is not None:
            env = at_price(env, front_prices(env, 3)[1] if self.macs_weight is None else self.macs_weight)
        elif self.macs_weight is not None:
            raise ValueError(f"{self.agent} was not trained for a range of prices; leave --macs-weight out.")
        price = trained_settings(self.agent).get("macs_weight")
        env = replace(env, reward=reward_arguments(None, price if isinstance(price, int | float) else None))
        agent = load_agent(self.agent, env, trust=self.trust)
        source = env.engine().dataset
        if bad := [i for i in self.images if not 0 <= i < len(source)]:
            raise ValueError(f"--images {bad[0]} is none of the {len(source)} of the split {self.split}, from 0.")
        images = np.array(self.images, dtype=np.int64) if self.images else of_every_kind(source)
        frames = episode_frames(agent, env, images)
        out = self.out.with_suffix("") if self.out.suffix.lower() in (".gif", ".mp4") else self.out
        out.parent.mkdir(parents=True, exist_ok=True)
        written = [out.with_name(f"{out.name}.gif")]
        write_gif(frames, written[0], self.fps)
        if has_moviepy():
            written.append(out.with_name(f"{out.name}.mp4"))
            write_mp4(frames, written[1], self.fps)
        print(f"Written to {' and '.join(map(str, written))}: {len(images)} episodes")
        if len(written) == 1:
            print("MP4 needs MoviePy: pip install -e '.[video]'.")
