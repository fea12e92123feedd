"""A folder in which what pages tell people to type finds what it needs: networks, pictures, runs, all of them small."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
import traceback
import types
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import uvicorn
from clip_models import small_clip
from image_files import picture
from pasted import shortened
from small_nets import small_net

import supernet
from agents import AdaptiveViT
from prance_env.supernets import BUNDLED
from supernet import SubnetConfig, TextEmbeddings, create_supernet
from supernet.registry import SUPERNETS
from train import demo, side_by_side
from train.commands import serve
from train.commands.main import main
from train.deploy.opening import open_adaptive
from train.evaluate.rows import read_rows, write_rows
from train.networks import import_clip, importing, teachers
from train.search import confidence
from train.timing import menu
from train.yardsticks import compute, static_designs

SERVED = {"curl --data-binary @cat.jpg 'http://127.0.0.1:8000/predict?top=3'"}
"""What pages ask of a service."""
COPIES = (
    "deit",
    "vit",
    "small",
    "big",
    "tuned",
    "clip",
    "mine",
    "supernet",
    "supernet-0",
    "supernet-1",
    "prance-small",
    "supernet-2",
)
MY_REWARDS = """
from prance_env import register_reward

@register_reward("frugal")
def frugal(outcome):
    return outcome.accuracy - outcome.macs_weight * (outcome.macs / outcome.full_macs) ** 2
"""
RUNS = ("constant", "constant-0", "constant-1")
PLOTTED = ("ppo-0", "ppo-1", "sac-0")
EVERY_BUDGET = ("any", "any-budget", "prance")
STEPS = {"agent.learn(100_000": "agent.learn(2_000", "while len(correct) < 1024": "while len(correct) < 256"}
"""What scripts of pages do less of; examples/ has those that are trained to the end."""
SAVED_AS = re.compile(r"# (\w+)\.py\n")
"""How a block begins that is a file, without which others do not run."""
SMALLER = {"depth": 4, "embed_dim": 48, "num_heads": 3}
real_create_model = timm.create_model


def smaller(name: str, pretrained: bool = False, **changes: Any) -> Any:
    """timm's model of that name in a small size, with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(name.encode()))
        return real_create_model(name, **(SMALLER | changes))


def stand_in() -> None:
    """Puts small things into the place of downloads and of what takes minutes, for the rest of this process."""
    timm.create_model = smaller
    teachers.timm_model = _grey_teacher  # type: ignore[assignment]
    import_clip.load_clip = lambda *_, **__: small_clip()  # type: ignore[assignment]
    digits = SUPERNETS["digits"]
    theirs = small_net("prune", prance_embed_dim=40, groups=(3, 3))
    for module in (importing, supernet):
        module.load_prance_checkpoint = lambda *_, **__: theirs  # type: ignore[attr-defined]
    side_by_side.calibrate = lambda *_: types.SimpleNamespace(macs_weight=0.1)  # type: ignore[assignment,return-value]
    small = {name: digits for name in SUPERNETS.names()}
    SUPERNETS._things.update(small)
    confidence.SWEEPS, confidence.NUM_CANDIDATES = 1, 2
    compute.PRICES, compute.CONFIDENCE_PRICES = np.array([0.05, 0.3]), np.array([0.05])
    static_designs.SHARES = (1.0,)
    menu.SPREAD = 0.5
    AdaptiveViT.push_to_hub = lambda *_: None  # type: ignore[assignment,method-assign]
    serve.serve = _served_briefly
    demo.QUICK_TIMESTEPS, demo.QUICK_SUBNETS, demo.QUICK_SEARCH_IMAGES = 3_072, 6, 32


