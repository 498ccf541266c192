"""A model repository for Triton Inference Server: the graph, and text in, answer out, where there is a tokenizer.

```yaml
targets:
  onnx:   {kind: onnx, path: models/encoder.onnx, task: feature-extraction}
  serve:  {kind: triton-repo, from: onnx, tokenizer: checkpoint, pooling: mean}
  tensors:
    kind: triton-repo
    from: onnx
    text: false
    max_batch_size: 64
    dynamic_batching: {max_queue_delay_microseconds: 200, preferred_batch_size: [16, 32]}
    instance_group: [{kind: KIND_GPU, count: 2}]
    model_warmup: [{batch_size: 64, sizes: {sequence: 128}}]
    optimization:
      execution_accelerators:
        gpu_execution_accelerator: [{name: tensorrt, parameters: {precision_mode: FP16}}]
  checkpoint: {kind: checkpoint, path: checkpoint}
```

`models/` is the folder to give to `tritonserver --model-repository`; `modelbuild serve TARGET` does that, and
`modelbuild ask TARGET --text "..."` asks it.

**The graph** alone is served as `name`, with `backend: onnxruntime`, `tensorrt` (from a `trt-plan`, or several for
different compute capabilities) or `python`, which runs ONNX Runtime in Triton's Python backend, for servers that have
no other. Requests are batched where the model has a batch dimension.

**Text** is served where the target `tokenizer`, or the model itself, has a tokenizer and the task is one of those
below. Then `name` takes strings and answers, and asks the graph, which is `name` + `_model` and takes tensors as
well. Texts of all waiting requests are tokenized together, padded to the longest of them (or to the next of
`buckets`) and run as one batch, so that requests of different lengths share it. The server needs the packages in
`requirements.txt` (`tokenizers`; no PyTorch, no transformers).

| task | inputs | outputs, beside `tokens` (int32) and `truncated` (bool) |
|---|---|---|
| `feature-extraction` | `text` | `embedding` (float32, pooled and normalized as the model says) |
| `text-classification` | `text` | `label` (string), `score`, `scores` (float32, of all labels) |
| `token-classification` | `text` | `entities` (string: a JSON list with label, score, characters `start` to `end`) |
| `question-answering` | `question`, `context` | `answer` (string), `score`, `start`, `end` (in the context) |
| `text-generation`, `text2text-generation` | `text` | `generated_text`, `finish_reason`, `generated_tokens` |

**Generation** needs graphs with a key-value cache (kind `onnx`'s default), and is two models. `name` + `_stream` is
decoupled: it answers with every new piece of text (whole characters, and `index`, the text of the request it is of).
`name` hands requests on to it and answers once. Texts share batches whatever their lengths, `max_batch_size` (32) at a
time: those of a decoder-only model join the batch that runs and leave it when they end; those of an encoder and decoder
stay with the ones they began with. Both models run ONNX Runtime in the Python backend, on Triton 24.10 or newer.

A request says more by its `parameters`: `max_new_tokens`, `stop` (a text, or a JSON list of texts, not given back),
`temperature`, `top_k`, `top_p`, `seed`, `repetition_penalty`. Texts are generated greedily unless one of `temperature`
(above 0), `top_k`, `top_p` or `seed` is there; `generation` holds what requests do not say. The tokens that end a text
and rules such as `no_repeat_ngram_size` are the checkpoint's `generation_config.json`'s. Greedy texts are those of
transformers' `generate(do_sample=False, num_beams=1)`. `finish_reason` is `eos`, `stop` or `length`; what would be
longer than the model takes is an error, unless `max_length` says to how many tokens texts are cut (a decoder-only model
keeps their end).

With `text: false` a model of several graphs is served as one model for each, `name` + `_encoder` and `_decoder`.

Options named as fields of `config.pbtxt` mean those fields, and take what they take; `config` and `text_model` take
any others. They are checked by Triton's own schema, by what the server of release `triton` knows, and for all that is
known to make it refuse, crash or silently never batch. The same inputs give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modelbuild import kind
from modelbuild.artifact import Artifact, Component, Descriptor
from modelbuild.errors import problem
from modelbuild.kind import Context, Ref, SpecError

VERSION = 4
TOOLS = {"tritonclient": "triton", "onnx": "cpu", "tokenizers": "cpu", "numpy": "cpu", "onnxruntime": "cpu"}
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()

REPOSITORY = "models"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
RELEASE = re.compile(r"2[0-9]\.(0[1-9]|1[0-2])")
MAX_BATCH_SIZE = 32
FORMATS = {"onnxruntime": "onnx", "python": "onnx", "tensorrt": "trt-plan"}
OWN = (
    "name", "platform", "backend", "max_batch_size", "input", "output", "dynamic_batching", "sequence_batching",
    "instance_group", "model_warmup", "version_policy", "optimization", "response_cache", "parameters",
    "ensemble_scheduling", "default_model_filename", "cc_model_filenames",
)  # fmt: skip
"""Fields that `config` does not take: they have options of their own, or are ours to write."""
OF_TEXT = ("instance_group", "dynamic_batching", "response_cache", "version_policy", "metric_tags", "model_metrics")
"""Fields that `text_model` takes."""

Fields = dict[str, Any]


class Spec(kind.Spec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Annotated[
        Ref | Annotated[list[Ref], Meta(min_length=1)],
        Meta(description="The model; several TensorRT plans for several compute capabilities."),
    ]
    tokenizer: Annotated[Ref, Meta(description="Where the tokenizer comes from; else the model's own.")] | None = None
    name: Annotated[str, Meta(description="The name it is served under; else its task, or `model`.")] | None = None
    backend: (
        Annotated[
            Literal["onnxruntime", "tensorrt", "python"],
            Meta(description="What runs the graph; by default `tensorrt` for plans, else `onnxruntime`."),
        ]
        | None
    ) = None
    triton: Annotated[str, Meta(description="The oldest server release that must load it, such as `24.10`.")] = "24.10"
    version: Annotated[int, Meta(description="The version folder.", ge=1)] = 1
    text: (
        Annotated[bool, Meta(description="Serve text; by default where there is a tokenizer and a known task.")] | None
    ) = None
    max_batch_size: (
        Annotated[int, Meta(description="0: none; by default 32 where the model has a batch dimension.", ge=0)] | None
    ) = None
    dynamic_batching: (
        Annotated[bool | Fields, Meta(description="On by default where there is a batch; `false`, or its fields.")]
        | None
    ) = None
    sequence_batching: Annotated[Fields, Meta(description="For stateful models, in place of the former.")] | None = None
    instance_group: (
        Annotated[
            list[Fields],
            Meta(description="By default one, on a GPU where there is one (`KIND_AUTO`); takes `rate_limiter` too."),
        ]
        | None
    ) = None
    model_warmup: Annotated[
        list[Fields],
        Meta(description="Requests at load: `batch_size`, and `inputs`, or `sizes` of dimensions by name."),
    ] = []
    version_policy: Annotated[Fields, Meta(description="Which version folders are served.")] | None = None
    optimization: (
        Annotated[Fields, Meta(description="Graph level, CUDA graphs, `execution_accelerators` with parameters.")]
        | None
    ) = None
    response_cache: Annotated[
        bool, Meta(description="Answer equal requests from the server's cache, which it needs `--cache-config` for.")
    ] = False
    parameters: Annotated[
        dict[str, str | int | float | bool], Meta(description="Parameters of the backend, and free ones.")
    ] = {}
    config: Annotated[Fields, Meta(description="Any other fields of the graph's `config.pbtxt`.")] = {}
    text_model: Annotated[
        Fields, Meta(description=f"Fields of the text model's `config.pbtxt`: {', '.join(OF_TEXT)}.")
    ] = {}
    max_length: Annotated[int, Meta(description="Tokens of a text; else the model's own limit.", ge=1)] | None = None
    buckets: Annotated[
        list[Annotated[int, Meta(ge=1)]], Meta(description="Token counts to pad to, for plans and caches by shape.")
    ] = []
    pooling: Annotated[str, Meta(description="Embeddings: how token vectors become one; else the model's.")] | None = (
        None
    )
    normalize: Annotated[bool, Meta(description="Embeddings: scale to length 1; else as the model does.")] | None = None
    aggregation: Annotated[
        Literal["none", "simple", "first", "average", "max"],
        Meta(description="Entities: how tokens are joined, as in transformers."),
    ] = "simple"
    stride: (
        Annotated[int, Meta(description="Answers: tokens by which windows of a long context overlap.", ge=0)] | None
    ) = None
    max_answer_length: Annotated[int, Meta(description="Answers: the most tokens; 15.", ge=1)] | None = None
    max_new_tokens: (
        Annotated[
            int,
            Meta(description="Generation: the most tokens a request gets; else the checkpoint's number, or 256.", ge=1),
        ]
        | None
    ) = None
    generation: Annotated[
        Fields, Meta(description="Generation: parameters of requests that do not say them, such as `temperature`.")
    ] = {}

    def __post_init__(self) -> None:
        if self.name is not None and not NAME.fullmatch(self.name):
            raise SpecError(f"`{self.name}` cannot be a model's name", field="name", hint="letters, digits and `_.-`")
        if not RELEASE.fullmatch(self.triton):
            raise SpecError(f"`{self.triton}` is no Triton release", field="triton", hint='year and month: `"24.10"`')
        if self.sequence_batching is not None:
            other = (
                "dynamic_batching"
                if self.dynamic_batching not in (None, False)
                else "tokenizer"
                if self.tokenizer
                else ""
            )
            if other or self.text:
                title = f"`sequence_batching` and `{other or 'text'}` exclude each other"
                raise SpecError(title, field="sequence_batching")
        if self.max_batch_size == 0 and self.dynamic_batching:
            hint = "Triton would accept that and never batch: give a `max_batch_size`"
            raise SpecError("`dynamic_batching` needs a batch", field="dynamic_batching", hint=hint)
        for sample in self.model_warmup:
            size = sample.get("batch_size", 1)
            if self.max_batch_size is not None and isinstance(size, int) and size > max(self.max_batch_size, 1):
                hint = "the server would crash at load"
                raise SpecError("warm-up with more than `max_batch_size`", field="model_warmup", hint=hint)
        for field, allowed in (("config", None), ("text_model", OF_TEXT)):
            for name in getattr(self, field):
                if (name in OWN) if allowed is None else (name not in allowed):
                    hint = (
                        f"it takes {', '.join(allowed)}" if allowed else "`platform` is `backend`, the others options"
                    )
                    raise SpecError(f"`{field}` does not take `{name}`", field=field, hint=hint)
        if self.text is False and (self.tokenizer or self.text_model or self.buckets):
            field = "tokenizer" if self.tokenizer else "text_model" if self.text_model else "buckets"
            raise SpecError(f"`{field}` is for text, which `text: false` leaves out", field=field)


def tools(spec: Spec) -> Collection[str]:
    """A graph alone needs no tokenizer; ONNX Runtime's version is written for what may run in the Python backend."""
    found = {"tritonclient", "onnx", "numpy"}
    return (
        found
        | ({"tokenizers"} if spec.text is not False else set())
        | ({"onnxruntime"} if spec.backend == "python" or (spec.backend is None and spec.text is not False) else set())
    )


