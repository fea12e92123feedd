"""The model card of an adaptive network: what it is, what was measured of it, how it is used."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from .files import Parts

USE = """```python
from agents import AdaptiveViT

model = AdaptiveViT.from_pretrained("FOLDER or OWNER/NAME")
prediction = model.predict(["picture.jpg"]{budget})
print([*prediction.rows()])
```"""


def model_card(parts: Parts) -> str:
    """The card as Markdown, with the hub's metadata before it."""
    config, seen = parts.net.config, parts.interface
    scaled = ""
    if config.in_chans in (1, 3):
        transform = parts.preprocessing.transform(config)
        scaled = f", scaled to {config.img_size} / {transform.crop_pct:g} ({transform.interpolation}), centre cut out"
    data = ModelCardData(
        library_name="prance-env",
        pipeline_tag="image-classification",
        tags=["adaptive-inference", "vision-transformer", "prance-env"],
    )
    params = sum(p.numel() for p in parts.net.parameters())
    prices = (
        "one price" if seen.conditioning is None else f"prices {seen.conditioning.low:g} to {seen.conditioning.high:g}"
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        "# A Vision Transformer that decides how much to compute",
        f"An elastic ViT of {params:,} parameters ({config.space.depth} blocks, widths up to {config.embed_dim}, "
        f"token mode `{config.space.token_mode}`) and a policy that chooses for every image, before each of the last "
        f"{config.space.num_decisions} groups of blocks, how wide they are and how many patches go on. Made with "
        "prance-env after PRANCE (arXiv 2407.05010).",
        f"* Images: {config.in_chans} x {config.img_size} x {config.img_size}{scaled}\n"
        f"* Classes: {len(parts.names)}{_some(parts.names)}\n"
        f"* Full network: {int(parts.net.macs()):,} multiply-accumulates an image\n"
        f"* Policy: trained for {prices}; it sees `{seen.observation}`",
        *_measured(parts),
        "## How to use it",
        USE.format(budget="" if seen.conditioning is None else ', budget="40%"'),
        "Weights are safetensors and JSON; nothing is unpickled.",
    ]
    return "\n\n".join(lines) + "\n"


def _some(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""


def _measured(parts: Parts) -> list[str]:
    c = parts.calibration
    if c is None:
        return ["Nothing was measured of it yet: `model.calibrate(images, labels)` does."]
    timed = f" Milliseconds: {c.machine}, {c.batch_size} at a time." if c.milliseconds else ""
    head = ["price", "MACs / full", *(["accuracy"] if c.accuracy else []), *(["ms an image"] if c.milliseconds else [])]
    rows = []
    for i, spent in enumerate(c.macs_fraction):
        cells = [f"{c.prices[i]:.3g}" if c.prices else "fixed", f"{spent:.1%}"]
        cells += [f"{c.accuracy[i]:.2%}"] if c.accuracy else []
        cells += [f"{c.milliseconds[i]:.2f}"] if c.milliseconds else []
        rows.append(cells)
    if c.full_accuracy is not None:
        rows.append(["full network", "100.0%", f"{c.full_accuracy:.2%}", *([""] if c.milliseconds else [])])
    table = [head, ["---:"] * len(head), *rows]
    return [
        "## What was measured",
        f"On {c.images:,} validation images.{timed}",
        "\n".join(f"| {' | '.join(cells)} |" for cells in table),
    ]
