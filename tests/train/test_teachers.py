"""Teachers: how they see pictures, what their answers are for, and where they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import random_net
from training_nets import CONFIG, images_recipe, saved_net

from supernet import from_pretrained, save_pretrained
from train.networks import distill
from train.networks.distill import DistillSettings
from train.networks.sources import NetworkSource
from train.networks.teachers import ResizedTeacher, open_teacher


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_net(tmp_path_factory.mktemp("net"))


def test_a_teacher_of_timm_sees_the_pictures_as_it_wants_them(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = from_pretrained(net)

    class Seen(torch.nn.Module):
        pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}  # noqa: RUF012

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.images = images
            return images.new_zeros(len(images), 3)

    seen = Seen()
    pixels = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    ResizedTeacher(seen, student)(student.normalised(pixels))
    expected = (200 / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.1, 0.2, 0.3])
    assert seen.images.shape == (2, 3, 64, 64)
    assert torch.allclose(seen.images.mean((0, 2, 3)), expected, atol=1e-5)
    monkeypatch.setattr("train.networks.teachers.timm_model", lambda name, pretrained: seen)
    teacher = open_teacher("timm:any", student, lambda: student)
    assert not teacher.training


def test_a_teacher_in_a_folder_sees_the_pictures_as_it_wants_them(net: str, tmp_path: Path) -> None:
    student, other = from_pretrained(net), {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    pixels = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    own, same = from_pretrained(net), open_teacher(net, student, lambda: student)
    with torch.no_grad():
        assert torch.equal(same(student.normalised(pixels)), own(pixels))
    changed = {"normalised": other, "smaller": {"img_size": 24}, "both": {**other, "img_size": 40}}
    for name, changes in changed.items():
        expected = random_net(replace(CONFIG, **changes))  # type: ignore[arg-type]
        save_pretrained(expected, tmp_path / name)
        size = expected.config.img_size
        seen = F.interpolate(pixels / 255, (size, size), mode="bicubic", antialias=True) if size != 32 else pixels / 255
        with torch.no_grad():
            said = open_teacher(str(tmp_path / name), student, lambda: student)(student.normalised(pixels))
            assert torch.allclose(said, expected((seen - expected.mean) / expected.std), atol=1e-4), name


def test_a_teacher_that_knows_its_classes_by_name_teaches_them_whatever_its_order(folder: Path, tmp_path: Path) -> None:
    pixels = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    student = saved_net(tmp_path / "student")  # whose labels are the folders by alphabet

    def named(*names: str) -> str:
        net = random_net(CONFIG)
        net.config = replace(net.config, class_names=names)
        save_pretrained(net, tmp_path / "_".join(names))
        return str(tmp_path / "_".join(names))

    teacher = named("class_2", "class_0", "class_1")
    with torch.no_grad():
        said = from_pretrained(teacher)(pixels)[:, [1, 2, 0]]
        seen = from_pretrained(student).normalised(pixels)
        recipe = images_recipe(student, folder, teacher=teacher, full_teacher=1.0)
        assert torch.allclose(recipe._answer(seen), said.softmax(-1))  # type: ignore[arg-type]
        distilled = distill.Distillation(DistillSettings(teacher=teacher, dataset=str(folder), student=student))
        assert torch.allclose(distilled.teacher(seen), said)
        # Names in the labels' order, and none at all, are as they were.
        for other in (named("class_0", "class_1", "class_2"), student):
            recipe = images_recipe(student, folder, teacher=other, full_teacher=1.0)
            assert torch.equal(recipe._answer(seen), from_pretrained(other)(pixels).softmax(-1))  # type: ignore[arg-type]
        # A student with names of its own, after which its labels are called.
        recipe = images_recipe(named("class_1", "class_2", "class_0"), folder, teacher=teacher, full_teacher=1.0)
        assert torch.allclose(recipe._answer(seen), said[:, [1, 2, 0]].softmax(-1))  # type: ignore[arg-type]
    other, words = named("cat", "dog", "cow"), r"cat_dog_cow knows the classes \['cat', .* for \['class_0', .*class_map"
    with pytest.raises(ValueError, match=words):
        images_recipe(student, folder, teacher=other, full_teacher=1.0)._frozen  # noqa: B018
    with pytest.raises(ValueError, match=words):
        distill.Distillation(DistillSettings(teacher=other, dataset=str(folder), student=student))
    # Whoever maps classes to labels says that these are its classes.
    (tmp_path / "map.txt").write_text("class_0\nclass_1\nclass_2\n")
    mapped: Any = {"name": str(folder), "class_map": str(tmp_path / "map.txt")}
    assert replace(images_recipe(student, folder, teacher=other, full_teacher=1.0), dataset=mapped)._frozen is not None


def test_networks_come_from_folders_names_and_timm(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NetworkSource(net, num_classes=5).open().config.num_classes == 5
    kept, fresh = from_pretrained(net), NetworkSource(net, num_classes=5).open()
    assert torch.equal(kept.pos_embed, fresh.pos_embed)
    named = NetworkSource("digits", init="random").open()
    assert not torch.equal(named.pos_embed, NetworkSource("digits").open().pos_embed)
    merged = NetworkSource(net, space=(("token_mode", "merge"),)).open()
    assert merged.space.token_mode == "merge"
    assert torch.equal(merged.pos_embed, kept.pos_embed)
    learned = NetworkSource(net, space=(("token_mode", "semantic"),)).open()
    fresh_parts = {name for name in learned.state_dict() if ".reduce." in name}
    assert fresh_parts
    assert all(torch.equal(t, learned.state_dict()[name]) for name, t in merged.state_dict().items())
    again = NetworkSource(
        "timm:vit_tiny_patch16_224", "random", 4, 32, 1, (("embed_dims", (96, 192)), ("num_heads", (3,)))
    )
    config = again.open().config
    assert (config.num_classes, config.img_size, config.in_chans, config.space.embed_dims) == (4, 32, 1, (96, 192))
    with pytest.raises(ValueError, match="does not fit this network"):
        NetworkSource("digits", init=net).open()


def test_a_teacher_of_colour_images_teaches_a_student_of_grey_ones(net: str) -> None:
    student = random_net(replace(CONFIG, in_chans=1, mean=(0.4,), std=(0.3,)))
    pixels = torch.randint(256, (2, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        found = open_teacher(net, student, lambda: student)(student.normalised(pixels))
        torch.testing.assert_close(found, from_pretrained(net)(pixels.expand(-1, 3, -1, -1)), rtol=0, atol=1e-5)
