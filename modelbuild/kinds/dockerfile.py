"""A container's context: the model, a server of the Open Inference Protocol v2, and a Dockerfile that needs no edits.

```yaml
targets:
  onnx:   {kind: onnx, path: models/encoder.onnx, task: feature-extraction}
  image:  {kind: dockerfile, from: onnx, tokenizer: checkpoint, pooling: mean}
  gpu:    {kind: dockerfile, from: onnx, text: false, device: gpu, max_batch_size: 64}
  repo:   {kind: triton-repo, from: onnx, text: false}
  triton: {kind: dockerfile, from: repo, runtime: triton}
  checkpoint: {kind: checkpoint, path: checkpoint}
```

`docker build -t image artifacts/RECIPE/image && docker run --rm -p 8000:8000 image` is an endpoint; so is
`modelbuild serve TARGET`, which starts the same server without a container; `modelbuild ask TARGET --text "..."` asks
either. The folder holds

- `Dockerfile`: base by `ARG BASE_IMAGE`, packages in a stage of their own, the model in its own layer below the
  program, a numeric user, a health check, labels with the key and the SHA-256 of what is served;
- `model/` and `SHA256SUMS` of its files; the label `io.modelbuild.model.sha256` is the SHA-256 of that file;
- `server/`: the program, on Starlette and uvicorn. It needs numpy, ONNX Runtime and `tokenizers`; no PyTorch, no
  transformers. `python -m modelserver.container_serving.check` in the container tries it;
- `requirements.txt`: every package at the version that is installed where this is built.

**Text** is served where there is a tokenizer and the task is one that
[`triton-repo`](triton-repo.md) serves, with the same inputs, outputs and options; `name` takes texts and `name` +
`_model` the graph's tensors. Without, `name` takes tensors. A model of several graphs is served as one model for each.

A model that **generates** (`text-generation`, `text2text-generation`, with a key-value cache) replies as `name` and
streams as `name` + `_stream`, by Triton's `generate` and `generate_stream`. Texts of all clients share batches of up to
`max_batch_size`, which those of a decoder-only model join and leave at any token.

**Requests** of all clients that wait when a worker is free share a batch, up to `max_batch_size` rows, whatever the
lengths of their texts. One that fails is run again without the others. What waits is limited (`max_queue`), and so
are bodies (`max_body_bytes`): beyond, clients get 503 and 413. At SIGTERM the server takes no more, and finishes what
it has. Logs are JSON lines on stdout; `/metrics` is for Prometheus. Options can be set again when the container
starts, by `MODELSERVER_` and the name in capitals: `MODELSERVER_MAX_QUEUE=64`.

`runtime: triton` makes the Dockerfile around a `triton-repo` instead. The same inputs give the same bytes.
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
from modelbuild.kind import Context, Lineage, Ref, SpecError

VERSION = 2
TOOLS = dict.fromkeys(
    (
        *("anyio", "click", "flatbuffers", "h11", "httptools", "idna", "numpy", "onnx", "onnxruntime", "orjson"),
        *("packaging", "prometheus-client", "protobuf", "starlette", "tokenizers", "typing-extensions", "uvicorn"),
        "uvloop",
    ),
    "container",
)
"""What the container installs, with all that these need but `huggingface-hub`, which `tokenizers` does without.

And onnx, by which the model's files are found."""
HARDWARE: tuple[str, ...] = ()
RESOURCES: tuple[str, ...] = ()

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LABEL = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*")
BASE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*")
SERVER = (
    "port", "workers", "threads", "max_batch_size", "max_queue", "max_body_bytes", "max_connections",
    "request_seconds", "stop_seconds", "log_requests",
)  # fmt: skip
"""Options that are the server's settings, and can be set again when it starts."""
OF_TEXT = ("max_length", "buckets", "pooling", "normalize", "stride", "max_answer_length")
OF_GENERATION = ("max_new_tokens", "generation")
OWN = ("tokenizer", "text", "device", *OF_TEXT, *OF_GENERATION)
"""Options that `runtime: triton` does not take: they are the repository's."""


