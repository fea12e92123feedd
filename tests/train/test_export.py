"""Exported files against the supernet they come from, run by what a user would run them with."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from command_line import prance, refusal
from small_nets import CASES, TWO_BLOCKS, cut_subnet, normalised, pixels, small_net
from torch import Tensor

from prance_env.supernets import BUNDLED
from supernet import StaticViT, SubnetConfig, Supernet, from_pretrained, load_static, save_pretrained
from supernet.extract import write_weights
from supernet.tokens.modes import ranking
from train.networks import export
from train.networks.export import export_subnet, write_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parent.parent.parent
FORMATS = ("onnx", "torch", "safetensors")


def onnx_logits(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def assert_same(logits: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max().item() <= tolerance


@torch.no_grad()
def assert_files_compute_what_the_supernet_does(net: Supernet, subnet: SubnetConfig, folder: Path) -> None:
    program, static = torch.export.load(folder / "model.pt2").module(), load_static(folder)
    assert sum(p.numel() for p in static.parameters()) == int(net.params(subnet))
    for batch_size in (1, 2, 5):
        images = normalised(net, pixels(net, batch_size))
        expected = net(images, subnet)[:, : net.config.num_classes or int(subnet.embed_dim[0, -1])]
        assert expected.std() > 0.1
        assert_same(onnx_logits(folder / "model.onnx", images), expected)
        assert_same(program(images), expected)
        assert_same(static(images), expected)


def test_what_an_earlier_export_wrote_in_other_formats_is_removed(tmp_path: Path) -> None:
    net = next(iter(CASES.values()))()
    export_subnet(net, SubnetConfig.full(net.space), tmp_path, ["safetensors"])
    stale = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "notes.txt").write_text("of somebody else")
    export_subnet(net, SubnetConfig.min(net.space), tmp_path, ["torch"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt2", "notes.txt", "static.json"]
    export_subnet(net, SubnetConfig.min(net.space), tmp_path, ["safetensors"])
    assert (tmp_path / "model.safetensors").read_bytes() != stale


def test_an_export_that_is_killed_leaves_no_network_beside_the_description_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, replace = small_net("prune"), os.replace
    export_subnet(net, SubnetConfig.full(net.space), tmp_path, ["safetensors"])

    def killed(source: Path, place: Path) -> None:
        if source == tmp_path / "model.safetensors":
            raise KeyboardInterrupt
        replace(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            export_subnet(net, SubnetConfig.min(net.space), tmp_path, ["torch"])
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_static(tmp_path)
    assert [*json.loads((tmp_path / "static.json").read_text())["files"]] == ["model.pt2"]
    assert {*written(tmp_path)} == {"model.pt2", "static.json"}
    export_subnet(net, SubnetConfig.min(net.space), tmp_path, ["torch"])
    assert {*written(tmp_path)} == {"model.pt2", "static.json"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_token_mode_and_architecture_exports_to_every_format(case: str, tmp_path: Path) -> None:
    net = CASES[case]()
    subnet = cut_subnet(net)
    files = export_subnet(net, subnet, tmp_path, FORMATS)
    assert [file.path.name for file in files] == ["model.onnx", "model.pt2", "model.safetensors"]
    assert all(file.difference <= 1e-5 for file in files)
    assert_files_compute_what_the_supernet_does(net, subnet, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 3, 24, 24])
    assert (logits.name, logits.shape[0]) == ("logits", "batch")
    assert not any(node.metadata_props for node in onnx.load(tmp_path / "model.onnx").graph.node)
    # Graphs name no files of the machine that exported.
    graphs = [(tmp_path / "model.onnx").read_bytes()]
    with ZipFile(tmp_path / "model.pt2") as archive:
        graphs += [archive.read(name) for name in archive.namelist()]
    assert not any(str(ROOT).encode() in graph or b"site-packages" in graph for graph in graphs)


class Ranking(torch.nn.Module):
    """The order in which tokens leave."""

    def forward(self, scores: Tensor) -> Tensor:
        return ranking(scores, np.array([scores.shape[1]]), 1)


@pytest.mark.slow
def test_of_equal_scores_the_earlier_token_wins_in_onnx_too(tmp_path: Path) -> None:
    scores = torch.randint(4, (6, 197), generator=torch.Generator().manual_seed(0)).float()
    program = torch.export.export(Ranking(), (scores[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    write_onnx(program, tmp_path / "ranking.onnx")
    for batch in (scores, scores[:1], torch.zeros(3, 197)):
        assert torch.equal(onnx_logits(tmp_path / "ranking.onnx", batch), Ranking()(batch))


@pytest.mark.slow
@pytest.mark.parametrize("token_mode", ["prune", "merge", "tome"])
@torch.no_grad()
def test_a_network_in_which_all_tokens_score_the_same_is_no_special_case(token_mode: str, tmp_path: Path) -> None:
    net = copy.deepcopy(small_net(token_mode, groups=TWO_BLOCKS))
    for block in net.blocks:
        for parameter in (block.qkv.weight, block.qkv.bias):
            parameter.view(3, 3, 8, -1)[:, :2] = 0
    subnet = cut_subnet(net)
    export_subnet(net, subnet, tmp_path, FORMATS)
    assert_files_compute_what_the_supernet_does(net, subnet, tmp_path)


@pytest.mark.slow
def test_uint8_files_take_bytes_and_normalise_them(tmp_path: Path) -> None:
    net = small_net("merge", groups=TWO_BLOCKS)
    subnet = cut_subnet(net)
    export_subnet(net, subnet, tmp_path, ["onnx", "torch"], uint8=True)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch_size in (1, 3):
        images = pixels(net, batch_size)
        expected = net(normalised(net, images), subnet)
        assert_same(onnx_logits(tmp_path / "model.onnx", images), expected)
        assert_same(program(images), expected)
    description = json.loads((tmp_path / "static.json").read_text())
    assert {f["takes"] for f in description["files"].values()} == {"uint8"}


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_bias(change: float) -> Callable[[StaticViT, Path], None]:
    """`write_weights` with a mistake of a given size."""

    def write(static: StaticViT, path: Path) -> None:
        changed = copy.deepcopy(static)
        assert changed.head is not None
        changed.head.bias.data[3] += change
        write_weights(changed, path)

    return write


@pytest.mark.parametrize("mistake", [3e-4, float("inf")])
def test_files_that_differ_from_the_supernet_are_refused_and_earlier_ones_stay(
    mistake: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net("prune")
    export_subnet(net, cut_subnet(net), tmp_path, ["safetensors"])
    before = written(tmp_path)
    assert set(before) == {"model.safetensors", "static.json"}
    monkeypatch.setattr(export, "write_weights", with_bias(mistake))
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(ValueError, match=r"differs from the original by 3\.0e-04|holds NaN or inf"):
            export_subnet(net, SubnetConfig.min(net.space), folder, ["safetensors"])
    assert not (tmp_path / "new").exists()
    assert written(tmp_path) == before
    monkeypatch.setattr(export, "write_weights", with_bias(5e-5))
    (file,) = export_subnet(net, SubnetConfig.min(net.space), tmp_path, ["safetensors"])
    assert file.difference == pytest.approx(5e-5, rel=0.1)


def test_large_logits_may_differ_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = copy.deepcopy(small_net("prune"))
    assert net.head is not None
    net.head.weight.mul_(100)
    monkeypatch.setattr(export, "write_weights", with_bias(3e-3))
    (file,) = export_subnet(net, cut_subnet(net), tmp_path, ["safetensors"])
    assert 3e-3 < file.allowed < 5e-2
    monkeypatch.setattr(export, "write_weights", with_bias(5e-2))
    with pytest.raises(ValueError, match=r"by 5\.0e-02 \(allowed: \d\.\de-02\)"):
        export_subnet(net, cut_subnet(net), tmp_path, ["safetensors"])


def test_a_file_that_gives_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net("prune")
    monkeypatch.setattr(export, "load_static", lambda folder: lambda images: torch.full((len(images), 7), torch.nan))
    with pytest.raises(ValueError, match="differs from the original by nan"):
        export_subnet(net, cut_subnet(net), tmp_path, ["safetensors"])
    assert written(tmp_path) == {}


KILLED_WHILE_CHECKING = """
import os, signal, sys
from pathlib import Path
from supernet import SubnetConfig, from_pretrained
from train.networks import export
def die(folder):
    assert (folder / "model.safetensors").stat().st_size > 1000
    os.kill(os.getpid(), signal.SIGKILL)