def _served_briefly(app: Any, place: socket.socket) -> None:
    """A service that answers what pages ask of it, and ends."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([place],))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    host, port = place.getsockname()
    with urllib.request.urlopen(f"http://{host}:{port}/healthz") as answer:
        assert answer.status == 200
    for line in SERVED:
        picture_file, url = re.fullmatch(r"curl --data-binary @(\S+) (\S+)", line).groups()  # type: ignore[union-attr]
        url = url.strip("'").replace("http://127.0.0.1:8000", f"http://{host}:{port}")
        with urllib.request.urlopen(url, Path(picture_file).read_bytes()) as answer:
            assert json.load(answer)["top"]
    server.should_exit = True
    thread.join()


def _grey_teacher(*_: Any, **__: Any) -> Any:
    """For the images of Digits."""
    model = smaller("vit_tiny_patch16_224", in_chans=1, num_classes=10)
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 224, 224)}
    return model


def make_world(root: Path) -> Path:
    """Fills a folder."""
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label, name in enumerate(("dark", "bright")):
            folder = root / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(100 * label + i, (40, 44)).save(folder / f"{i}.png")
    (root / "names.txt").write_text("dark\nbright\n")
    (root / "my_rewards.py").write_text(MY_REWARDS)
    picture(1, (40, 44)).save(root / "cat.jpg")
    picture(2, (40, 44)).save(root / "dog.png")
    (root / "more").mkdir()
    for path in ("a.jpg", "b.png", "more/c.jpg"):
        picture(3, (40, 44)).save(root / path)
    for name in COPIES:
        shutil.copytree(BUNDLED["digits"], root / "runs" / name)
    torch.save(smaller("deit_tiny_patch16_224", num_classes=37).state_dict(), root / "tuned.pth")
    net = create_supernet("digits")
    (root / "subnet.json").write_text(SubnetConfig.random(net.space, 1).to_json())
    torch.save(their_selector(), root / "actor.pth")
    texts = TextEmbeddings(("dark", "bright"), torch.nn.functional.normalize(torch.randn(2, 24), dim=1), 100.0)
    texts.save(root / "runs" / "clip" / "texts.safetensors")
    return root


def their_selector() -> dict[str, torch.Tensor]:
    """Random weights of an actor as PRANCE's authors save it, for `theirs`."""
    sizes = {"fc1": (8, 37), "fc2": (8, 8), "fc_mu": (7, 8)}
    return {f"{name}.weight": torch.randn(size) for name, size in sizes.items()} | {
        f"{name}.bias": torch.randn(size[0]) for name, size in sizes.items()
    }


def make_runs() -> None:
    """Agents, rows and yardsticks in `runs`, by the commands that make them."""
    run("prance train agent --out runs/agent --eval-freq 24")
    run("prance eval --agent runs/agent --split test --out runs/agent/eval")
    run("prance train agent --out runs/constant --observation constant")
    run("prance train agent --out runs/any --algo prance_ppo --macs-weight 0.01 0.3")
    for source, copies in (("constant", RUNS[1:]), ("any", EVERY_BUDGET[1:]), ("agent", PLOTTED)):
        for name in copies:
            shutil.copytree(f"runs/{source}", f"runs/{name}")
    shutil.copy("runs/agent/model.zip", "agent.zip")
    if find_spec("pyarrow"):
        write_rows(Path("rows.parquet"), read_rows(Path("runs/agent/eval/agent.csv")))
    run("prance yardsticks --out runs/yardsticks")
    open_adaptive("runs/any", entries=4).model.save_pretrained("saved")
    run("prance profile --out latency.json")
    for name in ("small-0.4", "small-0.5"):
        run(f"prance export --supernet digits --subnet min --format safetensors --out runs/{name}")


def run(line: str) -> None:
    """A command in its short form, in this process; what it makes is made anew."""
    words = shortened(line)
    if "--resume" not in words and "--check" not in words and "--out" in words:
        out = Path(words[words.index("--out") + 1])
        if len(out.parts) <= 2 and not out.is_absolute():
            shutil.rmtree(out, ignore_errors=True)
    sys.argv = ["prance", *words]
    main()


def run_code(code: str, names: dict[str, Any]) -> None:
    """A block of a page, with what earlier ones have named; it may do less, see `STEPS`.

    One that begins with the name of a file, `# mine.py`, is saved under it.
    """
    if named := SAVED_AS.match(code):
        Path(f"{named[1]}.py").write_text(code)
        return
    for long, short in STEPS.items():
        code = code.replace(long, short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", real_create_model)
        exec(compile(code, "<page>", "exec"), names)


def in_a_child(work: Callable[[], None], folder: Path) -> None:
    """Runs something in a forked process, so that what it registers and replaces is gone afterwards.

    Args:
        work: What to run.
        folder: Where.
    """
    log = folder / "log.txt"
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException), log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            try:
                os.chdir(folder)
                os.environ["COLUMNS"] = "100"
                sys.path.insert(0, str(folder))  # for modules that pages save there
                work()
                code = 0
            except SystemExit as stop:
                print("exit:", stop.code)
            except BaseException:
                traceback.print_exc()
            file.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        pytest.fail(log.read_text()[-3000:])


def page_names() -> dict[str, Any]:
    """The namespace that the blocks of one page share."""
    return vars(types.ModuleType("__main__"))


__all__ = ["SAVED_AS", "in_a_child", "make_runs", "make_world", "page_names", "partial", "run", "run_code", "stand_in"]
