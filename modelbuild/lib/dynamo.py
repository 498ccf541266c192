"""PyTorch's newer exporter (`torch.onnx.export(dynamo=True)`): slower, and broader in what it can export."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from typing import Any

from modelbuild.lib.onnx_weights import Weight
from modelbuild.lib.positional import positional


def trace(
    model: Any, sample: Mapping[str, Any], outputs: Mapping[str, Mapping[int, str]], opset: int
) -> tuple[Any, dict[str, Weight]]:
    """The model's graph with its weights inside, and no weights besides (see `torchscript.trace`)."""
    import torch
    from onnx_ir import serde

    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of each torchvision operator not installed
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            positional(torch, model, tuple(sample), tuple(outputs)),
            tuple(sample.values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(sample),
            output_names=list(outputs),
            dynamic_shapes={"values": tuple({0: batch, 1: sequence} for _ in sample)},
            verbose=False,
        )
    return serde.serialize_model(program.model), {}
