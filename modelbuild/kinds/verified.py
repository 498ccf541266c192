"""A model that is known to be good enough: compared with a reference, scored on labels, and passed through or refused.

The model of `from` runs on the dataset `data`, and so does the model of `against`; Polygraphy's runners run both
(ONNX Runtime on a CPU or with CUDA, or TensorRT for a plan). Each sample's answers are compared at its real tokens,
not at its padding, in batches in which lengths mix. Where the model's settings name a pooling, its answer is the pooled
embedding.

When all that `require` says holds, the artifact is the model itself, its files linked, with the figures in its
descriptor and in `verified.json`: whatever takes from this target has been checked. When something does not hold, the
build fails and says what missed by how much, and on which samples the model was worst. The requirements are no part of
what is made: to change one rebuilds nothing that comes after.

```yaml
targets:
  verified: {kind: verified, from: int8, against: onnx, data: heldout, require: {cosine: {min: 0.99}}}
  scored:
    kind: verified
    from: int8
    against: onnx
    data: labelled                     # a dataset with `label:`
    require:
      accuracy: {min: 0.9, max_loss: 0.01}   # at most 1 % worse than the reference's
      top1_agreement: {min: 0.98}
      logits.max_abs: {max: 0.5}             # of one output
```

Figures of the comparison, over all outputs (the worst of them) or of one (`output.figure`): `cosine` (mean) and
`cosine_min` (the worst sample), `max_abs`, `p99_abs`, `mean_abs`, `max_rel`, `mean_rel` (relative to the sample's
largest magnitude), `l2`, `l2_max`, `snr`, `snr_min`, `psnr`, `psnr_min` (dB, 200 for equal answers),
`top1_agreement`, `top5_agreement`; and of embeddings `similarity_spearman`, the rank correlation of all pairs'
similarities; and of generated texts `text_agreement`, the part that are the reference's. With `against`, a score of the
reference is told as `reference.accuracy`, and `max_loss` is the part of it that may be lost. A requirement that could
not be evaluated is a failure.

| scores | of | labels |
| --- | --- | --- |
| `accuracy`, `f1` (mean over the classes) | texts or images in classes | class numbers or names |
| `pearson`, `spearman` | one number per sample | numbers |
| `accuracy` of words, `f1` of entities | token classification | a class for each word |
| `exact_match`, `f1` of words, as in SQuAD | question answering | answers: a text, a list, `{text: [...]}` |
| `exact_match`, `wer` | text to text, speech | texts |
| `perplexity` | text generation (causal language models) | none |

A word has the class of its first token. Entities are told by classes `O`, `B-...` and `I-...`; with others, `f1` is the
mean over the classes. Where a question has no answer (an empty list), the model may choose none. Texts are generated
by the likeliest token each time, at most `max_new_tokens`, without the checkpoint's rules for choosing.

**A metric of your own** is a function `function(outputs, labels)` that returns a number: `outputs` maps each output's
name to one array per sample, without padding (`text`: the generated texts), and `labels` is a list, or None. *Building
runs the code in `code`*; loading the recipe does not. Its content is part of the key. For `max_loss`, more is better.

```yaml
targets:
  priced:
    kind: verified
    from: int8
    against: onnx
    data: labelled
    metrics: {profit: "shop.metrics:profit"}
    code: src
    require: {profit: {max_loss: 0.02}}
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact
from modelbuild.errors import Problem, ProblemError, problem
from modelbuild.kind import Context, Files, Ref, Source, SpecError
from modelbuild.lib import own_code

VERSION = 2
TOOLS = {
    "polygraphy": "quality", "onnxruntime": "cpu", "numpy": "cpu", "tokenizers": "cpu", "scikit-learn": "quality",
    "scipy": "quality", "jiwer": "quality",
}  # fmt: skip
HARDWARE = ("gpu",)
RESOURCES = ("gpu",)

TABLE = "verified.json"
CODE = Files(("*.py", "**/*.py"))


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a figure must be: at least `min`, at most `max`, and no more than `max_loss` (a part) worse than the
    reference's."""

    min: float | None = None
    max: float | None = None
    max_loss: float | None = None


