"""What a user pastes into their own client to ask a served model: curl and Python, made from the descriptor.

A model that streams answers plain requests with an error: it is asked by Triton's generate extension, or by gRPC.
"""

from __future__ import annotations

import json

from modelbuild.artifact import Component, Tensor

DATATYPES = {"string": "BYTES", "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16"}
"""numpy dtype name -> datatype of the Open Inference Protocol, where it is not the upper-case name."""
SAMPLE = "some text"


def datatype(tensor: Tensor) -> str:
    """The Open Inference Protocol's name of a tensor's dtype."""
    return DATATYPES.get(tensor.dtype, tensor.dtype.upper())


def curl(url: str, model: str, component: Component, *, streams: bool = False) -> str | None:
    """A command that asks a model that takes text; None for other models."""
    if not takes_text(component):
        return None
    if streams:
        asked = json.dumps({"text": SAMPLE, "max_new_tokens": 20})
        return f"curl -sN http://{url}/v2/models/{model}/generate_stream -d '{asked}'"
    inputs = [{"name": t.name, "shape": [1, 1], "datatype": "BYTES", "data": [SAMPLE]} for t in component.inputs]
    return f"curl -s http://{url}/v2/models/{model}/infer -d '{json.dumps({'inputs': inputs})}'"


def python(url: str, model: str, component: Component) -> str:
    """A program that asks a model, by `tritonclient[http]`."""
    lines = [
        "import numpy as np",
        "import tritonclient.http as triton",
        "",
        f'client = triton.InferenceServerClient("{url}")',
        "inputs = []",
    ]
    for tensor in component.inputs:
        lines += [
            f"array = {_array(tensor)}",
            f'inputs.append(triton.InferInput("{tensor.name}", array.shape, "{datatype(tensor)}"))',
            "inputs[-1].set_data_from_numpy(array)",
        ]
    lines += [f'answer = client.infer("{model}", inputs)', f'print(answer.as_numpy("{component.outputs[0].name}"))']
    return "\n".join(lines)


def streaming(url: str, model: str) -> str:
    """A program that asks a model that streams, by `tritonclient[grpc]`; `url` is gRPC's."""
    lines = [
        "import queue",
        "import numpy as np",
        "import tritonclient.grpc as triton",
        "",
        f'client, pieces = triton.InferenceServerClient("{url}"), queue.Queue()',
        "client.start_stream(lambda result, error: pieces.put((result, error)))",
        f'given = triton.InferInput("text", [1, 1], "{DATATYPES["string"]}")',
        f'given.set_data_from_numpy(np.array([["{SAMPLE}"]], dtype=object))',
        f'client.async_stream_infer("{model}", [given], parameters={{"max_new_tokens": 20}})',
        'reason = b""',
        "while not reason:",
        "    result, error = pieces.get()",
        "    if error:",
        "        raise error",
        '    print(result.as_numpy("generated_text")[0, 0].decode(), end="", flush=True)',
        '    reason = result.as_numpy("finish_reason")[0, 0]',
        "client.stop_stream()",
    ]
    return "\n".join(lines)


def takes_text(component: Component) -> bool:
    """Whether every input is text, one string a row."""
    return all(t.dtype == "string" and len(t.shape) == 2 for t in component.inputs)


def _array(tensor: Tensor) -> str:
    if tensor.dtype == "string":
        return f'np.array([["{SAMPLE}"]], dtype=object)'
    shape = [d if isinstance(d, int) else 1 if i == 0 else 8 for i, d in enumerate(tensor.shape)]
    return f"np.ones({shape}, dtype=np.{tensor.dtype})"
