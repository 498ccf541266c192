"""ONNX Runtime's transformer fusions: attention, layer norms, GELU and embeddings as single operators.

The graph that is best depends on where it will run, so fuse for the provider:

- `provider: cpu` fuses attention and bias + GELU and leaves layer norms and embeddings as they are, because ONNX
  Runtime's CPU kernel for SkipLayerNormalization is about seven times slower per element than what it replaces.
  On CPU, fusion alone gains next to nothing over what ONNX Runtime does at load; it makes `int8` faster.
- `provider: cuda` fuses everything, which is where fusion pays.

What was fused is logged, and recorded in the descriptor (`fused` in its settings). A build in which nothing could be
fused fails, and so does one that leaves an attention unfused, unless `require` is told otherwise: what the optimizer
finds depends on the exporter, and a silent copy helps no one. The result is loaded in ONNX Runtime and compared with
its input at several shapes, with padding on both sides.

```yaml
targets:
  fused:     {kind: fused, from: onnx}
  for_gpu:   {kind: fused, from: onnx, provider: cuda, disable: [gelu]}
  from_file: {kind: fused, from: adopted, model_type: bert, heads: 12, hidden_size: 384}
```

ONNX Runtime's own patterns come first; they fuse attention whole, projections included, in BERT and its kin. Where
they find none (GPT-2, Llama, T5, ViT, ModernBERT, ... as transformers 5 writes them, and all that `dynamo` exported)
the core of each attention becomes one MultiHeadAttention. Both need `attn_implementation: eager`, as `onnx` exports it.
What fuses in which architecture is in [a table](../../measurements/fusion.md). A model of several graphs has each of
them fused.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Component, Descriptor
from modelbuild.errors import problem, suggestion
from modelbuild.kind import Context, Ref, SpecError

VERSION = 2
TOOLS = {"onnx": "cpu", "onnxruntime": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ()

Fusion = Literal[
    "attention", "bias_gelu", "bias_skip_layer_norm", "embed_layer_norm", "gelu", "layer_norm",
    "qordered_matmul", "rotary_embeddings", "skip_layer_norm",
]  # fmt: skip
EXPORT_HINT = (
    "export it with the TorchScript exporter and `attn_implementation: eager`, check `model_type`, `heads` and "
    "`hidden_size`, or say `require: []` to take what was fused"
)


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Meta(description="The ONNX model to fuse.")] = msgspec.field(name="from")
    provider: Annotated[
        Literal["cpu", "cuda"], Meta(description="The execution provider the graph is for.")
    ] = "cpu"  # fmt: skip
    model_type: Annotated[
        str,
        Meta(description="The architecture by transformers' or ONNX Runtime's name; `auto`: the checkpoint's."),
    ] = "auto"
    heads: Annotated[int, Meta(ge=0, description="Attention heads (`num_heads`); 0 reads them from the graph.")] = 0
    hidden_size: Annotated[int, Meta(ge=0, description="Width of the model; 0 reads it from the graph.")] = 0
    opt_level: Annotated[
        Literal[0, 1, 2, 99],
        Meta(description="ONNX Runtime's own optimizer before: 0 none, 1 basic, 2 extended, 99 all."),
    ] = 1
    disable: Annotated[tuple[Fusion, ...], Meta(description="Fusions to leave out.")] = ()
    require: Annotated[
        tuple[Literal["attention"], ...],
        Meta(description="Fusions that must succeed wherever the graph has the pattern."),
    ] = ("attention",)
    mask_index: Annotated[
        bool,
        Meta(
            description="Turn the mask into sequence lengths: faster on some GPUs, wrong for padding on the left "
            "(ONNX Runtime's `use_mask_index`)."
        ),
    ] = False
    shape_inference: Annotated[
        bool, Meta(description="Run symbolic shape inference first: slow, needed by few architectures.")
    ] = False
    tolerance: Annotated[
        float,
        Meta(gt=0, description="Largest difference to the input graph, relative to each output's largest magnitude."),
    ] = 1e-3

    def __post_init__(self) -> None:
        if "attention" in self.disable and "attention" in self.require:
            raise SpecError(
                "`attention` is both disabled and required", field="disable", hint="say `require: []` as well"
            )
        if bool(self.heads) != bool(self.hidden_size):
            given = "heads" if self.heads else "hidden_size"
            raise SpecError(f"`{given}` is given alone", field=given, hint="give both `heads` and `hidden_size`")


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import onnx_files

    source = ctx.input()
    components = source.descriptor.components
    if source.descriptor.format != "onnx":
        raise problem(
            "`fused` needs an ONNX model", format=source.descriptor.format, hint="put a target of kind `onnx` between"
        )
    for part in components.values():
        _require_unfused(onnx_files.load(source.path / part.file, weights=False))
    made = {name: _fuse(spec, source, name, ctx) for name in components}
    gained = sum((m.gained for m in made.values()), Counter[str]())
    _require_fused(spec, gained, sum(m.attentions for m in made.values()))
    nodes, apart = sum(m.nodes for m in made.values()), sum(m.apart for m in made.values())
    difference = max(_compare(spec, source, name, ctx) for name in components)
    ctx.progress(1, 1, "compare")
    told = ", ".join(f"{n} {op}" for op, n in sorted(gained.items()))
    ctx.log(f"fused {told}; {nodes} nodes" + (f"; {apart} residuals kept apart for CPU" if apart else ""))
    ctx.log(f"differs from its input by at most {difference:.1e} (tolerance {spec.tolerance:g})")
    for name in (*source.descriptor.tokenizer, *source.descriptor.extras):
        ctx.link(source.path / name, ctx.out / name)
    ctx.describe(
        msgspec.structs.replace(
            source.descriptor,
            components={name: m.component for name, m in made.items()},
            settings={**source.descriptor.settings, "fused": dict(sorted(gained.items())), "provider": spec.provider},
            metrics={**source.descriptor.metrics, "nodes": float(nodes)},
        )
    )


class _Fused(msgspec.Struct, frozen=True):
    """A fused graph that has been written: what was gained, the attentions it computes, its nodes, and how many
    residuals were kept apart."""

    component: Component
    gained: Counter[str]
    attentions: int
    nodes: int
    apart: int


def _fuse(spec: Spec, source: Artifact, name: str, ctx: Context) -> _Fused:
    """Fuse one graph of the model and write it."""
    from modelbuild.lib import attention_core, fusion, onnx_files, residuals

    part = source.descriptor.components[name]
    ctx.progress(0, 3, f"simplify the {name}")
    plain = fusion.simplified(source.path / part.file, ctx.scratch, level=spec.opt_level, provider=spec.provider)
    before, present = fusion.count(plain), fusion.attentions(plain)
    ctx.progress(1, 3, f"fuse the {name}")
    patterns = _patterns(spec, source, plain)
    model = fusion.fuse(plain, patterns)
    if "attention" not in spec.disable:
        attention_core.fuse(model, patterns.heads)
    gained = Counter({op: n for op, n in (fusion.count(model) - before).items() if n > 0})
    constants = {t.name for t in model.graph.initializer}
    apart = residuals.keep_apart(model.graph.node, constants) if spec.provider == "cpu" else 0
    onnx_files.clean(model)
    _drop_unused_domains(model)
    ctx.progress(2, 3, f"save the {name}")
    onnx_files.save(model, ctx.out / part.file)
    component = onnx_files.component(model, part.file)
    _require_inputs(part, component)
    return _Fused(component, gained, present, sum(onnx_files.operators(model).values()), apart)


def _require_unfused(model: Any) -> None:
    """A `ProblemError` when the graph has operators of ONNX Runtime's own, or none of a transformer's."""
    own = sorted({n.op_type for n in model.graph.node if n.domain == "com.microsoft"})
    if own:
        raise problem(
            "the model is already fused", operators=", ".join(own), hint="take `from` the target that exported it"
        )
    quantized = {"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "DynamicQuantizeLinear"}
    if any(n.op_type in quantized for n in model.graph.node):
        raise problem("the model is already quantized", hint="fuse first: `int8` takes `from` the fused model")


def _patterns(spec: Spec, source: Artifact, model: Any) -> Any:
    """What to look for, from the options, else from the checkpoint's settings, else from the graph."""
    from modelbuild.lib import fusion

    said = source.descriptor.settings.get("model_type", "bert") if spec.model_type == "auto" else spec.model_type
    family = fusion.ORT_TYPES.get(said, fusion.GENERAL if spec.model_type == "auto" else None)
    if family is None:
        known = sorted(fusion.ORT_TYPES)
        raise problem(
            f"ONNX Runtime's optimizer has no patterns for the architecture `{said}`",
            supported=", ".join(known),
            hint=suggestion(said, known) or "give the nearest of these as `model_type`",
        )
    heads, hidden_size = spec.heads, spec.hidden_size
    if not heads:
        heads, hidden_size = fusion.detect_heads(model)
    if not heads:
        heads, hidden_size = _configured_heads(source.descriptor, source)
    left_out = fusion.CPU_LEAVES_OUT if spec.provider == "cpu" else ()
    return fusion.Patterns(
        family=family,
        heads=heads,
        hidden_size=hidden_size,
        leave_out=(*left_out, *spec.disable),
        mask_index=spec.mask_index,
        shape_inference=spec.shape_inference,
    )


