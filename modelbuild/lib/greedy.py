"""Texts that a model of an encoder and a decoder generates: the likeliest token each time, several samples at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelbuild.artifact import Artifact, Component, Descriptor
from modelbuild.errors import problem
from modelbuild.lib import runners, sessions, tokenizing

TEXT = "text"
"""What the generated text is called among a model's outputs."""
PAST, PRESENT = "past_key_values", "present"
USUAL_NEW_TOKENS = 128


def generates(described: Descriptor) -> bool:
    """Whether the model's answer is a text that has to be generated: it has an encoder and a decoder."""
    return set(described.components) == {"encoder", "decoder"}


class Generator:
    """A model that generates, as a runner: `infer` gives the text of each sample."""

    def __init__(self, model: Artifact, provider: runners.Provider, threads: int, most: int | None) -> None:
        """`most` new tokens a text; None: as many as the model's own settings say. A `ProblemError` for a model that
        does not say how its texts start, or that has no tokenizer to read them by."""
        settings = model.descriptor.settings
        self.generation: Mapping[str, Any] = settings.get("generation") or {}
        start = self.generation.get("decoder_start_token_id", self.generation.get("bos_token_id"))
        if start is None:
            hint = "its checkpoint's `generation_config.json` needs `decoder_start_token_id`"
            raise problem("the model does not say which token its texts start with", hint=hint)
        if tokenizing.FILE not in model.descriptor.tokenizer:
            hint = "the checkpoint that it was exported from needs a `tokenizer.json`"
            raise problem("the model has no tokenizer to read its tokens by", hint=hint)
        self.tokenizer = tokenizing.Tokenizer(model).rust
        self.start = int(start)
        ends = self.generation.get("eos_token_id")
        self.ends = np.array([] if ends is None else np.atleast_1d(ends), dtype=np.int64)
        self.most = most or _own_most(self.generation, settings.get("max_positions"))
        self.encoder, self.decoder = model.descriptor.components["encoder"], model.descriptor.components["decoder"]
        self.name = f"onnxruntime-{provider}"
        self._files = model.path / self.encoder.file, model.path / self.decoder.file
        self._open = lambda file: sessions.open_session(file, providers=runners.PROVIDERS[provider], threads=threads)
        self._sessions: tuple[Any, ...] = ()
        self._seconds = 0.0

    def __enter__(self) -> runners.Runner:
        self._sessions = tuple(map(self._open, self._files))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._sessions = ()

    def last_inference_time(self) -> float:
        return self._seconds

    def infer(self, feed_dict: Mapping[str, Any]) -> dict[str, Any]:
        """The texts of a batch of sources, [batch]."""
        started = time.perf_counter()
        tokens = self._tokens(feed_dict)
        self._seconds = time.perf_counter() - started
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens]
        return {TEXT: np.array(texts, dtype=np.object_)}

    def _tokens(self, feeds: Mapping[str, Any]) -> list[list[int]]:
        """The new tokens of each row, up to the first that ends it."""
        encoder, decoder = self._sessions
        batch = len(next(iter(feeds.values())))
        constant = self._encoded(encoder, feeds)
        cache = _empty_cache(self.decoder, constant, batch)
        step = tokens = np.full((batch, 1), self.start, dtype=np.int64)
        open_rows = np.ones(batch, dtype=bool)
        names = [t.name for t in self.decoder.outputs]
        for _ in range(self.most):
            found = dict(zip(names, decoder.run(names, {"input_ids": step, **constant, **cache}), strict=True))
            chosen: NDArray[np.int64] = found["logits"][:, -1].argmax(-1).astype(np.int64)
            tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
            open_rows &= ~np.isin(chosen, self.ends)
            if not open_rows.any():
                break
            cache = {name: found[name.replace(PAST, PRESENT, 1)] for name in cache}
            step = chosen[:, None] if cache else tokens
        return [_up_to(row, self.ends) for row in tokens[:, 1:]]

    def _encoded(self, encoder: Any, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """What the decoder takes of the source at every step."""
        names = [t.name for t in self.encoder.outputs]
        wanted = {t.name: t.dtype for t in self.decoder.inputs}
        given = dict(zip(names, encoder.run(names, dict(feeds)), strict=True))
        renamed = {name.replace(PRESENT, PAST, 1): values for name, values in given.items()}
        if "last_hidden_state" in renamed:
            renamed["encoder_hidden_states"] = renamed.pop("last_hidden_state")
        if "encoder_attention_mask" in wanted:
            renamed["encoder_attention_mask"] = feeds["attention_mask"]
        return {name: values.astype(wanted[name], copy=False) for name, values in renamed.items()}


def _empty_cache(decoder: Component, constant: Mapping[str, Any], batch: int) -> dict[str, Any]:
    own = [t for t in decoder.inputs if t.name.startswith(PAST) and t.name not in constant]
    sizes = {"batch": batch}
    return {
        t.name: np.zeros([sizes.get(d, 0) if isinstance(d, str) else d for d in t.shape], dtype=t.dtype) for t in own
    }


def _up_to(row: NDArray[np.int64], ends: NDArray[np.int64]) -> list[int]:
    """A row's tokens before the first that ends it."""
    ended = np.isin(row, ends)
    return [int(token) for token in (row[: int(ended.argmax())] if ended.any() else row)]


def _own_most(generation: Mapping[str, Any], positions: int | None) -> int:
    own = generation.get("max_new_tokens") or (generation.get("max_length") or 0) - 1
    most = int(own) if own > 0 else USUAL_NEW_TOKENS
    return most if positions is None else min(most, positions - 1)
