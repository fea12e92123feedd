"""An adaptive network with its menu as one ONNX graph: a branch for each entry, weights shared by all."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from agents.deployed.menu import Decider, Menu
from prance_env.observations import LOG_NORM_BOUND, largest_entropy
from supernet import Supernet
from supernet.block_sizes import BlockSizes
from supernet.macs import head_macs
from supernet.static_group import StaticGroup
from supernet.static_vit import StaticBlock

from .onnx_graph import GraphWriter

OPSET = 20
ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}
POLICY_OPS = {
    "Tanh": "Tanh", "ReLU": "Relu", "ELU": "Elu", "Sigmoid": "Sigmoid", "LeakyReLU": "LeakyRelu", "GELU": "Gelu"
}  # fmt: skip


def hindrance_to_graph(menu: Menu) -> str | None:
    """Why a menu cannot be written as a graph; None if it can."""
    c = menu.config
    others = {
        f"token_mode={c.space.token_mode!r} (only 'prune')": c.space.token_mode != "prune",
        "norms or gates that a plain ViT has not": not c.plain_blocks,
        f"act={c.act!r} (only {[*ACTIVATIONS]})": c.act not in ACTIVATIONS,
        f"global_pool={c.global_pool!r} (only 'token')": c.global_pool != "token" or not c.class_token,
        "two classifiers, or one that is not linear": c.distilled or c.text_dim is not None or not c.num_classes,
        "the authors' rules": c.prance_embed_dim is not None,
        "a missing last norm": not c.final_norm,
    }
    policy = _policy(menu)
    unknown = [v for v in policy.spec.layers if isinstance(v, str) and v not in POLICY_OPS]
    others[f"a policy with {unknown}"] = bool(unknown)
    found = [what for what, there in others.items() if there]
    return None if not found else f"the graph knows no {', and no '.join(found)}"


class MenuGraph:
    """Writes the graph of a menu.

    Args:
        net: The supernet, in float32 on the CPU.
        menu: Its menu.
        onnx: The package.

    Raises:
        ValueError: If the network or the policy is of a kind that is not known here.
    """

    def __init__(self, net: Supernet, menu: Menu, onnx: Any) -> None:
        if hindrance := hindrance_to_graph(menu):
            raise ValueError(f"This model cannot be one ONNX file: {hindrance}. It runs in PyTorch all the same.")
        self.menu, self.config, self.onnx, self.net = menu, menu.config, onnx, net
        self.weights = {k: v.detach().numpy() for k, v in net.state_dict().items()}

    def write(self, stem: Any) -> Any:
        """The model.

        Args:
            stem: An ONNX model from `image` to `tokens` (1, N, C).

        Returns:
            The ONNX model: `image` (1, C, H, W) and, of agents for a range of prices, `price` () to `logits`
            (1, num_classes), `picked` (T,), `patches` (T,) and `macs` ().
        """
        g, make, T = GraphWriter(self.onnx), self.onnx.helper, self.onnx.TensorProto
        stem = self.onnx.compose.add_prefix(stem, "stem/", rename_inputs=False)
        g.nodes += stem.graph.node
        for tensor in stem.graph.initializer:
            g.initializers[tensor.name] = self.onnx.numpy_helper.to_array(tensor)
        inputs, price = [*stem.graph.input], None
        if self.menu.interface.conditioning is not None:
            inputs.append(make.make_tensor_value_info("price", T.DOUBLE, []))
            price = self._price(g)
        x = g.add("Squeeze", stem.graph.output[0].name, g.ints(0))
        if self.menu.first is not None:
            x = self._group(g, self.menu.first, 0, x, None)
        spent, width, picked, patches = g.constant(self.menu.begun_macs(), np.int64), None, [], []
        first, last = self.config.space.first_decided, len(self.menu.entries) - 1
        for t in range(len(self.menu.entries)):
            k = self._decide(g, t, x, width, spent, price)
            before = g.add("Gather", g.add("Shape", x), g.constant(0, np.int64), axis=0)
            branches = [
                partial(self._entry, t=t, k=i, group=first + t, x=x, n=before, spent=spent, last=t == last)
                for i in range(len(self.menu.entries[t]))
            ]
            x, spent, left = g.choose(k, cast(Any, branches), 3)
            width = g.add("Gather", g.constant(self.menu.widths[t].numpy()), g.add("Unsqueeze", k, g.ints(0)), axis=0)
            picked.append(g.add("Unsqueeze", k, g.ints(0)))
            patches.append(g.add("Unsqueeze", left, g.ints(0)))
        named = {"logits": x, "macs": spent}
        named |= {"picked": g.add("Concat", *picked, axis=0), "patches": g.add("Concat", *patches, axis=0)}
        g.nodes += [make.make_node("Identity", [value], [name]) for name, value in named.items()]
        shapes = {"logits": (T.FLOAT, [1, self.config.num_classes]), "picked": (T.INT64, [last + 1])}
        shapes |= {"patches": (T.INT64, [last + 1]), "macs": (T.INT64, [])}
        outputs = [make.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
        return make.make_model(g.graph("adaptive", inputs, outputs), opset_imports=[make.make_opsetid("", OPSET)])

    # ---- what an image goes through -----------------------------------------------------------------------------

    def _entry(
        self, g: GraphWriter, t: int, k: int, group: int, x: str, n: str, spent: str, last: bool
    ) -> tuple[str, str, str]:
        """Tokens after one entry (logits, if it is the last decision), MACs so far, patches left."""
        left = g.add("Gather", g.constant(self.menu.left[t][k]), n, axis=0)
        cost = self.menu.spent[t][k]
        if last:
            width = self.menu.last_widths[k]
            cost = cost + head_macs(self.config, np.array([width]), np.array([1]))
        spent = g.add("Add", spent, g.add("Gather", g.constant(cost), n, axis=0))
        static = cast(StaticGroup, cast(nn.ModuleList, self.menu.groups[t])[k])
        x = self._group(g, static, group, x, left)
        if last:
            x = self._head(g, g.add("Slice", x, g.ints(0), g.ints(1), g.ints(0)), width)
        return x, spent, g.add("Sub", left, g.constant(self.config.num_prefix_tokens, np.int64))

    def _group(self, g: GraphWriter, group: StaticGroup, number: int, x: str, left: str | None) -> str:
        """Tokens (N, C) after a group, of which the first block leaves `left`."""
        have = self.config.embed_dim
        for i, (index, block) in enumerate(zip(self.config.space.blocks(number), group.blocks, strict=True)):
            sizes = cast(StaticBlock, block).sizes
            x = self._block(g, sizes, f"blocks.{index}.", _resized(g, x, have, sizes.reads), left if not i else None)
            have = sizes.gives
        return x

    def _block(self, g: GraphWriter, s: BlockSizes, name: str, x: str, left: str | None) -> str:
        """Tokens (N, reads) to (M, gives)."""
        heads, d = s.num_heads, s.qk_dim
        h = self._norm(g, f"{name}norm1", x, s.reads)
        qkv = self._linear(g, f"{name}qkv", h, s.reads, heads * 3 * d)
        parts = g.add("Transpose", g.add("Reshape", qkv, g.ints(0, heads, 3, d)), perm=[2, 1, 0, 3])
        q, key, v = (g.add("Gather", parts, g.constant(j, np.int64), axis=0) for j in range(3))
        q = g.add("Mul", q, g.constant(d**-0.5, np.float32))
        shares = g.add("Softmax", g.add("MatMul", q, g.add("Transpose", key, perm=[0, 2, 1])), axis=-1)
        out = g.add("Transpose", g.add("MatMul", shares, v), perm=[1, 0, 2])
        out = self._linear(g, f"{name}proj", g.add("Reshape", out, g.ints(0, -1)), heads * d, s.embed_dim)
        x = g.add("Add", _resized(g, x, s.reads, s.embed_dim), out)
        if left is not None and s.counts is not None:
            x = g.add("Gather", x, self._kept(g, shares, left), axis=0)
        carried = _resized(g, x, s.embed_dim, s.gives)
        if s.lln:
            carried = self._linear(g, f"{name}lln", x, s.embed_dim, s.gives)
        h = self._linear(g, f"{name}fc1", self._norm(g, f"{name}norm2", x, s.embed_dim), s.embed_dim, s.hidden_dim)
        h = g.add("Gelu", h, approximate=ACTIVATIONS[self.config.act])
        return str(g.add("Add", carried, self._linear(g, f"{name}fc2", h, s.hidden_dim, s.gives)))

    def _kept(self, g: GraphWriter, shares: str, left: str) -> str:
        """(M,) rows that stay: the first ones, and those patches that the class token attends to most, in order."""
        prefix = self.config.num_prefix_tokens
        row = g.add("Gather", shares, g.constant(0, np.int64), axis=1)
        scores = g.add("ReduceMean", row, g.ints(0), keepdims=0)
        patches = g.add("Slice", scores, g.ints(prefix), g.ints(np.iinfo(np.int32).max), g.ints(0))
        count = g.add("Unsqueeze", g.add("Sub", left, g.constant(prefix, np.int64)), g.ints(0))
        _, best = g.add("TopK", patches, count, axis=0, outputs=2)
        ordered, _ = g.add("TopK", best, count, axis=0, largest=0, outputs=2)
        rows = g.add("Add", ordered, g.constant(prefix, np.int64))
        return str(g.add("Concat", g.ints(*range(prefix)), rows, axis=0))

    def _head(self, g: GraphWriter, token: str, width: int) -> str:
        """(1, num_classes) logits of a class token (1, width)."""
        h = self._norm(g, "norm", token, width)
        return self._linear(g, "head", h, width, self.config.num_classes)

    # ---- what the policy sees and says --------------------------------------------------------------------------

    def _decide(self, g: GraphWriter, t: int, x: str, width: str | None, spent: str, price: str | None) -> str:
        """() the entry that is chosen."""
        decider = cast(Decider, self.menu.deciders[t])
        shown = self._shown(g, t, x, width, spent, price, {*decider.parts})
        seen = g.add("Concat", *(shown[name] for name in decider.parts), axis=1)
        unit = self._unit(g, self._policy_out(g, seen))
        off = g.add("Mul", g.add("Sub", unit, g.constant(self.menu.entries[t])), _constant(g, decider.weight))
        distance = g.add("ReduceSum", g.add("Mul", off, off), g.ints(1), keepdims=0)
        return str(g.add("ArgMin", distance, axis=0, keepdims=0))

    def _shown(
        self, g: GraphWriter, t: int, x: str, width: str | None, spent: str, price: str | None, wanted: set[str]
    ) -> dict[str, str]:
        """Parts of the observation by name, (1, size) float32."""
        c, full = self.config, self.config.embed_dim
        token = g.add("Slice", x, g.ints(0), g.ints(1), g.ints(0))
        ones, zeros = g.constant(np.ones(full, np.float32)), g.constant(np.zeros(full, np.float32))
        one_hot = np.array([[w == full for w in c.space.embed_dims]], dtype=np.float32)
        count = g.add("Cast", g.add("Shape", x), to=self.onnx.TensorProto.DOUBLE)
        tokens = g.add("Slice", count, g.ints(0), g.ints(1), g.ints(0))
        left = g.add("Sub", tokens, g.constant(c.num_prefix_tokens, np.float64))
        share = g.add(
            "Div", g.add("Cast", spent, to=self.onnx.TensorProto.DOUBLE), g.constant(float(self.menu.full_macs))
        )
        shown = {
            "class_token": g.add("LayerNormalization", token, ones, zeros, epsilon=1e-5),
            "embed_dim": g.constant(one_hot) if width is None else width,
            "decision": _constant(g, cast(Decider, self.menu.deciders[t]).coming),
            "patches_left": self._float(g, g.add("Div", left, g.constant(float(c.num_patches)))),
            "macs_spent": self._clip(g, self._float(g, share), 0, 1),
            "macs_weight": "" if price is None else self._float(g, price),
        }
        if "log_norm" in wanted:
            square = g.add("ReduceMean", g.add("Mul", token, token), g.ints(1), keepdims=1)
            root = g.add("Sqrt", g.add("Max", square, g.constant(1e-12, np.float32)))
            shown["log_norm"] = self._clip(g, g.add("Log", root), -LOG_NORM_BOUND, LOG_NORM_BOUND)
        if wanted & {"max_prob", "entropy"}:
            p = g.add("Softmax", self._head(g, token, full), axis=1)
            shown["max_prob"] = self._clip(g, g.add("ReduceMax", p, g.ints(1), keepdims=1), 0, 1)
            # Where p is 0, so is p * log(p).
            logs = g.add("Log", g.add("Max", p, g.constant(np.finfo(np.float32).tiny, np.float32)))
            total = g.add("ReduceSum", g.add("Mul", p, logs), g.ints(1), keepdims=1)
            entropy = g.add("Div", total, g.constant(-largest_entropy(c.num_classes), np.float32))
            shown["entropy"] = self._clip(g, entropy, 0, 1)
        return shown

    def _policy_out(self, g: GraphWriter, seen: str) -> str:
        """(1, A') what the policy's last layer gives."""
        policy, x = _policy(self.menu), seen
        if policy.spec.columns is not None:
            x = g.add("Gather", x, g.ints(*policy.spec.columns), axis=1)
        if policy.spec.normalised:
            shift, scale, bound = (_constant(g, v) for v in (policy.shift, policy.scale, policy.bound))
            kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(policy.spec.normalised))
            x = g.add("Mul", g.add("Sub", g.add("Cast", x, to=kind), shift), scale)
            x = g.add("Max", g.add("Min", x, bound), g.add("Neg", bound))
            x = g.add("Cast", x, to=self.onnx.TensorProto.FLOAT)
        for i, (kind, layer) in enumerate(zip(policy.spec.layers, policy.layers, strict=True)):
            if isinstance(kind, str):
                x = g.add(POLICY_OPS[kind], x)
                continue
            for part in ("weight", "bias"):
                self.weights[f"policy.{i}.{part}"] = cast(Tensor, getattr(layer, part)).numpy()
            x = self._linear(g, f"policy.{i}", x, *kind)
        return x

    def _unit(self, g: GraphWriter, x: str) -> str:
        """(1, A) float64 actions in [0, 1] of the policy's last layer."""
        policy, double = _policy(self.menu), self.onnx.TensorProto.DOUBLE
        low, high = policy.low.numpy(), policy.high.numpy()
        output = policy.spec.output
        if output == "integers":
            sizes = [shape[0] for shape in policy.spec.tables]
            scores = [x] if len(sizes) == 1 else g.add("Split", x, g.ints(*sizes), axis=1, outputs=len(sizes))
            tables = [_constant(g, getattr(policy, f"table{i}")) for i in range(len(sizes))]
            rows = [g.add("Gather", t, g.add("ArgMax", s, axis=1, keepdims=0), axis=0) for t, s in zip(tables, scores)]  # noqa: B905
            return str(g.add("Concat", *rows, axis=1))
        if output == "centre":
            x = g.add("Add", g.add("Mul", g.add("Tanh", x), g.constant((high - low) / 2)), g.constant((high + low) / 2))
        elif output == "unscale":
            half = g.add("Mul", g.add("Add", g.add("Tanh", x), g.constant(1, np.float32)), g.constant(0.5, np.float32))
            x = g.add("Add", g.add("Mul", half, g.constant(high - low)), g.constant(low))
        x = g.add("Cast", g.add("Min", g.add("Max", x, g.constant(low)), g.constant(high)), to=double)
        if self.menu.interface.normalize_actions:
            x = g.add("Mul", g.add("Add", x, g.constant(1.0)), g.constant(0.5))
        return str(g.add("Min", g.add("Max", x, g.constant(0.0)), g.constant(1.0)))

    def _price(self, g: GraphWriter) -> str:
        """(1,) the price as the policy observes it."""
        conditioning = self.menu.interface.conditioning
        assert conditioning is not None
        ratio = g.add("Log", g.add("Div", "price", g.constant(conditioning.low, np.float64)))
        seen = g.add("Div", ratio, g.constant(np.log(conditioning.high / conditioning.low)))
        clipped = g.add("Min", g.add("Max", seen, g.constant(0.0)), g.constant(1.0))
        return str(g.add("Unsqueeze", clipped, g.ints(0)))

    # ---- pieces -------------------------------------------------------------------------------------------------

    def _weight(self, g: GraphWriter, name: str, *shape: int) -> str:
        return g.weight(name, self.weights[name], shape)

    def _linear(self, g: GraphWriter, name: str, x: str, inputs: int, outputs: int) -> str:
        weight = self._weight(g, f"{name}.weight", outputs, inputs)
        return str(g.add("Gemm", x, weight, self._weight(g, f"{name}.bias", outputs), transB=1))

    def _norm(self, g: GraphWriter, name: str, x: str, width: int) -> str:
        weight, bias = (self._weight(g, f"{name}.{part}", width) for part in ("weight", "bias"))
        return str(g.add("LayerNormalization", x, weight, bias, epsilon=self.config.norm_eps))

    def _clip(self, g: GraphWriter, x: str, low: float, high: float) -> str:
        return str(g.add("Clip", x, g.constant(low, np.float32), g.constant(high, np.float32)))

    def _float(self, g: GraphWriter, x: str) -> str:
        """(1, 1) float32 of one number."""
        return str(g.add("Reshape", g.add("Cast", x, to=self.onnx.TensorProto.FLOAT), g.ints(1, 1)))


def _policy(menu: Menu) -> Any:
    return cast(Decider, menu.deciders[0]).policy


def _constant(g: GraphWriter, value: Any) -> str:
    return g.constant(cast(Tensor, value).detach().numpy())


def _resized(g: GraphWriter, x: str, have: int, width: int) -> str:
    """(N, have) tokens truncated or zero-padded to (N, width)."""
    if have == width:
        return x
    if have > width:
        return str(g.add("Slice", x, g.ints(0), g.ints(width), g.ints(1)))
    return str(g.add("Pad", x, g.ints(0, 0, 0, width - have)))
