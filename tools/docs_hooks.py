"""Hooks of the documentation's site (mkdocs.yml): pages of the API, and links that leave the folder `docs`."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# What users import, and from where; a name that is added to `__all__` appears by itself.
PACKAGES = {
    "supernet": "The elastic network, its subnets, and everything in and out of it.",
    "prance_env": "The environment: Gymnasium's single and vector form, Stable-Baselines3's, and their parts.",
    "agents": "Agents: PRANCE's PPO, Stable-Baselines3 with presets, baselines, and network and agent together.",
    "train": "Judging agents, and what the command line is made of.",
}
MODULES = {"train": ["train.evaluate", "train.policies"]}


def api_page(package: str) -> str:
    """Markdown for mkdocstrings: one entry for every public name of a package.

    Args:
        package: A key of `PACKAGES`.
    """
    parts = [f"# {package}\n\n{PACKAGES[package]}"]
    for module in MODULES.get(package, [package]):
        if module != package:
            parts.append(f"## {module}")
        parts += [f"::: {module}.{name}" for name in sorted(import_module(module).__all__, key=str.lower)]
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the API."""
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=api_page(package)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Links to files of the repository outside `docs` become their names: the site does not hold them.

    Raises:
        FileNotFoundError: If such a file does not exist.
    """
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def replaced(match: re.Match[str]) -> str:
        text, target = match[1], match[2].split("#")[0]
        path = (folder / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return match[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which does not exist.")
        name = str(path.relative_to(ROOT))
        return f"`{name}`" if text.strip("`") in name else f"{text} (`{name}`)"

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)", replaced, markdown)
