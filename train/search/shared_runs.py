"""Running many static subnets over the same images, so that what they have in common is computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prance_env.engine import InferenceEngine
from supernet import GroupChoice, InferenceState, SupernetConfig
from supernet.arrays import Bools, Floats, Ints
from supernet.block_sizes import BlockSizes, group_sizes
from supernet.extract import check_extractable, extract_block
from supernet.plan import GroupPlan, plan_group
from supernet.static_vit import StaticBlock

from .state_cache import StateCache

Actions = NDArray[np.float64]
CACHE_MB = 2048.0
BATCH = 512
MOST_BLOCKS = 4096


class Half(NamedTuple):
    """Half a block of a subnet: a step of its inference.

    Attributes:
        node: Number of the path that leads here: subnets that are alike up to here have the same.
        block: Number of the block.
        sizes: Its sizes.
        second: Whether it is the token reduction and the MLP, or the attention before it.
    """

    node: int
    block: int
    sizes: BlockSizes
    second: bool


def decided_plans(config: SupernetConfig, actions: Actions) -> Iterator[GroupPlan]:
    """What episodes with the choices (S, num_decisions, A) compute in every group that a decision precedes.

    At a decision nobody knows the next one: by the authors' rules as well, a group hands on the full width.
    """
    num_tokens, token_dim = (np.full(len(actions), size) for size in (config.num_tokens, config.embed_dim))
    for group, action in enumerate(actions.swapaxes(0, 1), start=config.space.first_decided):
        choice = GroupChoice.from_actions(config.space, torch.from_numpy(action))
        plan = plan_group(config, group, choice, num_tokens, token_dim)
        yield plan
        num_tokens, token_dim = plan.num_left, plan.gives[:, -1]


class SharedRuns:
    """Judges static subnets. Nothing but time depends on what was judged before.

    Args:
        engine: Supernet and images.
        cache_mb: MiB for tokens between halves of blocks, from which other subnets that begin alike go on.
        batch_size: Images at a time.
    """

    def __init__(self, engine: InferenceEngine, cache_mb: float = CACHE_MB, batch_size: int = BATCH) -> None:
        check_extractable(engine.net)
        self.engine, self.batch_size = engine, batch_size
        self._weights, config = engine.net.state_dict(), engine.config
        # Whether the classifier looks at nothing else.
        self._class_token_alone = config.class_token and config.global_pool == "token" and not config.distilled
        self._cache = StateCache(cache_mb)
        self._paths: dict[Hashable, int] = {}
        self._batches: dict[bytes, int] = {}
        self._labels: dict[int, Ints] = {}
        self._known: dict[tuple[int, int], tuple[Bools, Floats]] = {}
        self._blocks: dict[tuple[int, BlockSizes], StaticBlock] = {}

    def verdict(self, index: Ints, actions: Actions) -> tuple[Bools, Floats]:
        """What one subnet (num_decisions, A) says about images; as `verdicts`, without the first dimension."""
        correct, prob = self.verdicts(index, actions[None])
        return correct[0], prob[0]

    @torch.inference_mode()
    def verdicts(
        self, index: Ints, actions: Actions, progress: Callable[[int], object] = lambda done: None
    ) -> tuple[Bools, Floats]:
        """What static subnets say about images.

        Args:
            index: (N,) images.
            actions: (S, num_decisions, A) in [0, 1].
            progress: Called with the number of subnets done, as many as the work done would make.

        Returns:
            (S, N) whether each classifies them correctly, and (S, N) the probability that it gives their labels.
        """
        paths = [self._path(subnet) for subnet in actions]
        correct, prob = np.empty((len(paths), len(index)), dtype=bool), np.empty((len(paths), len(index)))
        begins, done = range(0, len(index), self.batch_size), 0
        for begin in begins:
            span = slice(begin, begin + self.batch_size)
            for s, path in enumerate(paths):
                correct[s, span], prob[s, span] = self._judged(index[span], path)
                done += 1
                if not done % len(begins):
                    progress(done // len(begins))
        return correct, prob

    def _path(self, actions: Actions) -> list[Half]:
        """All halves of blocks of a subnet (num_decisions, A), after what no decision changes."""
        config, node, path = self.engine.config, 0, []
        for plan in decided_plans(config, actions[None]):
            for number, sizes in zip(config.space.blocks(plan.group), group_sizes(config, plan), strict=True):
                attention = (sizes.reads, sizes.embed_dim, sizes.num_heads, sizes.tokens, sizes.counts is None)
                for second, part in enumerate((attention, sizes)):
                    node = self._paths.setdefault((node, part), len(self._paths) + 1)
                    path.append(Half(node, number, sizes, bool(second)))
        return path

    def _judged(self, index: Ints, path: list[Half]) -> tuple[Bools, Floats]:
        """(B,) whether the labels are found and (B,) their probability; many actions mean the same subnet."""
        batch = self._batches.setdefault(index.tobytes(), len(self._batches))
        key = batch, path[-1].node
        if key not in self._known:
            logits, labels = self._run(index, batch, path)
            at = torch.from_numpy(labels).to(logits.device)
            prob = logits.softmax(-1).gather(1, at[:, None])[:, 0].cpu().double().numpy()
            self._known[key] = logits.argmax(-1).cpu().numpy() == labels, prob
        return self._known[key]

    def _run(self, index: Ints, batch: int, path: list[Half]) -> tuple[Tensor, Ints]:
        """(B, num_classes) float32 logits and (B,) labels of images."""
        state: Any = None
        begin = 0
        for place, half in enumerate(path):
            if (batch, half.node) in self._cache:
                state, begin = self._cache.get((batch, half.node)), place + 1
        if state is None:
            episodes = self.engine.start(index)
            self._labels[batch] = episodes.label
            state = (episodes.state.tokens.view(len(index), -1, episodes.state.tokens.shape[1]), None)
        steps = path[:-2] if self._class_token_alone else path
        for half in steps[begin:]:
            begun = time.perf_counter()
            block = self._block(half)
            state = block.reduce_and_mlp(state) if half.second else block.attention(*state)
            nbytes = sum(part.nbytes for part in state if part is not None)
            if half is not steps[-1] or self._class_token_alone:
                self._cache.put((batch, half.node), state, nbytes, time.perf_counter() - begun)
        if self._class_token_alone:
            state = self._block(path[-1]).class_token_alone(*state), None
        return self._logits(path[-1].sizes.gives, *state), self._labels[batch]

    def _logits(self, token_dim: int, x: Tensor, size: Tensor | None) -> Tensor:
        """(B, num_classes) float32 from tokens (B, N, C) and sizes (B, N) after the last block."""
        batch, tokens, _ = x.shape
        width, config = np.full(batch, token_dim), self.engine.config
        state = InferenceState(
            group=len(config.space.groups),
            tokens=x.flatten(0, 1),
            num_tokens=np.full(batch, tokens),
            size=None if size is None else size.flatten(),
            # Where patches went is not followed.
            patch_token=x.new_full((batch, config.num_patches), -1, dtype=torch.int64),
            embed_dim=width,
            token_dim=width,
            macs=np.zeros(batch, dtype=np.int64),
        )
        return self.engine.net.forward_head(state).float()

    def _block(self, half: Half) -> StaticBlock:
        key = half.block, half.sizes
        if key not in self._blocks:
            if len(self._blocks) >= MOST_BLOCKS:
                self._blocks.clear()
            self._blocks[key] = extract_block(self.engine.config, self._weights, *key)
        return self._blocks[key]
