"""How a batch of images is computed in which every image has sizes of its own."""

from .choice import use

__all__ = ["use"]
