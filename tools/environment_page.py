"""Writes docs/environment.md from the docstring of `PranceEnv` and the code: `python -m tools.environment_page`.

A test compares the page with what this makes of the code; so run it after a change of spaces, reward, info, arguments
or docstrings.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from prance_env import PranceEnv, PranceVectorEnv, RewardConfig, wrappers
from prance_env.observations import list_observations
from prance_env.settings import EnvSettings
from supernet.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "environment.md"
ENV_ID = "Prance-Digits-v0"
NOTE = "<!-- Written by `python -m tools.environment_page`; change the docstrings instead. -->"

INFO_MEANING = {
    "index": "image of the data set",
    "label": "its class",
    "decision": "coming decision, from 0; after the last one their number",
    "embed_dim": "width of every block, full where undecided",
    "mlp_ratio": "MLP ratio of every block, the largest where undecided",
    "keep_rate": "rate that every decision chose: ceil(rate * patches) go on, at least one (in token modes with "
    "thresholds, the threshold); 1 where undecided",
    "num_tokens": "tokens that go on, class token included",
    "macs": "multiply-accumulates if finished at full size from here",
    "macs_fraction": "`macs` / MACs of the full network",
    "reward_accuracy": 'accuracy term of R_t; 0 before the first decision, with the mode "terminal" before the last',
    "reward_macs": "minus the price of `macs` (or of `latency_ms`); 0 where the accuracy term is not known yet",
    "reward_tokens": "minus the price of the kept patches; 0 there as well",
    "prediction": "class predicted if finished at full size from here; -1 where the reward does not need it",
    "is_success": "whether that is the label; False where it is -1",
    "macs_weight": "price of the full network in this episode; only with `cost_conditioning`",
    "latency_ms": "milliseconds if finished at full size from here; only with a latency table",
}


def environment_page() -> str:
    """The page, as Markdown.

    Raises:
        KeyError: If the info has a key that `INFO_MEANING` lacks.
    """
    sections, arguments, raises = split_docstring(PranceEnv)
    described = [f"## {title}\n\n{body}{_from_code(title)}" for title, body in sections.items()]
    history = described.pop() if list(sections)[-1] == "Version History" else ""
    summary = inspect.cleandoc(PranceEnv.__doc__ or "").splitlines()[0]
    parts = [
        f"{NOTE}\n\n# {ENV_ID}\n\n{summary}",
        _overview(),
        *described,
        f"## Arguments\n\n{_signature_table(PranceEnv, arguments)}",
        "Errors: " + "; ".join(f"`{error}` {_lower(text)}" for error, text in raises.items()).rstrip(".") + ".",
        f"## As a native batch\n\n{_vector()}",
        f"## Wrappers\n\n{_wrappers()}",
        history,
        "What an episode costs: [the runtime](runtime.md#what-an-episode-costs).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def split_docstring(cls: type) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The docstring of a class: its `##` sections by title, its arguments by name, its errors by type.

    Raises:
        ValueError: If an argument of the constructor is not documented, or what is documented is none.
    """
    text = inspect.cleandoc(cls.__doc__ or "")
    head, *entries = re.split(r"^(Args|Raises):\n", text, flags=re.MULTILINE)
    named = {kind: _entries(body) for kind, body in zip(entries[::2], entries[1::2], strict=True)}
    arguments = named.get("Args", {})
    expected = list(inspect.signature(cls).parameters)
    if set(arguments) != set(expected):
        raise ValueError(f"{cls.__name__} documents the arguments {list(arguments)}, but takes {expected}.")
    titles = re.split(r"^## (.+)\n", head, flags=re.MULTILINE)[1:]
    sections = {title: body.strip() for title, body in zip(titles[::2], titles[1::2], strict=True)}
    return sections, arguments, named.get("Raises", {})


def _entries(body: str) -> dict[str, str]:
    """`name: text` with indented further lines, as Google's style has it."""
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", body, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _box(box: gym.Space[Any]) -> str:
    assert isinstance(box, gym.spaces.Box)
    return f"Box({box.low.min():.4g}, {box.high.max():.4g}, {box.shape}, {box.dtype})"


def _overview() -> str:
    spec, settings = gym.spec(ENV_ID), EnvSettings.from_id(ENV_ID)
    observation, action = settings.spaces()
    config = settings.config()
    given = ", ".join(f"{k}={v!r}" for k, v in spec.kwargs.items())
    rows = [
        ["make", f'`gym.make("{ENV_ID}")`, `gym.make_vec("{ENV_ID}", num_envs=N)`, `prance_env.make_sb3_env(...)`'],
        ["observation space", f"`{_box(observation)}`"],
        ["action space", f"`{_box(action)}`"],
        ["episode", f"{config.space.num_decisions} decisions, one image"],
        ["render modes", ", ".join(f"`{mode}`" for mode in PranceEnv.metadata["render_modes"])],
        ["registered with", f"`{given}`"],
    ]
    return _table(["", f"`{ENV_ID}`"], rows) + "\n\n`import prance_env` registers it."


