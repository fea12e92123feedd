"""Saliencies of units are what derivatives by explicit gates say, of first and of second order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_nets import pixels, small_net
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from supernet import StaticViT
from supernet.cutting import KINDS, Units, all_units, cut_units
from train.networks.importance import full_network
from train.networks.saliency import gated_tokens, saliency

# A block's rows of qkv: three heads of eight channels of q, k and v each.
HEADS, CHANNELS = 3, 8


def small_static() -> StaticViT:
    """The full network of two blocks, which drops tokens before the second."""
    static = full_network(small_net("prune", groups=(1, 1))).double()
    left = (torch.arange(0), torch.arange(20))
    return cut_units(static, all_units(static) | {"tokens": left})


def batch(static: StaticViT) -> tuple[Tensor, Tensor]:
    return pixels(static, 4).double() / 255, torch.arange(4) % static.config.num_classes  # type: ignore[arg-type]


def gated_loss(static: StaticViT, gates: dict[str, tuple[Tensor, ...]]) -> Tensor:
    """The loss with every weight multiplied by the gates of the units that it belongs to."""
    state: dict[str, Tensor] = dict(static.named_parameters())

    def by_rows(name: str, factor: Tensor) -> None:
        for part in ("weight", "bias"):
            value = state[f"{name}.{part}"]
            state[f"{name}.{part}"] = value * factor.view(-1, *[1] * (value.ndim - 1))

    channel = gates["embed_dim"][0]
    by_rows("patch_embed.0", channel)
    for i in range(len(static.blocks)):
        block = f"blocks.{i}."
        ones = torch.ones(CHANNELS, dtype=torch.float64)
        of_head = torch.cat([gates["qk"][i], ones, gates["v"][i]])
        by_rows(f"{block}qkv", (gates["heads"][i][:, None] * of_head).flatten())
        by_rows(f"{block}fc1", gates["hidden"][i])
        for name in ("proj", "fc2"):
            by_rows(f"{block}{name}", channel)
        for name in ("qkv", "fc1"):
            state[f"{block}{name}.weight"] = state[f"{block}{name}.weight"] * channel
    images, labels = batch(static)
    return F.cross_entropy(torch.func.functional_call(static, state, (images,)), labels)


def ones(static: StaticViT) -> dict[str, tuple[Tensor, ...]]:
    return {
        kind: tuple(torch.ones(len(p), dtype=torch.float64, requires_grad=True) for p in parts)
        for kind, parts in all_units(static).items()
    }


def flat(units: Units, kinds: tuple[str, ...] = KINDS) -> Tensor:
    return torch.cat([part for kind in kinds for part in units[kind]])


@pytest.mark.parametrize("kind", KINDS)
def test_taylor_is_the_squared_derivative_by_an_explicit_gate(kind: str) -> None:
    static = small_static()
    gates = ones(static)
    grads = torch.autograd.grad(gated_loss(static, gates), gates[kind])
    expected = torch.cat(grads).square()
    found = flat(saliency(static, [batch(static)]), (kind,))
    assert float(expected.max()) > 0
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-12 * float(expected.max()))


def test_hutchinson_is_the_second_derivative_along_random_signs() -> None:
    static = small_static()
    static = cut_units(static, all_units(static) | {"tokens": (torch.arange(0),) * 2})
    gates = ones(static)
    with sdpa_kernel(SDPBackend.MATH):
        first = torch.autograd.grad(gated_loss(static, gates), [g for k in KINDS for g in gates[k]], create_graph=True)
        generator = torch.Generator().manual_seed(3)
        signs = {k: [torch.randint(0, 2, g.shape, generator=generator) * 2.0 - 1 for g in gates[k]] for k in KINDS}
        along = (torch.cat(first) * torch.cat([z for k in KINDS for z in signs[k]])).sum()
        second = torch.cat(torch.autograd.grad(along, [g for k in KINDS for g in gates[k]]))
    found = flat(saliency(static, [batch(static)], "hutchinson", seed=3))
    assert torch.allclose(found, second.square(), rtol=1e-5, atol=1e-12 * float(second.square().max()))


def test_a_token_whose_gate_is_closed_is_as_good_as_dropped() -> None:
    static = small_net("prune", groups=(1, 1, 1))
    whole = full_network(static)
    images = pixels(static, 4)

    def keeping(count: int) -> StaticViT:
        left = tuple(torch.arange(n) for n in (0, count, 12))
        return cut_units(whole, all_units(whole) | {"tokens": left})

    gates = [torch.ones(0), torch.ones(20), torch.ones(12)]
    gates[1][-3:] = 0
    with torch.no_grad():
        assert torch.allclose(gated_tokens(keeping(20), images, gates)[0], keeping(17)(images), atol=1e-4)
        gates[1][:] = 1
        assert torch.allclose(gated_tokens(keeping(20), images, gates)[0], keeping(20)(images), atol=1e-4)
    scores = saliency(keeping(20), [(images, torch.arange(4))])
    assert [len(part) for part in scores["tokens"]] == [0, 20, 12]
    assert bool((scores["tokens"][1] > 0).all())


def test_all_gates_are_where_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StaticViT, "forward", lambda self, images: images)
    static = full_network(small_net("merge", groups=(1, 1))).to("meta")
    _, gates = gated_tokens(static, torch.zeros(2, 3, 24, 24, device="meta"))
    assert {gate.device.type for gate in gates} == {"meta"}


def test_unknown_saliencies_and_no_images_are_refused() -> None:
    static = small_static()
    with pytest.raises(ValueError, match=r"saliency='fisher' is unknown; choose one of"):
        saliency(static, [], "fisher")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no images"):
        saliency(static, [])
