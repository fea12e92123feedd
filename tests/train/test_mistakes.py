"""What people type wrongly: exit status 2, one or two lines that name the mistake, never a traceback."""

from __future__ import annotations

import errno
import os
import pathlib
import shlex
import shutil
from pathlib import Path

import pytest
from command_line import refusal
from image_files import picture

from train.commands.main import COMMANDS, Group

pytestmark = pytest.mark.usefixtures("few_scenes")

VERBS = {f"{n} {v}": c for n, e in COMMANDS.items() if isinstance(e, Group) for v, c in e.commands.items()}
VERBS |= {name: entry for name, entry in COMMANDS.items() if not isinstance(entry, Group)}
WITHOUT_OUT = (
    "train agent",
    "train supernet",
    "train joint --agent full",
    "tune",
    "yardsticks",
    "benchmark",
    "profile",
)
WITHOUT_OUT += (
    "export",
    "import timm vit_tiny_patch16_224",
    "order --supernet digits",
    "distill --teacher a --student b",
)
TASKS = ("train agent --out {new}", "tune --algo ppo --out {new}", "bench-training")
ENVS = (*TASKS, "yardsticks --out {new}", "benchmark --out {new}", "eval --agent full", "headroom")

# "{new}" is a folder that does not exist, "{file}" a text, "{folder}" an empty one, "{net}" one with a broken supernet,
# "{images}" a folder of pictures of which one is broken, "{agent}" one with an agent's broken files, "{rows}" a .csv.
MISTAKES: dict[str, str] = {
    # ---- commands
    "evall": "did you mean 'eval'",
    "train": "supernet, static, agent, joint",
    "train agnet": "'agent'",
    "import": "timm, clip, prance",
    "import tim x": "'timm'",
    "lits": "'list'",
    "list all": "all",
    "--verbose": "--verbose",
    # ---- what an option takes
    "eval --agent full --split vall": "'train', 'val', 'test'",
    "eval --agent full --seed one": "--seed",
    "eval --agent full --seed": "--seed",
    "eval --agent full --seed 1 2": "2",
    "eval --agent full --macs-weight cheap": "--macs-weight",
    "train agent --out {new} --macs-weight cheap": "expected {None}|FLOAT|{FLOAT FLOAT}, not 'cheap'",
    "eval --agent full --rows xlsx": "'csv', 'parquet'",
    "eval --agent full --dtype float8": "'float32'",
    "eval --agent full --token-mode drop": "one of ('None', 'merge', 'merge_above', 'prune', 'prune_fused', ",
    "eval --agent full --on-error ignore": "'raise', 'skip'",
    "eval --agent full --threads -1": "--threads -1",
    "train agent --out {new} --threads 1e9": "--threads 1000000000 must be from 0 to 1024; 0 leaves torch's choice",
    "serve --model nowhere --threads 1025": "--threads 1025 must be from 0 to 1024",
    "eval --agent full --resamples 0": "resamples",
    "eval --agent full --resamples -5": "resamples",
    "eval --agent full --cache-mb -1": "cache_mb=-1",
    "eval --agent full --num-workers -2": "num_workers=-2",
    "eval --agent full --latency 0": "latency",
    "eval --agent full --target-macs 0.4": "range of prices",
    "eval --agent full --macs-weight 0.1": "range of prices",
    "eval --agent full --macs-weight 0.1 --target-macs 0.4": "choose one",
    "eval --agent full --observation all": "'cls'",
    "train agent --out {new} --algo dqn": "'ppo'",
    "train agent --out {new} --algo PPO": "'ppo'",
    "train agent --out {new} --total-timesteps 1.5e0": "'1.5e0' is no whole number, such as 100000 or 1e5",
    "video --agent full --images 1.5": "--images: '1.5' is no whole number, such as 100000 or 1e5",
    "bench --batch-size 1 x": "--batch-size: 'x' is no whole number",
    "benchmark --out {new} --seeds 0 x": "--seeds: 'x' is no whole number",
    "eval --agent full --macs-weight 0.1 dear": "--macs-weight: 'dear' is no number, such as 0.05 or 1e-3",
    "plot": "pass run folders of `prance train agent`, such as runs/*",
    "train agent --out {new} --total-timesteps many": "'many' is no whole number",
    "train agent --out {new} --macs-weight": "--macs-weight: expected {None}|FLOAT|{FLOAT FLOAT}, not nothing. See",
    "train agent --out {new} --macs-weight 0.3 0.1": "0 < low < high",
    "train agent --out {new} --macs-weight -1": "macs_weight",
    "train agent --out {new} --macs-weight 1 2 3": "3",
    "train agent --out {new} --preset best": "'tuned'",
    "train agent --out {new} --algo sac --preset paper": "preset='paper' is unknown to sac",
    "train agent --out {new} --save-freq -1": "save_freq",
    "train agent --out {new} --seed -1": "seed=-1",
    "train agent --out {new} --reward cheap": "'potential'",
    "train agent --out {new} --reward.mode dense": "'result_to_go', 'terminal', 'potential'",
    "train agent --out {new} --reward.function nothing": "'package.module:name'",
    "train agent --out {new} --reward.function nothing.of:mine": "cannot be imported",
    "train agent --out {new} --reward.cost latency": "latency_table='FILE'",
    "train agent --out {new} --latency-table nowhere.json": "nowhere.json",
    "train agent --out {new} --latency-table {file}": "text.txt",
    "train agent --out {new} --import nothing_of_mine": "no such module",
    "train agent --out {new} --import train": "agents, prance_env, supernet, train are packages of prance-env itself",
    "list --import agents.py": "rename your file, such as to my_agents.py, and pass --import my_agents",
    "eval --agent full --import supernet.mine": "such as to my_supernet.py",
    "tune --algo ppo --out {new} --reward cheap": "'potential'",
    "yardsticks --out {new} --effort tiny": "'full', 'small'",
    "eval --agent full --reward.token-weight -1": "token_weight=-1",
    "eval --agent {net}": "no agent",
    "train agent --out {new} --threads x": "--threads",
    "train agent --out {new} --conf-file nowhere.yml": "nowhere.yml",
    "train agent --out {new} --conf-file {file}": "text.txt",
    "train agent --out {new} --conf-file {folder}": "empty",
    "train agent --out {new} --algo prance_ppo --conf-file {file}": "conf_file",
    "train supernet --out {new} --preset digit": "'digits'",
    "train supernet --out {new} --preset digits --lr -1": "lr=-1",
    "train supernet --out {new} --preset digits --steps 0": "steps=0",
    "train supernet --out {new} --preset digits --batch-size 0": "batch_size=0",
    "train supernet --out {new} --preset digits --dataset {folder}": "no use for --dataset",
    "train supernet --out {new} --preset pretrained-light --from nowhere": "nowhere",
    "train supernet --out {new} --preset pretrained-light --from timm:vit_tinny_patch16_224": "vit_tiny_patch16_224",
    "train supernet --out {new} --preset scratch --from digits --dataset nowhere": "nowhere",
    "train supernet --out {new} --preset scratch --from digits --dataset {folder}": "<class>/<image files>",
    "train supernet --out {new} --preset scratch --from digits --rand-augment heavily": "not in timm's words",
    "train static --out {new} --from nowhere --rand-augment heavily": "'none': no augmentation",
    "train supernet --out {new} --resume": "nothing to resume",
    "train supernet --out {new} --resume --on-error skip": "holds no run, so there is nothing to resume; drop --resume",
    "train static --out {new} --resume": "nothing to resume",
    "train joint --out {new} --resume": "nothing to resume",
    "train joint --out {new} --agent nowhere": "nowhere",
    "train joint --out {new} --agent {folder}": "empty",
    "tune --algo ppo --out {new} --trials 0": "trials=0",
    "tune --algo ppo --out {new} --trials -3": "trials=-3",
    "tune --algo ppo --out {new} --evaluations 0": "evaluations=0",
    "tune --algo ppo --out {new} --resume": "resume",
    "tune --out {new} --algo prance_ppo": "'ppo'",
    "tune --algo ppo --out {new} --ranges nowhere.yml": "nowhere.yml",
    "yardsticks --out {new} --num-subnets 0": "num_subnets=0",
    "yardsticks --out {new} --oracle-subnets 0": "oracle_subnets=0",
    "yardsticks --out {new} --copies -1": "copies=-1",
    "yardsticks --out {new} --choose-on tset": "'train', 'val', 'test'",
    "yardsticks --out {new} --also-static nowhere": "nowhere",
    "benchmark --out {new} --seeds": "seeds",
    "benchmark --out {new} --seeds a": "--seeds",
    "benchmark --out {new} --total-timesteps 0": "total_timesteps=0",
    "predict x.png --model nowhere --threads -1": "--threads -1 must be from 0 to 1024",
    "view nowhere --threads -1": "--threads -1 must be from 0 to 1024",
    "bench-menu --agent nowhere --threads -1": "--threads -1 must be from 0 to 1024",
    "bench-menu --agent nowhere --images 0": "--images 0 must be at least 1",
    "bench-menu --agent nowhere --images -8": "--images -8 must be at least 1",
    "headroom --num-subnets 0": "num_subnets=0",
    "headroom --checkpoint nowhere": "nowhere",
    "validate": "PATH",
    "validate nowhere.csv": "nowhere.csv",
    "validate {file}": "'txt'; name the file .csv",
    "validate {folder}": "name the file .csv",
    "export --out {new} --format onx": "'onnx'",
    "export --out {new} --format": "--format names none; choose one or more of",
    "export --out {new} --subnet nowhere.json": "nowhere.json",
    "export --out {new} --subnet {file}": "text.txt",
    "export --out {new} --supernet nowhere": "nowhere",
    "export --out {new} --supernet {net}": "config.json",
    "export --out {new} --embed-dim 50": "50",
    "export --out {new} --keep-rate 2": "2",
    "export --out {new} --mlp-ratio 9": "9",
    "import timm --out {new}": "MODEL",
    "import timm vit_tinny_patch16_224 --out {new}": "vit_tiny_patch16_224",
    "import timm resnet18 --out {new}": "plain ViT",
    "import timm vit_tiny_patch16_224 --weights nowhere.pth --out {new}": "nowhere.pth",
    "import timm vit_tiny_patch16_224 --weights {file} --out {new}": "text.txt",
    "import timm vit_tiny_patch16_224 --weights {file} --pretrained --out {new}": "one of both",
    "import timm vit_tiny_patch16_224 --img-size 100 --out {new}": "100",
    "import timm vit_tiny_patch16_224 --num-classes -2 --out {new}": "num_classes=-2 must be 0 or more",
    "import timm vit_tiny_patch16_224 --img-size -16 --out {new}": "img_size=-16 must be 1 or more",
    "import timm vit_tiny_patch16_224 --order best --out {new}": "'taylor'",
    "import prance nowhere.pth --out {new}": "nowhere.pth",
    "import prance {file} --out {new}": "text.txt",
    "import clip ViT-B-16 --out {new}": "classes",
    "import clip ViT-B-61 --classes {file} --out {new}": "ViT-B-16",
    "import clip ViT-B-16 --classes nowhere.txt --out {new}": "nowhere.txt",
    "order --dataset digits --out {new} --supernet nowhere": "nowhere",
    "order --dataset digits --out {new} --supernet digits --score best": "'taylor'",
    "order --dataset digits --out {new} --supernet digits --images 0": "0 images",
    "order --out {new} --supernet digits --dataset nowhere": "nowhere",
    "distill --dataset digits --out {new} --teacher original --student nowhere": "nowhere",
    "distill --out {new} --teacher nobody --student digits --dataset digits": "nobody",
    "distill --dataset digits --out {new} --teacher original --student digits --epochs 0": "epochs (0)",
    "distill --dataset digits --out {new} --teacher original --student digits --flip 2": "flip=2",
    "distill --dataset digits --out {new} --teacher original --student digits --rand-augment heavily": "timm's words",
    "bench --model resnet18": "plain ViT",
    "bench --model vit_tinny_patch16_224": "vit_tiny_patch16_224",
    "bench --repeats 0": "repeats=0",
    "bench --out {folder}": "is a folder; pass the name of a file",
    "bench-env --out {folder}": "is a folder",
    "bench-training --out {file}/x.json": "is a file",
    "bench-supernet --out {folder}": "is a folder",
    "bench-menu --timm test_vit --out {folder}": "is a folder",
    "profile --out {folder}": "is a folder",
    "predict --model {agent} --out {folder} x.png": "is a folder",
    "view {agent} --out {folder}": "is a folder",
    "plot {agent} --out {folder}.svg": "is a PNG file; pass a name that ends with .png",
    "bench --out {file}": "is there already, and only a file that ends with .json is replaced; pass another --out",
    "bench-env --out {file}": "ends with .json is replaced",
    "bench-training --out {file}": "ends with .json is replaced",
    "bench-supernet --out {file}": "ends with .json is replaced",
    "bench-menu --timm test_vit --out {file}": "ends with .json is replaced",
    "profile --out {file}": "ends with .json is replaced",
    "predict --model {agent} --out {agent}/model.zip x.png": "ends with .csv or .jsonl or .ndjson or .txt is replaced",
    "predict --model {agent} --out {rows} {rows}": "is one of the pictures; pass another --out",
    "view {agent} --out {agent}/model.zip": "ends with .html or .htm is replaced",
    "plot {agent} --out {agent}/config.yml": "is a PNG file; pass",
    "bench --batch-size 0": "batch_size",
    "bench --macs-fraction 2": "macs_fraction=2",
    "bench --token-mode drop": "'prune'",
    "bench-env --supernet digit": "'digits'",
    "bench-env --num-images 0": "num_images=0",
    "bench-env --repeats 0": "repeats=0",
    "bench-training --algos ppo": "algos",
    "bench-training --algos ppo ppo": "algos",
    "bench-training --seeds": "seeds",
    "bench-supernet --source timm:resnet18": "timm cannot make 'resnet18'",
    "bench-supernet --batch-size 0": "batch_size=0",
    "profile --out {new} --batch-size 0": "batch_size=0",
    "profile --out {new} --supernet vit": "'digits'",
    "profile --out {new} --checkpoint nowhere": "nowhere",
    "demo --seed x": "--seed",
    # ---- agents
    "eval --agent": "names none",
    "eval --agent nobody": "'nobody' is no agent",
    "eval --agent ful": "'full'",
    "eval --agent {folder}": "empty",
    "eval --agent {file}": "text.txt",
    "eval --agent {agent}": "config.yml",
    "eval --agent nowhere.zip": "nowhere.zip",
    "eval --agent nowhere.json": "nowhere.json",
    "eval --agent full --yardsticks nowhere": "nowhere",
    "eval --agent full --yardsticks {folder}": "empty",
    # ---- folders
    "train agent --out {file}": "text.txt",
    "eval --agent full --out {file}": "text.txt",
    "demo --quick --out {file}": "text.txt",
    "train agent --out {new} --resume": "nothing to resume",
    # ---- images
    "eval --agent full --dataset nowhere": "nowhere",
    "eval --agent full --dataset {folder}": "empty",
    "eval --agent full --dataset {file}": "text.txt",
    "eval --agent full --split val --dataset {images}": "on_error='skip' (--on-error skip, if",
    "eval --agent full --split test --dataset {images}": "split='test' is not in",
    """eval --agent full --dataset '{{"name"'""": "is not JSON",
    """eval --agent full --dataset '{{"root": "x"}}'""": "'name'",
    """eval --agent full --dataset '{{"name": "digits", "colour": 1}}'""": "'colour'",
    """eval --agent full --dataset '{{"name": "{images}", "crop_pct": 3}}'""": "crop_pct=3",
    """eval --agent full --dataset '{{"name": "{images}", "class_map": "nowhere.txt"}}' --split val""": "nowhere.txt",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the table's names in braces stand for."""
    root = tmp_path_factory.mktemp("mistakes")
    found = {"new": root / "new", "file": root / "text.txt", "folder": root / "empty", "net": root / "net"}
    found |= {"images": root / "images", "agent": root / "agent"}
    found |= {"rows": root / "rows.csv"}
    for name in ("file", "rows"):
        found[name].write_text("no file of ours\n")
    found["folder"].mkdir()
    found["net"].mkdir()
    (found["net"] / "config.json").write_text("{")
    found["agent"].mkdir()
    (found["agent"] / "config.yml").write_text("{")
    (found["agent"] / "model.zip").write_text("x")
    for label in "ab":
        (found["images"] / "val" / label).mkdir(parents=True)
        for k in range(2):
            picture(k).save(found["images"] / "val" / label / f"{k}.png")
    (found["images"] / "val" / "a" / "broken.png").write_text("no image")
    return found


def check(monkeypatch: pytest.MonkeyPatch, line: str, places: dict[str, Path], words: str) -> None:
    """One mistake."""
    monkeypatch.chdir(places["folder"].parent)
    shutil.rmtree(places["new"], ignore_errors=True)
    said = refusal(monkeypatch, *shlex.split(line.format(**places)))
    assert not places["new"].exists()
    assert words in said
    assert "\n" not in said
    assert len(said) < 900


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_ends_with_a_line_that_names_it(
    line: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, line, places, MISTAKES[line])


@pytest.mark.parametrize("verb", VERBS)
def test_options_that_a_command_lacks_are_named(
    verb: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {
        "validate": " x",
        "view": " x",
        "casestudy": " fashion",
        "import timm": " x",
        "import clip": " x",
        "import prance": " x",
    }.get(verb, "")
    check(monkeypatch, f"{verb}{first} --colour red", places, "--colour")


@pytest.mark.parametrize("line", WITHOUT_OUT)
def test_a_folder_that_is_missing_is_asked_for(
    line: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, line, places, "--out PATH")


@pytest.mark.parametrize(
    "line",
    [
        *(f"{line} --out {{new}}" for line in ("train agent", "yardsticks", "tune --algo ppo", "eval --agent full")),
        *("benchmark --out {new}", "headroom --num-subnets 2 --out {new}", "demo --quick --out {new}"),
        *("export --format safetensors --out {new}", "import timm test_vit --out {new}", "eval --agent full"),
        "order --supernet digits --dataset digits --images 8 --check-images 4 --out {new}",
    ],
)
def test_a_folder_that_one_may_not_make_is_named(
    line: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(path: object, *args: object, **named: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)  # as root, every folder may be made
    if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10, whose paths keep the function
        monkeypatch.setattr(pathlib._NormalAccessor, "mkdir", staticmethod(mkdir))
    check(monkeypatch, line, places, "Permission denied. Choose another path")


@pytest.mark.parametrize("line", ENVS)
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--env Prance-Digit-v0", "Did you mean: `Prance-Digits`"),
        ("--env CartPole-v1", "not an environment of prance_env"),
        ("--env Prance-Tiny-v0", "needs what is not in the package"),
        ("--checkpoint nowhere", "holds no config.json"),
        ("--device gpu", "device='gpu' is unknown"),
        ("--device cuda:99", "cannot be used here"),
    ],
)
def test_environments_that_cannot_be_made_are_named(
    line: str, option: str, words: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, f"{line} {option}", places, words)


@pytest.mark.parametrize("line", TASKS)
@pytest.mark.parametrize("option", ["--total-timesteps 0", "--total-timesteps -5", "--n-envs 0", "--n-envs -1"])
def test_trainings_of_nothing_are_refused(
    line: str, option: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = option.split()[0].strip("-").replace("-", "_")
    check(monkeypatch, f"{line} {option}", places, f"{name}={option.split()[1]} must be at least 1")
