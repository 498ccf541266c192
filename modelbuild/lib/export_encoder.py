"""Models that give all they have in one run: text encoders with any head, and image models."""

from __future__ import annotations

from typing import Any

from modelbuild.errors import problem
from modelbuild.lib import made_inputs
from modelbuild.lib.export_graph import Case, Graph, Port, running
from modelbuild.lib.export_tasks import Task
from modelbuild.lib.positional import positional

IMAGE_BATCHES = (1, 3)
IMAGE_SIDE = 64
"""Height and width, in pixels, at which a model that takes images of any size is traced."""


def text(torch: Any, model: Any, task: Task) -> list[Graph]:
    """One graph: `input_ids`, `attention_mask`, `token_type_ids` as the model takes them, int64 [batch, sequence]."""
    names = made_inputs.text_names(model)
    if "input_ids" not in names:
        raise problem(f"`{type(model).__name__}` takes no text", hint="choose the task that fits the architecture")
    feeds = {
        f"{batch}x{length}": made_inputs.text(names, batch, length, model.config)
        for batch, length in made_inputs.shapes(model.config)
    }
    batch, length = made_inputs.SAMPLE
    sample = made_inputs.text(names, batch, min(length, made_inputs.positions(model.config)), model.config)
    ports = tuple(Port(n, {0: "batch", 1: "sequence"}) for n in names)
    return [_graph(torch, model, task, ports, sample, feeds)]


def image(torch: Any, model: Any, task: Task) -> list[Graph]:
    """One graph: `pixel_values`, float32 [batch, channels, height, width].

    Height and width are the config's, or dynamic where the config has none.
    """
    import numpy as np

    config, axes = model.config, {0: "batch"}
    size = getattr(config, "image_size", None)
    sizes = [tuple(size) if isinstance(size, list | tuple) else (size, size)]
    if size is None:
        axes |= {2: "height", 3: "width"}
        sizes = [(IMAGE_SIDE, IMAGE_SIDE), (IMAGE_SIDE + 32, IMAGE_SIDE)]
    channels, random = getattr(config, "num_channels", 3), np.random.default_rng(0)

    def made(batch: int, height: int, width: int) -> dict[str, Any]:
        return {"pixel_values": random.standard_normal((batch, channels, height, width)).astype(np.float32)}

    feeds = {f"{b}x{h}x{w}": made(b, h, w) for b in IMAGE_BATCHES for h, w in sizes}
    return [_graph(torch, model, task, (Port("pixel_values", axes),), made(2, *sizes[0]), feeds)]


def _graph(torch: Any, model: Any, task: Task, ports: tuple[Port, ...], sample: Any, feeds: Any) -> Graph:
    outputs = [o.name for o in task.outputs]
    cases = []
    for name, given in feeds.items():
        result = running(torch, model, given, name, return_dict=True)
        cases.append(Case(name, given, [getattr(result, output).numpy() for output in outputs]))
    return Graph(
        name="model",
        module=positional(torch, model, [p.name for p in ports], outputs),
        inputs=ports,
        outputs=tuple(Port(o.name, o.axes) for o in task.outputs),
        sample=sample,
        cases=tuple(cases),
    )
