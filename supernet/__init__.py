"""Elastic Vision Transformers: one set of weights, a sub-network for every image."""

from .checkpoint import create_supernet, from_pretrained, load_weights, save_pretrained
from .config import SearchSpace, SupernetConfig, list_supernets, register_supernet, supernet_config
from .extract import StaticViT, extract
from .state import InferenceState
from .subnet import GroupChoice, SubnetConfig
from .vit import Supernet, freeze

__all__ = [
    "GroupChoice",
    "InferenceState",
    "SearchSpace",
    "StaticViT",
    "SubnetConfig",
    "Supernet",
    "SupernetConfig",
    "create_supernet",
    "extract",
    "freeze",
    "from_pretrained",
    "list_supernets",
    "load_weights",
    "register_supernet",
    "save_pretrained",
    "supernet_config",
]
