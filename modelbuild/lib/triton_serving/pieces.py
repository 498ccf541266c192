"""Text out of tokens as they come: whole characters only, and nothing that may turn out to begin a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes an unfinished character to."""
CONTEXT = 5
"""Tokens of the prompt that the first piece is decoded with: a space at its start depends on what stands before."""


class Pieces:
    """The text of one row. The pieces joined are the text that all tokens have together, up to a stop text.

    A token's text depends on its neighbours (spaces, characters of several tokens), so each piece is what the text
    gains over that of the tokens before, decoded from the piece before on.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.tokens = list(prompt[-CONTEXT:])
        self.first, self.read = 0, len(self.tokens)
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain with this token, often none. `stopped` is set when a stop text was met."""
        self.tokens.append(token)
        return self._told(self._gained(final=False))

    def finish(self) -> str:
        """What was held back, when no token follows, but for a character that is not whole."""
        told = self._told(self._gained(final=True))
        rest, self.held = self.held, ""
        return told if self.stopped else told + rest

    def _gained(self, *, final: bool) -> str:
        known = self._decoded(self.first, self.read)
        whole = self._decoded(self.first, len(self.tokens))
        if final:
            whole = whole.rstrip(HALF)
        if whole == known or whole.endswith(HALF):
            return ""
        first, self.first, self.read = self.read, self.read, len(self.tokens)
        # Where a later token changes earlier text (a decoder that joins `' m`), that has been told already.
        return whole[len(known) :] if whole.startswith(known) else self._decoded(first, len(self.tokens))

    def _decoded(self, first: int, end: int) -> str:
        return str(self.tokenizer.decode(self.tokens[first:end], skip_special_tokens=True))

    def _told(self, text: str) -> str:
        """Of the text held back and this, what may be told now."""
        text = self.held + text
        places = [place for place in (text.find(stop) for stop in self.stops) if place >= 0]
        if places:
            self.stopped, self.held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the text's end may be the beginning of the stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
