"""The next token of a row: the checkpoint's own rules, then the largest logit, or one drawn as the request wishes.

The rules and their order are those of transformers' `generate`, so that greedy texts are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .wishes import Wishes

NEVER = np.float32(-np.inf)
RULES = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""What a checkpoint's `generation_config.json` may say of the choice, and is followed."""


class Chooser:
    """Chooses the tokens of one row.

    `before`: the tokens that count as already said, for repetition: the prompt, or what a decoder starts with. `ends`:
    the tokens that end a text. `most`: how many tokens are made at most. `rules`: see `RULES`.
    """

    def __init__(
        self, before: Sequence[int], wishes: Wishes, rules: Mapping[str, Any], ends: Sequence[int], most: int, row: int
    ) -> None:
        self.tokens, self.start = list(before), len(before)
        self.wishes, self.rules, self.ends, self.most = wishes, rules, list(ends), most
        penalty = float(rules.get("repetition_penalty") or 1.0)
        self.penalty = wishes.repetition_penalty if wishes.repetition_penalty != 1.0 else penalty
        self.random = np.random.default_rng(None if wishes.seed is None else [wishes.seed, row])
        self.plain = not rules and self.penalty == 1.0 and not wishes.temperature

    def choose(self, logits: NDArray[Any]) -> int:
        """The next token from the logits (vocabulary,), which are taken as said from now on."""
        if self.plain:
            token = int(logits.argmax())
        else:
            scores = logits.astype(np.float32)
            self.ruled(scores)
            token = int(scores.argmax()) if not self.wishes.temperature else self._drawn(scores)
        self.tokens.append(token)
        return token

    def ruled(self, scores: NDArray[np.float32]) -> None:
        """Apply the rules to the logits, in place."""
        made, rules = len(self.tokens) - self.start, self.rules
        if self.penalty != 1.0 and self.tokens:
            said = np.unique(self.tokens)
            scores[said] = np.where(scores[said] < 0, scores[said] * self.penalty, scores[said] / self.penalty)
        if rules.get("no_repeat_ngram_size"):
            scores[self._repeating(int(rules["no_repeat_ngram_size"]))] = NEVER
        for word in rules.get("bad_words_ids") or ():
            if not (len(word) == 1 and word[0] in self.ends) and self._ends_with(word[:-1]):
                scores[word[-1]] = NEVER
        if len(self.tokens) < (rules.get("min_length") or 0) or made < (rules.get("min_new_tokens") or 0):
            scores[self.ends] = NEVER
        first = rules.get("forced_bos_token_id")
        if first is not None and len(self.tokens) == 1:
            _force(scores, [first])
        last = rules.get("forced_eos_token_id")
        if last is not None and made == self.most - 1:
            _force(scores, last if isinstance(last, list) else [last])
        scores[list(rules.get("suppress_tokens") or ())] = NEVER
        if made == (first is not None and self.start == 1):
            scores[list(rules.get("begin_suppress_tokens") or ())] = NEVER

    def _repeating(self, size: int) -> list[int]:
        """The tokens that would repeat a run of `size` tokens."""
        tail = self.tokens[len(self.tokens) - size + 1 :]
        runs = range(len(self.tokens) - size + 1)
        return [self.tokens[i + size - 1] for i in runs if self.tokens[i : i + size - 1] == tail]

    def _ends_with(self, word: Sequence[int]) -> bool:
        return not word or self.tokens[-len(word) :] == list(word)

    def _drawn(self, scores: NDArray[np.float32]) -> int:
        chances = probabilities(scores, self.wishes)
        return int(self.random.choice(len(chances), p=chances))


def probabilities(scores: NDArray[np.float32], wishes: Wishes) -> NDArray[np.float64]:
    """What a token is drawn by: by temperature, then the `top_k` best alone, then the best that make up `top_p`."""
    scaled = scores.astype(np.float64) / wishes.temperature
    if 0 < wishes.top_k < len(scaled):
        scaled[scaled < np.partition(scaled, -wishes.top_k)[-wishes.top_k]] = -np.inf
    chances: NDArray[np.float64] = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    if wishes.top_p < 1:
        order = np.argsort(chances, kind="stable")
        left_out = order[chances[order].cumsum() <= 1 - wishes.top_p][: len(order) - 1]
        chances[left_out] = 0
        chances /= chances.sum()
    return chances


def _force(scores: NDArray[np.float32], tokens: Sequence[int]) -> None:
    scores[:] = NEVER
    scores[list(tokens)] = 0