def build(spec: Spec, ctx: Context) -> None:
    from modelbuild.lib import triton_generation, triton_lint, triton_repository

    sources = ctx.inputs["from"]
    lender = _lender(spec, ctx)
    first = sources[0].descriptor
    generates = lender is not None and triton_generation.servable(first.task)
    if generates:
        given = {n: bool(getattr(spec, n)) for n in ("dynamic_batching", "response_cache", "model_warmup", "buckets")}
        given |= {n: True for n in ("dynamic_batching", "response_cache") if n in spec.text_model}
        triton_generation.require_options(spec.triton, spec.backend, given)
    backend = "python" if generates and spec.backend is None else _backend(spec, sources)
    name = spec.name or first.task or "model"
    if not NAME.fullmatch(name):
        raise problem(f"the task `{name}` cannot be a model's name", hint="give `name`")
    settings: dict[str, Any] = {"model": name, "backend": backend, "triton": spec.triton, "text": lender is not None}
    packages = {"numpy", "onnxruntime"} if backend == "python" else set()
    if lender is not None:
        packages |= {"numpy", "tokenizers"}
    if lender is not None and generates:
        components = _serve_generation(spec, ctx, lender, name)
        settings["stream"] = f"{name}_stream"
    elif lender is not None:
        served, size = _serve_graph(spec, ctx, backend, f"{name}_model", first.model(), cached=False)
        components = {name: _serve_text(spec, ctx, lender, name, f"{name}_model", size), f"{name}_model": served}
    else:
        components = _serve_graphs(spec, ctx, backend, name)
        settings["model"] = f"{name}_encoder" if f"{name}_encoder" in components else next(iter(components))
    gpu = any(group.get("kind") == "KIND_GPU" for group in spec.instance_group or ())
    triton_repository.write_requirements(ctx.out, {p: TOOLS[p] for p in packages}, spec.triton, gpu=gpu)
    if spec.response_cache:
        settings["response_cache"] = True
        ctx.log("`response_cache` needs the server's `--cache-config local,size=BYTES`")
    if any("rate_limiter" in group for group in spec.instance_group or ()):
        settings["rate_limiter"] = True
        ctx.log("`rate_limiter` needs the server's `--rate-limit execution_count`")
    triton_lint.require_sound(ctx.out / REPOSITORY, spec.triton)
    ctx.describe(
        Descriptor(
            format="triton-repo",
            task=first.task,
            precision=first.precision,
            components=components,
            settings=settings,
            metrics=first.metrics,
        )
    )


