"""What users define: a cache on disk is of one function or class, not of a name that may get another meaning."""

from __future__ import annotations

import cmath
import logging
import math
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import make_engine, random_net
from mode_nets import make_config
from numpy.typing import NDArray
from torch import Tensor, nn

from prance_env import ImageDataset, InferenceEngine
from prance_env.cache import cache_key
from prance_env.definitions import definition_digest
from supernet import Supernet, TokenMode, freeze, list_token_modes, stems, token_mode
from supernet.config import with_space
from supernet.convert.authors import AUTHORS_MODES
from supernet.full_size import reduces_at_full_size
from supernet.stems import Stem
from supernet.tokens import modes
from supernet.tokens.modes import kept_tokens

TOTAL = 4


@pytest.fixture(scope="module")
def noise(digits_net: Supernet) -> ImageDataset:
    """A few images."""
    dataset = make_engine(digits_net, TOTAL).dataset
    assert isinstance(dataset, ImageDataset)
    return dataset


def scaled_stem(factor: float, kind: type[nn.Conv2d] = nn.Conv2d) -> Stem:
    """Makes a patch embedding times a factor that no weight shows."""

    def forward(module: nn.Module, images: Tensor) -> Tensor:
        return factor * kind.forward(cast(Any, module), images).flatten(2).transpose(1, 2)

    made = type("Scaled", (kind,), {"forward": forward})
    return lambda config: made(config.in_chans, config.embed_dim, config.patch_size, config.patch_size)


