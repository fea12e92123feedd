"""Stage 1 on images of one's own: reproducible, resumable, with teachers, in parts, and clear about what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from command_line import prance, refusal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_nets import AUGMENTED, CONFIG, assert_equal_weights, images_recipe, saved_net, weights

from supernet import SearchSpace, SubnetConfig, Supernet, from_pretrained, save_pretrained
from supernet.zero_shot import ZeroShotHead
from train.networks.loop import Training, train_supernet
from train.networks.optimiser import parameter_groups
from train.networks.presets import PRESETS, recipe_of
from train.networks.recipe import Turn
from train.networks.recipes.images import ImagesRecipe, dropping_paths
from train.networks.sandwich import Limits, draw_smallest, draw_subnet, limits_at
from train.networks.sources import NetworkSource
from train.networks.views import View

CPU = torch.device("cpu")
ALL = slice(None)
GREY = {"in_chans": 1, "mean": (0.5,), "std": (0.5,)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_net(tmp_path_factory.mktemp("net"))


def gradients(recipe: ImagesRecipe, step: int = 0, which: slice = ALL) -> tuple[Supernet, list[float]]:
    net = recipe.make_net().train()
    losses = []
    for loss in list(recipe.losses(net, recipe.make_heads(net), Turn(step, slice(0, recipe.batch_size), CPU)))[which]:
        loss.backward()
        losses.append(loss.item())
    return net, losses


def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(
    source: str, folder: Path, tmp_path: Path
) -> None:
    for name, changes in {"a": {}, "b": {"num_workers": 2}, "c": {"seed": 1}}.items():
        recipe = images_recipe(
            source, folder, teacher="original", full_teacher=0.5, drop_path=0.2, **AUGMENTED, **changes
        )
        train_supernet(recipe, tmp_path / name)
    assert_equal_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["head.weight"], weights(tmp_path / "c")["head.weight"])


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = images_recipe(source, folder, mixup=0.5, cutmix=0.5, label_smoothing=0.1, **AUGMENTED)
    train_supernet(recipe, tmp_path / "whole")
    learning_rate = ImagesRecipe.learning_rate

    def interrupt(self: ImagesRecipe, step: int) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return learning_rate(self, step)

    monkeypatch.setattr(ImagesRecipe, "learning_rate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_supernet(recipe, tmp_path / "parts")
    monkeypatch.undo()
    train_supernet(recipe, tmp_path / "parts", resume=True)
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")


def test_subnets_that_share_the_start_do_not_train_it(source: str, folder: Path) -> None:
    shared, losses = gradients(images_recipe(source, folder), which=slice(1, None))
    assert len(losses) == 3
    assert shared.pos_embed.grad is None
    assert shared.get_parameter("blocks.1.fc1.weight").grad is not None
    apart, _ = gradients(images_recipe(source, folder, shared_start=False), which=slice(1, None))
    assert float(apart.get_parameter("pos_embed").grad.abs().max()) > 0  # type: ignore[union-attr]


def test_the_original_network_teaches_nothing_before_the_first_step(source: str, folder: Path) -> None:
    recipe = images_recipe(source, folder, teacher="original", full_teacher=1.0, full_labels=0.0, temperature=2.0)
    net, _ = gradients(recipe, which=slice(0, 1))
    largest = max(float(p.grad.abs().max()) for p in net.parameters() if p.grad is not None)
    assert largest < 1e-6
    with_labels, _ = gradients(images_recipe(source, folder), which=slice(0, 1))
    assert float(with_labels.get_parameter("head.weight").grad.abs().max()) > 1e-2  # type: ignore[union-attr]


def test_subnets_learn_from_whom_they_are_told_to(source: str, folder: Path) -> None:
    nothing = {"sub_full": 0.0, "sub_labels": 0.0}
    _, losses = gradients(images_recipe(source, folder, **nothing))
    assert losses[1:] == [0.0, 0.0, 0.0]
    for weight in ({"sub_labels": 1.0}, {"sub_teacher": 1.0, "teacher": source}, {"sub_full": 1.0}):
        _, losses = gradients(images_recipe(source, folder, **(nothing | weight)))
        assert min(losses[1:]) > 0.01
    _, losses = gradients(images_recipe(source, folder, subnets=4, smallest=False))
    assert len(losses) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_teacher": 1.0}, "pass --teacher"),
        ({"teacher": "original"}, "teaches nobody"),
        ({"teacher": "store:x", "full_teacher": 1.0, "mixup": 0.5}, "mixup and cutmix must be 0"),
        ({"teacher": "store:x", "full_teacher": 1.0, "temperature": 4.0}, "temperature=4.0 must be 1 with a store"),
        ({"cutmix": 1.0, "batch_size": 12, "accumulate": 4}, r"mix pairs, but batch_size=12 in accumulate=4 .* has 3"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"val_images": 0}, "val_images=0 must be at least 1"),
        ({"epochs": -1.0}, r"epochs=-1.0 must be at least 0"),
        ({"soft_prune": -0.1}, "soft_prune=-0.1 must be at least 0"),
        ({"soft_prune": 0.1, "soft_prune_every": 0}, "soft_prune_every=0 at least 1"),
        ({"layer_decay": 1.5}, r"layer_decay=1.5 must lie in \(0, 1\]"),
        ({"rand_augment": "heavily"}, "rand_augment='heavily' is not in timm's words.*'none'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagesRecipe(**changes)


def test_no_augmentation_and_no_teacher_may_be_called_none() -> None:
    assert ImagesRecipe(rand_augment="none", teacher="none") == ImagesRecipe()
    assert View(16, 1, rand_augment="None") == View(16, 1, rand_augment="none") == View(16, 1)
    assert View(16, 1, rand_augment="none").is_plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nobody", "full_teacher": 1.0}, "teacher='nobody' is unknown"),
        ({"teacher": "store:nowhere", "full_teacher": 1.0}, r"holds no store\.json"),
        ({"batch_size": 60}, "holds 36 images, fewer than batch_size=60"),
        ({"num_classes": 2}, "The labels go up to 2, but the supernet has num_classes=2"),
        ({"crop_scale": (0.9, 0.1)}, "must be shares of the area"),
        ({"embed_dims": (8, 32)}, "chosen for networks of timm"),
        ({"source": "nobody"}, "'nobody' is neither one of"),
        ({"source": "timm:no_such_vit"}, "timm cannot make 'no_such_vit'"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(
    changes: dict[str, Any], message: str, source: str, folder: Path, tmp_path: Path
) -> None:
    recipe = images_recipe(**({"source": source, "dataset": folder} | changes))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_supernet(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_images_to_validate_on_are_missed_before_the_first_step(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "train", tmp_path / "images" / "train")
    monkeypatch.setattr(Training, "advance", Mock(side_effect=AssertionError("a step was taken")))
    with pytest.raises(ValueError, match="split='val' is not in"):
        train_supernet(images_recipe(source, tmp_path / "images"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_or_images_is_refused(source: str, folder: Path, tmp_path: Path) -> None:
    for name, change in {"classes": {"num_classes": 5}, "images": GREY}.items():
        save_pretrained(Supernet(replace(CONFIG, **change)), tmp_path / name)  # type: ignore[arg-type]
        recipe = images_recipe(source, folder, teacher=str(tmp_path / name), full_teacher=1.0)
        with pytest.raises(ValueError, match=r"gives 5 logits, the supernet 3|takes images of 1 channels"):
            train_supernet(recipe, tmp_path / "run")


def test_a_classifier_that_was_drawn_teaches_nobody(folder: Path, tmp_path: Path) -> None:
    save_pretrained(Supernet(replace(CONFIG, num_classes=5)), tmp_path / "five")
    new = images_recipe(str(tmp_path / "five"), folder, num_classes=3, teacher="original", full_teacher=1.0)
    with pytest.raises(ValueError, match="has a new, random classifier"):
        train_supernet(new, tmp_path / "run")
    registered = images_recipe("prance_vit_tiny", folder, teacher="original", full_teacher=1.0)
    with pytest.raises(ValueError, match="has a new, random classifier"):
        registered.original()
    assert not NetworkSource("prance_vit_tiny", init="weights").has_random_classifier()
    assert NetworkSource("prance_vit_tiny", init="weights", num_classes=3).has_random_classifier()
    assert not NetworkSource("digits").has_random_classifier()
    short = {"source": new.source, "dataset": str(folder), "num_classes": 3, "steps": 1, "batch_size": 6}
    net = train_supernet(recipe_of("finetune", short | {"teacher": "none", "val_images": 6}), tmp_path / "tuned")
    assert net.config.num_classes == 3


def test_a_class_that_is_missing_among_the_training_images_is_named(source: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "train" / "class_1")
    with pytest.raises(ValueError, match=r"val has the classes \['class_1'\], which the training split"):
        train_supernet(images_recipe(source, tmp_path / "images"), tmp_path / "run")


def test_texts_of_classes_stay_and_the_scale_keeps_its_limit(folder: Path, tmp_path: Path) -> None:
    save_pretrained(Supernet(replace(CONFIG, text_dim=12)), tmp_path / "clip")
    recipe = images_recipe(str(tmp_path / "clip"), folder, weight_decay=0.5)
    trained = train_supernet(recipe, tmp_path / "run")
    before, after = weights(tmp_path / "clip"), weights(tmp_path / "run")
    assert torch.equal(before["head.text"], after["head.text"])
    for name in ("head.proj.weight", "head.logit_scale"):
        assert not torch.equal(before[name], after[name])
    assert isinstance(trained.head, ZeroShotHead)
    trained.head.logit_scale.data.fill_(5.0)
    recipe.after_step(trained, torch.nn.Module(), 0)
    assert trained.head.logit_scale.exp().item() == pytest.approx(100)


def test_earlier_layers_learn_more_slowly_and_vectors_do_not_decay(source: str) -> None:
    net = from_pretrained(source)
    groups = parameter_groups(net, torch.nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert scale[id(net.head.weight)] == (1.0, 0.1)  # type: ignore[union-attr]
    assert scale[id(net.norm.weight)] == (1.0, 0.0)
    assert scale[id(net.get_parameter("blocks.2.fc1.weight"))] == (0.5, 0.1)
    assert scale[id(net.get_parameter("blocks.0.fc1.bias"))] == (0.125, 0.0)
    assert scale[id(net.pos_embed)] == (0.0625, 0.1)
    assert len(scale) == len([*net.parameters()]) + 2


@pytest.mark.parametrize("end", [{"distilled": True, "reg_tokens": 1}, {"global_pool": "map"}])
def test_whatever_follows_the_last_block_learns_at_full_rate(end: dict[str, Any]) -> None:
    net = Supernet(replace(CONFIG, **end))
    groups = parameter_groups(net, torch.nn.Module(), weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    ends = {
        n: scale[id(p)] for n, p in net.named_parameters() if n.split(".")[0] in ("norm", "head", "head_dist", "pool")
    }
    assert len(ends) > 4
    assert set(ends.values()) == {1.0}


def test_paths_are_dropped_by_whole_images_and_on_average_not_at_all(source: str) -> None:
    net = from_pretrained(source).train()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).expand(600, -1, -1, -1)
    torch.manual_seed(0)
    with dropping_paths(net, 0.5):
        state = net.begin(images)  # the first block drops nothing
        middle = net.run_to_end(state)
    tokens = middle.tokens.detach().view(600, -1, 32)
    kinds = torch.unique((tokens * 100).round(), dim=0)
    assert 4 <= len(kinds) <= 16  # four halves of blocks, each there or not
    with torch.no_grad():
        assert torch.equal(net(images[:2]), net(images[:2]))


def test_the_last_block_is_skipped_as_often_as_asked_and_the_first_never() -> None:
    net = Supernet(CONFIG)
    with dropping_paths(net, 0.4):
        rates = [block.drop_path for block in net.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.2, 0.4])


def test_sizes_enter_one_by_one_and_tokens_leave_ever_more() -> None:
    space = SearchSpace((1, 3, 3, 3), (16, 32, 48, 64), (0.5, 1, 2), (1, 2, 3, 4), 0.1)
    seen = [limits_at(space, progress, 0.5, 0.4) for progress in (0, 0.1, 0.2, 0.3, 0.41, 0.9)]
    assert [len(s.mlp_ratios) + len(s.embed_dims) for s in seen] == [3, 4, 5, 6, 7, 7]
    assert seen[0].mlp_ratios == (1.0, 2.0)
    assert seen[1].embed_dims == (48, 64)
    assert [round(s.lowest_keep, 3) for s in seen] == [1.0, 0.775, 0.55, 0.325, 0.1, 0.1]
    assert limits_at(space, 0, 0, 0) == Limits(space.embed_dims, space.mlp_ratios, 0.1)


def test_a_recipe_begins_with_the_sizes_next_to_the_full_ones(source: str, folder: Path) -> None:
    recipe = images_recipe(source, folder, steps=10, shrink=0.9, token_curriculum=0.9)
    space = recipe.start.space
    for subnet in recipe.sandwich(recipe.start, 0, torch.zeros(1)):
        assert (subnet.keep_rate == 1).all()
        assert {*subnet.embed_dim.unique().tolist()} <= {*space.embed_dims[-2:]}
        assert subnet.mlp_ratio.min() >= space.mlp_ratios[-2]
    smallest = recipe.sandwich(recipe.start, 9, torch.zeros(1))[0]
    assert smallest.embed_dim[0, 1:].unique().tolist() == [space.embed_dims[0]]
    assert smallest.keep_rate.min() < 1


@pytest.mark.parametrize("mode", ["prune", "prune_merge"])
@pytest.mark.parametrize("first", [False, True])
def test_drawn_subnets_are_within_the_limits(mode: str, first: bool) -> None:
    space = SearchSpace((2, 2, 2), (8, 16, 24), (1, 2), (3,), 0.1, mode, decide_first_group=first)
    limits, rng = Limits((16, 24), (1.0, 2.0), 0.5), np.random.default_rng(0)
    widths: set[int] = set()
    for _ in range(100):
        subnet = draw_subnet(space, limits, rng)
        subnet.validate(space)
        widths |= set(subnet.embed_dim[0].tolist())
        assert float(subnet.keep_rate.min()) >= 0.5
        smallest = draw_smallest(space, limits, rng)
        decided = 0 if first else 2
        assert set(smallest.embed_dim[0, decided:].tolist()) == {16}
        assert first or set(smallest.embed_dim[0, :2].tolist()) == {24}
    assert widths == {16, 24}


def test_epochs_are_steps(source: str, folder: Path) -> None:
    assert images_recipe(source, folder, epochs=2.0, steps=1).prepared().steps == 12


def test_mixed_precision_stays_near(source: str, folder: Path, tmp_path: Path) -> None:
    loss = {}
    for amp in ("off", "bfloat16"):
        train_supernet(images_recipe(source, folder, steps=1, amp=amp), tmp_path / amp)
        loss[amp] = json.loads((tmp_path / amp / "metrics.jsonl").read_text())["loss"]
    assert loss["off"] != loss["bfloat16"]
    assert loss["off"] == pytest.approx(loss["bfloat16"], rel=0.05)


def test_presets_are_changed_by_options_and_refuse_what_they_do_not_know() -> None:
    assert recipe_of("digits", {"steps": 7}).steps == 7
    assert recipe_of("prance-small-imagenet", {}).turns(0, CPU)[0].rows == slice(0, 1024)
    with pytest.raises(ValueError, match="The preset digits has no use for --mixup"):
        recipe_of("digits", {"mixup": 0.5})
    with pytest.raises(ValueError, match="preset='mine' is unknown"):
        recipe_of("mine", {})
    assert {"digits", "pretrained-light", "scratch"} <= set(PRESETS)


def test_the_command_trains_a_network_on_a_folder(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "supernet", "--preset", "pretrained-light", "--from", source, "--dataset", str(folder)]
    short = ["--steps", "2", "--batch-size", "4", "--crop-scale", "0.5", "1", "--val-images", "6"]
    prance(monkeypatch, *words, *short, "--out", str(tmp_path / "run"))
    assert "use it with --checkpoint" in capsys.readouterr().out
    assert from_pretrained(tmp_path / "run").config == CONFIG
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert set(row) >= {"val_accuracy_full", "val_accuracy_min", "val_accuracy_narrowest", "val_accuracy_random"}
    assert SubnetConfig.full(CONFIG.space).embed_dim[0, 0] == 32
    message = refusal(monkeypatch, "train", "supernet", "--mixup", "1", "--out", tmp_path / "digits")
    assert "The preset digits has no use for --mixup" in message


def test_a_run_stops_after_its_hours_and_goes_on(
    source: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = images_recipe(source, folder)
    train_supernet(recipe, tmp_path / "whole")
    for resume in (False, True, True, True):
        train_supernet(recipe, tmp_path / "hours", resume=resume, max_hours=0)
    assert "Stopped after step 3 of 4" in capsys.readouterr().out
    assert_equal_weights(tmp_path / "whole", tmp_path / "hours")
    assert logged(tmp_path / "whole") == logged(tmp_path / "hours") == [2, 4]


def test_what_a_checkpoint_follows_is_in_tensorboards_file_before(
    source: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, before = Mock(), list[str]()
    monkeypatch.setattr("train.networks.loop.SummaryWriter", lambda *args, **named: writer)
    monkeypatch.setattr(Training, "save", lambda self: before.append(writer.method_calls[-1][0]))
    train_supernet(images_recipe(source, folder), tmp_path, save_freq=1e9)
    assert before == ["flush", "flush"]


def logged(run: Path) -> list[int]:
    """The steps whose loss TensorBoard shows."""
    log = EventAccumulator(str(run))
    log.Reload()
    return [s.step for s in log.Scalars("supernet/loss")] if "supernet/loss" in log.Tags()["scalars"] else []


def test_names_of_classes_are_kept_until_others_are_learned(tmp_path: Path, folder: Path) -> None:
    net, names = from_pretrained(saved_net(tmp_path / "net")), ("class_2", "class_0", "class_1")
    for known in (names, ("cat", "dog", "cow")):
        net.config = replace(net.config, class_names=known)
        save_pretrained(net, tmp_path / "named")
        recipe = images_recipe(str(tmp_path / "named"), folder)
        if known == names:
            assert recipe.make_net().config == net.config
            assert recipe._loaded("val").labels.unique_consecutive().tolist() == [1, 2, 0]
        else:
            with pytest.warns(UserWarning, match="does not know"):
                assert recipe.make_net().config.class_names == ()