NEEDED = {"response_cache": "--cache-config=local,size=67108864", "rate_limiter": "--rate-limit=execution_count"}
"""What a Triton server is to be started with, by the setting of the repository that asks for it."""


class Spec(kind.Spec, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: Annotated[Ref, Lineage(), Meta(description="The model; a `triton-repo` for `runtime: triton`.")]
    tokenizer: Annotated[Ref, Meta(description="Where the tokenizer comes from; else the model's own.")] | None = None
    name: Annotated[str, Meta(description="The name it is served under; else its task, or `model`.")] | None = None
    runtime: Annotated[Literal["onnxruntime", "triton"], Meta(description="What serves it.")] = "onnxruntime"
    device: Annotated[Literal["cpu", "gpu"], Meta(description="What it runs on; it fails to start elsewhere.")] = "cpu"
    base: Annotated[str, Meta(description="The base image, best with its digest; else one by its tag.")] | None = None
    labels: Annotated[dict[str, str], Meta(description="More labels of the image.")] = {}
    text: (
        Annotated[bool, Meta(description="Serve text; by default where there is a tokenizer and a known task.")] | None
    ) = None
    port: Annotated[int, Meta(description="Where it listens.", ge=1024, le=65535)] = 8000
    workers: Annotated[int, Meta(description="Batches at once; 0: one for each core, one on a GPU.", ge=0)] = 0
    threads: Annotated[int, Meta(description="Threads of a batch; 0: all cores if it is alone, else one.", ge=0)] = 0
    max_batch_size: Annotated[int, Meta(description="Rows of a batch, and of a request, at most.", ge=1)] = 32
    max_queue: Annotated[int, Meta(description="Rows that wait, at most; more are answered 503.", ge=1)] = 1024
    max_body_bytes: Annotated[int, Meta(description="Bytes of a body, at most; more are answered 413.", ge=1)] = 2**24
    max_connections: Annotated[int, Meta(description="Connections; more are answered 503.", ge=1)] = 1024
    request_seconds: Annotated[
        float, Meta(description="For a request to come in, and then to wait for its turn.", gt=0)
    ] = 60.0
    stop_seconds: Annotated[float, Meta(description="For what is under way at SIGTERM.", ge=0)] = 25.0
    log_requests: Annotated[bool, Meta(description="A line in the log for each request.")] = True
    max_length: Annotated[int, Meta(description="Tokens of a text; else the model's own limit.", ge=1)] | None = None
    buckets: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(description="Token counts to pad to.")] = []
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
        dict[str, Any], Meta(description="Generation: parameters of requests that do not say them.")
    ] = {}

    def __post_init__(self) -> None:
        if self.name is not None and not NAME.fullmatch(self.name):
            raise SpecError(f"`{self.name}` cannot be a model's name", field="name", hint="letters, digits and `_.-`")
        if self.base is not None and not BASE.fullmatch(self.base):
            raise SpecError(f"`{self.base}` is no image", field="base", hint="`registry/name:tag@sha256:digest`")
        for name, value in self.labels.items():
            if not LABEL.fullmatch(name) or "\n" in value:
                hint = "small letters and digits, parted by `.`, `-` or `_`; a value on one line"
                raise SpecError(f"`{name}` cannot be a label", field="labels", hint=hint)
        if self.runtime == "triton":
            usual = {f.name: f.default for f in msgspec.structs.fields(type(self))}
            for name in OWN:
                if getattr(self, name) not in (usual[name], None, [], {}):
                    hint = "give it to the target that makes the repository"
                    raise SpecError(f"`runtime: triton` does not take `{name}`", field=name, hint=hint)


def tools(spec: Spec) -> Collection[str]:
    """Triton brings its own packages; a graph alone needs no tokenizer."""
    if spec.runtime == "triton":
        return set()
    return set(TOOLS) - ({"tokenizers"} if spec.text is False else set())


