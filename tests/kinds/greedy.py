"""Greedy generation through ONNX Runtime by an artifact's descriptor alone, as a server would do it."""

from __future__ import annotations

from typing import Any

import numpy as np

from modelbuild.artifact import Artifact, Component
from modelbuild.lib import sessions


def generate(made: Artifact, feeds: dict[str, Any], steps: int) -> Any:
    """The tokens that follow, int64 [batch, steps], padded after the end of a text.

    `feeds` is the prompt (`input_ids`, `attention_mask`, padded on the left) or what the encoder takes.
    """
    components, settings = made.descriptor.components, made.descriptor.settings["generation"]
    decoder = components.get("decoder") or components["model"]
    batch = len(next(iter(feeds.values())))
    given, tokens, mask = feeds, feeds.get("input_ids"), feeds.get("attention_mask")
    constant: dict[str, Any] = {}
    if "encoder" in components:
        constant = _encode(made, components["encoder"], decoder, given)
        tokens, mask = np.full((batch, 1), settings["decoder_start_token_id"]), None
    session = sessions.open_session(made.path / decoder.file)
    cache = _empty_cache(decoder, constant, batch)
    made_tokens, step, ended = [], tokens, np.zeros(batch, dtype=bool)
    for _ in range(steps):
        masks = {} if mask is None else {"attention_mask": mask}
        outputs = session.run(None, {"input_ids": step, **masks, **constant, **cache})
        by_name = dict(zip([o.name for o in decoder.outputs], outputs, strict=True))
        chosen = np.where(ended, settings["pad_token_id"], by_name["logits"][:, -1].argmax(-1))
        ended |= chosen == settings["eos_token_id"]
        made_tokens.append(chosen)
        cache = {n: by_name[n.replace("past_key_values", "present")] for n in cache}
        tokens = np.concatenate([tokens, chosen[:, None]], axis=1)
        step = chosen[:, None] if cache else tokens
        if mask is not None:
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        if ended.all():
            break
    return np.stack(made_tokens, axis=1)


def _encode(made: Artifact, encoder: Component, decoder: Component, feeds: dict[str, Any]) -> dict[str, Any]:
    """What the decoder takes of the source at every step."""
    outputs = sessions.open_session(made.path / encoder.file).run(None, feeds)
    names = {"last_hidden_state": "encoder_hidden_states"}
    found = {
        names.get(o.name, o.name.replace("present", "past_key_values")): value
        for o, value in zip(encoder.outputs, outputs, strict=True)
    }
    if "encoder_attention_mask" in {t.name for t in decoder.inputs}:
        found["encoder_attention_mask"] = feeds["attention_mask"]
    return found


def _empty_cache(decoder: Component, constant: dict[str, Any], batch: int) -> dict[str, Any]:
    sizes = {"batch": batch, "past_sequence": 0}
    own = [t for t in decoder.inputs if t.name.startswith("past_key_values") and t.name not in constant]
    return {t.name: np.zeros([sizes.get(d, d) for d in t.shape], dtype=t.dtype) for t in own}
