"""The graph in a model repository: its files under the names that Triton looks for, its batch, its states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from modelbuild.artifact import Artifact, Component
from modelbuild.errors import problem, suggestion
from modelbuild.lib import external_data, onnx_files, triton_repository
from modelbuild.lib.triton_config import Batch
from modelbuild.lib.triton_serving.graph_model import GraphModel

PLAN = "model.plan"


class Linking(Protocol):
    """What of a build's context is used here."""

    inputs: Mapping[str, tuple[Artifact, ...]]

    def link(self, src: Path, dst: Path) -> None: ...


def max_batch_size(wanted: int | None, batch: Batch, settings: Mapping[str, Any], usual: int) -> int:
    """The `max_batch_size` of a graph: as asked if it can, 0 without a batch, a plan's largest, else usual."""
    most = _largest_of_plan(settings)
    if not batch.dynamic:
        if wanted:
            raise problem(
                f"`max_batch_size: {wanted}` needs a batch dimension",
                cause=batch.why,
                hint="leave it out, or export the model with a dynamic first dimension",
            )
        return 0
    if wanted is not None and most is not None and wanted > most:
        raise problem(f"`max_batch_size: {wanted}` is more than the plan's profiles allow", profiles=most)
    return wanted if wanted is not None else min(usual, most or usual)


def _largest_of_plan(settings: Mapping[str, Any]) -> int | None:
    """The largest batch of a plan's optimization profiles: the first size of the inputs' greatest shapes."""
    found = []
    for profile in settings.get("profiles") or ():
        for shapes in profile.values() if isinstance(profile, Mapping) else ():
            most = shapes.get("max") if isinstance(shapes, Mapping) else None
            if isinstance(most, Sequence) and most:
                found.append(int(most[0]))
    return min(found, default=None)


def taken_by_sequences(batching: Mapping[str, Any], component: Component, backend: str) -> set[str]:
    """The graph's inputs and outputs that sequence batching feeds and reads: clients do not see them.

    A `ProblemError` for one that the graph does not have, and for a state that the backend would not keep.
    """
    if backend == "python" and batching.get("state"):
        raise problem(
            "Triton keeps no `state` of sequences for the Python backend",
            hint="`backend: onnxruntime` or `tensorrt` has it",
        )
    inputs, outputs = [t.name for t in component.inputs], [t.name for t in component.outputs]
    named = [(c.get("name"), inputs) for c in batching.get("control_input", ())]
    for state in batching.get("state", ()):
        named += [(state.get("input_name"), inputs), (state.get("output_name"), outputs)]
    for name, known in named:
        if name not in known:
            hint = suggestion(str(name), known)
            title = f"`sequence_batching` names `{name}`, which the graph does not have"
            raise problem(title, graph=", ".join(known), hint=hint)
    return {str(name) for name, _ in named}


def link(ctx: Linking, backend: str, version: Path, config: Any, component: Component) -> None:
    """Put a graph into its version folder: `model.onnx` with its external data, or one plan a compute capability."""
    sources = ctx.inputs["from"]
    if backend == "tensorrt":
        _link_plans(ctx, version, config)
        return
    (source,) = sources
    link_onnx(ctx, source.path / component.file, version / onnx_files.MODEL)
    if backend == "python":
        triton_repository.write_program(version, GraphModel)


def link_onnx(ctx: Linking, model: Path, place: Path) -> None:
    """Put an ONNX file at a place, and its external data beside it."""
    ctx.link(model, place)
    for file in sorted(external_data.external_files(onnx_files.load(model, weights=False))):
        if not (place.parent / file).exists():
            ctx.link(model.parent / file, place.parent / file)


def _link_plans(ctx: Linking, version: Path, config: Any) -> None:
    sources = ctx.inputs["from"]
    graphs = {(a.descriptor.model().inputs, a.descriptor.model().outputs) for a in sources}
    if len(graphs) > 1:
        raise problem("the plans are not of one model: their inputs or outputs differ")
    if len(sources) == 1:
        ctx.link(sources[0].model_path, version / PLAN)
        config.default_model_filename = PLAN
        return
    for source in sources:
        capabilities = source.descriptor.settings.get("compute_capabilities") or ()
        if not capabilities:
            raise problem("a plan does not say its compute capability", hint="several plans are told apart by it")
        file = f"model_sm{'_'.join(str(c).replace('.', '') for c in capabilities)}.plan"
        for capability in map(str, capabilities):
            if capability in config.cc_model_filenames:
                raise problem(f"two plans are for compute capability {capability}")
            config.cc_model_filenames[capability] = file
        ctx.link(source.model_path, version / file)
    config.default_model_filename = sorted(config.cc_model_filenames.values())[0]