def _from_code(title: str) -> str:
    """What the code adds to a section of the docstring."""
    adds = {"Action Space": _actions, "Observation Space": _observations, "Rewards": _rewards, "Info": _info}
    return f"\n\n{adds[title]()}" if title in adds else ""


def _actions() -> str:
    space = EnvSettings.from_id(ENV_ID).config().space
    n = space.blocks_per_decision
    ratios, widths = (" ".join(f"{v:g}" for v in values) for values in (space.mlp_ratios, space.embed_dims))
    rows = [
        [f"`[0:{n}]`", "`mlp_ratio`", ratios],
        [f"`[{n}:{2 * n}]`", "`embed_dim`", widths],
        [f"`[{2 * n}:{space.action_size}]`", "`keep_rate`", f"{space.min_keep_rate:g} to 1"],
    ]
    return f"In `{ENV_ID}`, from lowest to highest:\n\n" + _table(["slice", "name", "choices"], rows)


def _observations() -> str:
    parts = []
    for observation in list_observations():
        settings = EnvSettings.from_id(ENV_ID, observation=observation)
        box = settings.spaces()[0]
        rows = [
            [f"`[{s.start}:{s.stop}]`", f"`{name}`", f"[{box.low[s].min():.4g}, {box.high[s].max():.4g}]"]
            for name, s in settings.layout().items()
        ]
        parts.append(f'`{ENV_ID}` with `observation="{observation}"`, `{_box(box)}`:\n\n')
        parts[-1] += _table(["slice", "name", "range"], rows)
    return "\n\n".join(parts)


def _rewards() -> str:
    documented = re.search(r"Attributes:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(RewardConfig.__doc__ or ""), re.DOTALL)
    assert documented is not None
    texts = _entries(documented[1])
    rows = [[f"`{f.name}`", f"`{f.default!r}`", texts[f.name]] for f in fields(RewardConfig)]
    formula = "R_t = reward_accuracy + reward_macs + reward_tokens"
    intro = "The terms in the info are signed, so that they add up (but for a `function` of yours):"
    return f"{intro}\n\n```text\n{formula}\n```\n\n`reward=` is a dict with:\n\n" + _table(
        ["field", "default", ""], rows
    )


def _info() -> str:
    with gym.make(ENV_ID, split="val", cache_mb=0, cost_conditioning=(0.01, 0.1)).unwrapped as env:
        info = env.reset(seed=0, options={"index": 0})[1]
    rows = []
    for key, value in {**info, "latency_ms": 0.0}.items():  # which would take a measured table
        array = isinstance(value, np.ndarray)
        kind = f"{value.dtype} array {value.shape}" if array else type(value).__name__
        rows.append([f"`{key}`", kind, INFO_MEANING[key]])
    note = "The native batch has arrays with one row per lane, and beside every key its mask, `_key`."
    return f"{_table(['key', 'type', ''], rows)}\n\n{note}"


def _signature_table(cls: type, arguments: dict[str, str], leave_out: tuple[str, ...] = ()) -> str:
    parameters = inspect.signature(cls).parameters
    rows = [
        [f"`{name}`", _default(parameters[name].default), text]
        for name, text in arguments.items()
        if name not in leave_out
    ]
    return _table(["argument", "default", ""], rows)


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return f"`{getattr(value, 'name', None) or repr(value)}`"


def _vector() -> str:
    arguments = split_docstring(PranceVectorEnv)[1]
    summary, second = inspect.cleandoc(PranceVectorEnv.__doc__ or "").split("\n\n")[:2]
    shared = tuple(inspect.signature(PranceEnv).parameters)
    table = _signature_table(PranceVectorEnv, arguments, shared)
    words = " ".join(f"{summary} {second}".split())
    return f"`PranceVectorEnv`: {words} Beside the arguments above:\n\n{table}"


def _wrappers() -> str:
    rows = []
    classes: list[tuple[str, Any]] = inspect.getmembers(wrappers, inspect.isclass)
    for name, cls in classes:
        if cls.__module__ != wrappers.__name__ or name.startswith("_"):
            continue
        if hasattr(wrappers, f"Vector{name}"):
            wrapped = cls(gym.make(ENV_ID))
            changed = wrapped.action_space
            if isinstance(wrapped, gym.ObservationWrapper):
                changed = wrapped.observation_space
            shown = type(changed).__name__ if isinstance(changed, gym.spaces.Dict) else str(changed)
            text = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
            rows.append([f"`{name}`, `Vector{name}`", f"`{shown}`", text])
    summary = inspect.cleandoc(wrappers.__doc__ or "").split("\n\n")[1]
    return f"In `prance_env.wrappers`. {' '.join(summary.split())}\n\n" + _table(["wrapper", "space", ""], rows)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    write_text(target, environment_page())
    print(f"Written to {target}")