export.load_static = die
net = from_pretrained(sys.argv[1])
export.export_subnet(net, SubnetConfig.min(net.space), Path(sys.argv[2]), ["safetensors"])
"""


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_files(tmp_path: Path) -> None:
    net, out = small_net("prune"), tmp_path / "out"
    save_pretrained(net, tmp_path / "net")
    export_subnet(net, cut_subnet(net), out, ["safetensors"])
    before = written(out)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_CHECKING, tmp_path / "net", out], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert {name: (out / name).read_bytes() for name in before} == before
    load_static(out)


def test_an_interrupted_export_leaves_the_old_network_and_other_weights_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net("prune")
    subnet = cut_subnet(net)
    export_subnet(net, subnet, tmp_path, ["safetensors"])
    before = written(tmp_path)
    changed = copy.deepcopy(net)
    changed.norm.weight.data += 1

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "describe", stop)
    with pytest.raises(KeyboardInterrupt):
        export_subnet(changed, subnet, tmp_path, ["safetensors"])
    assert written(tmp_path) == before
    monkeypatch.undo()
    export_subnet(changed, subnet, tmp_path / "other", ["safetensors"])
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"not the file that static\.json lists.*only one of the two was replaced"):
        load_static(tmp_path)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (None, (["gguf"],), r"\['gguf'\] is unknown; choose one or more of \['onnx', 'safetensors', 'torch'\]"),
        (None, ([],), "choose one or more"),
        (
            ("find_spec", lambda name: None),
            (["onnx"],),
            r"needs onnx and onnxscript and onnxruntime: pip install -e '\.\[export\]'",
        ),
        (
            ("find_spec", lambda name: name != "onnxruntime" or None),
            (["onnx"],),
            r"--format onnx needs onnxruntime: pip",
        ),
        (("ONNX_LIMIT", 1000), (["onnx"],), r"parameters exceed the 2 GiB of an ONNX file; use --format torch"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(
    change: tuple[str, Any] | None, arguments: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change is not None:
        monkeypatch.setattr(export, *change)
    net = small_net("prune")
    with pytest.raises(ValueError, match=message):
        export_subnet(net, cut_subnet(net), tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_says_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net, out = small_net("prune", groups=TWO_BLOCKS), tmp_path / "exported"
    save_pretrained(net, tmp_path / "net")
    subnet = cut_subnet(net)
    (tmp_path / "subnet.json").write_text(subnet.to_json())
    monkeypatch.setenv("COLUMNS", "300")
    sources = ("--supernet", str(tmp_path / "net"), "--subnet", str(tmp_path / "subnet.json"))
    prance(monkeypatch, "export", "--out", str(out), *sources, "--format", *FORMATS)
    assert_files_compute_what_the_supernet_does(net, subnet, out)
    text = " ".join(capsys.readouterr().out.split())
    for path in out.iterdir():
        assert f"{path.stat().st_size:,}" in text
    macs = net.macs(subnet).item()
    assert f"{macs:,} MACs an image ({macs / net.macs().item():.1%} of the full network)" in text
    assert f"{net.params(subnet).item():,} parameters" in text
    description = json.loads((out / "static.json").read_text())
    assert (description["macs"], description["params"]) == (macs, net.params(subnet).item())
    assert (description["mean"], description["std"]) == ([*net.config.mean], [*net.config.std])
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    images = torch.from_numpy(names["images"])
    assert_same(torch.from_numpy(names["logits"]), net(images, subnet))


@pytest.mark.slow
def test_the_bundled_supernet_is_exported_to_onnx_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ("--keep-rate", "0.7", "--embed-dim", "48", "--mlp-ratio", "1")
    prance(monkeypatch, "export", "--out", str(tmp_path), *sizes, "--uint8")
    assert set(written(tmp_path)) == {"model.onnx", "static.json"}
    net = from_pretrained(BUNDLED["digits"])
    subnet, images = written_subnet(tmp_path), pixels(net, 4)
    fixed = net.space.groups[0]
    assert subnet.embed_dim[0, fixed:].unique().tolist() == [48]
    assert subnet.mlp_ratio[0, fixed:].unique().tolist() == [1]
    assert subnet.keep_rate.unique().tolist() == [0.7]
    assert_same(onnx_logits(tmp_path / "model.onnx", images), net(images, subnet))


def test_the_smallest_subnet_of_the_bundled_supernet_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prance(monkeypatch, "export", "--out", str(tmp_path), "--subnet", "min", "--format", "safetensors")
    net = from_pretrained(BUNDLED["digits"])
    subnet, images = written_subnet(tmp_path), pixels(net, 4)
    smallest = SubnetConfig.min(net.space)
    assert torch.equal(subnet.embed_dim, smallest.embed_dim)
    assert torch.equal(subnet.keep_rate, smallest.keep_rate)
    assert_same(load_static(tmp_path)(normalised(net, images)), net(images, subnet))


def written_subnet(folder: Path) -> SubnetConfig:
    """What `static.json` says was exported."""
    return SubnetConfig.from_json(json.dumps(json.loads((folder / "static.json").read_text())["subnet"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--subnet", "nowhere.json"), "'nowhere.json' is no file, nor 'full', 'min' or JSON text"),
        (("--supernet", "vit"), "supernet='vit' is neither one of"),
        (("--embed-dim", "50"), "embed_dim=50 "),
        (("--format", "safetensors", "--keep-rate", "1.5"), "keep_rate holds [1.5"),
        (
            ("--static", "small", "--subnet", "min"),
            "--subnet is for a supernet; --static small is one network, taken as it is",
        ),
        (("--static", "small", "--keep-rate", "0.3"), "--keep-rate is for a supernet"),
        (("--entries", "4"), "--entries is for an adaptive network"),
        (("--checkpoint", "x"), "--checkpoint is for an adaptive network"),
    ],
)
def test_mistakes_end_with_one_line_that_names_them(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = refusal(monkeypatch, "export", "--out", tmp_path / "out", *arguments)
    assert message in words
    assert "\n" not in words
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_exports_stay(tmp_path: Path) -> None:
    net = small_net("prune", groups=(1, 1))
    save_pretrained(net, tmp_path)
    export_subnet(net, SubnetConfig.full(net.space), tmp_path, ["torch"])
    assert torch.equal(from_pretrained(tmp_path).pos_embed, net.pos_embed)
