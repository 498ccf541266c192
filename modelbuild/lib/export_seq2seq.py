"""Models of an encoder and a decoder, text to text or speech to text, as two graphs.

The encoder gives the keys and values of the cross attention, which depend on the source alone, so the decoder computes
them never again, and needs no graph of its own for the first token: one decoder serves all steps, its cache empty
(length 0) at the start. (optimum's three graphs hold the decoder's weights twice.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelbuild.errors import problem
from modelbuild.lib import lean_torch, made_inputs
from modelbuild.lib.export_decoder import TOTAL, cache_names, cache_of, flat
from modelbuild.lib.export_graph import Case, Graph, Port, running
from modelbuild.lib.export_tasks import TASKS
from modelbuild.lib.positional import wrapped

STEPS = ((1, 7, 0, 1), (2, 16, 5, 1), (3, 9, 2, 4), (2, 1, 0, 6))
"""(batch, source tokens, tokens in the cache, tokens of this step)."""
SAMPLE = (2, 5, 4, 3)


def graphs(torch: Any, model: Any, use_cache: bool, speech: bool) -> list[Graph]:
    """The graphs `encoder` and `decoder`.

    The encoder takes `input_ids` and `attention_mask` [batch, source_sequence], or for speech `input_features` [batch,
    bands, frames], and gives `present.{layer}.encoder.key` and `.value` [batch, heads, source_sequence, size]. The
    decoder takes `input_ids` [batch, sequence], `encoder_attention_mask` (text alone), these as
    `past_key_values.{layer}.encoder.key`..., and `past_key_values.{layer}.decoder.key`... [batch, heads, past_sequence,
    size]; it gives `logits` [batch, sequence, vocabulary] and `present.{layer}.decoder.key`... . Without the cache the
    encoder gives `last_hidden_state`, and the decoder takes it as `encoder_hidden_states` with all tokens so far.
    """
    runs = [_Run(torch, model, step, speech) for step in _steps(model.config, speech)]
    sample = _Run(torch, model, SAMPLE, speech)
    source_axes = {0: "batch"} if speech else {0: "batch", 1: "source_sequence"}
    sources = tuple(Port(n, source_axes) for n in sample.source)
    masks = () if speech else (Port("encoder_attention_mask", source_axes),)
    tokens, logits = Port("input_ids", {0: "batch", 1: "sequence"}), Port("logits", {0: "batch", 1: "sequence"})
    if not use_cache:
        hidden = (Port("encoder_hidden_states", source_axes),)
        return [
            Graph(
                "encoder", wrapped(torch, model, lambda *source: (_encode(model, source),)), sources,
                (Port("last_hidden_state", source_axes),), sample.source,
                tuple(Case(r.name, r.source, [r.hidden]) for r in runs),
            ),
            Graph(
                "decoder", wrapped(torch, model, _uncached(model, speech)), (tokens, *masks, *hidden), (logits,),
                sample.uncached, tuple(Case(r.name, r.uncached, [r.logits]) for r in runs),
            ),
        ]  # fmt: skip
    length = {} if speech else {2: "source_sequence"}
    count = len(sample.own)
    cross = [Port(n, {0: "batch", **length}) for n in cache_names("present", count, "encoder.")]
    past = [Port(n, {0: "batch", 2: "past_sequence"}) for n in cache_names("past_key_values", count, "decoder.")]
    given = [Port(n, {0: "batch", **length}) for n in cache_names("past_key_values", count, "encoder.")]
    grown = [Port(n, {0: "batch", 2: TOTAL}) for n in cache_names("present", count, "decoder.")]
    return [
        Graph(
            "encoder", wrapped(torch, model, _cross(model, speech, sample.sizes)), sources, tuple(cross),
            sample.source, tuple(Case(r.name, r.source, r.cross) for r in runs),
        ),
        Graph(
            "decoder", wrapped(torch, model, _cached(model, speech, count)), (tokens, *masks, *past, *given),
            (logits, *grown), sample.cached, tuple(Case(r.name, r.cached, [r.new_logits, *r.own]) for r in runs),
        ),
    ]  # fmt: skip


class _Run:
    """What the model itself gives for made-up sources and tokens, run over all tokens at once."""

    def __init__(self, torch: Any, model: Any, step: tuple[int, int, int, int], speech: bool) -> None:
        batch, length, past, new = step
        self.past, config = past, model.config
        where = f"{batch}x{length}" if not speech else str(batch)
        self.name = f"{where}, {new} tokens{f' after {past}' if past else ''}"
        self.source: Mapping[str, Any] = _source(model, batch, length, speech)
        self.tokens = made_inputs.ids(config, batch, past + new)
        inputs = {**self.source, "decoder_input_ids": self.tokens}
        result = running(torch, model, inputs, self.name, use_cache=True, return_dict=True)
        self.hidden, self.logits = result.encoder_last_hidden_state.numpy(), result.logits.numpy()
        self.own = [t.numpy() for t in flat(result.past_key_values.self_attention_cache)]
        self.cross = [t.numpy() for t in flat(result.past_key_values.cross_attention_cache)]
        self.new_logits = self.logits[:, past:]

    @property
    def sizes(self) -> tuple[int, int]:
        """Heads of the cross attention, and the size of each."""
        return self.cross[0].shape[1], self.cross[0].shape[3]

    @property
    def cached(self) -> dict[str, Any]:
        """The decoder's inputs after `past` tokens."""
        own = {
            n: t[:, :, : self.past].copy()
            for n, t in zip(cache_names("past_key_values", len(self.own), "decoder."), self.own, strict=True)
        }
        cross = dict(zip(cache_names("past_key_values", len(self.cross), "encoder."), self.cross, strict=True))
        return {"input_ids": self.tokens[:, self.past :].copy(), **self._mask, **own, **cross}

    @property
    def uncached(self) -> dict[str, Any]:
        """The decoder's inputs without a cache."""
        return {"input_ids": self.tokens, **self._mask, "encoder_hidden_states": self.hidden}

    @property
    def _mask(self) -> dict[str, Any]:
        mask = self.source.get("attention_mask")
        return {} if mask is None else {"encoder_attention_mask": mask}


