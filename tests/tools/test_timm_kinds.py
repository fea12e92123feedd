"""docs/timm.md says which of timm's ViTs can be imported, and it is true of the version that it names."""

from __future__ import annotations

import pytest
import timm

from supernet import SupernetConfig
from tools.timm_kinds import KINDS, MODULES, PAGE, page_with, tables, try_all

TEXT = PAGE.read_text()


@pytest.mark.slow
def test_most_of_timms_pretrained_vits_are_accepted_and_the_page_lists_the_others() -> None:
    tried = try_all()
    plain = {tag for module in MODULES[:2] for tag in timm.list_models(module=module, pretrained=True)}
    assert len(plain & set(tried.accepted)) >= 0.95 * len(plain)
    assert len(tried.accepted) >= 0.95 * (len(tried.accepted) + len(tried.refused))
    assert all(len(reason.split()) >= 4 for reason in tried.refused.values())
    if f"timm {timm.__version__}'s" in TEXT:
        assert page_with(TEXT, tables(tried)) == TEXT, "run `python -m tools.timm_kinds`"


def test_a_configuration_is_of_the_kinds_it_has() -> None:
    def kinds(config: SupernetConfig) -> list[str]:
        return [name for name, (is_of_it, _) in KINDS.items() if is_of_it(config)]

    assert kinds(SupernetConfig()) == ["class token is classified"]
    config = SupernetConfig(reg_tokens=2, distilled=True, glu=True, norm="rms", num_classes=0)
    assert kinds(config) == [
        "distillation token, two classifiers",
        "registers",
        "gated MLP (SwiGLU)",
        "RMS norms",
        "no classifier",
    ]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="The page lacks"):
        page_with("# Page", "tables")