def _backend(spec: Spec, sources: tuple[Artifact, ...]) -> str:
    """What runs the graph; a `ProblemError` unless the inputs are for it."""
    formats = {a.descriptor.format for a in sources}
    backend = spec.backend or ("tensorrt" if formats == {"trt-plan"} else "onnxruntime")
    if formats != {FORMATS[backend]}:
        raise problem(
            f"`backend: {backend}` does not run this",
            format=", ".join(sorted(formats)),
            needs=FORMATS[backend],
            hint="give `from` a target of kind `trt-plan`" if backend == "tensorrt" else "give `from` an ONNX model",
        )
    if len(sources) > 1 and backend != "tensorrt":
        raise problem("several models make a repository only as plans of several compute capabilities")
    if any(a.descriptor.settings.get("backend") == "rtx" for a in sources):
        raise problem(
            "Triton's TensorRT backend does not load plans of TensorRT-RTX", hint="`trt-plan` with `backend: tensorrt`"
        )
    return backend


def _lender(spec: Spec, ctx: Context) -> Artifact | None:
    """Whose tokenizer serves text, or None where the graph is served alone."""
    from modelbuild.lib import triton_generation, triton_text

    source = ctx.inputs["from"][0]
    named = ctx.inputs.get("tokenizer") or ()
    lender = named[0] if named else source
    if spec.text is False or spec.sequence_batching is not None:
        return None
    if spec.text or named:
        return lender
    if not source.descriptor.tokenizer:
        return None
    task = source.descriptor.task
    if not (triton_text.servable(task) or triton_generation.servable(task)):
        ctx.log(f"text is not served: the task is `{task}`; the graph is")
        return None
    return lender


