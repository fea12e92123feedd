"""What commands and models write, and what lies there already: their own may be replaced, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adaptive_models import price_minded
from command_line import prance, refusal
from small_nets import cut_subnet, small_net

from supernet import (
    SubnetConfig,
    Supernet,
    extract,
    from_pretrained,
    load_static,
    save_pretrained,
    save_static,
)
from train.networks.export import export_subnet
from train.policies.settings import AgentTraining
from train.runs.folder import open_run, write_command

pytestmark = pytest.mark.usefixtures("few_scenes")


@pytest.mark.parametrize(
    "command",
    [
        "train supernet --preset scratch --from {net} --dataset digits --steps 1",
        "train supernet --preset digits-quick",
        "train supernet --resume",
        "train static --from {net} --dataset digits --steps 1",
        "train agent",
        "train agent --resume",
        "tune --algo ppo",
        "casestudy fashion",
        "import timm test_vit",
        "order --supernet {net} --dataset digits --images 4 --check-images 4",
        "prune --supernet {net} --images 4 --target 0.9",
        "distill --teacher original --student {net} --dataset digits",
        "distill --teacher original --student {net} --dataset digits --resume",
    ],
)
@pytest.mark.parametrize("spelling", ["net", "./net/../net", "link"])
def test_a_network_that_no_run_wrote_is_left_alone(
    command: str, spelling: str, digits_net: Supernet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "static" in command:
        save_static(extract(digits_net, SubnetConfig.min(digits_net.space)), "net")
    else:
        save_pretrained(digits_net, "net")
    Path("link").symlink_to("net")
    before = {path.name: path.read_bytes() for path in Path("net").iterdir()}
    words = refusal(monkeypatch, *command.format(net="net").split(), "--out", spelling)
    assert "holds a network already (" in words
    assert {path.name: path.read_bytes() for path in Path("net").iterdir()} == before  # and no lock


def test_a_run_whose_checkpoint_was_removed_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", "supernet", "--preset", "digits-quick", "--steps", 2, "--checkpoint-every", 2, "--out", tmp_path)
    prance(monkeypatch, *words)
    (tmp_path / "last.pt").unlink()
    assert "holds a run already" in refusal(monkeypatch, *words)
    said = refusal(monkeypatch, "train", "supernet", "--resume", "--out", tmp_path)
    assert "it is done, and has no checkpoint" in said


@pytest.mark.parametrize(
    "command",
    [
        "order --supernet digits --dataset digits --images 4 --check-images 4",
        "prune --images 4 --target 0.9",
        "distill --teacher original --student digits --dataset digits",
        "distill --teacher original --student digits --dataset digits --resume",
        "casestudy fashion",
        "import timm test_vit",
    ],
)
def test_commands_without_runs_leave_those_of_others_alone(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_command(tmp_path, AgentTraining(environment={"dataset": "digits"}))
    before = sorted(tmp_path.iterdir())
    assert "holds a run of another command, which has algo" in refusal(monkeypatch, *command.split(), "--out", tmp_path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("train supernet --preset digits-quick", "store.json"),
        ("train agent", "store.json"),
        ("train agent --resume", "store.json"),
        ("tune --algo ppo", "store.json"),
        ("import timm test_vit", "store.json"),
        ("train supernet --preset digits-quick", "metrics.jsonl"),
        ("train agent", "progress.json"),
        ("train agent", "evaluations.jsonl"),
    ],
)
def test_stores_and_logs_of_others_are_left_alone(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = "a store of logits" if name == "store.json" else "a run"
    (tmp_path / name).write_text("{}")
    said = refusal(monkeypatch, *command.split(), "--out", tmp_path)
    assert f"{tmp_path} holds {held} already ({name}); pass another --out" in said
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


def test_a_new_run_leaves_events_of_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "other" / "events.out.tfevents.1"
    events.parent.mkdir()
    events.write_text("mine")
    with open_run(tmp_path, AgentTraining(environment={"dataset": "digits"}), tmp_path / "last.zip", False):
        assert events.read_text() == "mine"


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_folder_of_logs(tmp_path: Path) -> None:
    settings = AgentTraining(environment={"dataset": "digits"})
    with open_run(tmp_path, settings, tmp_path / "last.zip", False):
        for name in ("ppo_1/events.out.tfevents.1", "mine/events.out.tfevents.1", "mine/notes.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    with open_run(tmp_path, settings, tmp_path / "last.zip", True) as going_on:
        assert not going_on
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == ["mine"]
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_what_no_export_wrote_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_net("prune", groups=(1, 1))
    save_pretrained(net, tmp_path / "net")
    words = ("export", "--subnet", "min", "--out")
    for format_ in ("torch", "torch"):  # the second time over its own file
        export_subnet(net, SubnetConfig.full(net.space), tmp_path / "net", [format_])
    said = refusal(monkeypatch, *words, tmp_path / "net", "--format", "torch", "safetensors")
    assert f"{tmp_path / 'net'} holds model.safetensors of something else than an export of one subnet; pass" in said
    assert torch.equal(from_pretrained(tmp_path / "net").pos_embed, net.pos_embed)

    save_static(extract(net, SubnetConfig.full(net.space)), tmp_path / "static")
    assert "holds static.json of something else" in refusal(
        monkeypatch, *words, tmp_path / "static", "--format", "torch"
    )
    load_static(tmp_path / "static")

    export_subnet(net, SubnetConfig.full(net.space), tmp_path / "over", ["safetensors"])
    save_pretrained(net, tmp_path / "over")  # over an export
    assert "holds model.safetensors of" in refusal(monkeypatch, *words, tmp_path / "over", "--format", "safetensors")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.pt2").write_text("mine")
    assert "holds model.pt2 of something" in refusal(monkeypatch, *words, tmp_path / "mine", "--format", "torch")


def test_other_formats_of_the_same_network_stay_and_stay_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", "--out", tmp_path, "--subnet")
    prance(monkeypatch, *words, "min", "--format", "safetensors")
    prance(monkeypatch, *words, "min", "--format", "torch", "--uint8")
    assert "Removed" not in capsys.readouterr().out
    files = json.loads((tmp_path / "static.json").read_text())["files"]
    assert {name: about["takes"] for name, about in files.items()} == {
        "model.safetensors": "uint8, float32",
        "model.pt2": "uint8",
    }
    load_static(tmp_path)
    prance(monkeypatch, *words, "full", "--format", "torch")
    said = " ".join(capsys.readouterr().out.split())
    assert "Removed from there: model.safetensors, which an earlier export wrote of another network." in said
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "static.json"}


def test_other_weights_are_another_network(tmp_path: Path) -> None:
    net = small_net("prune")
    export_subnet(net, cut_subnet(net), tmp_path, ["safetensors"])
    with torch.no_grad():
        net.pos_embed += 1
    export_subnet(net, cut_subnet(net), tmp_path, ["torch"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt2", "static.json"}


def test_a_model_replaces_an_earlier_one_only(digits_net: Supernet, tmp_path: Path) -> None:
    model = price_minded(digits_net)
    model.save_pretrained(tmp_path / "own")
    card = (tmp_path / "own" / "README.md").read_text()
    (tmp_path / "own" / "README.md").write_text("of an earlier one")
    model.save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "README.md").read_text() == card
    save_pretrained(digits_net, tmp_path / "net")
    save_static(extract(digits_net, SubnetConfig.min(digits_net.space)), tmp_path / "static")
    for name, held in {"net": "model.safetensors and config.json", "static": "model.safetensors"}.items():
        with pytest.raises(FileExistsError, match=f"{name} holds {held} of something else than an AdaptiveViT; pass"):
            model.save_pretrained(tmp_path / name)
    write_command(tmp_path / "run", AgentTraining(environment={"dataset": "digits"}))
    with pytest.raises(FileExistsError, match=r"run holds a run \(config.yml\); pass another folder, such as .*saved"):
        model.save_pretrained(tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    load_static(tmp_path / "static")
    assert torch.equal(from_pretrained(tmp_path / "net").pos_embed, digits_net.pos_embed)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
