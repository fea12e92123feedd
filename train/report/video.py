"""Episodes as moving pictures: GIF by Pillow, MP4 by MoviePy, which Gymnasium's recorder uses as well."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agents.protocol import Agent
from prance_env.rendering import render_episode
from prance_env.settings import EnvSettings
from supernet.arrays import Ints
from supernet.files import write_atomically

from ..play import play

Frames = Sequence[NDArray[np.uint8]]
LAST = 2
"""How many times as long as another one the last frame of an episode is shown."""


def episode_frames(agent: Agent, settings: EnvSettings, images: Ints) -> list[NDArray[np.uint8]]:
    """What `render()` shows before and after every decision, episode by episode.

    Args:
        agent: Whatever has SB3's `predict`.
        settings: What it plays on, its reward included; at one price if it is for a range of them.
        images: One episode on each.
    """
    engine = settings.engine()
    path, _ = play(agent, settings, engine, images, reward=settings.reward_config)
    frames = []
    for row in range(len(images)):
        frames += [render_episode(engine, episodes.host[np.array([row])]) for episodes in path]
        frames += [frames[-1]] * (LAST - 1)
    return frames


def write_gif(frames: Frames, path: Path, fps: float) -> None:
    """Writes frames (H, W, 3) as a GIF that repeats for ever; colours are those of the frame itself."""
    first, *others = (Image.fromarray(frame) for frame in frames)

    def write(name: str) -> None:
        first.save(
            name, format="GIF", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, optimize=False
        )

    write_atomically(path, write)


def write_mp4(frames: Frames, path: Path, fps: float) -> None:
    """Writes frames (H, W, 3) as H.264.

    Raises:
        ModuleNotFoundError: If MoviePy is missing.
    """
    if not has_moviepy():
        raise ModuleNotFoundError(
            f"{path} needs MoviePy, which is not installed: pip install -e '.[video]'.", name="moviepy"
        )
    from moviepy.video.io.ImageSequenceClip import ImageSequenceClip

    hidden = path.with_name(f".{path.name}")  # FFmpeg knows the format by the suffix
    try:
        ImageSequenceClip(list(frames), fps=fps).write_videofile(str(hidden), codec="libx264", logger=None)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


def has_moviepy() -> bool:
    """Whether MP4 can be written."""
    return find_spec("moviepy") is not None
