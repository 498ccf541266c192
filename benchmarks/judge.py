"""Runs an int8 model beside the float model that it was made from, and prints what it is as JSON.

`python judge.py FLOAT.onnx INT8.onnx TOKENIZER.json TEXTS.jsonl`; needs onnx, onnxruntime and tokenizers.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from tokenizers import Tokenizer

TEXTS = 32


def embeddings(path: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Mean-pooled hidden states [texts, width]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    hidden = session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})[0]
    mask = inputs["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def main(reference: str, model: str, tokenizer: str, texts: str) -> None:
    encoder = Tokenizer.from_file(tokenizer)
    encoder.enable_padding()
    encoder.enable_truncation(128)
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().splitlines()[:TEXTS]]
    encoded = encoder.encode_batch(lines)
    inputs = {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
        "token_type_ids": np.array([e.type_ids for e in encoded]),
    }
    a, b = embeddings(reference, inputs), embeddings(model, inputs)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    operators = collections.Counter(node.op_type for node in onnx.load(model).graph.node)
    found = {
        "finite": bool(np.isfinite(b).all()),
        "shape": list(b.shape),
        "cosine": float(cosine.mean()),
        "bytes": Path(model).stat().st_size,
        "operators": operators,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
