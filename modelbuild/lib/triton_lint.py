"""What makes a real Triton refuse a model repository, crash on it or serve it badly: found before it is there.

The rules read the files as the server does, so they hold for any repository. Most were seen on tritonserver 24.10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelbuild.errors import Problem, ProblemError, problem
from modelbuild.lib import triton_schema

CONFIG = "config.pbtxt"
GRAPH = "model.onnx"


def require_sound(repository: Path, release: str) -> None:
    """A `ProblemError` with everything that is wrong in the models of a repository, for a server of `release`."""
    found = list(problems(repository, release))
    if found:
        raise ProblemError(*found)


def problems(repository: Path, release: str) -> Iterator[Problem]:
    """Everything that is wrong in a repository, model by model."""
    models = sorted(p for p in repository.iterdir() if p.is_dir())
    if not models:
        yield Problem("the model repository has no models", facts=(("folder", str(repository)),))
    for folder in models:
        for found in _of_model(folder, release):
            yield found.replacing(facts=(("model", folder.name),))


def _of_model(folder: Path, release: str) -> Iterator[Problem]:
    try:
        config = triton_schema.parse((folder / CONFIG).read_text(encoding="utf-8"))
        triton_schema.require_known(config, release)
    except FileNotFoundError:
        yield Problem(f"the model has no `{CONFIG}`")
        return
    except ProblemError as e:
        yield from e.problems
        return
    for rule in RULES:
        try:
            rule(config, folder)
        except ProblemError as e:
            yield from e.problems


def _name(config: Any, folder: Path) -> None:
    if config.name and config.name != folder.name:
        raise problem(f"the config's name `{config.name}` is not its folder's", hint="the server loads neither")


def _platform(config: Any, folder: Path) -> None:
    if config.platform and config.platform != "ensemble":
        backend = config.platform.partition("_")[0]
        raise problem(f"Triton refuses `platform: {config.platform}`", hint=f'`backend: "{backend}"` says it')
    if not config.backend and config.platform != "ensemble":
        raise problem("the config has no `backend`")


def _version(config: Any, folder: Path) -> None:
    versions = [p for p in folder.iterdir() if p.is_dir() and p.name.isdecimal() and not p.name.startswith("0")]
    if not versions:
        raise problem("the model has no version folder", hint="the server loads nothing without `1/`")
    empty = [p.name for p in versions if not any(p.iterdir())]
    if empty:
        raise problem(
            f"the version folder `{empty[0]}/` is empty",
            hint="git and archives lose empty folders, and then the model does not load: keep a file in it",
        )
    policy = config.version_policy
    missing = {str(v) for v in policy.specific.versions} - {p.name for p in versions}
    if policy.HasField("specific") and missing:
        raise problem(
            f"`version_policy` names version {min(missing)}, which is not there",
            versions=", ".join(sorted(p.name for p in versions)),
        )


def _batching(config: Any, folder: Path) -> None:
    if config.max_batch_size < 0:
        raise problem("`max_batch_size` cannot be negative")
    if config.max_batch_size == 0 and config.HasField("dynamic_batching"):
        raise problem(
            "`dynamic_batching` with `max_batch_size: 0` is accepted by Triton and never batches",
            hint="give a `max_batch_size`, or `dynamic_batching: false`",
        )
    batching = config.dynamic_batching
    large = [n for n in batching.preferred_batch_size if n > config.max_batch_size]
    if large:
        raise problem(f"`preferred_batch_size: {large[0]}` is more than `max_batch_size: {config.max_batch_size}`")


def _instances(config: Any, folder: Path) -> None:
    if config.HasField("ensemble_scheduling"):
        return
    if not config.instance_group:
        raise problem(
            "the config has no `instance_group`", hint="Triton then starts two instances on a CPU: say how many"
        )
    kinds = type(config.instance_group[0]).DESCRIPTOR.enum_types_by_name["Kind"].values_by_number
    for group in config.instance_group:
        kind = kinds[group.kind].name
        if config.backend == "tensorrt" and kind == "KIND_CPU":
            raise problem("a TensorRT plan does not run on `KIND_CPU`", hint="`instance_group: [{kind: KIND_GPU}]`")
        if kind == "KIND_CPU" and (group.gpus or config.optimization.execution_accelerators.gpu_execution_accelerator):
            raise problem(
                "`KIND_CPU` has no GPU to use", hint="take out `gpus` and GPU accelerators, or say `KIND_GPU`"
            )


def _warmup(config: Any, folder: Path) -> None:
    needed = {i.name for i in config.input if not i.optional}
    for sample in config.model_warmup:
        if sample.batch_size > max(config.max_batch_size, 1):
            raise problem(
                f"warm-up with `batch_size: {sample.batch_size}` crashes the server",
                max_batch_size=config.max_batch_size,
                hint=f"at most {max(config.max_batch_size, 1)}",
            )
        if sample.batch_size < 1:
            raise problem("warm-up needs a `batch_size` of at least 1", warm_up=sample.name)
        lacking, unknown = needed - set(sample.inputs), set(sample.inputs) - {i.name for i in config.input}
        if lacking or unknown:
            raise problem(
                "warm-up must give every input, and no other",
                warm_up=sample.name,
                lacking=", ".join(sorted(lacking)) or "none",
                unknown=", ".join(sorted(unknown)) or "none",
                hint="the model would stay unavailable",
            )
        for name, value in sample.inputs.items():
            dims = next(i.dims for i in config.input if i.name == name)
            if any(d < 0 for d in value.dims) or len(value.dims) != len(dims):
                raise problem(f"warm-up of `{name}` needs whole dims", dims=list(value.dims), input=list(dims))
            file = value.input_data_file
            if file and not (folder / "warmup" / file).is_file():
                raise problem(f"the warm-up file `{file}` is missing", looked_for=f"{folder.name}/warmup/{file}")


def _decoupled(config: Any, folder: Path) -> None:
    if not config.model_transaction_policy.decoupled:
        return
    if not (config.backend == "python" and any(_sends(p) for p in folder.rglob("*.py"))):
        raise problem(
            "a decoupled model refuses plain requests, and this one answers once",
            hint="leave `model_transaction_policy` out",
        )
    if config.response_cache.enable:
        raise problem("a decoupled model has no response cache", hint="take out `response_cache`")


def _sends(program: Path) -> bool:
    return "get_response_sender" in program.read_text(encoding="utf-8", errors="replace")


def _ensemble(config: Any, folder: Path) -> None:
    for step in config.ensemble_scheduling.step:
        if not (folder.parent / step.model_name).is_dir():
            raise problem(f"the ensemble's step `{step.model_name}` is not in the repository")


def _labels(config: Any, folder: Path) -> None:
    for output in config.output:
        if output.label_filename and not (folder / output.label_filename).is_file():
            raise problem(f"the label file `{output.label_filename}` of `{output.name}` is missing")


def _graph(config: Any, folder: Path) -> None:
    """The graph's external data is there under its name, and the config's tensors are the graph's."""
    from modelbuild.lib import onnx_files

    for path in sorted(folder.glob(f"*/{config.default_model_filename or GRAPH}")):
        if path.suffix != ".onnx":
            continue
        component = onnx_files.component(onnx_files.load(path, weights=False))
        known = {t.name: t for t in (*component.inputs, *component.outputs)}
        for tensor in (*config.input, *config.output):
            if tensor.name not in known:
                raise problem(f"the graph has no `{tensor.name}`", graph=", ".join(known))
            rank, given = len(known[tensor.name].shape), len(tensor.dims) + (config.max_batch_size > 0)
            if tensor.HasField("reshape"):
                given = len(tensor.reshape.shape) + (config.max_batch_size > 0)
            if rank != given:
                raise problem(
                    f"the dims of `{tensor.name}` do not fit the graph",
                    dims=list(tensor.dims),
                    graph=list(known[tensor.name].shape),
                    hint="with `max_batch_size` above 0 the batch is not written in `dims`",
                )


RULES: tuple[Callable[[Any, Path], None], ...] = (
    _name,
    _platform,
    _version,
    _batching,
    _instances,
    _warmup,
    _decoupled,
    _ensemble,
    _labels,
    _graph,
)
