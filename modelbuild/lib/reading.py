"""Question answering against labels: the span that a model chooses, as text, and how it compares with the answers.

Exact match and F1 are those of SQuAD: texts are compared in lower case, without punctuation and articles, and of
several right answers the nearest counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from modelbuild.errors import problem
from modelbuild.lib import scores
from modelbuild.lib.samples import Text
from modelbuild.lib.triton_serving import spans

OUTPUTS = ("start_logits", "end_logits")
MOST_TOKENS = 30
"""Tokens of the longest answer that is considered, as in SQuAD's own baseline."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Row(NamedTuple):
    """A sample's tokens as `spans` takes them."""

    ids: range
    sequence_ids: list[int]
    offsets: list[tuple[int, int]]


def answer(starts: NDArray[Any], ends: NDArray[Any], places: NDArray[Any], text: Text, *, may_be_none: bool) -> str:
    """The text of the best span of the second text: logits [tokens], `places` [tokens, 3] (see `samples`).

    `may_be_none`: no answer, which the first token stands for, is considered too.
    """
    if len(text) != 2:
        raise problem(
            "a question is not answered from a single text",
            hint="the dataset needs both: `columns: [question, context]`",
        )
    found = [(of, start, end) for of, start, end in places[: len(starts)].tolist()]
    row = Row(range(len(found)), [of for of, _, _ in found], [(start, end) for _, start, end in found])
    settings = {"pad_left": False, "max_answer_length": MOST_TOKENS}
    ((_, first, last),) = spans.reduce([row], {}, [starts[None], ends[None]], settings)
    tokens = [i for i, (of, start, end) in enumerate(found) if of == 1 and start >= first and end <= last]
    if may_be_none and (not tokens or starts[0] + ends[0] > starts[tokens[0]] + ends[tokens[-1]]):
        return ""
    return str(text[1][first:last])


def answers(labels: Sequence[Any]) -> list[list[str]]:
    """The right answers of each label: a text, a list of texts, or a map with them in `text`; none is no answer."""
    return [_answers(label, sample) for sample, label in enumerate(labels)]


def _answers(label: Any, sample: int) -> list[str]:
    given = label.get("text") if isinstance(label, dict) else label
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
        hint = "give a text, a list of texts, or `{text: [...]}`; an empty list means that there is no answer"
        raise problem("a label is no answer to a question", sample=sample + 1, label=str(label)[:80], hint=hint)
    return texts


def scored(chosen: Sequence[str], right: Sequence[Sequence[str]]) -> scores.Scores:
    """`exact_match` and `f1` over the samples."""
    exact = [max(normal(text) == normal(r) for r in rights or [""]) for text, rights in zip(chosen, right, strict=True)]
    f1 = [max(overlap(text, r) for r in rights or [""]) for text, rights in zip(chosen, right, strict=True)]
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and surplus white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def overlap(text: str, right: str) -> float:
    """F1 of the words that two texts share; of no words at all, whether both have none."""
    ours, theirs = normal(text).split(), normal(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))