class Spec(kind.Spec, frozen=True, kw_only=True):
    from_: Annotated[Ref, Meta(description="The model to check.")] = msgspec.field(name="from")
    against: Annotated[Ref | None, Meta(description="The model whose answers are the reference.")] = None
    data: Annotated[Ref, Meta(description="The dataset on which they run; it should not be what calibrated the model.")]
    require: Annotated[
        dict[str, Bound], Meta(description="Figure -> `min`, `max` and `max_loss` (0.01: at most 1 % worse).")
    ]
    metrics: Annotated[dict[str, str], Meta(description="Figures of your own: name -> `package.module:function`.")] = {}
    code: (
        Annotated[Source, CODE, Meta(description="The metrics' Python file, or the folder their package lies in.")]
        | None
    ) = None
    packages: Annotated[
        tuple[str, ...], Meta(description="Packages that the metrics' code uses: their versions enter the key.")
    ] = ()
    max_new_tokens: (
        Annotated[int, Meta(ge=1, description="Tokens of a generated text; by default the model's own, else 128.")]
        | None
    ) = None
    samples: Annotated[int, Meta(ge=1, description="Fail when the dataset has fewer samples than this.")] = 1
    batch_size: Annotated[int, Meta(ge=1, description="Samples that run together, padded to the longest.")] = 8
    provider: Annotated[Literal["cpu", "cuda"], Meta(description="Where ONNX models run.")] = "cpu"

    def __post_init__(self) -> None:
        if not self.require:
            raise SpecError("`require` names no figure", field="require", hint="such as `{cosine: {min: 0.99}}`")
        for name, bound in self.require.items():
            if bound == Bound():
                raise SpecError(f"`{name}` has neither `min` nor `max` nor `max_loss`", field="require")
            if bound.max_loss is not None and not 0 <= bound.max_loss < 1:
                raise SpecError(f"`max_loss` of `{name}` is a part from 0 to 1", field="require")
            if bound.max_loss is not None and self.against is None:
                raise SpecError(f"`max_loss` of `{name}` needs a reference: `against`", field="require")
        self._check_metrics()

    def _check_metrics(self) -> None:
        for name, function in self.metrics.items():
            if not re.fullmatch(r"[A-Za-z]\w*", name):
                raise SpecError(f"`{name}` is no name of a metric", field="metrics", hint="letters, digits and `_`")
            if not own_code.NAME.fullmatch(function):
                raise SpecError(f"`{function}` is not `package.module:function`", field="metrics")
        if self.metrics and self.code is None:
            hint = "name the Python file, or the folder its package lies in: its content enters the key"
            raise SpecError("`metrics` needs `code`", field="metrics", hint=hint)
        for field in ("code", "packages"):
            if getattr(self, field) and not self.metrics:
                raise SpecError(f"`{field}` is for `metrics`, and there are none", field=field)


def tools(spec: Spec) -> Collection[str]:
    """ONNX Runtime runs what is compared; a plan's own TensorRT is part of its content."""
    return TOOLS.keys() | set(spec.packages)


def hardware(spec: Spec) -> dict[str, str]:
    """Answers depend on the GPU only where one is asked for."""
    return {"gpu": "set `provider: cpu`, or run it on a machine with one"} if spec.provider == "cuda" else {}


def resources(spec: Spec) -> Collection[str]:
    """A GPU is not shared with another build."""
    return RESOURCES if spec.provider == "cuda" else ()


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import comparison, own_metrics, passing, samples

    model, reference = ctx.input(), ctx.inputs.get("against", ())
    data = samples.of(ctx.input("data"))
    if len(data) < spec.samples:
        raise problem("the dataset has fewer samples than asked for", has=len(data), asked=spec.samples)
    for each in (model, *reference):
        _require_runnable(each)
        comparison.require_same_tokenizer(each, ctx.input("data"))
    own = own_metrics.Metrics(ctx.sources["code"], spec.metrics) if spec.metrics else None
    if own is not None:
        comparison.require_new_names(own.functions)
    found = comparison.run(
        model,
        reference[0] if reference else None,
        data,
        size=spec.batch_size,
        provider=spec.provider,
        progress=ctx.progress,
        own=own,
        scratch=ctx.scratch,
        most=spec.max_new_tokens,
    )
    figures = {name: comparison.rounded(value) for name, value in found.figures.items()}
    for name in spec.require:
        comparison.require_known(name, figures)
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    _judge(spec, figures, found, ctx)
    passing.link(ctx, model, TABLE)
    worst = [{"sample": number + 1, **values} for number, values in found.worst]
    table = {"samples": len(data), "figures": figures, "worst": worst}
    (ctx.out / TABLE).write_bytes(msgspec.json.format(msgspec.json.encode(table, order="sorted"), indent=2) + b"\n")
    described = model.descriptor
    extras = tuple(dict.fromkeys([*described.extras, TABLE]))
    ctx.describe(msgspec.structs.replace(described, extras=extras, metrics={**described.metrics, **_flat(figures)}))


def _require_runnable(model: Artifact) -> None:
    if model.descriptor.format not in ("onnx", "trt-plan"):
        hint = "name targets that are ONNX models or plans"
        raise problem("a model to compare is neither ONNX nor a plan", format=model.descriptor.format, hint=hint)


def _flat(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if "." not in name}


def _judge(spec: Spec, figures: dict[str, float], found: Any, ctx: Context) -> None:
    """A `ProblemError` with all that missed, when anything did; else the figures are logged."""
    from modelbuild.lib import comparison

    missed = {}
    for name, bound in spec.require.items():
        value = figures[name]
        said = [
            *([f"at least {bound.min:g}"] if bound.min is not None and not value >= bound.min else []),
            *([f"at most {bound.max:g}"] if bound.max is not None and not value <= bound.max else []),
        ]
        if bound.max_loss is not None:
            kept = comparison.reference_of(name, figures)
            limit = comparison.limit(name, kept, bound.max_loss)
            if not (value <= limit if comparison.lower_is_better(name) else value >= limit):
                said.append(f"within {bound.max_loss:.3g} of the reference's {kept:g}")
        if said:
            missed[name] = f"{value:g} instead of {' and '.join(said)}"
        else:
            ctx.log(f"{name} {value:g}")
    if missed:
        worst = "; ".join(
            f"sample {number + 1} ({', '.join(f'{n} {v:.4g}' for n, v in values.items())})"
            for number, values in found.worst
        )
        facts = (*missed.items(), *((("worst", worst),) if worst else ()))
        title = f"{len(missed)} of {len(spec.require)} requirements did not hold"
        hint = "`modelbuild why` tells what changed; move the requirement if this is good enough"
        raise ProblemError(Problem(title, facts=facts, hint=hint))
    ctx.log(f"{len(spec.require)} requirements hold on {found.count} samples")
