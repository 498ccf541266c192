"""Random inputs to check an exported graph at: several shapes, rows padded and masked, ids that the model knows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

SHAPES = ((1, 7), (2, 16), (3, 33), (1, 1))
"""(batch, sequence) at which a graph is compared with the model: batch 1 and odd lengths tell frozen dimensions."""
SAMPLE = (2, 9)
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
WINDOW_LIMIT = 512
"""A local attention's window up to this many tokens is stepped over by a longer check."""


def text_names(model: Any) -> tuple[str, ...]:
    """The text inputs the model really takes: no segment ids where there is only one segment."""
    accepted = inspect.signature(model.forward).parameters
    segments = getattr(model.config, "type_vocab_size", 0) or 0
    return tuple(n for n in TEXT_INPUTS if n in accepted and (n != "token_type_ids" or segments > 1))


def positions(config: Any) -> int:
    """The longest sequence to try; RoBERTa's positions start after its padding index."""
    found = getattr(config, "max_position_embeddings", None)
    return max(1, int(found) - int(getattr(config, "pad_token_id", 0) or 0) - 1) if found else 512


def shapes(config: Any) -> list[tuple[int, int]]:
    """`SHAPES` within the model's positions, and one beyond its attention's window where it has a small one."""
    limit = positions(config)
    windows = [getattr(config, name, None) or 0 for name in ("local_attention", "sliding_window")]
    longer = [(1, w + 5) for w in windows if 33 < w <= WINDOW_LIMIT]
    return [(b, n) for b, n in (*((b, min(n, limit)) for b, n in SHAPES), *longer) if n <= limit]


def ids(config: Any, batch: int, length: int) -> Any:
    """Random token ids of the whole vocabulary, none of them a special token of the config; int64 [batch, length]."""
    import numpy as np

    random, rows = np.random.default_rng(batch * 1000 + length), vocab_size(config)
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "eos", "bos", "decoder_start")]
    taken = {t for s in special for t in (s if isinstance(s, list | tuple) else [s])}
    free = next((i for i in range(rows) if i not in taken), 0)
    made = random.integers(0, rows, (batch, length))
    made[np.isin(made, [t for t in taken if t is not None])] = free
    return made


def vocab_size(config: Any) -> int:
    """How many token ids the model knows."""
    return int(getattr(config, "vocab_size", 0) or config.get_text_config().vocab_size)


def mask(batch: int, length: int, *, left: bool = False) -> Any:
    """An attention mask, int64 [batch, length], in which row i is padded by 3 i tokens at one side."""
    import numpy as np

    made = np.ones((batch, length), dtype=np.int64)
    for row in range(1, batch):
        made[row, max(1, length - row * 3) :] = 0
    return np.ascontiguousarray(made[:, ::-1]) if left else made


def text(names: Sequence[str], batch: int, length: int, config: Any, *, left: bool = False) -> dict[str, Any]:
    """Random token ids, padded and masked as `mask` says, and segment ids; int64 [batch, length] each."""
    import numpy as np

    pad = getattr(config, "pad_token_id", None) or 0
    masked = mask(batch, length, left=left)
    segments = max(1, getattr(config, "type_vocab_size", 1) or 1)
    types = np.random.default_rng(batch * 1000 + length).integers(0, segments, (batch, length))
    made = {
        "input_ids": np.where(masked == 1, ids(config, batch, length), pad),
        "attention_mask": masked,
        "token_type_ids": types,
    }
    return {name: made[name] for name in names}
