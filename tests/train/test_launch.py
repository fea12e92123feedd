"""Several processes that train one network: as one process does, and stopped and resumed as one process is."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PATIENCE
from training_nets import AUGMENTED, assert_equal_weights, images_recipe, saved_net, weights

from train.networks.launch import Team, open_team
from train.networks.loop import train_supernet
from train.policies.settings import AgentTraining
from train.policies.train_agent import train_agent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def launch(source: str, folder: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`train supernet` in two processes on this machine's CPUs, as torchrun starts them.

    `accelerate launch` does so with GPUs; with `--cpu` it starts a single process, whatever `--num_processes` says.
    """
    words = ["train", "supernet", "--preset", "scratch", "--from", source, "--dataset", str(folder), "--out", str(out)]
    words += ["--batch-size", "6", "--lr", "0.001", "--val-images", "12", "--crop-scale", "0.5", "1", "--flip", "0.5"]
    words += ["--rand-augment", "rand-m5-n1", "--sub-labels", "0", "--sub-full", "1", "--shared-start", *more]
    return in_two_processes("-m", "train", *words)


def in_two_processes(*command: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    words += ["--master_port", str(free_port()), *command]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(words, env=os.environ | paths, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, text
    return text


def test_a_process_by_itself_is_a_team() -> None:
    team = open_team("cpu")
    tensor = torch.ones(3)
    team.average([tensor])
    team.wait()
    assert (team.is_main, team.size, team.any(True), team.any(False)) == (True, 1, True, False)
    assert tensor.tolist() == [1, 1, 1]
    assert not Team(torch.device("cpu"), rank=1, size=2).is_main


@pytest.mark.slow
def test_two_processes_fine_tune_supernet_and_policy_and_one_of_them_tells(folder: Path, tmp_path: Path) -> None:
    environment: Any = {"checkpoint": saved_net(tmp_path / "net"), "dataset": str(folder)}
    training = AgentTraining(
        env="Prance-Tiny-v0", algo="prance_ppo", n_envs=6, total_timesteps=12, environment=environment
    )
    train_agent(training, tmp_path / "agent", progress_bar=False)
    words = ["train", "joint", "--agent", str(tmp_path / "agent"), "--out", str(tmp_path / "joint"), "--rounds", "2"]
    words += ["--agent-timesteps", "12", "--steps", "2", "--batch-size", "6", "--val-images", "12"]
    text = finished(in_two_processes("-m", "train", *words))
    assert text.count("accuracy before") == text.count("Supernet written to") == 1
    report = json.loads((tmp_path / "joint" / "joint.json").read_text())
    assert report["agent"] == str(tmp_path / "joint" / "round_2" / "agent")


UNEVEN = """
import sys
import torch
from train.networks.launch import open_team
from train.networks.optimiser import Stepper

team = open_team("cpu")
params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(2))]
stepper = Stepper([{"params": params, "weight_decay": 0.5, "lr_scale": 1.0}], params, 0.1, "off", team)
loss = params[0].sum() * (team.rank + 1) / 10
if team.rank == 1:
    loss = loss + params[1].sum() / 10
stepper.step([loss], 1, 0.1)
grads = [None if p.grad is None else p.grad[0].item() for p in params]
torch.save((grads, params), f"{sys.argv[1]}/{team.rank}.pt")
"""


@pytest.mark.slow
def test_processes_of_which_one_uses_more_weights_average_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "uneven.py").write_text(UNEVEN)
    finished(in_two_processes(str(tmp_path / "uneven.py"), str(tmp_path)))
    (grads, params), (others, same) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert grads == others == [pytest.approx(0.15), pytest.approx(0.05), None]
    assert all(torch.equal(a, b) for a, b in zip(params, same, strict=True))
    # What nobody uses does not decay either, as with one process.
    assert torch.equal(params[2], torch.ones(2))


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_after_sigterm(folder: Path, tmp_path: Path) -> None:
    source = saved_net(tmp_path / "net")
    recipe = images_recipe(source, folder, **AUGMENTED)
    train_supernet(recipe, tmp_path / "one")
    text = finished(launch(source, folder, tmp_path / "two", "--steps", "4", "--checkpoint-every", "2"))
    assert text.count("Supernet written to") == 1
    # The processes add up in another order than one does, and Adam divides by what may be next to nothing.
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert float((one[name] - two[name]).abs().mean()) < 1e-4, name
    alone, rows = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [r["step"] for r in rows] == [2, 4]
    assert [r["loss"] for r in rows] == pytest.approx([r["loss"] for r in alone], rel=1e-3)
    assert len([*(tmp_path / "two").glob("events.out.tfevents.*")]) == 1

    long = ("--steps", "60", "--checkpoint-every", "30")
    process = launch(source, folder, tmp_path / "parts", *long, "--save-freq", "0")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "parts" / "last.pt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=PATIENCE)
    step = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"]
    assert 0 < step < 60, text
    finished(launch(source, folder, tmp_path / "parts", *long, "--resume"))
    finished(launch(source, folder, tmp_path / "whole", *long))
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")