def _serve_graphs(spec: Spec, ctx: Context, backend: str, name: str) -> dict[str, Component]:
    """The graph as `name`, or each of several as `name_<component>`."""
    graphs = ctx.inputs["from"][0].descriptor.components
    names = {name: next(iter(graphs.values()))} if len(graphs) == 1 else {f"{name}_{c}": g for c, g in graphs.items()}
    if len(graphs) > 1:
        ctx.log(f"each graph is a model of its own: {', '.join(names)}")
    return {n: _serve_graph(spec, ctx, backend, n, g, cached=spec.response_cache)[0] for n, g in names.items()}


def _serve_graph(
    spec: Spec, ctx: Context, backend: str, name: str, component: Component, *, cached: bool
) -> tuple[Component, int]:
    """Write the graph's model; what its clients send and get, and its `max_batch_size`."""
    from modelbuild.lib import triton_config, triton_graph, triton_parameters, triton_repository, triton_schema

    source = ctx.inputs["from"][0]
    taken = triton_graph.taken_by_sequences(spec.sequence_batching or {}, component, backend)
    visible = msgspec.structs.replace(
        component,
        inputs=tuple(t for t in component.inputs if t.name not in taken),
        outputs=tuple(t for t in component.outputs if t.name not in taken),
    )
    batch = triton_config.batch(visible.inputs, visible.outputs)
    size = triton_graph.max_batch_size(spec.max_batch_size, batch, source.descriptor.settings, MAX_BATCH_SIZE)
    if not size:
        ctx.log(f"no batches: {batch.why or 'as asked'}")
    config = triton_config.new(name, backend, component, size, without=taken)
    folder = ctx.out / REPOSITORY / name
    version = folder / str(spec.version)
    version.mkdir(parents=True)
    triton_graph.link(ctx, backend, version, config, component)
    if spec.sequence_batching is not None:
        triton_schema.merge(config, {"sequence_batching": spec.sequence_batching})
    elif spec.dynamic_batching not in (None, False) or (size and spec.dynamic_batching is None):
        batching = spec.dynamic_batching if isinstance(spec.dynamic_batching, dict) else {}
        triton_schema.merge(config, {"dynamic_batching": batching})
    kinds = {"python": "KIND_CPU", "tensorrt": "KIND_GPU"}
    groups = spec.instance_group or [{"count": 1, "kind": kinds.get(backend, "KIND_AUTO")}]
    fields = {"instance_group": groups, "optimization": spec.optimization, "parameters": spec.parameters, **spec.config}
    triton_schema.merge(config, {**fields, **_shared(spec, cached)})
    for parameter in triton_parameters.ignored(backend, spec.parameters):
        ctx.log(f"the {backend} backend does not read the parameter `{parameter}`")
    triton_parameters.require_accelerators(backend, config)
    labels = source.descriptor.settings.get("labels")
    if labels and len(config.output) == 1 and list(config.output[0].dims) == [len(labels)]:
        config.output[0].label_filename = triton_repository.write_labels(folder, labels)
    triton_repository.add_warmup(folder, config, visible.inputs, spec.model_warmup)
    triton_repository.write_config(folder, config)
    return msgspec.structs.replace(visible, file=f"{REPOSITORY}/{name}/config.pbtxt"), size


