"""Meta-networks of PRANCE's authors: every recording of their code is reproduced."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from supernet import (
    GroupChoice,
    InferenceState,
    SearchSpace,
    SubnetConfig,
    Supernet,
    average_choice,
    load_prance_checkpoint,
    reported_macs,
    reported_params,
    supernet_config,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"
SMALL = SearchSpace((3, 3, 3, 3), (88, 104, 120, 132), (1, 2, 3), (2,))
MODES = ["prune", "merge", "prune_merge"]
CASES = [f"{mode}_{case}" for mode in MODES for case in "abc"]


@cache
def weights() -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(FIXTURES / "weights_small.npz").items()}


@cache
def recording(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / f"{name}.npz"))


@cache
def small_net(token_mode: str) -> Supernet:
    return load_prance_checkpoint(weights(), SMALL, token_mode=token_mode).requires_grad_(False)


def keep_rates(recorded: dict[str, np.ndarray], token_mode: str) -> np.ndarray:
    rates = [recorded[f"{kind}_granularity"][:, [3, 6, 9]] for kind in ("prune", "merge")]
    return {"prune": rates[0], "merge": rates[1], "prune_merge": np.stack(rates, axis=2)}[token_mode]


def recorded_subnet(name: str) -> tuple[Supernet, Tensor, SubnetConfig, dict[str, np.ndarray]]:
    recorded = recording(name)
    mode = str(recorded["token_mode"])
    subnet = SubnetConfig(recorded["embed_dim"], recorded["mlp_ratio"], keep_rates(recorded, mode))
    return small_net(mode), torch.from_numpy(recorded["images"]), subnet, recorded


def run_statically(net: Supernet, images: Tensor, subnet: SubnetConfig) -> list[InferenceState]:
    """States after every group when all sizes are known beforehand, as in the recordings."""

    def next_dim(group: int) -> np.ndarray | None:
        return None if group == 3 else subnet.embed_dim[:, 3 * (group + 1)].numpy()

    states = [net.begin(images, subnet.group(net.space, 0), next_dim(0), key_mean=True)]
    for group in (1, 2, 3):
        states.append(net.run_group(states[-1], group, subnet.group(net.space, group), next_dim(group)))
    return states


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_authors(name: str) -> None:
    net, images, subnet, recorded = recorded_subnet(name)
    np.testing.assert_allclose(net(images, subnet), recorded["logits"], atol=1e-4)
    np.testing.assert_allclose(net.double()(images.double(), subnet), recorded["logits64"], atol=2e-6)
    net.float()


@pytest.mark.parametrize("name", CASES)
def test_class_tokens_states_and_sizes_are_those_of_the_authors_after_every_group(name: str) -> None:
    net, images, subnet, recorded = recorded_subnet(name)
    for group, state in enumerate(run_statically(net, images, subnet)):
        block = 3 * group + 2
        width = recorded["block_width_out"][block]
        assert (state.token_dim == width).all()
        np.testing.assert_allclose(state.class_token[:, :width], recorded["block_cls"][block][:, :width], atol=1e-4)
        assert (state.num_tokens == recorded["block_tokens_out"][block]).all()
        if group < 3:
            np.testing.assert_allclose(state.padded_key_mean(65), recorded[f"state_{block + 1}"], atol=1e-5)
        if group:
            size = torch.ones(len(state.tokens)) if state.size is None else state.size
            np.testing.assert_array_equal(size.view(4, -1), recorded[f"token_size_{block - 2}"])


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_ranked_and_merged_as_by_the_authors(name: str) -> None:
    net, images, subnet, recorded = recorded_subnet(name)
    states = run_statically(net, images, subnet)
    for group in (1, 2, 3):
        before, after, block = states[group - 1], states[group], 3 * group
        choice = subnet.group(net.space, group)
        scores = net.class_attention(before, choice).view(4, -1)[:, 1:]
        np.testing.assert_allclose(scores, recorded[f"cls_attn_{block}"], atol=1e-6)
        order = scores.argsort(dim=1, descending=True, stable=True) + 1
        np.testing.assert_array_equal(order, recorded[f"order_{block}"])
        # Where every token went, by the patches that it holds.
        kept, went = after.num_tokens[0], torch.full((4, before.num_tokens[0]), -1)
        went.scatter_(1, before.patch_token.clamp(min=0), after.patch_token)
        rank = torch.zeros_like(went)
        rank.scatter_(1, order, torch.arange(1, before.num_tokens[0]).expand(4, -1))
        stays = (rank > 0) & (rank < kept)
        np.testing.assert_array_equal(went[stays], rank[stays])
        if f"merge_dst_{block}" in recorded:
            destination = torch.from_numpy(recorded[f"merge_dst_{block}"])
            merged = order[:, kept - 1 : kept - 1 + destination.shape[1]]
            np.testing.assert_array_equal(went.gather(1, merged), destination)


@pytest.mark.parametrize("name", CASES)
def test_reported_flops_and_parameters_are_those_of_the_authors(name: str) -> None:
    net, _, subnet, recorded = recorded_subnet(name)
    np.testing.assert_allclose(reported_macs(net.config, subnet), recorded["flops"], rtol=1e-12)
    np.testing.assert_array_equal(reported_params(net.config, subnet), recorded["params"])


@pytest.mark.parametrize("name", CASES)
def test_exact_macs_differ_from_the_measured_ones_by_what_is_not_computed(name: str) -> None:
    """They embed patches at the width of the meta-network, we at the widest choice; they do not count the class row."""
    net, _, subnet, recorded = recorded_subnet(name)
    embedding = 64 * 3 * 64 * (136 - 132)
    class_rows = 128 * sum(recorded["block_tokens_in"][i] for i in (3, 6, 9))
    merging = "merge" in name
    without_column = 0
    if merging:
        # They compare with the class token, too, before they rule it out; we leave that column out.
        for i in (3, 6, 9):
            merged = recorded[f"merge_dst_{i}"].shape[1]
            without_column += merged * int(recorded["embed_dim"][0, i])
    expected = float(recorded["measured_macs"]) - embedding + class_rows - without_column
    assert net.macs(subnet).unique().tolist() == [expected]


@pytest.mark.parametrize("size", ["T", "S", "B"])
def test_all_published_sizes_report_what_the_authors_do(size: str) -> None:
    published = json.loads((FIXTURES / "complexity.json").read_text())[size]
    name = {"T": "prance_vit_tiny", "S": "prance_vit_small", "B": "prance_vit_base"}[size]
    config = supernet_config(name)
    assert list(config.space.embed_dims) == published["embed_choices"]
    assert list(config.space.mlp_ratios) == published["mlp_choices"]
    assert len(published["cases"]) == 20
    for case in published["cases"]:
        mode = case["token_mode"]
        own = replace(config, space=replace(config.space, token_mode=mode))
        shape = (1, 3, 2) if mode == "prune_merge" else (1, 3)
        subnet = SubnetConfig([case["embed_dim"]], [case["mlp_ratio"]], np.full(shape, case["keep"]))
        assert reported_macs(own, subnet, case["staged"]).tolist() == [case["flops"]]
        assert reported_params(own, subnet, case["staged"]).tolist() == [case["params"]]


def tiny_weights(names: list[str], seed: int) -> dict[str, Tensor]:
    """The integer recipe of the recordings at full size."""
    full, depth, patches = 256, 12, 196
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, full),
        "pos_embed": (1, patches + 1, full),
        "patch_embed_super.proj.weight": (full, 3, 16, 16),
        "head.weight": (1000, full),
        "head.bias": (1000,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * full, full),
            f"blocks.{i}.attn.qkv.bias": (3 * full,),
            f"blocks.{i}.attn.proj.weight": (full, full),
            f"blocks.{i}.fc1.weight": (6 * full, full),
            f"blocks.{i}.fc1.bias": (6 * full,),
            f"blocks.{i}.fc2.weight": (full, 6 * full),
            f"blocks.{i}.lln.weight": (full, full),
        }
    random = np.random.RandomState(seed)
    out = {}
    for key in sorted(names):
        z = random.randint(-8, 9, size=shapes.get(key, (full,)), dtype=np.int64)
        if key.endswith("norm.weight"):
            value = 1 + z / 32
        elif key.endswith("norm.bias"):
            value = z / 64
        elif key in ("cls_token", "pos_embed"):
            value = z / 16
        elif key.endswith("bias"):
            value = z / 64
        else:
            value = z / (256 if key == "patch_embed_super.proj.weight" else 64)
        out[key] = torch.from_numpy(value).float()
    return out


@pytest.mark.slow
@pytest.mark.parametrize("token_mode", ["prune", "merge"])
def test_the_real_size_gives_the_authors_logits_and_states(token_mode: str) -> None:
    recorded = recording(f"tiny_{token_mode}_static")
    state = tiny_weights([str(n) for n in recorded["param_names"]], int(recorded["weight_seed"]))
    sums = [float(state[str(n)].double().sum()) for n in recorded["param_names"]]
    np.testing.assert_array_equal(sums, recorded["param_sums"])
    random = np.random.RandomState(int(recorded["image_seed"]))
    images = torch.from_numpy(random.randint(-16, 17, size=(2, 3, 224, 224), dtype=np.int64) / 8).float()
    net = load_prance_checkpoint(state, token_mode=token_mode).requires_grad_(False)
    assert net.space.embed_dims == (176, 192, 216, 240)
    assert net.config.num_classes == 1000
    subnet = SubnetConfig(recorded["embed_dim"], recorded["mlp_ratio"], keep_rates(recorded, token_mode))
    np.testing.assert_allclose(net(images, subnet), recorded["logits"], atol=1e-4)
    for group, after in enumerate(run_statically(net, images, subnet)[:3]):
        np.testing.assert_allclose(after.padded_key_mean(197), recorded[f"state_{3 * (group + 1)}"], atol=1e-4)


@pytest.mark.parametrize("token_mode", MODES)
def test_decisions_one_by_one_hand_on_the_full_width(token_mode: str) -> None:
    """The staged rule, against a loop over modules for one image that shares no code with the runtime."""
    net = small_net(token_mode)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    subnet = SubnetConfig.random(net.space, 3, torch.Generator().manual_seed(3))
    state = net.begin(images)
    for group in (1, 2, 3):
        state = net.run_group(state, group, subnet.group(net.space, group))
    logits = net.forward_head(state)
    for i in range(3):
        assert torch.allclose(logits[i], staged_oracle(images[i], subnet[i], token_mode), atol=1e-4)


def staged_oracle(image: Tensor, subnet: SubnetConfig, token_mode: str) -> Tensor:
    """Their staged inference of one image, from the description of their code and the weights under their names."""
    w, full, heads, widest = weights(), 136, 2, 132

    def norm(x: Tensor, name: str, e: int) -> Tensor:
        c = x.shape[-1]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * (e / full) ** 0.5 * w[f"{name}.weight"][:c] + w[f"{name}.bias"][:c]

    x = torch.nn.functional.conv2d(image[None], w["patch_embed_super.proj.weight"], w["patch_embed_super.proj.bias"], 8)
    x = torch.cat([w["cls_token"][0], x.flatten(2)[0].T]) + w["pos_embed"][0]
    x, size = x[:, :widest], torch.ones(65)
    dims = subnet.embed_dim[0].tolist()
    for i in range(12):
        e, q, name = dims[i], heads * 64, f"blocks.{i}"
        f, last = int(e * float(subnet.mlp_ratio[0, i])), i == 11
        ends_group = i in (2, 5, 8)
        o = widest if ends_group else e if last else dims[i + 1]
        h = norm(x, f"{name}.attn_layer_norm", e)
        rows, bias = w[f"{name}.attn.qkv.weight"], w[f"{name}.attn.qkv.bias"]
        parts = [h @ rows[t : 3 * q : 3, : h.shape[1]].T + bias[t * q : (t + 1) * q] for t in range(3)]
        a, b, c = (part.view(len(x), heads, 64).transpose(0, 1) for part in parts)
        attention = (a @ b.transpose(1, 2) / 8 + size.log()).softmax(-1)
        y = (attention @ c).transpose(0, 1).reshape(len(x), q)
        x = x[:, :e] + y @ w[f"{name}.attn.proj.weight"][:e, :q].T + w[f"{name}.attn.proj.bias"][:e]
        if i in (3, 6, 9):
            order = torch.cat(
                [torch.zeros(1, dtype=torch.long), 1 + attention[:, 0, 1:].mean(0).argsort(descending=True)]
            )
            x, size = x[order], size[order]
            rates = subnet.keep_rate[0, i // 3 - 1].reshape(-1).tolist()
            if token_mode != "merge":
                n = max(2, int(rates[0] * len(x)))
                x, size = x[:n], size[:n]
            if token_mode != "prune":
                n = max(2, int(rates[-1] * len(x)))
                unit = x / x.norm(dim=1, keepdim=True)
                similarity = unit[n:] @ unit[:n].T
                similarity[:, 0] = -torch.inf
                total, count, sizes = x[:n].clone(), torch.ones(n), size[:n].clone()
                for j, target in enumerate(similarity.argmax(1).tolist()):
                    total[target] += x[n + j]
                    count[target] += 1
                    sizes[target] += size[n + j]
                x, size = total / count[:, None], sizes
        h = torch.nn.functional.gelu(
            norm(x, f"{name}.ffn_layer_norm", e) @ w[f"{name}.fc1.weight"][:f, :e].T + w[f"{name}.fc1.bias"][:f]
        )
        y = h @ w[f"{name}.fc2.weight"][:o, :f].T + w[f"{name}.fc2.bias"][:o]
        if ends_group:
            x = x @ w[f"{name}.lln.weight"][:o, :e].T + w[f"{name}.lln.bias"][:o]
        x = torch.nn.functional.pad(x, (0, max(0, o - x.shape[1])))[:, :o] + y
    return norm(x[0], "norm", dims[-1]) @ w["head.weight"][:, : dims[-1]].T + w["head.bias"]


def test_the_batch_rule_of_the_authors() -> None:
    space = replace(SMALL, token_mode="prune_merge")
    choice = GroupChoice(
        torch.tensor([[88, 104, 132], [104, 104, 132]]),
        torch.tensor([[1.0, 2.0, 3.0], [2.0, 3.0, 3.0]], dtype=torch.float64),
        torch.tensor([[0.5, 0.25], [0.75, 1.0]], dtype=torch.float64),
    )
    one = average_choice(space, choice)
    # Means 96, 104, 132 and 1.5, 2.5, 3: halves go to the even number, and 96 lies between 88 and 104.
    assert one.embed_dim.tolist() == [[88, 104, 132]] * 2
    assert one.mlp_ratio.tolist() == [[2.0, 2.0, 3.0]] * 2
    assert one.keep_rate.tolist() == [[0.625, 0.25]] * 2
    merged = average_choice(replace(space, token_mode="merge"), replace(choice, keep_rate=choice.keep_rate[:, 0]))
    assert merged.keep_rate.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("wrap", ["plain", "model", "module", "namespace", "safetensors"])
def test_checkpoints_load_however_they_were_saved(wrap: str, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(weights())
    path = tmp_path / ("weights.safetensors" if wrap == "safetensors" else "weights.pth")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "module":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif wrap == "namespace":
        torch.save({"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}, path)
    else:
        torch.save({"model": state} if wrap == "model" else state, path)
    net = load_prance_checkpoint(path, SMALL)
    assert all(torch.equal(v, small_net("prune").state_dict()[k]) for k, v in net.state_dict().items())


class Touch:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_is_not_weights_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"model": Touch(trap)}, path)
    with pytest.raises(ValueError, match="does not hold weights alone"):
        load_prance_checkpoint(path, SMALL)
    path.write_bytes(pickle.dumps(Touch(trap)))
    with pytest.raises(ValueError, match="does not hold weights alone"):
        load_prance_checkpoint(path, SMALL)
    assert not trap.exists()
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="does not hold weights alone"):
        load_prance_checkpoint(path, SMALL)
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        load_prance_checkpoint(tmp_path / "none.pth", SMALL)


def damaged(**changes: Any) -> dict[str, Tensor]:
    return {k: v for k, v in (weights() | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("state", "config", "message"),
    [
        (damaged(**{"blocks.4.fc2.bias": None}), SMALL, r"missing blocks\.4\.fc2\.bias"),
        (damaged(surprise=torch.ones(2)), SMALL, "unexpected surprise"),
        (damaged(**{"norm.weight": torch.ones(7)}), SMALL, r"norm\.weight has the shape \(7,\) instead of \(136,\)"),
        (damaged(**{"head.bias": torch.full((10,), torch.nan)}), SMALL, r"head\.bias holds NaN"),
        (damaged(pos_embed=None), SMALL, "no meta-network of PRANCE: missing pos_embed"),
        (damaged(), None, "has the width 136, which no published space has"),
        (damaged(), replace(SMALL, groups=(6, 3, 3)), r"groups=\(6, 3, 3\).*end the groups \(3, 3, 3, 3\)"),
        (damaged(), replace(SMALL, embed_dims=(88, 140)), "only 136 wide"),
        (damaged(), replace(SMALL, mlp_ratios=(1, 4)), "needs MLPs of 528 hidden units; the weights have 408"),
        (damaged(), replace(SMALL, num_heads=(3,)), r"num_heads=\(3,\); 136 channels hold 2 heads"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_what_is_wrong(
    state: dict[str, Tensor], config: SearchSpace | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_prance_checkpoint(state, config)


def test_only_the_authors_token_modes_run_by_their_rules() -> None:
    with pytest.raises(ValueError, match="token_mode='tome' is not one of the authors'; choose one of"):
        load_prance_checkpoint(weights(), SMALL, token_mode="tome")
