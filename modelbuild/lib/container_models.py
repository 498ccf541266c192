"""The models in a container's context: a graph and its files, and the settings of the texts that it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from modelbuild.artifact import Artifact, Component
from modelbuild.errors import problem
from modelbuild.lib import external_data, onnx_files, triton_config, triton_text
from modelbuild.lib.container_serving.protocol import DATATYPES

MOST_PADDING = 0.1
"""The share of padding from which texts go to a CPU apart: MiniLM's throughput was best between 0.1 and 0.25."""


class Linking(Protocol):
    """What of a build's context is used here."""

    def link(self, src: Path, dst: Path) -> None: ...


def graph(name: str, component: Component) -> dict[str, Any]:
    """What the server is told of a graph; a `ProblemError` for a dtype that the protocol's JSON cannot carry."""
    tensors = {"inputs": component.inputs, "outputs": component.outputs}
    for tensor in (*component.inputs, *component.outputs):
        if tensor.dtype not in DATATYPES:
            raise problem(f"`{tensor.name}` cannot be served", dtype=tensor.dtype, served=", ".join(DATATYPES))
    told = {key: [{"name": t.name, "dtype": t.dtype, "shape": t.shape} for t in ts] for key, ts in tensors.items()}
    batched = triton_config.batch(component.inputs, component.outputs).dynamic
    return {"name": name, "file": f"graphs/{name}/{onnx_files.MODEL}", "batched": batched, **told}


def why_not_batched(component: Component) -> str:
    return triton_config.batch(component.inputs, component.outputs).why


def link(ctx: Linking, model: Path, place: Path) -> None:
    """Put an ONNX file at a place, and its external data beside it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    ctx.link(model, place)
    for file in sorted(external_data.external_files(onnx_files.load(model, weights=False))):
        (place.parent / file).parent.mkdir(parents=True, exist_ok=True)
        ctx.link(model.parent / file, place.parent / file)


def text_settings(
    source: Artifact, lender: Artifact, wanted: triton_text.Wanted, model: str, rows: int, device: str
) -> dict[str, Any]:
    """`settings.json` of the texts, which go to the graph at most `rows` at a time, or as many as it is fixed to.

    On a CPU those of one batch go in parts of like length, where that saves padding.
    """
    component = source.descriptor.model()
    fixed = triton_config.batch(component.inputs, component.outputs).fixed
    found = triton_text.settings(source, lender, wanted, model=model, rows=fixed or rows, rows_fixed=fixed is not None)
    parted = device == "cpu" and fixed is None and found["length"] is None and not found["buckets"]
    return {**found, "most_padding": MOST_PADDING} if parted else found
