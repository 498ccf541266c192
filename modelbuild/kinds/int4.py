"""Weights in 4 bits (or 8), activations in floats: what language models are made small with.

Each product's constant weight is cut into blocks along its input, and each block has a scale, and without `symmetric`
a zero point, of its own. It needs no calibration data. ONNX Runtime's `MatMulNBits` runs it on CPUs and with CUDA;
TensorRT does not know it.

```yaml
targets:
  int4:    {kind: int4, from: onnx}
  smaller: {kind: int4, from: onnx, block_size: 64, embeddings: true, exclude: ["*lm_head*"]}
  weights: {kind: int4, from: onnx, bits: 8}
```

`accuracy_level: 4` lets products run in int8 (activations are rounded on the fly), which is faster on CPUs; 1 keeps
float32. A model of several graphs (text to text) has each of them quantized. The result runs beside its input on
made-up inputs, and is refused where its outputs are another thing altogether; how good it is on your data is what a
target of kind `verified` tells. Of MiniLM (90.8 MB), on held-out texts: 4 bits keep a mean cosine of 0.976 in 54.7 MB
(14.7 MB with `embeddings`), 8 bits 0.9999 in 60.2 MB.

Attention that `fused` has made one operator with its weights (BERT's) holds no product that could be quantized: take
`from` the exported model for those architectures.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.errors import ProblemError, problem
from modelbuild.kind import Context, Ref, SpecError

VERSION = 1
TOOLS = {"onnx": "cpu", "onnxruntime": "cpu", "numpy": "cpu"}
HARDWARE = ()
RESOURCES = ()


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Meta(description="The float32 ONNX model.")] = msgspec.field(name="from")
    bits: Annotated[Literal[4, 8], Meta(description="Bits of a weight.")] = 4
    block_size: Annotated[
        Literal[16, 32, 64, 128, 256], Meta(description="Weights that share a scale: fewer are better and larger.")
    ] = 32
    symmetric: Annotated[bool, Meta(description="No zero points: a little smaller, a little worse.")] = False
    accuracy_level: Annotated[
        Literal[1, 2, 3, 4] | None,
        Meta(description="What products compute in: 1 float32, 2 float16, 3 bfloat16, 4 int8."),
    ] = None
    embeddings: Annotated[bool, Meta(description="Quantize embedding tables too.")] = False
    exclude: Annotated[tuple[str, ...], Meta(description="Nodes that stay in floats, by name or pattern.")] = ()
    least_cosine: Annotated[
        float, Meta(ge=0, le=1, description="Least cosine of any output to the input's, on made-up inputs.")
    ] = 0.5

    def __post_init__(self) -> None:
        if self.embeddings and self.bits != 4:
            raise SpecError("`embeddings` are quantized to 4 bits only", field="embeddings")


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import onnx_files, weight_only

    source = ctx.input()
    described = source.descriptor
    if described.format != "onnx":
        raise problem("`int4` needs an ONNX model", format=described.format, hint="put a target of kind `onnx` between")
    components, count, size, worst = {}, 0, 0, 1.0
    unmatched = set(spec.exclude)
    for number, (name, graph) in enumerate(described.components.items()):
        ctx.progress(number, len(described.components), "quantize")
        model = onnx_files.load(source.path / graph.file)
        _require_float(model)
        weight_only.split_gemms(model)
        names = [node.name for node in model.graph.node]
        excluded = {n for n in names if any(fnmatchcase(n, p) for p in spec.exclude)}
        unmatched -= {p for p in spec.exclude if any(fnmatchcase(n, p) for n in names)}
        made = weight_only.quantize(
            model,
            bits=spec.bits,
            block_size=spec.block_size,
            symmetric=spec.symmetric,
            accuracy_level=spec.accuracy_level,
            embeddings=spec.embeddings,
            exclude=excluded,
        )
        found = weight_only.quantized(made)
        count += sum(found.values())
        onnx_files.clean(made)
        components[name] = onnx_files.component(made, graph.file)
        (ctx.out / graph.file).parent.mkdir(parents=True, exist_ok=True)
        files = onnx_files.save(made, ctx.out / graph.file)
        size += sum((ctx.out / graph.file).with_name(file).stat().st_size for file in files)
        del made, model
        if found:
            worst = min(worst, _likeness(spec, source.path / graph.file, ctx.out / graph.file, graph.inputs))
        prefix = f"`{name}`: " if len(described.components) > 1 else ""
        ctx.log(prefix + (", ".join(f"{n} {op}" for op, n in found.items()) or "nothing to quantize"))
    _require_found(spec, count, sorted(unmatched))
    for name in (*described.tokenizer, *described.extras):
        ctx.link(source.path / name, ctx.out / name)
    ctx.log(f"{size / 1e6:.1f} MB; cosine to its input {worst:.4f} at worst, on made-up inputs")
    settings = {**described.settings, "bits": spec.bits, "block_size": spec.block_size}
    ctx.describe(
        msgspec.structs.replace(
            described,
            precision=f"int{spec.bits}",
            components=components,
            settings=settings,
            metrics={**described.metrics, "size_bytes": float(size), "cosine_worst": float(f"{worst:.6g}")},
        )
    )


def _require_float(model: Any) -> None:
    from modelbuild.lib import weight_only

    done = sorted({n.op_type for n in model.graph.node if n.op_type in weight_only.DONE or "Quantize" in n.op_type})
    if done:
        hint = "take `from` the float model"
        raise problem("the model is quantized already", operators=", ".join(done), hint=hint)


def _require_found(spec: Spec, count: int, unmatched: Sequence[str]) -> None:
    if unmatched:
        raise problem(
            f"`exclude`: no node is called `{unmatched[0]}`", hint="name nodes as the ONNX graph does; `*` is anything"
        )
    if not count:
        hint = "take `from` the exported model: `fused` puts weights into attention"
        raise problem("the model has no product with a constant float32 weight", hint=hint)


def _likeness(spec: Spec, before: Any, after: Any, inputs: Any) -> float:
    """The least cosine of any output on made-up inputs of several shapes; a `ProblemError` below what is asked."""
    import numpy as np

    from modelbuild.lib import agreement, sessions

    reference, other = (sessions.open_session(path, threads=1) for path in (before, after))
    names = [o.name for o in reference.get_outputs()]
    worst = (1.0, names[0], "none")
    ran = 0
    for case, feeds in agreement.cases(inputs):
        try:
            with sessions.failures("the input model does not run"):
                expected = reference.run(names, feeds)
        except ProblemError:  # a shape that the input refuses is no case
            continue
        ran += 1
        with sessions.failures(f"the quantized model does not run on {case}"):
            got = other.run(names, feeds)
        for name, a, b in zip(names, expected, got, strict=True):
            if np.asarray(a).dtype.kind == "f" and np.asarray(a).size:
                worst = min(worst, (agreement.cosine(np.asarray(a), np.asarray(b)), name, case))
    if not ran:
        raise problem("the model could not be run at any shape")
    if worst[0] < spec.least_cosine:
        raise problem(
            "the quantized model does not compute what its input does",
            output=worst[1],
            at=worst[2],
            cosine=f"{worst[0]:.4f}",
            least=spec.least_cosine,
            hint="smaller `block_size`, `bits: 8`, or `exclude` what is sensitive; or lower `least_cosine`",
        )
    return worst[0]
