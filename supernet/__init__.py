"""Elastic Vision Transformers: one set of weights, a sub-network for every image."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .checkpoint import create_supernet, from_pretrained, load_weights, save_pretrained
from .config import SearchSpace, SupernetConfig
from .convert.authors import average_choice, load_prance_checkpoint
from .convert.authors_reported import reported_macs, reported_params
from .convert.texts import TextEmbeddings
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
from .zero_shot import ZeroShotHead

if TYPE_CHECKING:
    from .convert.clip import fit_projections, from_clip
    from .convert.timm import from_timm

# timm takes seconds to import, and most who import this package do not convert.
_LATER = {"fit_projections": ".convert.clip", "from_clip": ".convert.clip", "from_timm": ".convert.timm"}

__all__ = [
    "GroupChoice",
    "InferenceState",
    "SearchSpace",
    "StaticViT",
    "SubnetConfig",
    "Supernet",
    "SupernetConfig",
    "TextEmbeddings",
    "TokenMode",
    "UnitOrder",
    "UnitScores",
    "ZeroShotHead",
    "average_choice",
    "create_supernet",
    "design",
    "effectiveness",
    "entropy",
    "extract",
    "fit_projections",
    "freeze",
    "from_clip",
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
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
