"""Every public call of a supernet refuses what does not fit, and says what it got and what it takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_net
from torch import Tensor

from supernet import GroupChoice, InferenceState, SearchSpace, SubnetConfig, Supernet, SupernetConfig

DECIDED = SearchSpace((2, 2), (8, 16, 24), (1.1, 2.0), (1, 2, 3), 0.1, "prune_merge", decide_first_group=True)
LATER = SearchSpace((1, 2, 2), (8, 16, 24), (1.1, 2.0), (1, 2, 3), 0.1, "prune")
OTHER = SearchSpace((2, 2), (8, 12), (1.0,), (1,), 0.1, "prune_merge", decide_first_group=True)
SHALLOW = SearchSpace((2,), (8, 16, 24), (1.1, 2.0), (1, 2, 3), 0.1, "prune_merge", decide_first_group=True)

Call = Callable[["Case"], Any]


class Case:
    """Two networks (first group decided with two rates, not decided with one), three images, subnets and states."""

    def __init__(self) -> None:
        self.net, self.later = (
            random_net(SupernetConfig(space, 24, 4, 3, 5, head_dim=8, lln=False)) for space in (DECIDED, LATER)
        )
        self.images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        self.subnet, self.subnet_later, self.foreign = (
            SubnetConfig.random(space, 3, torch.Generator().manual_seed(1)) for space in (DECIDED, LATER, OTHER)
        )
        self.choice = self.subnet.group(DECIDED, 0)

    @property
    def state(self) -> InferenceState:
        return self.net.begin(self.images)

    @property
    def end(self) -> InferenceState:
        return self.net.forward_features(self.images, self.subnet)

    def changed(self, name: str, place: Any, value: float) -> SubnetConfig:
        """The subnets with one entry changed behind the back of the checks of the constructor."""
        tensor = getattr(self.subnet, name).clone()
        result = replace(self.subnet, **{name: tensor})
        tensor[place] = value
        return result

    def one_rate(self) -> SubnetConfig:
        return replace(self.subnet, keep_rate=self.subnet.keep_rate[..., 0])

    def choice_with(self, **fields: Tensor) -> GroupChoice:
        return replace(self.choice, **fields)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


# Every call that takes subnets, as (name, call); each must refuse each of the subnets below.
SUBNET_CALLS: dict[str, Callable[[Case, SubnetConfig], Any]] = {
    "forward": lambda c, s: c.net(c.images, s),
    "forward_features": lambda c, s: c.net.forward_features(c.images, s),
    "finish": lambda c, s: c.net.finish(c.state, s),
    "extract": lambda c, s: c.net.extract(s[0]),
    "macs": lambda c, s: c.net.macs(s),
    "params": lambda c, s: c.net.params(s),
    "to_actions": lambda c, s: s.to_actions(DECIDED),
}
BAD_SUBNETS: dict[str, tuple[Callable[[Case], SubnetConfig], str]] = {
    "another space": (lambda c: c.foreign, r"embed_dim=(8|12)|mlp_ratio=1.0 of image 0, block 0 .*\[1.1, 2.0\]"),
    "another depth": (lambda c: c.subnet_later, "5 blocks and 2 keep rates .*4 blocks and 2 decisions"),
    "other decisions": (lambda c: SubnetConfig.full(SHALLOW), "2 blocks and 1 keep rates .*4 blocks and 2 decisions"),
    "a width between": (
        lambda c: c.changed("embed_dim", (0, 3), 20),
        r"embed_dim=20 of image 0, block 3 .*\[8, 16, 24\]",
    ),
    "a ratio between": (
        lambda c: c.changed("mlp_ratio", (0, 1), 1.5),
        r"mlp_ratio=1.5 of image 0, block 1 .*\[1.1, 2.0\]",
    ),
    "a ratio that is no number": (
        lambda c: c.changed("mlp_ratio", (0, 1), math.nan),
        r"mlp_ratio=nan .*\[1.1, 2.0\]",
    ),
    "one rate instead of two": (
        lambda c: c.one_rate(),
        r"keep_rate has the shape \(\d, 2\); token_mode='prune_merge' takes \(\d, 2, 2\)",
    ),
}


@pytest.mark.parametrize("call", SUBNET_CALLS.values(), ids=SUBNET_CALLS)
@pytest.mark.parametrize(("bad", "message"), BAD_SUBNETS.values(), ids=BAD_SUBNETS)
def test_every_call_refuses_a_subnet_that_is_not_of_its_space(
    case: Case, call: Callable[[Case, SubnetConfig], Any], bad: Callable[[Case], SubnetConfig], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(case, bad(case))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_a_keep_rate_outside_its_range_is_refused_wherever_it_comes_from(case: Case, rate: float) -> None:
    shown = rf"keep_rate holds \[{rate}\].*\(0, 1\]"
    rates = case.subnet.keep_rate.clone()
    rates[1, 0, 1] = rate
    with pytest.raises(ValueError, match=shown):
        replace(case.subnet, keep_rate=rates)
    with pytest.raises(ValueError, match=shown):
        case.net(case.images, case.changed("keep_rate", (1, 0, 1), rate))
    with pytest.raises(ValueError, match=shown):
        case.net.run_group(case.state, 0, case.choice_with(keep_rate=rates[:, 0]))


# Every call that takes images.
IMAGE_CALLS: dict[str, Callable[[Case, Tensor], Any]] = {
    "forward": lambda c, x: c.net(x),
    "forward with subnets": lambda c, x: c.net(x, c.subnet[0]),
    "forward_features": lambda c, x: c.net.forward_features(x),
    "begin": lambda c, x: c.net.begin(x),
    "begin with the first group": lambda c, x: c.later.begin(x),
    "embed": lambda c, x: c.net.embed(x),
    "extracted": lambda c, x: c.net.extract(c.subnet[0])(x),
}
BAD_IMAGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "another height": (lambda x: x[:, :, :20], r"\(3, 3, 20, 24\).*\(B, .*3, 24, 24\)"),
    "another size": (lambda x: x.repeat(1, 1, 2, 2), r"\(3, 3, 48, 48\).*\(B, .*3, 24, 24\)"),
    "grey": (lambda x: x[:, :1], r"\(3, 1, 24, 24\).*\(B, .*3, 24, 24\)"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"\(3, 24, 24, 3\).*\(B, .*3, 24, 24\)"),
    "no batch": (lambda x: x[0], r"\(3, 24, 24\).*\(B, .*3, 24, 24\)"),
    "int64": (lambda x: (255 * x).long(), r"torch.int64.*uint8 in 0\.\.255, or normalised floats"),
    "int8": (lambda x: (127 * x).char(), r"torch.int8.*uint8 in 0\.\.255, or normalised floats"),
    "bool": (lambda x: x > 0.5, r"torch.bool.*uint8 in 0\.\.255, or normalised floats"),
}


@pytest.mark.parametrize("call", IMAGE_CALLS.values(), ids=IMAGE_CALLS)
@pytest.mark.parametrize(("bad", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_every_call_refuses_images_of_another_shape_or_type(
    case: Case, call: Callable[[Case, Tensor], Any], bad: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(case, bad(case.images))


@pytest.mark.parametrize("call", [c for name, c in IMAGE_CALLS.items() if name != "extracted"])
def test_an_empty_batch_is_refused(case: Case, call: Callable[[Case, Tensor], Any]) -> None:
    with pytest.raises(ValueError, match=r"\(0, 3, 24, 24\).*B >= 1"):
        call(case, case.images[:0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_precision_are_taken(case: Case, dtype: torch.dtype) -> None:
    for run in (case.net, case.net.extract(SubnetConfig.full(DECIDED))):
        logits = run(case.images.to(dtype))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, run(case.images.to(dtype).float()), rtol=0, atol=1e-6)


# Every call that takes a choice.
CHOICE_CALLS: dict[str, Callable[[Case, GroupChoice], Any]] = {
    "run_group": lambda c, choice: c.net.run_group(c.state, 0, choice),
    "class_attention": lambda c, choice: c.net.class_attention(c.state, choice),
}
BAD_CHOICES: dict[str, tuple[Callable[[Case], GroupChoice], str]] = {
    "two for three images": (lambda c: c.choice[:2], r"shape \(2, 2\); group 0 of these images takes \(3, 2\)"),
    "too many blocks": (
        lambda c: GroupChoice(*(v.repeat(1, 2) for v in vars(c.choice).values())),
        r"shape \(3, 4\); group 0 of these images takes \(3, 2\)",
    ),
    "a width between": (
        lambda c: c.choice_with(embed_dim=c.choice.embed_dim + 1),
        r"embed_dim=\d+ of image 0, block 0 .*\[8, 16, 24\]",
    ),
    "a ratio between": (
        lambda c: c.choice_with(mlp_ratio=c.choice.mlp_ratio + 1),
        r"mlp_ratio=[23].\d+ of image 0, block 0 .*\[1.1, 2.0\]",
    ),
    "one ratio for two blocks": (
        lambda c: c.choice_with(mlp_ratio=c.choice.mlp_ratio[:, :1]),
        r"mlp_ratio has the shape \(3, 1\).*\(3, 2\)",
    ),
    "ratios of two images": (
        lambda c: c.choice_with(mlp_ratio=c.choice.mlp_ratio[:2]),
        r"mlp_ratio has the shape \(2, 2\).*\(3, 2\)",
    ),
    "one rate instead of two": (
        lambda c: c.choice_with(keep_rate=c.choice.keep_rate[:, 0]),
        r"keep_rate has the shape \(3,\); token_mode='prune_merge' takes \(3, 2\)",
    ),
    "rates of two images": (
        lambda c: c.choice_with(keep_rate=c.choice.keep_rate[:2]),
        r"keep_rate has the shape \(2, 2\); token_mode='prune_merge' takes \(3, 2\)",
    ),
}


@pytest.mark.parametrize("call", CHOICE_CALLS.values(), ids=CHOICE_CALLS)
@pytest.mark.parametrize(("bad", "message"), BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_every_call_refuses_a_choice_that_does_not_fit_the_images_or_the_space(
    case: Case, call: Callable[[Case, GroupChoice], Any], bad: Callable[[Case], GroupChoice], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(case, bad(case))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.net(c.images, c.subnet[:2]), "batch of 3 images got 2 subnets; pass 1 or 3"),
        (lambda c: c.net(c.images, c.subnet[:0]), "batch of 3 images got 0 subnets; pass 1 or 3"),
        (lambda c: c.net.finish(c.state, c.subnet[:2]), "batch of 3 images got 2 subnets; pass 1 or 3"),
        (lambda c: c.net.run_to_end(c.state, c.subnet[:2]), r"shape \(2, 2\); group 0 of these images takes \(3, 2\)"),
        (lambda c: c.net.extract(c.subnet), r"one subnet, not 3; .*subnet\[0\]"),
        (lambda c: c.net.extract(c.subnet[:0]), "one subnet, not 0"),
        (lambda c: c.net.run_group(c.state, 1, c.choice), "group=1 .*before group 0 of 2"),
        (lambda c: c.net.run_group(c.state, -1, c.choice), "group=-1 .*before group 0 of 2"),
        (lambda c: c.net.run_group(c.end, 2, c.choice), "group=2 .*before group 2 of 2"),
        (lambda c: c.net.class_attention(c.end, c.choice), "group=2 .*before group 2 of 2"),
        (lambda c: c.net.begin(c.images, c.choice), r"first group is decided.*run_group"),
        (
            lambda c: c.later.begin(c.images, GroupChoice.full(LATER, 0, 2)),
            r"shape \(2, 1\); group 0 of these images takes \(3, 1\)",
        ),
        (
            lambda c: c.later.begin(
                c.images, replace(GroupChoice.full(LATER, 0, 3), keep_rate=torch.full((3,), 0.5).double())
            ),
            "keep_rate=0.5 before group 0, which no decision precedes.*must be 1",
        ),
        (lambda c: c.net.begun(torch.zeros(3, 8)), r"tokens have the shape \(3, 8\); expected \(B, 37, 24\)"),
        (lambda c: c.net.begun(torch.zeros(3, 36, 24)), r"\(3, 36, 24\); expected \(B, 37, 24\)"),
        (lambda c: c.net.begun(torch.zeros(3, 37, 20)), r"\(3, 37, 20\); expected \(B, 37, 24\)"),
        (
            lambda c: c.net.begun(torch.zeros(3, 37, 24), torch.zeros(2, 37)),
            r"key_mean has the shape \(2, 37\); expected \(3, 37\)",
        ),
        (lambda c: c.state.padded_key_mean(37), r"no key_mean; .*begin\(images, key_mean=True\)"),
        (
            lambda c: c.net.begin(c.images, key_mean=True).padded_key_mean(36),
            "length=36 is too short: an image has 37 tokens",
        ),
        (
            lambda c: SubnetConfig.from_json("[1, 2]"),
            r"the whole=\[1, 2\] must be an object; write it with SubnetConfig.to_json",
        ),
        (lambda c: SubnetConfig.from_json('{"embed_dim": [[8]]}'), r"mlp_ratio is missing \(and 1 more\)"),
        (
            lambda c: SubnetConfig.from_actions(DECIDED, torch.zeros(3, 2, 5)),
            r"shape \(3, 2, 5\); expected \(B, 2, 6\)",
        ),
        (lambda c: GroupChoice.from_actions(DECIDED, torch.zeros(3, 5)), r"shape \(3, 5\); expected \(B, 6\)"),
        (lambda c: GroupChoice.from_actions(DECIDED, torch.full((1, 6), math.nan)), r"actions hold \[nan.*\[0, 1\]"),
    ],
)
def test_what_does_not_fit_is_named(case: Case, call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(case)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.state[[0, 3]], "3 .*size 3"),
        (lambda c: c.state[[]], r"state\[\[\]\] selects none of the 3 images"),
        (lambda c: c.state[np.array([], dtype=np.int64)], "selects none of the 3 images"),
        (lambda c: c.state[torch.zeros(3, dtype=torch.bool)], "selects none of the 3 images"),
        (lambda c: c.state[3:], r"state\[slice\(3, None, None\)\] selects none of the 3 images"),
        (lambda c: c.subnet[3], "3 of 3"),
        (lambda c: c.subnet[-4], "-4 of 3"),
        (lambda c: c.subnet.group(DECIDED, 2), r"group=2 does not exist.*0\.\.1"),
        (lambda c: c.subnet.group(DECIDED, -1), r"group=-1 does not exist.*0\.\.1"),
        (lambda c: DECIDED.blocks(2), r"group=2 does not exist.*0\.\.1"),
    ],
)
def test_what_does_not_exist_is_named(case: Case, call: Call, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        call(case)


@pytest.mark.parametrize("call", [c for name, c in SUBNET_CALLS.items() if name != "to_actions"])
def test_the_choice_for_one_group_is_no_subnet(case: Case, call: Callable[[Case, Any], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"subnet is a GroupChoice; pass a SubnetConfig.*run_group\(state, group, choice"
    ):
        call(case, case.choice)


def test_whole_subnets_are_no_choice_for_one_group(case: Case) -> None:
    message = r"choice is a SubnetConfig; pass a GroupChoice.* subnet\.group\(net\.space, group\)"
    calls = (case.net.run_group, lambda state, _, choice: case.net.class_attention(state, choice))
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call(case.state, 0, case.subnet)
    with pytest.raises(TypeError, match=message):
        case.later.begin(case.images, case.subnet_later)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", IMAGE_CALLS.values(), ids=IMAGE_CALLS)
@pytest.mark.parametrize(("bad", "kind"), [(Tensor.numpy, "numpy.ndarray"), (Tensor.tolist, "builtins.list")])
def test_images_that_are_no_tensor_are_refused_with_the_remedy(
    case: Case, call: Callable[[Case, Any], Any], bad: Callable[[Tensor], Any], kind: str
) -> None:
    with pytest.raises(TypeError, match=rf"images are a {kind}; pass a torch.Tensor.*torch.from_numpy"):
        call(case, bad(case.images))


def test_the_remedy_is_for_what_is_wrong_with_the_shape(case: Case) -> None:
    with pytest.raises(ValueError, match=r"\. Resize them, or create the supernet with img_size=\.$"):
        case.net(case.images[..., 1:])
    with pytest.raises(ValueError, match=r"takes \d channel\(s\): convert them, or create the supernet with in_chans="):
        case.net(case.images.repeat(1, 2, 1, 1))


def test_numbers_of_numpy_index_subnets_as_those_of_python_do(case: Case) -> None:
    assert case.subnet[np.int64(1)].to_json() == case.subnet[1].to_json()
    assert case.subnet[np.int64(-1)].to_json() == case.subnet[2].to_json()


def test_a_refused_call_leaves_the_network_as_it_was(case: Case) -> None:
    net: Supernet = case.net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    logits = net(case.images, case.subnet)
    for call, (bad, _) in zip([*SUBNET_CALLS.values()] * 2, BAD_SUBNETS.values(), strict=False):
        with pytest.raises(ValueError):
            call(case, bad(case))
    assert torch.equal(net(case.images, case.subnet), logits)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_ratio_that_was_rounded_to_float32_is_the_one_it_was(case: Case) -> None:
    rounded = replace(case.subnet, mlp_ratio=case.subnet.mlp_ratio.float())
    assert not torch.equal(rounded.mlp_ratio, case.subnet.mlp_ratio)
    assert torch.equal(case.net(case.images, rounded), case.net(case.images, case.subnet))
    assert torch.equal(rounded.mlp_ratio, case.subnet.mlp_ratio)
    choice = case.choice_with(mlp_ratio=case.choice.mlp_ratio.float())
    expected = case.net.run_group(case.state, 0, case.choice)
    assert torch.equal(case.net.run_group(case.state, 0, choice).tokens, expected.tokens)


def test_actions_with_gradients_are_decoded(case: Case) -> None:
    actions = case.subnet.to_actions(DECIDED)
    found = SubnetConfig.from_actions(DECIDED, actions.clone().requires_grad_())
    assert torch.equal(found.to_actions(DECIDED), SubnetConfig.from_actions(DECIDED, actions).to_actions(DECIDED))


@torch.no_grad()
def test_no_images_at_all_are_a_batch_of_a_static_network_and_none_of_a_supernet(case: Case) -> None:
    nothing = case.subnet[[]]
    assert case.net.macs(nothing).tolist() == case.net.params(nothing).tolist() == []
    assert case.later.macs(SubnetConfig.random(LATER, 0)).tolist() == []
    for net, subnet in ((case.net, case.subnet), (case.later, case.subnet_later)):
        assert net.extract(subnet[0])(case.images[:0]).shape == (0, 5)
    with pytest.raises(ValueError, match=r"tokens have the shape \(0, .* with B >= 1"):
        case.net.begun(case.state.tokens.view(3, -1, 24)[:0])
    with pytest.raises(ValueError, match=r"with B >= 1"):
        case.net(case.images[:0], nothing)
    with pytest.raises(TypeError, match=r"images are a builtins.NoneType; pass a torch.Tensor"):
        case.net(None, case.subnet)  # type: ignore[arg-type]
