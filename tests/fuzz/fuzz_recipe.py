"""Coverage-guided fuzzing of recipes: text → problems → their text, with atheris. A developers' tool, not part of CI.

    pip install atheris
    python -m tests.fuzz.fuzz_recipe -max_total_time=180

The arguments are libFuzzer's. Nothing but a `ProblemError` may be raised, and nothing may take 5 seconds or 1 GB. An
input that does is left in the current folder as `crash-...`, `timeout-...` or `oom-...`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["modelbuild", "yaml"]):
    from modelbuild import link
    from modelbuild.language import recipe
    from modelbuild.report.errors import render

SEEDS = Path(__file__).parents[2] / "recipes"
WORDS = (
    *("targets:", "kind:", "matrix:", "defaults:", "extends:", "vars:", "model:", "default:", "from:", "path:"),
    *("checkpoint", "onnx", "int8", "zip", "${A}", "[a=1]", "r:a", "../", "~", ".nan", "0x", "1e999"),
    *("<<:", "*a", "&a", "!!python/object/apply:os.system", "!!binary", "? ", "- ", "|2-", "\\ud800", "\\x1b"),
)


class Recipe:
    """One project, whose only recipe is written anew for each input."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.path = folder / "recipes" / "r.yaml"
        self.path.parent.mkdir()

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        recipes, wrong = recipe.read(self.root, [self.path], {})
        _, unlinked = link.link(recipes)
        text = render((*wrong, *unlinked), color=False)
        assert "\x1b" not in text
        assert bool(text) == bool(wrong or unlinked)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        corpus, words = place / "corpus", place / "words"
        corpus.mkdir()
        for number, seed in enumerate(sorted(SEEDS.rglob("*.yaml"))):
            (corpus / f"seed{number}").write_bytes(seed.read_bytes())
        words.write_text("".join(f'"{_quoted(w)}"\n' for w in WORDS))
        options = ["-timeout=5", "-rss_limit_mb=1024", f"-dict={words}", *sys.argv[1:], str(corpus)]
        atheris.Setup([sys.argv[0], *options], Recipe(place))
        atheris.Fuzz()


def _quoted(word: str) -> str:
    return "".join(c if c.isalnum() or c in " :._-" else f"\\x{ord(c):02x}" for c in word)


if __name__ == "__main__":
    main()
