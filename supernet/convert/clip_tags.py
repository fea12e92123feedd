"""Which weights of CLIP there are for one architecture: the pretrained tag is a choice like data.

Accuracies are what open_clip's authors measured with ImageNet's 80 templates (`docs/openclip_results.csv` of the
repository mlfoundations/open_clip), not what was measured here. What differs between rows of one architecture is the
data alone, and how well its captions fit its images: that is what "CLIP with quality captions" (arXiv 2405.08911) and
DataComp (arXiv 2304.14108) are about.
"""

from __future__ import annotations

from dataclasses import dataclass

RESULTS = "open_clip, docs/openclip_results.csv"


@dataclass(frozen=True)
class ClipTag:
    """Weights of an image tower and its text tower.

    Attributes:
        model: open_clip's name of the architecture, which also says the activation.
        tag: open_clip's name of the weights.
        data: What they were trained on.
        top1: Zero-shot accuracy on ImageNet, in percent.
        source: Who says so.
    """

    model: str
    tag: str
    data: str
    top1: float
    source: str = RESULTS


CLIP_TAGS = (
    ClipTag("ViT-B-32-quickgelu", "openai", "OpenAI's 400 M pairs", 63.32),
    ClipTag("ViT-B-32-quickgelu", "laion400m_e32", "LAION-400M", 62.93),
    ClipTag("ViT-B-32", "laion2b_s34b_b79k", "LAION-2B", 66.56),
    ClipTag("ViT-B-32", "datacomp_xl_s13b_b90k", "DataComp-1B", 69.17),
    ClipTag("ViT-B-32-256", "datacomp_s34b_b86k", "DataComp-1B", 72.81),
    ClipTag("ViT-B-16-quickgelu", "openai", "OpenAI's 400 M pairs", 68.34),
    ClipTag("ViT-B-16", "laion400m_e32", "LAION-400M", 67.05),
    ClipTag("ViT-B-16", "laion2b_s34b_b88k", "LAION-2B", 70.23),
    ClipTag("ViT-B-16", "datacomp_l_s1b_b8k", "DataComp, large", 63.10),
    ClipTag("ViT-B-16", "datacomp_xl_s13b_b90k", "DataComp-1B", 73.49),
    ClipTag("ViT-B-16-quickgelu", "dfn2b", "DFN-2B", 76.24),
    ClipTag("ViT-L-14-quickgelu", "openai", "OpenAI's 400 M pairs", 75.54),
    ClipTag("ViT-L-14", "laion2b_s32b_b82k", "LAION-2B", 75.25),
    ClipTag("ViT-L-14", "datacomp_xl_s13b_b90k", "DataComp-1B", 79.21),
    ClipTag("ViT-L-14-quickgelu", "dfn2b", "DFN-2B", 81.41),
    ClipTag("ViT-H-14", "laion2b_s32b_b79k", "LAION-2B", 77.96),
)
"""Weights of plain ViTs that `load_clip` takes."""
