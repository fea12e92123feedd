"""Elastic Vision Transformers: one set of weights, a sub-network for every image."""

from typing import TYPE_CHECKING, Any

from .checkpoint import create_supernet, from_pretrained, load_weights, save_pretrained
from .config import SearchSpace, SupernetConfig
from .convert.authors import average_choice, load_prance_checkpoint
from .convert.authors_reported import reported_macs, reported_params
from .design import design, effectiveness, entropy
from .extract import extract, load_static, save_static
from .ordering import UnitOrder, UnitScores, importance_order, reorder, reorder_by_importance
from .registry import list_supernets, register_supernet, supernet_config
from .state import InferenceState
from .static_vit import StaticViT
from .stems import register_stem
from .subnet import GroupChoice, SubnetConfig
from .tokens.modes import TokenMode, list_token_modes, register_token_mode, token_mode
from .vit import Supernet, freeze

if TYPE_CHECKING:
    from .convert.timm import from_timm

__all__ = [
    "GroupChoice",
    "InferenceState",
    "SearchSpace",
    "StaticViT",
    "SubnetConfig",
    "Supernet",
    "SupernetConfig",
    "TokenMode",
    "UnitOrder",
    "UnitScores",
    "average_choice",
    "create_supernet",
    "design",
    "effectiveness",
    "entropy",
    "extract",
    "freeze",
    "from_pretrained",
    "from_timm",
    "importance_order",
    "list_supernets",
    "list_token_modes",
    "load_prance_checkpoint",
    "load_static",
    "load_weights",
    "register_stem",
    "register_supernet",
    "register_token_mode",
    "reorder",
    "reorder_by_importance",
    "reported_macs",
    "reported_params",
    "save_pretrained",
    "save_static",
    "supernet_config",
    "token_mode",
]


def __getattr__(name: str) -> Any:
    # timm takes seconds to import, and most who import this package do not convert.
    if name == "from_timm":
        from .convert.timm import from_timm

        return from_timm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
