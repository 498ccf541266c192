"""Decoders that generate text, as one graph for the prompt and for every token after it.

The graph takes the tokens of this step and the key-value cache of all before, which is empty (length 0) at the start,
and gives the logits of this step's tokens and the grown cache. Positions follow from the attention mask, so rows may be
padded on the left, as a batch of prompts has to be.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from modelbuild.errors import problem
from modelbuild.lib import lean_torch, made_inputs
from modelbuild.lib.export_graph import Case, Graph, Port, running
from modelbuild.lib.positional import wrapped

STEPS = ((1, 0, 7), (2, 9, 1), (3, 5, 4), (2, 0, 16), (1, 1, 1))
"""(batch, tokens in the cache, tokens of this step): prompts, single tokens, and both at once."""
SAMPLE = (2, 4, 3)
TOTAL = "past_sequence + sequence"


def graphs(torch: Any, model: Any, use_cache: bool) -> list[Graph]:
    """One graph.

    Inputs: `input_ids` [batch, sequence], `attention_mask` [batch, past_sequence + sequence], int64, and
    `past_key_values.{layer}.key` and `.value` [batch, heads, past_sequence, size]. Outputs: `logits` [batch, sequence,
    vocabulary] and `present.{layer}.key` and `.value` [batch, heads, past_sequence + sequence, size]. Without the
    cache: `input_ids`, `attention_mask` [batch, sequence] and `logits`.
    """
    steps = _steps(model.config)
    cases = [case for step in steps for case in _cases(torch, model, step, use_cache)]
    (sample,) = _cases(torch, model, SAMPLE, use_cache, sides=(True,))
    past = [name for name in sample.feeds if name.startswith("past")]
    total = TOTAL if use_cache else "sequence"
    inputs = (
        Port("input_ids", {0: "batch", 1: "sequence"}),
        Port("attention_mask", {0: "batch", 1: total}),
        *(Port(n, {0: "batch", 2: "past_sequence"}) for n in past),
    )
    outputs = (
        Port("logits", {0: "batch", 1: "sequence"}),
        *(Port(n.replace("past_key_values", "present"), {0: "batch", 2: total}) for n in past),
    )
    module = wrapped(torch, model, _forward(model, use_cache))
    return [Graph("model", module, inputs, outputs, sample.feeds, tuple(cases))]


def _forward(model: Any, use_cache: bool) -> Any:
    caches, positioned = lean_torch.import_caches(), _takes_positions(model)

    def forward(input_ids: Any, attention_mask: Any, *past: Any) -> tuple[Any, ...]:
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}
        if positioned:
            given["position_ids"] = position_ids(attention_mask)[:, -input_ids.shape[1] :]
        if not use_cache:
            return (model(**given).logits,)
        result = model(**given, past_key_values=cache_of(caches, past))
        return (result.logits, *flat(result.past_key_values))

    return forward


def position_ids(mask: Any) -> Any:
    """Each token's place among those of its row that are not masked (as `generate` counts), int64 like the mask."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def cache_of(caches: Any, tensors: Sequence[Any]) -> Any:
    """A cache of the tensors key, value, key, value, ... of the layers, each [batch, heads, tokens, size]."""
    cache = caches.DynamicCache()
    for layer in range(len(tensors) // 2):
        cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)
    return cache


def flat(cache: Any) -> list[Any]:
    """The tensors key, value, key, value, ... of a cache's layers; a `ProblemError` when it holds anything else."""
    layers = getattr(cache, "layers", None)
    if not layers or any(getattr(getattr(a, "keys", None), "ndim", 0) != 4 for a in layers):
        raise problem(
            "the model keeps something else than a key-value cache",
            cache=type(cache).__name__,
            hint="generation with a state of another kind cannot be exported",
        )
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def cache_names(prefix: str, count: int, part: str = "") -> list[str]:
    """`<prefix>.<layer>.<part>key` and `...value` for the `count` tensors of a cache."""
    return [f"{prefix}.{i // 2}.{part}{'value' if i % 2 else 'key'}" for i in range(count)]


def _steps(config: Any) -> list[tuple[int, int, int]]:
    limit = made_inputs.positions(config)
    longer = [(b, n - 1, 1) for b, n in made_inputs.shapes(config) if n > 33]
    return [(b, p, s) for b, p, s in (*STEPS, *longer) if p + s <= limit]


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(model.forward).parameters


def _cases(
    torch: Any, model: Any, step: tuple[int, int, int], use_cache: bool, sides: Sequence[bool] = (False, True)
) -> list[Case]:
    """A step by the model itself, run over all tokens at once: what it kept of the first is the past."""
    batch, past, length = step if use_cache else (step[0], 0, step[1] + step[2])
    made = []
    for left in sides if batch > 1 else (False,):
        whole = made_inputs.text(("input_ids", "attention_mask"), batch, past + length, model.config, left=left)
        name = f"{batch}x{length}{f' after {past}' if past else ''}{', padded left' if left else ''}"
        extra: dict[str, Any] = {"past_key_values": lean_torch.import_caches().DynamicCache()} if use_cache else {}
        if _takes_positions(model):
            extra["position_ids"] = position_ids(torch.from_numpy(whole["attention_mask"]))
        result = running(torch, model, whole, name, use_cache=use_cache, **extra)
        logits = result.logits.numpy()
        kept = [t.numpy() for t in flat(getattr(result, "past_key_values", None))] if use_cache else []
        names = cache_names("past_key_values", len(kept))
        feeds = whole | {"input_ids": whole["input_ids"][:, past:].copy()}
        feeds |= {n: t[:, :, :past].copy() for n, t in zip(names, kept, strict=True)}
        made.append(Case(name, feeds, [logits[:, past:], *kept]))
    return made
