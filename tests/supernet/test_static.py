"""Static networks in folders: they come back without a supernet, or are refused with the reason."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_nets import CASES, cut_subnet, normalised, pixels, small_net

from supernet import StaticViT, SubnetConfig, extract, load_static, save_pretrained, save_static

ROOT = Path(__file__).parent.parent.parent
Weights = dict[str, torch.Tensor]
RESTORE = """
import sys
import torch
from safetensors.torch import load_file, save_file
import supernet
def refuse(*arguments):
    sys.exit("a supernet was made")
supernet.Supernet.__init__ = refuse
images = load_file(sys.argv[1])
for folder in sys.argv[2:]:
    static = supernet.load_static(folder)
    assert not static.training
    with torch.no_grad():
        save_file({name: static(x) for name, x in images.items()}, folder + "/logits.safetensors")
"""


@pytest.mark.slow
@torch.no_grad()
def test_networks_of_every_kind_come_back_in_a_process_without_a_supernet(tmp_path: Path) -> None:
    nets = {name: make() for name, make in CASES.items()}
    raw = pixels(nets["prune"], 5)
    images = {"bytes": raw, "floats": normalised(nets["prune"], raw)}
    save_file(images, tmp_path / "images.safetensors")
    for name, net in nets.items():
        save_static(extract(net, cut_subnet(net)), tmp_path / name)
    folders = [str(tmp_path / name) for name in nets]
    run = [sys.executable, "-c", RESTORE, str(tmp_path / "images.safetensors"), *folders]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, net in nets.items():
        expected = net(raw, cut_subnet(net))[:, : net.config.num_classes or int(cut_subnet(net).embed_dim[0, -1])]
        for logits in load_file(tmp_path / name / "logits.safetensors").values():
            assert logits.shape == expected.shape
            assert (logits - expected).abs().max() <= 1e-5, name


@pytest.mark.parametrize("case", CASES)
def test_a_saved_network_comes_back_exactly(case: str, tmp_path: Path) -> None:
    net = CASES[case]()
    static = extract(net, cut_subnet(net))
    save_static(static, tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["model.safetensors", "static.json"]
    loaded = load_static(tmp_path / "new" / "folder")
    weights, expected = loaded.state_dict(), static.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[k], expected[k]) for k in expected)
    assert loaded.params() == int(net.params(cut_subnet(net)))
    assert loaded.macs() == int(net.macs(cut_subnet(net)))
    assert all(p.requires_grad for p in loaded.parameters())
    images = normalised(net, pixels(net, 3))
    assert torch.equal(loaded(images), static(images))
    assert torch.equal(loaded(pixels(net, 3)), static(pixels(net, 3)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_autocast_computes_in_its_own_precision(case: str) -> None:
    net = CASES[case]()
    subnet = cut_subnet(net)
    static, images = extract(net, subnet), pixels(net, 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = static(images)
    assert logits.dtype == torch.bfloat16
    assert logits.shape == static(images).shape
    assert logits.isfinite().all()
    # Rounded scores may drop other patches, which depends on the processor: logits are compared where all stay.
    static = extract(net, replace(subnet, keep_rate=torch.ones_like(subnet.keep_rate)))
    expected = static(images)
    with torch.autocast("cpu", torch.bfloat16):
        difference = (static(images).float() - expected).abs() / expected.std()
    assert 0 < difference.mean() <= 0.03
    assert difference.max() <= 0.12


def test_half_precision_networks_come_back_in_half_precision(tmp_path: Path) -> None:
    static = extract(copy.deepcopy(small_net()).half(), cut_subnet(small_net()))
    save_static(static, tmp_path)
    loaded = load_static(tmp_path)
    assert loaded.mean.dtype == loaded.norm.weight.dtype == torch.float16
    assert torch.equal(loaded.norm.weight, static.norm.weight)


def test_the_description_tells_what_a_user_of_the_files_needs(tmp_path: Path) -> None:
    net = small_net("prune_merge")
    subnet = cut_subnet(net)
    save_static(extract(net, subnet), tmp_path)
    data = json.loads((tmp_path / "static.json").read_text())
    assert data["input"] == ["batch", 3, 24, 24]
    assert (data["mean"], data["std"]) == ([0.1, 0.4, 0.6], [0.3, 0.2, 0.5])
    assert (data["num_classes"], data["token_mode"]) == (7, "prune_merge")
    assert (data["macs"], data["params"]) == (net.macs(subnet).item(), net.params(subnet).item())
    assert [b["embed_dim"] for b in data["blocks"]] == subnet.embed_dim[0].tolist()
    # ceil(.7 * 36), ceil(.7 * 26); ceil(.3 * 19), ceil(.3 * 6); and the class token.
    assert [b["counts"] for b in data["blocks"]] == [None, [27, 20], [7, 3]]
    assert [b["tokens"] for b in data["blocks"]] == [37, 37, 20]


def edit_weights(change: Callable[[Weights], Weights]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return edit


def edit_text(change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / "static.json").write_text(change((folder / "static.json").read_text()))


def edit_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edited(text: str) -> str:
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return edit_text(edited)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def other_rates(data: dict[str, Any]) -> None:
    data["subnet"]["keep_rate"][0][0] = 0.9


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, ValueError, "model.safetensors is damaged or not a safetensors file"),
        (flip_a_bit, ValueError, "model.safetensors is damaged .*its checksum is that of other weights"),
        (edit_weights(lambda w: {k: v for k, v in w.items() if k != "head.bias"}), ValueError, "missing head.bias"),
        (edit_weights(lambda w: {**w, "head.gain": torch.ones(7)}), ValueError, "unexpected head.gain"),
        (
            edit_weights(lambda w: {**w, "norm.bias": torch.zeros(9)}),
            ValueError,
            r"norm.bias has the shape \(9,\) instead of \(24,\)",
        ),
        (
            edit_weights(lambda w: {**w, "norm.bias": torch.full((24,), torch.nan)}),
            ValueError,
            "norm.bias holds NaN or inf",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            FileNotFoundError,
            "No weights at .*model.safetensors",
        ),
        (lambda folder: (folder / "static.json").unlink(), FileNotFoundError, "holds no static.json; pass a folder"),
        (edit_text(lambda text: text[:-9]), ValueError, "static.json is no JSON file .*; export the network again"),
        (edit_text(lambda text: "[]"), ValueError, r"static.json: the whole=\[\] must be"),
        (edit_json(lambda d: d.pop("subnet")), ValueError, "static.json: subnet is missing; export the network again"),
        (edit_json(lambda d: d.update(format=2)), ValueError, "format=2 must be 1"),
        (edit_json(lambda d: d["config"].update(act="relu")), ValueError, "act='relu' is unknown"),
        (
            edit_json(lambda d: d["config"].update(num_classes=10**9)),
            ValueError,
            "num_classes=1000000000 must be less than or equal to",
        ),
        (edit_json(lambda d: d["subnet"]["embed_dim"][0].append(8)), ValueError, "does not describe a static network"),
        (edit_json(lambda d: d["subnet"].update(embed_dim=[[32, 8, 9]])), ValueError, "embed_dim=9 .*one of"),
        (edit_json(other_rates), ValueError, "`blocks` are not the sizes that its `config` and `subnet` give"),
        (edit_json(lambda d: d.update(files={})), ValueError, "not the file that static.json lists"),
    ],
)
def test_damaged_and_foreign_files_are_refused(
    damage: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    net = small_net()
    subnet = SubnetConfig(torch.tensor([[32, 8, 24]]), torch.tensor([[2, 1, 1]]), torch.tensor([[0.5, 0.5]]))
    save_static(extract(net, subnet), tmp_path)
    load_static(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        load_static(tmp_path)


def test_a_supernets_folder_is_no_static_network(tmp_path: Path) -> None:
    save_pretrained(small_net(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no static\.json; pass a folder that save_static"):
        load_static(tmp_path)


@pytest.mark.parametrize("make", [extract, lambda net, subnet: StaticViT(net.config, subnet)])
def test_a_static_network_is_one_subnet_of_its_space(make: Callable[..., StaticViT]) -> None:
    net, other = small_net("prune"), small_net("prune_merge")
    with pytest.raises(ValueError, match=r"one subnet, not 2; index the batch first"):
        make(net, SubnetConfig.full(net.space, 2))
    with pytest.raises(ValueError, match=r"keep_rate has the shape .* token_mode='prune' takes"):
        make(net, SubnetConfig.full(other.space))
