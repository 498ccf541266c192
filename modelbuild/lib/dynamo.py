"""PyTorch's newer exporter (`torch.onnx.export(dynamo=True)`): slower, and broader in what it can export."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import Any

from modelbuild.lib.export_graph import Graph
from modelbuild.lib.onnx_weights import Weight


def trace(source: Graph, opset: int) -> tuple[Any, dict[str, Weight]]:
    """The graph (a `ModelProto`) with its weights inside, and no weights besides (see `torchscript.trace`)."""
    import torch
    from onnx_ir import serde

    shapes = tuple(dict.fromkeys(port.axes, torch.export.Dim.DYNAMIC) for port in source.inputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of each torchvision operator not installed
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            source.module,
            tuple(torch.from_numpy(v) for v in source.sample.values()),
            dynamo=True,
            opset_version=opset,
            input_names=[port.name for port in source.inputs],
            output_names=[port.name for port in source.outputs],
            dynamic_shapes={"values": shapes},
            verbose=False,
        )
    return serde.serialize_model(program.model), {}