def _shared(spec: Spec, cached: bool) -> Fields:
    """The fields that the text model and the graph's may both have."""
    return {"version_policy": spec.version_policy, "response_cache": {"enable": True} if cached else None}


def _serve_text(spec: Spec, ctx: Context, lender: Artifact, name: str, graph: str, size: int) -> Component:
    """Write the text model, which asks the graph's; what its clients send and get."""
    from modelbuild.lib import triton_config, triton_repository, triton_schema, triton_text
    from modelbuild.lib.triton_serving.text_model import TextModel

    source = ctx.inputs["from"][0]
    component = source.descriptor.model()
    wanted = triton_text.Wanted(
        max_length=spec.max_length,
        buckets=spec.buckets,
        pooling=spec.pooling,
        normalize=spec.normalize,
        aggregation=spec.aggregation,
        stride=spec.stride,
        max_answer_length=spec.max_answer_length,
    )
    fixed = triton_config.batch(component.inputs, component.outputs).fixed
    settings = triton_text.settings(
        source, lender, wanted, model=graph, rows=fixed or size, rows_fixed=fixed is not None
    )
    served = triton_text.component(settings)
    folder = ctx.out / REPOSITORY / name
    version = folder / str(spec.version)
    version.mkdir(parents=True)
    config = triton_config.new(name, "python", served, size or MAX_BATCH_SIZE)
    extra = dict(spec.text_model)
    batching = extra.pop("dynamic_batching", {} if spec.dynamic_batching is None else spec.dynamic_batching)
    if batching is not False:
        triton_schema.merge(config, {"dynamic_batching": batching if isinstance(batching, dict) else {}})
    groups = [{"count": 1, "kind": "KIND_CPU"}]
    triton_schema.merge(config, {"instance_group": groups, **_shared(spec, spec.response_cache), **extra})
    for output in config.output:
        if output.name == "scores" and "labels" in settings:
            output.label_filename = triton_repository.write_labels(folder, settings["labels"])
    triton_text.files(version, lender, settings)
    triton_repository.write_program(version, TextModel)
    triton_repository.write_config(folder, config)
    ctx.log(f"`{name}` takes text: at most {settings['max_length']} tokens, longer ones are cut and said so")
    return msgspec.structs.replace(served, file=f"{REPOSITORY}/{name}/config.pbtxt")


