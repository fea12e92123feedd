"""CLIP's image towers as supernets with a zero-shot classifier: classes are texts, embedded once.

Image towers come from open_clip (extra `clip`) or timm. Both become timm's `VisionTransformer`, whose linear classifier
is the projection into the space that images and texts share, and then a supernet as any other model of timm.
"""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from ..config import SearchSpace
from ..files import LISTED
from ..subnet import SubnetConfig
from ..vit import Supernet
from ..zero_shot import ZeroShotHead
from .texts import PLAIN_TEMPLATES, Encoder, TextEmbeddings, embed_classes
from .timm import from_timm

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# How open_clip resizes images, in timm's words.
CROPS = {"shortest": "center", "longest": "border", "squash": "squash"}
# Share of the mean square of features that is added where their covariance is inverted.
RIDGE = 1e-4


def open_clip() -> Any:
    """The package open_clip.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        import open_clip as package
    except ImportError as e:
        raise ModuleNotFoundError(
            "CLIP's text towers, and image towers by open_clip's names, need open_clip, which is not installed: pip "
            "install -e '.[clip]'. With text embeddings in a file, image towers by timm's names do without."
        ) from e
    return package


def load_clip(name: str, pretrained: str | None = None) -> nn.Module:
    """A model of open_clip, with both towers.

    Args:
        name: One of `open_clip.list_models()`, such as "ViT-B-16".
        pretrained: A tag of its weights, which are downloaded, or a file; None: random weights.

    Raises:
        ModuleNotFoundError: If open_clip is not installed.
        ValueError: If the name or the tag is unknown, the weights cannot be had, or they were trained with another
            activation than the model has.
    """
    package = open_clip()
    if name not in package.list_models():
        near = difflib.get_close_matches(name, package.list_models(), LISTED, cutoff=0.4)
        raise ValueError(f"open_clip knows no model {name!r}; its names are such as {near or ['ViT-B-16']}.")
    tags = package.list_pretrained_tags_by_model(name)
    cfg = package.get_pretrained_cfg(name, pretrained) if pretrained in tags else {}
    if cfg.get("quick_gelu") and not (package.get_model_config(name) or {}).get("quick_gelu"):
        raise ValueError(
            f"The weights {pretrained!r} were trained with QuickGELU, and {name} has GELU: it would give other logits. "
            f"Take {name}-quickgelu."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return package.create_model(name, pretrained=pretrained, require_pretrained=pretrained is not None).eval()
    except (RuntimeError, OSError, ValueError) as e:
        raise ValueError(
            f"open_clip cannot make {name} with the weights {pretrained!r} ({' '.join(str(e).split())}); its tags are "
            f"{tags or 'none'}, and a file may stand in the place of a tag."
        ) from e


def text_encoder(model: Any, name: str) -> Encoder:
    """The text tower of a model of open_clip behind its tokenizer.

    Args:
        model: What `load_clip` gave.
        name: Its name, which says which tokenizer.
    """
    tokenizer = open_clip().get_tokenizer(name)

    def encode(texts: list[str]) -> Tensor:
        embedded: Tensor = model.encode_text(tokenizer(texts))
        return embedded

    return encode


def class_embeddings(
    model: Any, name: str, names: Sequence[str], templates: Sequence[str] = PLAIN_TEMPLATES, source: str = ""
) -> TextEmbeddings:
    """Classes as points, by the text tower of a model of open_clip.

    Args:
        model: What `load_clip` gave.
        name: Its name.
        names: Class names.
        templates: Sentences with one `{}` each.
        source: What the model is called in the result; None: `name`.

    Raises:
        ValueError: If names or templates are not as `supernet.convert.texts` asks.
    """
    scale = float(model.logit_scale.detach().exp())
    return embed_classes(text_encoder(model, name), names, scale, templates, source or name)


def named_templates(name: str) -> tuple[str, ...]:
    """Templates by name: "plain" (a photo of a {}.), "simple" (7 of OpenAI's), "openai" (all 80, for ImageNet).

    Raises:
        ValueError: If the name is unknown.
        ModuleNotFoundError: If open_clip, which brings all but the first, is not installed.
    """
    if name == "plain":
        return PLAIN_TEMPLATES
    if name not in ("simple", "openai"):
        raise ValueError(f"templates={name!r} is unknown; choose plain, simple, openai, or a file of templates.")
    package = open_clip()
    found = package.SIMPLE_IMAGENET_TEMPLATES if name == "simple" else package.OPENAI_IMAGENET_TEMPLATES
    return tuple(template("{}") for template in found)


def from_clip(
    model: str | nn.Module,
    texts: TextEmbeddings,
    space: SearchSpace | None = None,
    *,
    pretrained: bool = False,
    lln: bool = False,
) -> Supernet:
    """Makes an image tower of CLIP elastic, with a zero-shot classifier of these classes.

    Args:
        model: A model of open_clip (`load_clip`) or its image tower, or what `from_timm` takes, such as the name
            "vit_base_patch16_clip_224.openai": its linear classifier is then the projection.
        texts: The classes.
        space: As for `from_timm`.
        pretrained: As for `from_timm`; for timm's names only.
        lln: As for `from_timm`.

    Returns:
        The supernet in evaluation mode. At full size its logits are scale * cosines of image and text.

    Raises:
        ValueError: If the image tower is of a kind that supernets are not, or the texts lie in a space of another
            dimension than it projects to.
        RuntimeError: If timm does not know the name, or the weights cannot be downloaded.
    """
    tower = getattr(model, "visual", model)
    if isinstance(tower, str) and not pretrained:
        # Without weights the projection goes wherever the texts lie; timm's default may be a classifier instead.
        tower = timm.create_model(tower, num_classes=texts.vectors.shape[1])
    elif not isinstance(tower, str | VisionTransformer):
        tower = image_tower(tower)
    return with_texts(from_timm(tower, space, pretrained=pretrained, lln=lln), texts)


def image_tower(visual: nn.Module) -> VisionTransformer:
    """An image tower of open_clip as timm's plain ViT, whose classifier is the projection.

    Args:
        visual: `model.visual` of open_clip's own ViTs, or of towers that are timm's plain ViTs already.

    Raises:
        ValueError: If it is neither, or has parts that timm's plain ViT has not.
    """
    if hasattr(visual, "trunk"):
        return _from_trunk(visual)
    attributes = ("conv1", "class_embedding", "ln_pre", "transformer", "ln_post", "proj")
    if not all(hasattr(visual, name) for name in attributes):
        raise ValueError(f"{type(visual).__name__} is no image tower of CLIP that is a ViT.")
    found: Any = visual
    block = found.transformer.resblocks[0]
    obstacles = {
        "attentional pooling": getattr(found, "attn_pool", None) is not None,
        f"pool_type={found.pool_type!r} (only 'tok')": found.pool_type != "tok",
        "no projection": found.proj is None,
        f"blocks of type {type(block).__name__}": type(block).__name__ != "ResidualAttentionBlock",
    }
    if there := [what for what, is_there in obstacles.items() if is_there]:
        raise ValueError(f"This image tower has {'; '.join(there)}, which a supernet has not.")
    model = VisionTransformer(
        img_size=tuple(found.image_size),
        patch_size=found.conv1.kernel_size[0],
        num_classes=found.proj.shape[1],
        embed_dim=found.conv1.out_channels,
        depth=len(found.transformer.resblocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.c_fc.out_features / found.conv1.out_channels,
        init_values=1.0 if isinstance(getattr(block.ls_1, "gamma", None), Tensor) else None,
        pre_norm=not isinstance(found.ln_pre, nn.Identity),
        norm_layer=partial(nn.LayerNorm, eps=found.ln_post.eps),
        act_layer=QuickGELU if type(block.mlp.gelu).__name__ == "QuickGELU" else type(block.mlp.gelu),
    )
    state = checkpoint_filter_fn({f"visual.{k}": v for k, v in visual.state_dict().items()}, model)
    if "patch_embed.proj.bias" in model.state_dict():
        state["patch_embed.proj.bias"] = torch.zeros(model.embed_dim)
    model.load_state_dict({k.replace(".ls_", ".ls"): v for k, v in state.items()})
    return _normalised_as(model, visual)


def _from_trunk(visual: Any) -> VisionTransformer:
    """The ViT of timm inside an image tower of open_clip, with the projection as its classifier."""
    trunk, layers = copy.deepcopy(visual.trunk), dict(visual.head.named_children())
    projection = layers.pop("proj", None)
    if not isinstance(projection, nn.Linear) or layers.keys() - {"drop"}:
        raise ValueError(
            f"{type(visual.trunk).__name__} is projected by {list(layers) or 'nothing'}; a supernet knows one linear "
            "projection."
        )
    trunk.head = copy.deepcopy(projection)
    return _normalised_as(trunk, visual)


def _normalised_as(model: Any, visual: Any) -> VisionTransformer:
    """The model, with what a tower wants its images to be where `from_timm` looks for it."""
    mean, std = getattr(visual, "image_mean", None) or CLIP_MEAN, getattr(visual, "image_std", None) or CLIP_STD
    wanted = getattr(visual, "preprocess_cfg", None) or {}
    cropped = {"crop_pct": 1.0, "crop_mode": CROPS[wanted.get("resize_mode", "shortest")]}
    # open_clip evaluates with one of these two.
    cropped["interpolation"] = "bilinear" if wanted.get("interpolation") == "bilinear" else "bicubic"
    cfg = dict(getattr(model, "pretrained_cfg", None) or {})
    model.pretrained_cfg = {**cfg, **cropped, "mean": mean, "std": std}
    return model


def with_texts(net: Supernet, texts: TextEmbeddings) -> Supernet:
    """A supernet with a zero-shot classifier in the place of a linear one, which becomes its projection.

    Also puts other classes into a supernet that has a zero-shot classifier already.

    Args:
        net: Its weights are shared with the result where they stay.
        texts: The classes.

    Raises:
        ValueError: If the texts lie in a space of another dimension than the network projects to.
    """
    head = net.head
    if head is None:
        raise ValueError("This network has no classifier that could be the projection to the texts; num_classes is 0.")
    dim = net.config.num_classes if net.config.text_dim is None else net.config.text_dim
    if texts.vectors.shape[1] != dim:
        raise ValueError(
            f"The text embeddings{f' of {texts.source}' if texts.source else ''} have {texts.vectors.shape[1]} "
            f"dimensions, but the image tower projects to {dim}: they are another model's. Embed the class names with "
            "the text tower that was trained with this image tower."
        )
    config = replace(net.config, num_classes=len(texts.names), class_names=texts.names, text_dim=dim)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    old = dict(head.state_dict())
    if not isinstance(head, ZeroShotHead):
        old = {f"proj.{name}": value for name, value in old.items()}
    old |= {"text": texts.vectors, "logit_scale": torch.tensor(texts.scale).log()}
    new = Supernet(config)
    new.load_state_dict(state | {f"head.{name}": value for name, value in old.items()})
    return new.eval()


@torch.no_grad()
def fit_projections(net: Supernet, images: Sequence[Tensor]) -> Supernet:
    """Fits a projection for every width below the full one, so that what narrow subnets see points where it should.

    The images run through the subnet that has this width in all blocks that are decided and is full otherwise; the
    projection is the affine map from its features to the full network's points that has the least squared error, the
    latter being normalised, in closed form, with a little of the features' mean square added to their covariance.

    Args:
        net: A supernet with a zero-shot classifier.
        images: Batches as the network takes them; a thousand images and more, without labels.

    Returns:
        A copy with `config.text_fitted`.

    Raises:
        ValueError: If the classifier is not a zero-shot one, or there are no images.
    """
    if not isinstance(net.head, ZeroShotHead):
        raise ValueError("Only zero-shot classifiers have projections to fit; this network's is linear.")
    if not sum(map(len, images)):
        raise ValueError("There are no images to fit projections on; pass a thousand or more.")
    space = net.space
    fitted = Supernet(replace(net.config, text_fitted=True))
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("head.fitted.")}
    bare = _features_of(net)
    points = torch.cat([F.normalize(net.head.project(bare(batch)), dim=1) for batch in images])
    for width in space.embed_dims[:-1]:
        subnet = SubnetConfig.full(space)
        decided = space.blocks(space.first_decided).start
        subnet.embed_dim[:, decided:] = width
        features = torch.cat([bare(batch, subnet)[:, :width] for batch in images])
        weight, bias = least_squares(features, points)
        own[f"head.fitted.{width}.weight"], own[f"head.fitted.{width}.bias"] = weight, bias
    fitted.load_state_dict(own)
    return fitted.eval()


def _features_of(net: Supernet) -> Supernet:
    """The network without its classifier."""
    bare = Supernet(replace(net.config, num_classes=0, text_dim=None, text_fitted=False))
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("head.")})
    return bare.to(net.pos_embed.device).eval()


def least_squares(x: Tensor, y: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The affine map of least squared error, in double precision.

    Args:
        x: (N, C) inputs.
        y: (N, D) outputs.
        ridge: Share of the inputs' mean square that is added to the diagonal of their covariance.

    Returns:
        Weight (D, C) and bias (D,), as of `nn.Linear`.
    """
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.t() @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean() + torch.finfo(torch.float64).tiny)
    weight = torch.linalg.solve(gram, x.t() @ y).t()
    return weight.float(), (mean_y - weight @ mean_x).float()
