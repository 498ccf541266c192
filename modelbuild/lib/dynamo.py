"""PyTorch's newer exporter (`torch.onnx.export(dynamo=True)`): slower, and broader in what it can export."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

from modelbuild.lib.onnx_files import Weight


def trace(
    model: Any, sample: Mapping[str, Any], outputs: Mapping[str, Mapping[int, str]], opset: int
) -> tuple[Any, dict[str, Weight]]:
    """The model's graph with its weights inside, and no weights besides (see `torchscript.trace`)."""
    import torch
    from onnx_ir import serde

    class Chosen(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **values: Any) -> Any:
            result = self.model(**values, return_dict=True)
            return tuple(getattr(result, name) for name in outputs)

    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Chosen().eval(),
            (),
            kwargs=dict(sample),
            dynamo=True,
            opset_version=opset,
            input_names=list(sample),
            output_names=list(outputs),
            dynamic_shapes={"values": {name: {0: batch, 1: sequence} for name in sample}},
            verbose=False,
        )
    return serde.serialize_model(program.model), {}