def _configured_heads(descriptor: Descriptor, source: Artifact) -> tuple[int, int]:
    """(heads, hidden size) from the checkpoint's config where it travels with the model, else (0, 0)."""
    if "config.json" not in descriptor.extras:
        return 0, 0
    config = json.loads((source.path / "config.json").read_text("utf-8"))
    heads, width = (
        next((int(config[name]) for name in names if config.get(name)), 0)
        for names in (
            ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
            ("hidden_size", "n_embd", "dim", "d_model"),
        )
    )
    return (heads, width) if heads and width else (0, 0)


def _require_fused(spec: Spec, gained: Counter[str], present: int) -> None:
    """A `ProblemError` when nothing was fused, or not every attention."""
    from modelbuild.lib import fusion

    if not gained:
        title = "nothing could be fused: the graph has no pattern that ONNX Runtime's optimizer knows"
        hint = EXPORT_HINT if present else "this is not a transformer's graph: leave out the `fused` target"
        raise problem(title, attentions_in_the_graph=present, hint=hint)
    fused = sum(n for op, n in gained.items() if op in fusion.ATTENTION)
    if "attention" in spec.require and fused < present:
        raise problem(
            f"{present - fused} of {present} attentions could not be fused",
            fused=", ".join(f"{n} {op}" for op, n in sorted(gained.items())),
            hint=EXPORT_HINT,
        )


