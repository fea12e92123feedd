"""The one list of arguments: what derives from it, and that a new argument is a field and its type."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest
import tyro
from command_line import refusal

from agents import PrancePPO, make_sb3
from prance_env import EnvSettings, PranceEnv, PranceVectorEnv, RewardConfig, make_sb3_env
from prance_env.described import field_docs, takes_settings
from prance_env.images.config import DatasetConfig
from prance_env.settings import EnvArguments
from tools.environment_page import split_docstring
from train.options import environment_options
from train.policies.settings import AgentTraining
from train.runs.folder import read_config, write_command

FACES = [PranceEnv, PranceVectorEnv]


@dataclass(frozen=True, kw_only=True)
class MoreSettings(EnvSettings):
    """The arguments of an environment, and one more."""

    jpeg_quality: int = 90
    """Quality at which images
    are stored, 1 to 100."""


@takes_settings
class MoreEnv(PranceEnv):
    """An environment with one more argument.

    Args:
        **arguments: The fields of `MoreSettings`.
    """

    settings_class: ClassVar[type[EnvSettings]] = MoreSettings

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[misc]


def test_the_types_for_editors_are_those_of_the_fields() -> None:
    assert get_type_hints(EnvArguments) == {f.name: get_type_hints(EnvSettings)[f.name] for f in fields(EnvSettings)}


def test_a_new_argument_reaches_signature_docstring_pickle_page_and_engine_key() -> None:
    assert inspect.signature(MoreEnv).parameters["jpeg_quality"].default == 90
    assert "jpeg_quality: Quality at which images are stored, 1 to 100." in (MoreEnv.__doc__ or "")
    assert split_docstring(MoreEnv)[1]["jpeg_quality"] == "Quality at which images are stored, 1 to 100."
    env = MoreEnv(jpeg_quality=50, split="val")
    for other in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert other.settings == env.settings
    assert env.settings.jpeg_quality == 50  # type: ignore[attr-defined]
    key = env.settings.engine_settings()
    assert key == replace(key, observation="cls")
    assert key != replace(key, jpeg_quality=51)  # type: ignore[call-arg]
    assert len({key, replace(key), replace(key, jpeg_quality=51)}) == 2  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"no argument 'jpeg_quality'.*It takes supernet, "):
        PranceEnv(jpeg_quality=50)  # type: ignore[call-arg]


def test_a_new_argument_is_an_option_of_commands() -> None:
    options = get_type_hints(environment_options(("split",), MoreSettings), include_extras=True)
    assert set(options) - set(get_type_hints(environment_options())) == {"jpeg_quality"}
    assert tyro.cli(environment_options((), MoreSettings), args=["--jpeg-quality", "70"]) == {"jpeg_quality": 70}


@pytest.mark.parametrize("face", FACES)
def test_faces_say_what_they_take(face: type) -> None:
    parameters = inspect.signature(face).parameters
    defaults = {f.name: f.default for f in fields(EnvSettings)}
    assert {name: p.default for name, p in parameters.items() if name in defaults} == defaults
    assert set(split_docstring(face)[1]) == set(parameters) > set(defaults) - {"supernet"}


def test_an_unknown_argument_is_named_with_the_nearest_known_one() -> None:
    for make in (PranceEnv, PranceVectorEnv, make_sb3_env, EnvSettings.from_id):
        with pytest.raises(TypeError, match=r"no argument 'tokenmode'; did you mean 'token_mode'\?"):
            make(tokenmode="merge")  # type: ignore[call-arg]


def test_where_there_is_no_near_one_the_message_is_two_sentences() -> None:
    with pytest.raises(TypeError, match=r"An environment takes no argument 'foo'\. It takes supernet, checkpoint, "):
        PranceEnv(foo=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("argument", [{"output": "torch"}, {"autoreset_mode": "SAME_STEP"}])
def test_what_make_sb3_env_sets_itself_is_said(argument: dict[str, Any]) -> None:
    with pytest.raises(
        TypeError, match=r"here: it is one of gym\.make_vec, and make_sb3_env sets it itself\. It takes"
    ):
        make_sb3_env(**argument)


def test_our_own_dataclasses_are_the_dicts_of_their_fields(tmp_path: Path) -> None:
    dataset, reward = DatasetConfig("digits"), RewardConfig(mode="terminal", macs_weight=0.1)
    objects = EnvSettings(split="val", dataset=dataset, reward=reward)
    dicts = EnvSettings(split="val", dataset=asdict(dataset), reward=asdict(reward))
    assert objects == dicts == pickle.loads(pickle.dumps(objects))
    assert (type(objects.dataset), type(objects.reward)) == (dict, dict)
    assert (objects.dataset_config, objects.reward_config) == (dataset, reward)
    assert objects.engine_settings() == EnvSettings(split="val").engine_settings()
    write_command(tmp_path / "run", AgentTraining(environment={"dataset": dataset}))
    assert read_config(tmp_path / "run")["dataset"] == asdict(dataset)


def test_settings_are_equal_and_share_an_engine_however_the_data_set_is_named() -> None:
    one, other = EnvSettings(split="val"), EnvSettings(split="val", dataset={"name": "digits"}, token_mode="prune")
    assert one != other
    assert one.engine_settings() == other.engine_settings()
    assert one.engine() is other.engine()
    assert one.engine_settings() != EnvSettings(split="val", observation="key_mean").engine_settings()
    assert one.engine_settings() == EnvSettings(split="val", render_mode="ansi", reward={}).engine_settings()


@pytest.mark.parametrize(
    ("device", "words"),
    [("meta", "has shapes and no numbers"), ("gpu", "is unknown"), (None, "device=None is unknown")],
)
def test_devices_that_compute_nothing_are_refused_at_once(device: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"{words}.*'cpu'"):
        EnvSettings(device=device)
    for make in (PrancePPO, partial(make_sb3, "ppo")):
        with pytest.raises(ValueError, match=words):
            make(make_sb3_env(n_envs=2), device=device)


def test_a_device_that_is_not_there_is_a_sentence_when_it_is_first_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = EnvSettings(device="cuda:99")
    with pytest.raises(ValueError, match=r"device='cuda:99' cannot be used here \(.*\); pass 'cpu'"):
        settings.engine()
    for command in ("eval --agent full", "bench", "profile", "train supernet --preset digits", "train agent", "demo"):
        words = refusal(monkeypatch, *command.split(), "--device", "cuda:99", "--out", tmp_path / "out")
        assert "device='cuda:99' cannot be used here" in words
    assert not (tmp_path / "out").exists()


def test_a_field_without_description_is_found() -> None:
    @dataclass
    class Forgetful:
        known: int = 0
        """This one."""
        unknown: int = 0

    with pytest.raises(ValueError, match=r"Forgetful: the fields \['unknown'\] have no description"):
        field_docs(Forgetful)