def _serve_generation(spec: Spec, ctx: Context, lender: Artifact, name: str) -> dict[str, Component]:
    """Write the model that streams and the one that replies; what clients of each send and get."""
    from modelbuild.lib import (
        triton_config,
        triton_generation,
        triton_graph,
        triton_parameters,
        triton_repository,
        triton_schema,
    )
    from modelbuild.lib.triton_serving.reply_model import ReplyModel
    from modelbuild.lib.triton_serving.said import OUTPUTS
    from modelbuild.lib.triton_serving.stream_model import StreamModel

    source = ctx.inputs["from"][0]
    slots = spec.max_batch_size or (MAX_BATCH_SIZE if spec.max_batch_size is None else 1)
    wanted = triton_generation.Wanted(spec.max_length, spec.max_new_tokens, spec.generation)
    settings = triton_generation.settings(source, lender, wanted, slots=slots)
    stream = f"{name}_stream"
    versions = {}
    for model in (stream, name):
        versions[model] = ctx.out / REPOSITORY / model / str(spec.version)
        versions[model].mkdir(parents=True)
    for file, graph in triton_generation.components(source).values():
        triton_graph.link_onnx(ctx, source.path / graph.file, versions[stream] / file)
    triton_generation.files(versions[stream], lender, settings)
    triton_repository.write_program(versions[stream], StreamModel)
    outputs = [output for output, _ in OUTPUTS]
    triton_generation.write_settings(versions[name], {"model": stream, "outputs": outputs})
    triton_repository.write_program(versions[name], ReplyModel)
    groups = [{"count": 1, "kind": "KIND_CPU"}]
    fields: dict[str, Fields] = {
        stream: {
            "model_transaction_policy": {"decoupled": True},
            "instance_group": spec.instance_group or groups,
            "optimization": spec.optimization,
            "parameters": spec.parameters,
            **spec.config,
        },
        name: {"instance_group": groups, **spec.text_model},
    }
    served = {}
    for model in (name, stream):
        component = triton_generation.component(streams=model == stream)
        config = triton_config.new(model, "python", component, slots)
        triton_schema.merge(config, {**fields[model], "version_policy": spec.version_policy})
        triton_parameters.require_accelerators("python", config)
        triton_repository.write_config(ctx.out / REPOSITORY / model, config)
        served[model] = msgspec.structs.replace(component, file=f"{REPOSITORY}/{model}/config.pbtxt")
    for parameter in triton_parameters.ignored("python", spec.parameters):
        ctx.log(f"the python backend does not read the parameter `{parameter}`")
    for said in triton_generation.unfollowed(source):
        ctx.log(said)
    ctx.log(f"`{name}` replies and `{stream}` streams: at most {settings['max_new_tokens']} new tokens a text")
    return served