def build(spec: Spec, ctx: Context) -> None:
    source = ctx.input("from")
    found, name = source.descriptor, spec.name or source.descriptor.task or "model"
    if (found.format == "triton-repo") != (spec.runtime == "triton") or found.format not in ("onnx", "triton-repo"):
        raise problem(
            f"`runtime: {spec.runtime}` does not serve this",
            format=found.format,
            needs="triton-repo" if spec.runtime == "triton" else "onnx",
            hint="a `triton-repo` is served by `runtime: triton`, which serves plans too",
        )
    if spec.runtime == "triton":
        _around_triton(spec, ctx, source)
        return
    if not NAME.fullmatch(name):
        raise problem(f"the task `{name}` cannot be a model's name", hint="give `name`")
    from modelbuild.lib import container_context, triton_generation

    lender = _lender(spec, ctx, source)
    generates = lender is not None and triton_generation.servable(found.task)
    components, told = (_generating if generates else _models)(spec, ctx, source, lender, name)
    told["settings"] = {option: getattr(spec, option) for option in SERVER}
    told["device"] = spec.device
    container_context.write_json(ctx.out / container_context.MODEL / "server.json", told)
    packages = set(TOOLS) - {"onnx"} - (set() if lender else {"tokenizers"})
    container_context.write_requirements(ctx.out, packages, "container", gpu=spec.device == "gpu")
    container_context.write_program(ctx.out)
    labels = _labels(spec, ctx, name)
    base = _base(spec, ctx, container_context.BASES[spec.device])
    container_context.write_dockerfile(ctx.out, name, base, spec.port, labels, gpu=spec.device == "gpu")
    settings = {"model": next(iter(components)), "runtime": spec.runtime, "device": spec.device}
    if generates:
        settings["stream"] = list(components)[1]
    _describe(ctx, source, components, settings)


def _labels(spec: Spec, ctx: Context, name: str) -> dict[str, str]:
    from modelbuild.lib import container_context

    sha256 = container_context.write_sums(ctx.out)
    return container_context.labels(name, sha256, next(iter(ctx.history("from")[-1:]), None), spec.labels)


def _base(spec: Spec, ctx: Context, usual: str) -> str:
    from modelbuild.lib import container_context

    base = spec.base or usual
    if not container_context.DIGEST.search(base):
        ctx.log(f"the base {base} is named by a tag, which may move: give `base` with `@sha256:...` to pin it")
    return base


def _describe(ctx: Context, source: Artifact, components: dict[str, Component], settings: dict[str, Any]) -> None:
    found = source.descriptor
    ctx.describe(
        Descriptor(
            format="dockerfile",
            task=found.task,
            precision=found.precision,
            components=components,
            settings=settings,
            metrics=found.metrics,
        )
    )


def _lender(spec: Spec, ctx: Context, source: Artifact) -> Artifact | None:
    """Whose tokenizer serves text, or None where the graph is served alone."""
    from modelbuild.lib import triton_generation, triton_text

    named = ctx.inputs.get("tokenizer") or ()
    if spec.text is False:
        return None
    if spec.text or named:
        return named[0] if named else source
    if not source.descriptor.tokenizer:
        return None
    task = source.descriptor.task
    if not (triton_text.servable(task) or triton_generation.servable(task)):
        ctx.log(f"text is not served: the task is `{task}`; the graph is")
        return None
    return source


