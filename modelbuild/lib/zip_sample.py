"""Run the packaged model: python sample.py "some text" ["another text" ...], or python sample.py --npz inputs.npz.

Needs `pip install -r requirements.txt`. How to tokenize, pool and normalise is read from `settings.json`.
Without a tokenizer and without `--npz`, the inputs are random numbers from a fixed seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent


def session(component: dict[str, Any], runtime: dict[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, runtime["graph_optimization_level"])
    options.execution_mode = getattr(ort.ExecutionMode, runtime["execution_mode"])
    options.intra_op_num_threads = runtime["intra_op_num_threads"]
    options.inter_op_num_threads = runtime["inter_op_num_threads"]
    return ort.InferenceSession(str(HERE / component["file"]), options, providers=runtime["providers"])


def tokenized(model: dict[str, Any], inputs: list[dict[str, Any]], texts: list[str]) -> dict[str, np.ndarray]:
    """Inputs by name, each of shape (texts, tokens): those that the graph has."""
    from tokenizers import Tokenizer

    file = next(f for f in model["tokenizer"] if f.endswith("tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(HERE / file))
    settings = model["settings"]
    if settings.get("max_length"):
        tokenizer.enable_truncation(settings["max_length"])
    pad = tokenizer.padding or {}
    token = pad.get("pad_token") or next((t for t in ("[PAD]", "<pad>") if tokenizer.token_to_id(t) is not None), "")
    lengths = {i["shape"][1] for i in inputs if i["name"] == "input_ids" and isinstance(i["shape"][1], int)}
    tokenizer.enable_padding(
        direction=settings.get("padding_side", "right"),
        pad_id=tokenizer.token_to_id(token) or 0,
        pad_token=token,
        pad_type_id=pad.get("pad_type_id", 0),
        length=min(lengths, default=None),
    )
    encoded = tokenizer.encode_batch(texts)
    mask = np.array([e.attention_mask for e in encoded])
    made = {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": mask,
        "token_type_ids": np.array([e.type_ids for e in encoded]),
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
    }
    return {i["name"]: made[i["name"]].astype(i["dtype"]) for i in inputs if i["name"] in made}


def random(inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Inputs of the right shapes and dtypes, free dimensions 1 for the batch and else 8."""
    generator = np.random.default_rng(0)
    made = {}
    for i in inputs:
        shape = [d if isinstance(d, int) else 1 if axis == 0 else 8 for axis, d in enumerate(i["shape"])]
        if np.dtype(i["dtype"]).kind == "f":
            made[i["name"]] = generator.standard_normal(shape).astype(i["dtype"])
        else:
            made[i["name"]] = generator.integers(0, 2, shape).astype(i["dtype"])
    return made


def finished(output: np.ndarray, mask: np.ndarray | None, settings: dict[str, Any]) -> np.ndarray:
    """Pooled over the tokens and scaled to length 1 where the settings say so."""
    pooling = settings.get("pooling", "none")
    if output.ndim == 3 and pooling == "mean":
        weight = np.ones(output.shape[:2]) if mask is None else mask
        weight = weight[..., None].astype(output.dtype)
        output = (output * weight).sum(axis=1) / np.maximum(weight.sum(axis=1), 1e-9)
    elif output.ndim == 3 and pooling == "cls":
        output = output[:, 0]
    if settings.get("normalize"):
        output = output / np.maximum(np.linalg.norm(output, axis=-1, keepdims=True), 1e-12)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", default=["a sample sentence"])
    parser.add_argument("--npz", type=Path, help="a file with one array for each input")
    parser.add_argument("--model", help="the folder of the model, where there are several")
    arguments = parser.parse_args()
    package = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    models = [m for m in package["models"] if arguments.model in (None, m["folder"])]
    if not models:
        parser.error(f"no model in folder {arguments.model}")
    model = models[0]
    component = next(iter(model["components"].values()))
    if arguments.npz:
        with np.load(arguments.npz) as arrays:
            feed = {i["name"]: arrays[i["name"]].astype(i["dtype"]) for i in component["inputs"]}
    elif model["tokenizer"]:
        feed = tokenized(model, component["inputs"], arguments.text)
    else:
        feed = random(component["inputs"])
    outputs = session(component, package["runtime"]).run(None, feed)
    for index, (said, output) in enumerate(zip(component["outputs"], outputs, strict=True)):
        if index == 0:
            output = finished(output, feed.get("attention_mask"), model["settings"])
        values = " ".join(f"{v:.6g}" for v in np.asarray(output).ravel()[:8])
        print(f"{said['name']} {list(output.shape)}: {values}")  # noqa: T201 - a script's output
    labels = model["settings"].get("labels")
    if labels and outputs[0].ndim == 2:
        chosen = outputs[0].argmax(axis=-1)
        names = labels if isinstance(labels, dict) else {str(i): name for i, name in enumerate(labels)}
        print("labels:", ", ".join(str(names[str(i)]) for i in chosen))  # noqa: T201


if __name__ == "__main__":
    main()