def _source(model: Any, batch: int, length: int, speech: bool) -> dict[str, Any]:
    """Tokens and their mask, or log-mel features of the one length the model takes (two frames a position)."""
    import numpy as np

    if not speech:
        return made_inputs.text(("input_ids", "attention_mask"), batch, length, model.config)
    random, config = np.random.default_rng(batch), model.config
    bands, positions = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    if bands is None or positions is None:
        raise problem(
            f"the speech of `{type(model).__name__}` is not of a form that can be exported",
            supported=", ".join(TASKS["automatic-speech-recognition"].tested),
            hint="export it elsewhere and adopt the file with `path:`",
        )
    shape = (batch, bands, 2 * positions)
    return {model.main_input_name: random.standard_normal(shape).astype(np.float32)}


def _steps(config: Any, speech: bool) -> list[tuple[int, int, int, int]]:
    limit = made_inputs.positions(config)
    batches: dict[int, tuple[int, int, int, int]] = {}
    for batch, length, past, new in STEPS:
        step = (batch, min(length, limit), past, new)
        if past + new <= limit:
            batches[batch if speech else len(batches)] = step
    return list(batches.values())


def _encode(model: Any, source: tuple[Any, ...]) -> Any:
    names = ("input_ids", "attention_mask") if len(source) == 2 else (model.main_input_name,)
    return model.get_encoder()(**dict(zip(names, source, strict=True)), return_dict=True).last_hidden_state


def _cross(model: Any, speech: bool, sizes: tuple[int, int]) -> Any:
    """The encoder, and the keys and values that the decoder makes of its result, [batch, heads, source, size].

    The decoder is run on one made-up token, and what its linear layers give for the encoder's result is kept: the rest
    is traced away. (Read from the cache they would depend on the decoder's other layers, by the shapes Whisper asks.)
    """
    caches = lean_torch.import_caches()
    import torch

    heads, size = sizes

    def forward(*source: Any) -> tuple[Any, ...]:
        hidden = _encode(model, source)
        projected: list[Any] = []

        def keep(_: Any, given: tuple[Any, ...], result: Any) -> None:
            if given and given[0] is hidden:
                projected.append(result.view(hidden.shape[0], hidden.shape[1], heads, size).transpose(1, 2))

        decoder = model.get_decoder()
        hooks = [m.register_forward_hook(keep) for m in decoder.modules() if isinstance(m, torch.nn.Linear)]
        cache = caches.EncoderDecoderCache(caches.DynamicCache(), caches.DynamicCache())
        mask = {} if speech else {"encoder_attention_mask": source[1]}
        start = torch.zeros(hidden.shape[0], 1, dtype=torch.long)
        try:
            decoder(input_ids=start, encoder_hidden_states=hidden, past_key_values=cache, use_cache=True, **mask)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(projected)

    return forward


def _cached(model: Any, speech: bool, count: int) -> Any:
    caches = lean_torch.import_caches()
    import torch

    def forward(tokens: Any, *rest: Any) -> tuple[Any, ...]:
        mask, tensors = ({}, rest) if speech else ({"attention_mask": rest[0]}, rest[1:])
        own, cross = tensors[:count], tensors[count:]
        cache = caches.EncoderDecoderCache(cache_of(caches, own), cache_of(caches, cross))
        cache.is_updated = dict.fromkeys(range(count // 2), True)
        # Of the hidden states just the shape is looked at: their keys and values are in the cache.
        hidden = cross[0][:, 0, :, :1].expand(-1, -1, model.config.d_model)
        visible = torch.ones(tokens.shape[0], own[0].shape[2] + tokens.shape[1], dtype=torch.long)
        result = model(
            encoder_outputs=(hidden,), decoder_input_ids=tokens, decoder_attention_mask=visible,
            past_key_values=cache, use_cache=True, return_dict=True, **mask,
        )  # fmt: skip
        return (result.logits, *flat(result.past_key_values.self_attention_cache))

    return forward


def _uncached(model: Any, speech: bool) -> Any:
    import torch

    def forward(tokens: Any, *rest: Any) -> tuple[Any, ...]:
        mask = {} if speech else {"attention_mask": rest[0]}
        result = model(
            encoder_outputs=(rest[-1],), decoder_input_ids=tokens, decoder_attention_mask=torch.ones_like(tokens),
            use_cache=False, return_dict=True, **mask,
        )  # fmt: skip
        return (result.logits,)

    return forward