def _models(
    spec: Spec, ctx: Context, source: Artifact, lender: Artifact | None, name: str
) -> tuple[dict[str, Component], dict[str, Any]]:
    """Put the models into the context; what clients send and get, and what the server is told."""
    from modelbuild.lib import container_context, container_models, triton_text

    graphs = source.descriptor.components
    if lender is not None:
        names = {f"{name}_model": source.descriptor.model()}
    elif len(graphs) == 1:
        names = {name: source.descriptor.model()}
    else:
        names = {f"{name}_{c}": g for c, g in graphs.items()}
    told: dict[str, Any] = {"version": "1", "texts": [], "graphs": [], "generators": []}
    components: dict[str, Component] = {}
    if lender is not None:
        wanted = triton_text.Wanted(aggregation=spec.aggregation, **{o: getattr(spec, o) for o in OF_TEXT})
        settings = container_models.text_settings(
            source, lender, wanted, f"{name}_model", spec.max_batch_size, spec.device
        )
        folder = ctx.out / container_context.MODEL / "texts" / name
        folder.mkdir(parents=True)
        triton_text.files(folder, lender, settings)
        told["texts"].append({"name": name, "folder": f"texts/{name}", "graph": f"{name}_model"})
        components[name] = triton_text.component(settings)
        ctx.log(f"`{name}` takes text: at most {settings['max_length']} tokens, longer ones are cut and said so")
    for served, graph in names.items():
        entry = container_models.graph(served, graph)
        container_models.link(ctx, source.path / graph.file, ctx.out / container_context.MODEL / entry["file"])
        told["graphs"].append(entry)
        components[served] = graph
        if not entry["batched"]:
            ctx.log(f"`{served}` has no batches: {container_models.why_not_batched(graph)}")
    return {n: msgspec.structs.replace(c, file="model/server.json") for n, c in components.items()}, told


def _generating(
    spec: Spec, ctx: Context, source: Artifact, lender: Artifact | None, name: str
) -> tuple[dict[str, Component], dict[str, Any]]:
    """Put a model that generates into the context; what clients of its two names send and get, and what the server is
    told."""
    from modelbuild.lib import container_context, container_models, triton_generation
    from modelbuild.lib.container_serving.generating import STREAM

    assert lender is not None
    for option in ("buckets", "pooling", "normalize", "stride", "max_answer_length"):
        if getattr(spec, option) not in (None, []):
            raise problem(
                f"`{option}` is not for generation", task=source.descriptor.task, hint=f"leave out `{option}`"
            )
    wanted = triton_generation.Wanted(spec.max_length, spec.max_new_tokens, spec.generation)
    settings = triton_generation.settings(source, lender, wanted, slots=spec.max_batch_size)
    place = f"generators/{name}"
    folder = ctx.out / container_context.MODEL / place
    for file, graph in triton_generation.components(source).values():
        container_models.link(ctx, source.path / graph.file, folder / file)
    triton_generation.files(folder, lender, settings)
    for said in triton_generation.unfollowed(source):
        ctx.log(said)
    ctx.log(f"`{name}` replies and `{name}{STREAM}` streams: at most {settings['max_new_tokens']} new tokens a text")
    told = {"version": "1", "texts": [], "graphs": [], "generators": [{"name": name, "folder": place}]}
    served = {name: False, f"{name}{STREAM}": True}
    file = f"{container_context.MODEL}/server.json"
    return {
        n: msgspec.structs.replace(triton_generation.component(streams=s), file=file) for n, s in served.items()
    }, told


def _around_triton(spec: Spec, ctx: Context, source: Artifact) -> None:
    """The repository as it is, in an image of Triton."""
    from modelbuild.lib import container_context

    found = source.descriptor
    ctx.link(source.path / "models", ctx.out / container_context.MODEL)
    requirements = (source.path / "requirements.txt").is_file()
    if requirements:
        ctx.link(source.path / "requirements.txt", ctx.out / "requirements.txt")
    name = found.settings["model"]
    base = _base(spec, ctx, f"{container_context.TRITON}:{found.settings['triton']}-py3")
    command = ["tritonserver", "--model-repository=/models"]
    command += [option for setting, option in NEEDED.items() if found.settings.get(setting)]
    labels = _labels(spec, ctx, spec.name or name)
    container_context.write_triton_dockerfile(
        ctx.out, spec.name or name, base, labels, command, requirements=requirements
    )
    components = {
        n: msgspec.structs.replace(c, file=c.file.replace("models/", "model/", 1)) for n, c in found.components.items()
    }
    _describe(ctx, source, components, {**found.settings, "runtime": spec.runtime})