def scaling_mode(factor: float) -> TokenMode:
    """All tokens stay, each of them times a factor."""

    def assign(scores: Any, metric: Any, size: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return torch.arange(size.shape[1]).expand_as(size), torch.full_like(size, factor)

    return TokenMode(assign, normalise=False, always=True)


def capping_mode(most: float) -> TokenMode:
    """Our own `prune`, but that it never keeps more patches."""

    def counts(num_tokens: Any, keep_rates: Any, prefix: int) -> Any:
        return np.minimum(kept_tokens(num_tokens, keep_rates[:, 0], prefix), prefix + int(most))[:, None]

    return replace(token_mode("prune"), counts=counts)


@pytest.mark.parametrize("what", ["stem", "token mode", "counts of a token mode"])
def test_a_cache_is_of_what_a_users_name_stands_for(
    what: str, digits_net: Supernet, noise: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state: dict[str, Tensor] | None = None

    def prob(factor: float, **kept: Any) -> NDArray[np.float64]:
        nonlocal state
        monkeypatch.setattr(stems.STEMS, "_things", {"mine": scaled_stem(factor)})
        mode = scaling_mode if what == "token mode" else capping_mode
        monkeypatch.setitem(modes._OURS._things, "mine", mode(factor))
        config = digits_net.config
        config = replace(config, stem="mine") if what == "stem" else with_space(config, token_mode="mine")
        net = freeze(Supernet(config))
        state = state or net.state_dict()
        net.load_state_dict(state)
        return InferenceEngine(net, noise, **kept).start(np.arange(TOTAL)).prob

    for factor in (1.0, 2.0, 1.0):
        np.testing.assert_array_equal(prob(factor, cache_dir=tmp_path), prob(factor))
    assert len([p for p in tmp_path.iterdir() if p.suffix != ".lock"]) == 2


def test_token_modes_share_a_cache_if_nothing_leaves_at_full_size(
    digits_net: Supernet, noise: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(modes._OURS._things, "mine", capping_mode(2))
    net = random_net(digits_net.config)

    def key(mode: str) -> str:
        net.run_by(with_space(net.config, token_mode=mode))
        return cache_key(net, noise)

    assert key("prune") == key("tome") != key("mine")


@pytest.mark.parametrize("authors", [False, True])
def test_of_this_packages_token_modes_only_the_authors_reduce_at_full_size(authors: bool) -> None:
    for name in list_token_modes(authors):
        config = make_config(name, "authors" if authors else "class-token", True)
        assert reduces_at_full_size(config) == (config.token_mode in AUTHORS_MODES.values()) == authors


@pytest.mark.parametrize(
    ("held", "reason"),
    [(threading.Lock(), r"_thread\.lock"), (torch.empty(1, device="meta"), "meta")],
)
def test_a_stem_that_holds_what_cannot_be_read_has_no_cache_on_disk(
    held: Any, reason: str, digits_net: Supernet, noise: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = partial(lambda config, held: scaled_stem(1.0)(config), held=held)
    monkeypatch.setattr(stems.STEMS, "_things", {"mine": make})
    net = freeze(Supernet(replace(digits_net.config, stem="mine")))
    InferenceEngine(net, noise)
    with pytest.raises(ValueError, match=rf"cache_dir cannot keep what stem='mine' computes .*{reason}.*\. Leave"):
        InferenceEngine(net, noise, cache_dir=tmp_path)


# ---- digests --------------------------------------------------------------------------------------------------------

DEFINED = """
import functools, logging, torch
from torch import nn
log = logging.getLogger(__name__)
FACTOR = 2.0
KNOWN = ("a", "b", 1)
def helper(x):
    return x * FACTOR if str(x) in {"one", "two", "three"} else [y for y in KNOWN]
class Base(nn.Module):
    weight = torch.ones(2)
    def forward(self, x):
        log.debug("forward")
        return super().forward(helper(x))
class Stem(Base):
    @property
    def size(self): return 3
    @staticmethod
    def other(x, *, by=4): return x - by
    @functools.cached_property
    def kept(self): return lambda x: x + 5
def make(config): return Stem(config)
"""


def defined(text: str) -> Any:
    """What `make` is after a module's text has run."""
    names: dict[str, Any] = {"__name__": "users_own"}
    exec(compile(text, "users_own.py", "exec", dont_inherit=True), names)
    return names["make"]


CHANGES = [
    ("2.0", "3.0"),
    ('"b"', '"c"'),
    ("x * F", "x / F"),
    ("FACTOR if", "-FACTOR if"),
    ('"three"', '"four"'),
    ("ones", "zeros"),
    ("super().forward(", "super().forward(1 + "),
    ("return 3", "return 4"),
    ("x - by", "by - x"),
    ("by=4", "by=5"),
    ("x + 5", "x + 6"),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_digest_changes_with_all_that_a_definition_uses_of_its_module(before: str, after: str) -> None:
    assert definition_digest(defined(DEFINED.replace(before, after))) != definition_digest(defined(DEFINED))
    assert definition_digest(defined(f"# {after}\n{DEFINED}")) == definition_digest(defined(DEFINED))


def test_a_digest_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "users_own.py").write_text(DEFINED)
    code = "from prance_env.definitions import definition_digest as d; import users_own; print(d(users_own.make))"
    found = []
    for seed in ("1", "2"):  # and the second reads the compiled file of the first
        path = os.pathsep.join([str(tmp_path), *sys.path])
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": ""}
        found.append(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True))
    assert found[0].stdout == found[1].stdout == f"{definition_digest(defined(DEFINED))}\n"


def closed_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def marked(value: Any) -> Callable[[], Any]:
    def function() -> Any:
        return function.value  # type: ignore[attr-defined]

    function.value = value  # type: ignore[attr-defined]
    return function


class Holder:
    """Something of a user's that holds a value."""

    func = print

    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self) -> Any:
        return self.value


class Slotted:
    """The same, in a slot."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Table(dict[str, int]):
    """Something that holds values, and one more."""

    value: Any


def table(value: Any) -> Table:
    made = Table(a=1)
    made.value = value
    return made


A, B = [torch.zeros(1)], [torch.ones(1)]


@pytest.mark.parametrize(
    "bound",
    [
        closed_over,
        partial(partial, print),
        lambda value: Holder(value).method,
        lambda value: closed_over(Holder({"x": [value]})),
        lambda value: lru_cache(closed_over(value)),
        lambda value: closed_over(torch.tensor([value], dtype=torch.bfloat16)),
        lambda value: closed_over(np.array([value])),
        lambda value: closed_over({"b", value, "a"}),
        lambda value: closed_over({closed_over(value), closed_over(0)}),
        marked,
        lambda value: closed_over(Holder(value)),
        lambda value: closed_over(Slotted(value)),
        lambda value: closed_over(table(value)),
        # Who stands where is all that changes.
        lambda value: partial(print, [A, (A, B)[value - 1], B]),
        lambda value: closed_over([b"a", 1][:: 3 - 2 * value]),
        lambda value: [lambda a: a, lambda *a: a][value - 1],
        # Of the standard library and of NumPy.
        lambda value: closed_over(range(value)),
        lambda value: closed_over(slice(value)),
        lambda value: closed_over([value].index),
        lambda value: closed_over((math.sin, cmath.sin)[value - 1]),
        lambda value: closed_over(re.compile(str(value))),
        lambda value: closed_over(Counter(a=value)),
        lambda value: closed_over(deque([value])),
        lambda value: closed_over(random.Random(value)),
        lambda value: closed_over(logging.getLogger(str(value))),
        lambda value: closed_over(np.int64(value)),
        lambda value: closed_over(np.float32(value)),
        lambda value: closed_over(np.dtype(f"i{4 * value}")),
        lambda value: closed_over(np.random.default_rng(value)),
    ],
)
def test_a_digest_changes_with_what_is_bound(bound: Callable[[Any], Any]) -> None:
    assert definition_digest(bound(1)) == definition_digest(bound(1)) != definition_digest(bound(2))
