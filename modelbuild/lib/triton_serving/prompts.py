"""Texts to go on from, as tokens, held to what the model takes; and how far each may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import wishes
from .tokens import FILE
from .wishes import Wishes


class Prompt(NamedTuple):
    """A text as tokens, and whether some were cut off."""

    tokens: list[int]
    truncated: bool


class Asked(NamedTuple):
    """A request: its texts, the most new tokens of each, and how to generate them."""

    prompts: list[Prompt]
    mosts: list[int]
    wishes: Wishes


class Prompts:
    """The tokenizer beside the settings.

    `settings` are those of `settings.json`: `max_length`: tokens that a text is cut to, if at all (a decoder-only
    model keeps the end of a text, others the beginning); `context`: tokens of text and continuation together;
    `bos_id`: what an empty text begins with; `start_id` where the continuation does not stand behind the text.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.rust = Tokenizer.from_file(str(folder / FILE))
        self.rust.no_padding()
        self.rust.no_truncation()
        self.settings = settings
        if settings["max_length"] is not None:
            side = "left" if settings["start_id"] is None else "right"
            self.rust.enable_truncation(settings["max_length"], direction=side)

    def __call__(self, texts: Sequence[str]) -> list[Prompt]:
        """Encode; a `ValueError` for a text without tokens."""
        if self.settings.get("lowercase"):
            texts = [text.lower() for text in texts]
        return [self._prompt(i, encoded) for i, encoded in enumerate(self.rust.encode_batch(list(texts)))]

    def _prompt(self, index: int, encoded: Any) -> Prompt:
        if encoded.ids:
            return Prompt(list(encoded.ids), bool(encoded.overflowing))
        if self.settings["bos_id"] is None:
            raise ValueError(f"text {index} is empty, and the model has no token that starts a text")
        return Prompt([self.settings["bos_id"]], False)

    def asked(self, texts: Sequence[str], parameters: Mapping[str, Any]) -> Asked:
        """What a request asks for; a `ValueError` if it asks wrong."""
        wanted = wishes.read(parameters, self.settings)
        if not texts:
            raise ValueError("`text` has no rows")
        prompts = self(texts)
        said = wanted.max_new_tokens if "max_new_tokens" in parameters else None
        usual = wanted.max_new_tokens or self.settings["max_new_tokens"]
        return Asked(prompts, [self.most(i, p, said, usual) for i, p in enumerate(prompts)], wanted)

    def most(self, index: int, prompt: Prompt, wanted: int | None, usual: int) -> int:
        """New tokens of text `index` at most; a `ValueError` when the wanted ones do not fit, or none at all."""
        context = self.settings["context"]
        if context is None:
            return wanted or usual
        taken = len(prompt.tokens) if self.settings["start_id"] is None else 1
        if taken + (wanted or 1) > context:
            raise ValueError(
                f"text {index} has {taken} tokens, and {wanted or 1} more would make it longer than the {context} "
                "that the model takes"
            )
        return wanted or min(usual, context - taken)
