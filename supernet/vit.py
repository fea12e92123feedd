"""The elastic Vision Transformer: one set of weights, a different sub-network for every image."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from . import macs
from .arrays import Ints
from .config import SearchSpace, SupernetConfig
from .eager import eager
from .extract import extract
from .full_size import full_macs_to_go, full_plan
from .heads import ImageClassifier, end_layers, packed_logits, pooled
from .layers import ElasticBlock
from .plain import check_plain
from .plan import hidden_dims, next_widths, plan_group
from .runtime.blocks import Packed, attention_half, run_blocks
from .runtime.choice import class_token_alone, runs_tiles
from .runtime.packing import rows_of, take_rows
from .runtime.tile_head import class_logits, pooled_tokens
from .state import InferenceState
from .static_vit import StaticViT
from .subnet import GroupChoice, SubnetConfig, check_choice, check_group, check_subnet
from .tiled_state import TiledState, alike, macs_on_device, run_tiled_group


class Supernet(ImageClassifier):
    """Elastic ViT (PRANCE, arXiv 2407.05010).

    `net(images)` is a plain ViT of full width; `net(images, subnet)` runs every image with its own widths and patches,
    and really computes no more. `begin`, `run_group` and `finish` do the same step by step; they are pure.

    Args:
        config: Architecture and search space.
    """

    def __init__(self, config: SupernetConfig) -> None:
        super().__init__(config)
        space, d = config.space, config.embed_dim
        ends = {space.blocks(g)[-1] for g in range(len(space.groups) - 1)}
        decided = {space.blocks(g)[0] for g in range(space.first_decided, len(space.groups))}
        learned = config.token_mode.module
        hidden = int(hidden_dims(np.array(d), np.array(space.mlp_ratios[-1])))
        self.blocks = nn.ModuleList(
            ElasticBlock(
                d,
                hidden,
                space.max_heads,
                config.head_dim,
                config.norm_eps,
                lln=config.lln and i in ends,
                reduce=learned(config, d) if learned is not None and i in decided else None,
                norm=config.norm,
                glu=config.glu,
                qk_norm=config.qk_norm,
                scale_norm=config.scale_norm,
            )
            for i in range(space.depth)
        )
        self.make_head(d, space.embed_dims[:-1])
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal with std .02 for embeddings and head, as in ViT; blocks draw theirs by fan-in."""
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        if self.pool is not None:
            self.pool.init_weights()
        self.init_classifier()
        for block in self.blocks:
            cast(ElasticBlock, block).init_weights()

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.config.space

    def run_by(self, config: SupernetConfig) -> None:
        """Takes another configuration around the same weights, such as one with another token mode.

        Args:
            config: Differs from `self.config` in what no weight depends on, but for parameters of a token mode.

        Raises:
            ValueError: If its token mode has learned parameters that the weights lack.
        """
        space, learned, lacking = config.space, config.token_mode.module, []
        if learned is not None:
            with torch.device("meta"):
                wanted = {k: v.shape for k, v in learned(config, config.embed_dim).state_dict().items()}
            for i in (space.blocks(g)[0] for g in range(space.first_decided, len(space.groups))):
                own = cast(ElasticBlock, self.blocks[i]).reduce
                if own is None or {k: v.shape for k, v in own.state_dict().items()} != wanted:
                    lacking.append(i)
        if lacking:
            raise ValueError(
                f"token_mode={space.token_mode!r} has learned parameters, which blocks {lacking} of these weights lack "
                f"(they were made for {self.space.token_mode!r}); train a supernet that is created with this mode."
            )
        self.config = config

    # ---- step by step -------------------------------------------------------------------------------------------

    @eager
    def begin(
        self,
        images: Tensor,
        choice: GroupChoice | None = None,
        next_dim: Ints | None = None,
        key_mean: bool = False,
    ) -> InferenceState:
        """Everything before the first decision: embeddings and, if it is not decided, the first group.

        Args:
            images: (B, in_chans, img_size, img_size); uint8, which is normalised here with `config.mean` and `.std`, or
                floats that are normalised already, as timm's models take them.
            choice: Sizes of an undecided first group; None is full size.
            next_dim: (B,) width of the first block of the next group if it is known already; only the authors' rules
                make use of it.
            key_mean: Whether the state is to carry the mean keys that the authors' selector observes.

        Raises:
            ValueError: If shape, dtype or choice is wrong.
            TypeError: If the images are no tensor.
        """
        tokens = self.embed(images)
        c = self.config
        carried = tokens.new_zeros(tokens.shape[:2], dtype=torch.float32) if key_mean else None
        state = self._state(0, tokens, carried, macs.stem_macs(c))
        if c.space.decide_first_group:
            if choice is not None:
                raise ValueError("The first group is decided (decide_first_group=True): pass its choice to run_group.")
            return state
        return self.run_group(state, 0, choice, next_dim)

    def embed(self, images: Tensor) -> Tensor:
        """(B, num_tokens, embed_dim) tokens before the first block: patches, class token, positions and CLIP's norm.

        Args:
            images: (B, in_chans, img_size, img_size) with B >= 1; uint8, or floats that are normalised already.

        Raises:
            ValueError: If shape or dtype is wrong.
            TypeError: If the images are no tensor.
        """
        return self.tokens_of(self.normalised(images, least=1))

    def begun(self, tokens: Tensor, key_mean: Tensor | None = None) -> InferenceState:
        """The state that `begin` gave, from its tokens (B, num_tokens, embed_dim), for those who keep them.

        Args:
            tokens: `begin(images).tokens`, one row of tokens per image, of which there is at least one.
            key_mean: (B, num_tokens) `begin(images, key_mean=True).key_mean`, one row per image; None: none is carried.

        Raises:
            ValueError: If a shape is wrong.
        """
        c, batch, n = self.config, len(tokens), self.config.num_tokens
        if tuple(tokens.shape[1:]) != (n, c.embed_dim) or not batch:
            raise ValueError(
                f"tokens have the shape {tuple(tokens.shape)}; expected (B, {n}, {c.embed_dim}) with B >= 1."
            )
        if key_mean is not None and tuple(key_mean.shape) != (batch, n):
            raise ValueError(f"key_mean has the shape {tuple(key_mean.shape)}; expected ({batch}, {n}).")
        spent, group = macs.stem_macs(c), 0
        if not c.space.decide_first_group:
            _, of_group = full_plan(c, 0, np.array([n]), np.array([c.embed_dim]))
            spent, group = spent + int(of_group[0]), 1
        return self._state(group, tokens, key_mean, spent)

    def _state(self, group: int, tokens: Tensor, key_mean: Tensor | None, spent: int) -> InferenceState:
        """Images (B, num_tokens, embed_dim) with all their patches, before `group`."""
        c, (batch, n, d) = self.config, tokens.shape
        return InferenceState(
            group=group,
            tokens=tokens.reshape(batch * n, d),
            num_tokens=np.full(batch, n, dtype=np.int64),
            size=None,
            patch_token=torch.arange(c.num_prefix_tokens, n, device=tokens.device).repeat(batch, 1),
            embed_dim=np.full(batch, d, dtype=np.int64),
            token_dim=np.full(batch, d, dtype=np.int64),
            macs=np.full(batch, spent, dtype=np.int64),
            key_mean=None if key_mean is None else key_mean.reshape(-1),
        )

    @eager
    def run_group(
        self,
        state: InferenceState,
        group: int,
        choice: GroupChoice | None = None,
        next_dim: Ints | None = None,
        known: bool = False,
        head_only: bool = False,
    ) -> InferenceState:
        """Runs one group of blocks.

        A boundary hands on the full width; the first block of the next group truncates it to its own. Inside a group
        the residual is truncated or zero-padded where widths change. Patches leave between attention and MLP of the
        first block.

        Args:
            state: Where the images are; unchanged.
            group: Must be `state.group`.
            choice: Sizes for every image of the state; None is full size.
            next_dim: (B,) width of the first block of the next group if it is known already; only the authors' rules
                make use of it.
            known: Whether the choice is known to fit, as decoded actions are; it is not checked then.
            head_only: Whether nobody but the next group and `forward_head` will look at the result. On a GPU, the last
                block of the network then computes no more than the class tokens, and `macs` are not counted.

        Raises:
            ValueError: If the group is not the next one, the choice is for another number of images or blocks, or it is
                not in the search space; or if layers have hooks, or are not those that the network was made with.
        """
        if choice is None:
            check_group(self.space, group, state.group)
        elif not known:
            check_choice(choice, self.space, group, state.group, len(state))
        if runs_tiles(self.config, self.pos_embed.device, self.pos_embed.dtype) and not alike(state, choice):
            tiled = TiledState.of(state, self.config)
            return run_tiled_group(self.config, self.blocks, tiled, choice, next_dim, head_only)
        if choice is None:
            plan, spent = full_plan(self.config, group, state.num_tokens, state.token_dim, next_dim)
        else:
            plan, spent = plan_group(self.config, group, choice, state.num_tokens, state.token_dim, next_dim), None
        # On a CPU all tokens are computed, so that published figures stay the same to the bit.
        alone = head_only and not state.tokens.is_cpu and class_token_alone(self.config, group)
        packed, patch_token, key_mean, plan = run_blocks(
            self.config, self.blocks, plan, _packed(state), state.patch_token, state.key_mean is not None, alone
        )
        return InferenceState(
            group=group + 1,
            tokens=packed.x,
            num_tokens=packed.lengths,
            size=packed.size,
            patch_token=patch_token,
            embed_dim=plan.widths[:, -1].copy(),
            token_dim=plan.gives[:, -1].copy(),
            macs=state.macs + (macs.group_macs(self.config, plan) if spent is None else spent),
            key_mean=key_mean,
        )

    @eager
    def finish(self, state: InferenceState, subnet: SubnetConfig | None = None) -> Tensor:
        """Runs the rest of the network and the head: Result-to-Go.

        Args:
            state: Where the images are; unchanged.
            subnet: Sizes of the groups that are still to run (earlier ones are ignored), one per image or one for all;
                None is full size.

        Returns:
            (B, num_classes) logits.

        Raises:
            ValueError: If the subnet does not fit the images or is not in the search space.
        """
        if subnet is not None:
            subnet = self._checked(subnet).expand(len(state))
        return self.forward_head(self.run_to_end(state, subnet, head_only=True))

    def run_to_end(
        self, state: InferenceState, subnet: SubnetConfig | None = None, head_only: bool = False
    ) -> InferenceState:
        """`finish` without the head; `head_only` as for `run_group`."""
        space = self.config.space
        for group in range(state.group, len(space.groups)):
            if subnet is None:
                state = self.run_group(state, group, head_only=head_only)
            else:
                next_dim = next_widths(self.config, group, subnet)
                state = self.run_group(state, group, subnet.group(space, group), next_dim, head_only=head_only)
        return state

    def pooled(self, state: InferenceState) -> tuple[Tensor, Ints]:
        """What stands for an image: (B, C) class tokens, or means of the patches, before the last norm.

        Returns:
            The tokens, and (B,) how many of their channels are active.
        """
        if isinstance(state, TiledState):
            return pooled_tokens(self.config, state.batch), state.batch.have  # type: ignore[return-value]
        return pooled(self.config, state), state.token_dim

    def forward_head(self, state: InferenceState) -> Tensor:
        """Last norm, pooling and classifier on any state: (B, num_classes) logits.

        At a boundary before the end this is an early exit: tokens there have full width. Without a classifier the
        normalised features, (B, embed_dim), zero beyond an image's width.

        Raises:
            ValueError: If the classifier is not the one of the configuration.
        """
        check_plain(end_layers(self))
        self.check_classifier()
        if isinstance(state, TiledState):
            return class_logits(self.config, cast(nn.LayerNorm, self.norm), self.head, state.batch)
        return packed_logits(self, state)

    # ---- all at once --------------------------------------------------------------------------------------------

    def forward_features(
        self, images: Tensor, subnet: SubnetConfig | None = None, head_only: bool = False
    ) -> InferenceState:
        """All blocks; `forward_head` takes the result. Arguments are those of `forward` and `run_group`."""
        if subnet is None:
            return self.run_to_end(self.begin(images), None, head_only)
        images = self.normalised(images, least=1)  # before anybody asks how many they are
        subnet = self._checked(subnet).expand(len(images))
        if self.space.decide_first_group:
            return self.run_to_end(self.begin(images), subnet, head_only)
        first = self.begin(images, subnet.group(self.space, 0), next_dim=next_widths(self.config, 0, subnet))
        return self.run_to_end(first, subnet, head_only)

    @eager
    def forward(self, images: Tensor, subnet: SubnetConfig | None = None) -> Tensor:
        """Classifies images.

        Args:
            images: (B, in_chans, img_size, img_size); uint8, which is normalised here, or normalised floats.
            subnet: One per image, or one for all; None is the full network.

        Returns:
            (B, num_classes) logits.

        Raises:
            ValueError: If shapes do not fit or the subnet is not in the search space.
            TypeError: If the images are no tensor, or `subnet` is no SubnetConfig.
        """
        return self.forward_head(self.forward_features(images, subnet, head_only=True))

    def class_attention(self, state: InferenceState, choice: GroupChoice) -> Tensor:
        """(T,) packed attention of the class tokens in the block that would drop patches next, averaged over heads.

        Raises:
            ValueError: As in `run_group`.
        """
        check_choice(choice, self.space, state.group, state.group, len(state))
        plan = plan_group(self.config, state.group, choice, state.num_tokens, state.token_dim)
        block = cast(ElasticBlock, self.blocks[self.space.blocks(state.group)[0]])
        packed, scores, _ = attention_half(self.config, block, _packed(state), plan, 0, with_scores=True)
        assert scores is not None
        return take_rows(scores, rows_of(np.argsort(packed.images), packed.lengths))

    # ---- costs --------------------------------------------------------------------------------------------------

    def macs(self, subnet: SubnetConfig | None = None) -> Tensor:
        """(B,) int64 multiply-accumulates per image ("FLOPs" in papers), exact; None is the full network.

        Raises:
            ValueError: If the subnet is not in the search space, or reduces tokens by thresholds, so that its MACs
                follow from the image: `macs_to_go` knows them.
        """
        subnet = self._checked(subnet)
        tokens = np.full(len(subnet), self.config.num_tokens, dtype=np.int64)
        return torch.from_numpy(macs.stem_macs(self.config) + macs.remaining_macs(self.config, 0, tokens, subnet))

    def macs_to_go(self, state: InferenceState) -> Ints:
        """(B,) MACs of the whole inference if `state` is finished at full size."""
        if isinstance(state, TiledState):
            return macs_on_device(self.config, state).cpu().numpy()
        if state.group == len(self.space.groups):
            return state.macs + macs.head_macs(self.config, state.token_dim, state.num_tokens)
        return state.macs + full_macs_to_go(self.config, state.group, state.num_tokens, state.token_dim)

    def params(self, subnet: SubnetConfig | None = None) -> Tensor:
        """(B,) int64 parameters of the networks that `extract` gives."""
        subnet = self._checked(subnet)
        return torch.from_numpy(macs.subnet_params(self.config, subnet))

    def extract(self, subnet: SubnetConfig) -> StaticViT:
        """Exactly one subnet as a plain module of fixed sizes, in evaluation mode, with copies of its weights."""
        return extract(self, subnet)

    def _checked(self, subnet: SubnetConfig | None) -> SubnetConfig:
        subnet = SubnetConfig.full(self.space) if subnet is None else subnet
        check_subnet(subnet, self.space)
        return subnet


def _packed(state: InferenceState) -> Packed:
    return Packed(state.tokens, state.num_tokens, state.size, np.arange(len(state)))


def freeze(net: Supernet) -> Supernet:
    """Evaluation mode, no gradients: the form in which a supernet becomes an environment."""
    return net.eval().requires_grad_(False)
