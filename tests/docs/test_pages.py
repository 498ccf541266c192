"""The documentation's links lead somewhere, and its recipes are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelbuild import kind
from modelbuild.language import recipe

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)[^)]*\)")
YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPES = [
    *((str(p.relative_to(ROOT)), block) for p in PAGES for block in YAML.findall(p.read_text())),
    *((name, block) for name in kind.BUILTIN for block in YAML.findall(kind.load(name).__doc__ or "")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(("source", "text"), [(s, t) for s, t in RECIPES if "targets:" in t])
def test_recipes_on_pages_have_no_problems(source: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipes" / "page.yaml"
    path.parent.mkdir()
    path.write_text(text)
    recipes, problems = recipe.read(tmp_path, [path])
    assert problems == ()
    assert recipes[0].targets
