"""Saving and loading: exact, all or nothing, and with errors that say what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from supernet import (
    SearchSpace,
    SubnetConfig,
    Supernet,
    create_supernet,
    from_pretrained,
    load_weights,
    save_pretrained,
    supernet_config,
)
from supernet.checkpoint import load_config
from supernet.files import write_atomically

Weights = dict[str, torch.Tensor]


def assert_same_weights(net: Supernet, expected: Weights) -> None:
    state = net.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)


def test_a_saved_supernet_comes_back_exactly(
    any_net: Supernet, tmp_path: Path, random_images: Callable[[Supernet, int], torch.Tensor]
) -> None:
    save_pretrained(any_net, tmp_path / "new" / "folder")
    net = from_pretrained(tmp_path / "new" / "folder")
    assert not net.training
    assert net.config == any_net.config
    assert_same_weights(net, any_net.state_dict())
    images, subnet = random_images(net, 4), SubnetConfig.random(net.space, 4)
    assert torch.equal(net(images, subnet), any_net(images, subnet))
    assert sorted(f.name for f in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_loading_draws_no_random_numbers(digits_net: Supernet, tmp_path: Path) -> None:
    save_pretrained(digits_net, tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    from_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_half_precision_files_are_half_as_large_and_load_as_float32(digits_net: Supernet, tmp_path: Path) -> None:
    save_pretrained(digits_net, tmp_path / "full")
    save_pretrained(digits_net, tmp_path / "half", dtype=torch.float16)
    net = from_pretrained(tmp_path / "half")
    for name, weight in net.state_dict().items():
        original = digits_net.state_dict()[name]
        assert weight.dtype == original.dtype
        torch.testing.assert_close(weight, original, rtol=1e-3, atol=1e-6)
    size = {kind: (tmp_path / kind / "model.safetensors").stat().st_size for kind in ("full", "half")}
    assert size["half"] < 0.6 * size["full"]


def test_names_make_supernets_from_folders_files_and_overrides(digits_net: Supernet, tmp_path: Path) -> None:
    save_pretrained(digits_net, tmp_path)
    for checkpoint in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        net = create_supernet("digits", checkpoint)
        assert not net.training
        assert_same_weights(net, digits_net.state_dict())
    assert create_supernet("digits", num_classes=3).head.out_features == 3
    space = SearchSpace((1, 1), (8,), (1,), (1,))
    assert create_supernet("digits", space=space).space == space
    changed = {"groups": (1, 3, 3, 3), "token_mode": "merge"}
    assert create_supernet("digits", space=changed).space == replace(digits_net.space, token_mode="merge")
    assert create_supernet("digits", tmp_path, space={"token_mode": "prune"}).config == digits_net.config
    with pytest.raises(ValueError, match=r"another configuration than 'digits' with .*num_classes"):
        create_supernet("digits", tmp_path, num_classes=3)


def rename(weights: Weights) -> Weights:
    return {("head.scale" if k == "head.bias" else k): v for k, v in weights.items()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, "missing head.bias; unexpected head.scale"),
        (lambda w: {**w, "norm.bias": torch.zeros(65)}, r"norm.bias has the shape \(65,\) instead of \(64,\)"),
        (lambda w: {**w, "norm.bias": torch.full((64,), float("nan"))}, "norm.bias holds NaN"),
        (lambda w: {**w, "norm.bias": torch.full((64,), float("inf"))}, "norm.bias holds NaN or inf"),
        (lambda w: {}, r"missing cls_token; .*; and \d+ more"),
    ],
)
def test_weights_that_do_not_fit_are_listed_and_none_is_loaded(
    digits_net: Supernet, tmp_path: Path, damage: Callable[[Weights], Weights], message: str
) -> None:
    net = create_supernet("digits")
    before = copy.deepcopy(net.state_dict())
    save_file(damage(dict(digits_net.state_dict())), tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=message):
        load_weights(net, tmp_path / "bad.safetensors")
    assert_same_weights(net, before)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_a_truncated_file_is_refused_and_nothing_is_loaded(digits_net: Supernet, tmp_path: Path, keep: float) -> None:
    save_pretrained(digits_net, tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    net = create_supernet("digits")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"model.safetensors is damaged.*download or save it again"):
        load_weights(net, path)
    assert_same_weights(net, before)
    with pytest.raises(ValueError, match="damaged"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "config.json is no JSON"),
        (lambda text: "null", "config.json: the whole=None must be an object"),
        (lambda text: text.replace('"stem"', '"steam"'), "config.json: steam is unknown, known are .*'stem'"),
        (lambda text: text.replace('"patch"', '"unet"'), "stem='unet'"),
        (lambda text: json.dumps({**json.loads(text), "space": None}), "config.json: space=None must be an object"),
        (lambda text: json.dumps({**json.loads(text), "num_classes": 9}), r"head.weight has the shape \(10, 64\)"),
    ],
)
def test_a_damaged_configuration_is_refused(
    digits_net: Supernet, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    save_pretrained(digits_net, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda folder: create_supernet("vit_huge"), ValueError, r"'vit_huge'.*'digits'"),
        (lambda folder: create_supernet("digits", clases=3), ValueError, r"\['clases'\].*'num_classes'"),
        (
            lambda folder: create_supernet("digits", token_mode="merge"),
            ValueError,
            r"\['token_mode'\] belong into space=",
        ),
        (lambda folder: create_supernet("digits", space=3), ValueError, "space=3 must be a SearchSpace or a mapping"),
        (lambda folder: create_supernet("digits", space={"mode": 1}), ValueError, r"\['mode'\].*'token_mode'"),
        (
            lambda folder: create_supernet("digits", space={"token_mode": "melt"}),
            ValueError,
            r"token_mode='melt'.*\['merge', .*'prune', .*'tome'\]",
        ),
        (lambda folder: create_supernet("digits", folder / "no.safetensors"), FileNotFoundError, "no.safetensors"),
        (lambda folder: create_supernet("digits", folder), FileNotFoundError, "holds no config.json.*save_pretrained"),
        (lambda folder: from_pretrained(folder / "nowhere"), FileNotFoundError, "nowhere holds no config.json"),
    ],
)
def test_what_does_not_exist_is_named(
    tmp_path: Path, call: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(supernet_config("digits").to_dict()))
    with pytest.raises(FileNotFoundError, match=r"No weights at .*model\.safetensors"):
        from_pretrained(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def break_halfway(name: str) -> None:
        assert Path(name).parent == tmp_path
        Path(name).write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, break_halfway)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda name: Path(name).write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mean", v) for v in ([float("nan"), 0, 0], [-1, 0, 0], ["0", 0, 0])),
        *(("std", v) for v in ([0, 1, 1], [float("inf"), 1, 1])),
        *(("norm_eps", v) for v in (0, -1, float("nan"), True)),
        *(("prance_embed_dim", v) for v in (0, -5, 2.5)),
        ("num_classes", "10"),
        ("img_size", 32.0),
        ("head_dim", 10**9),
        ("space.groups", [10**6, 10**6]),
        ("space.groups", [500] * 1000),
        ("space.embed_dims", [16, 10**9]),
        ("space.mlp_ratios", [1, 10**12]),
    ],
)
def test_numbers_in_a_configuration_are_checked_before_memory_is_taken(
    digits_net: Supernet, tmp_path: Path, field: str, value: Any
) -> None:
    save_pretrained(digits_net, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    *outer, name = field.split(".")
    (data["space"] if outer else data)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=rf"config\.json: .*{name}.*; save the supernet again\.$"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("field", ["embed_dims", "mlp_ratios"])
def test_sizes_beyond_those_of_the_weights_are_refused_by_the_header(
    digits_net: Supernet, tmp_path: Path, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(digits_net, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    data["space"][field][-1] = 2**20
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit this network: .*(1048576|67108864)"):
        load_config(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_whole_and_complex_weights_are_refused(digits_net: Supernet, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {k: v.to(dtype) if k == "norm.bias" else v for k, v in digits_net.state_dict().items()}
    save_file(weights, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=f"other kinds of numbers than weights are: norm.bias is {dtype}"):
        load_weights(create_supernet("digits"), tmp_path / "bad.safetensors")


def test_one_flipped_bit_of_the_weights_is_noticed(digits_net: Supernet, tmp_path: Path) -> None:
    save_pretrained(digits_net, tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged .*checksum"):
        from_pretrained(tmp_path)