def _require_inputs(source: Component, fused: Component) -> None:
    """A `ProblemError` when a pattern took an input away: the image patterns know no attention mask."""
    kept = {t.name for t in fused.inputs}
    lost = [t.name for t in source.inputs if t.name not in kept]
    if lost:
        raise problem(f"the fused model has lost the input `{lost[0]}`", hint="check `model_type`")


def _drop_unused_domains(model: Any) -> None:
    """The optimizer imports every domain it knows; TensorRT and others refuse domains they do not."""
    used = {n.domain for n in model.graph.node} | {f.domain for f in model.functions} | {"", "ai.onnx"}
    kept = [o for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _compare(spec: Spec, source: Artifact, name: str, ctx: Context) -> float:
    """The largest relative difference to the input graph; a `ProblemError` when it is above the tolerance."""
    from modelbuild.lib import agreement, sessions

    part, plain = source.descriptor.components[name], {"session.disable_prepacking": "1"}
    reference = sessions.open_session(source.path / part.file, threads=1, config=plain)
    fused = sessions.open_session(ctx.out / part.file, threads=1, config=plain)
    worst = agreement.largest_difference(reference, fused, part.inputs, pad_left=not spec.mask_index)
    if worst.relative > spec.tolerance:
        raise problem(
            "the fused model does not compute what its input does",
            output=worst.output,
            at=worst.case,
            relative_difference=f"{worst.relative:.2g}",
            tolerance=spec.tolerance,
            hint="leave out a fusion by `disable` (attention is the usual one), or check `heads` and `mask_index`",
        )
    return worst.relative
