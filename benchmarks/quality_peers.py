"""The other quantizers of `quality.py`, each run in an environment of its own: `PYTHON quality_peers.py WHICH ...`.

Every one gets the same exported model and the same texts, tokenized alike, and has its own defaults.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LENGTH = 128


def tokens(texts: Path, tokenizer: Path, *, padded: bool) -> list[dict[str, np.ndarray]]:
    """Each text by itself as [1, tokens], or all as one [texts, 128]."""
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    if padded:
        encoder.enable_padding(length=LENGTH)
    encoder.enable_truncation(LENGTH)
    encoded = encoder.encode_batch([json.loads(line)["text"] for line in texts.read_text().splitlines()])
    rows = [(e.ids, e.attention_mask, e.type_ids) for e in encoded]
    if padded:
        return [dict(zip(INPUTS, map(np.array, zip(*rows, strict=True)), strict=True))]
    return [{name: np.array([v]) for name, v in zip(INPUTS, row, strict=True)} for row in rows]


def modelopt(model: Path, texts: Path, tokenizer: Path, out: Path) -> None:
    """nvidia-modelopt's ONNX quantizer, int8."""
    from modelopt.onnx.quantization import quantize

    (data,) = tokens(texts, tokenizer, padded=True)
    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=data,
        calibration_eps=["cpu"],
        output_path=str(out),
    )


def optimum_dynamic(model: Path, texts: Path, tokenizer: Path, out: Path) -> None:
    """optimum-onnx for CPUs with VNNI, dynamic."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(_folder(model, tokenizer, out), file_name="model.onnx")
    made = out.with_suffix(".made")
    quantizer.quantize(AutoQuantizationConfig.avx512_vnni(is_static=False), save_dir=made)
    _take(made, out)


def optimum_static(model: Path, texts: Path, tokenizer: Path, out: Path) -> None:
    """optimum-onnx for CPUs with VNNI, static by minmax."""
    from datasets import Dataset
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    quantizer = ORTQuantizer.from_pretrained(_folder(model, tokenizer, out), file_name="model.onnx")
    config = AutoQuantizationConfig.avx512_vnni(is_static=True)
    (data,) = tokens(texts, tokenizer, padded=True)
    rows = Dataset.from_dict({name: array.tolist() for name, array in data.items()})
    ranges = quantizer.fit(rows, AutoCalibrationConfig.minmax(rows), batch_size=8)
    made = out.with_suffix(".made")
    quantizer.quantize(config, save_dir=made, calibration_tensors_range=ranges)
    _take(made, out)


def olive_static(model: Path, texts: Path, tokenizer: Path, out: Path) -> None:
    """Olive's static quantization."""
    loader = {"texts": str(texts), "tokenizer": str(tokenizer), "max_length": LENGTH}
    data = {
        "name": "texts",
        "user_script": str(Path(__file__).with_name("olive_script.py")),
        "load_dataset_config": {"type": "calibration", "params": loader},
        "dataloader_config": {"params": {"batch_size": 1}},  # its batches are of texts of one length
    }
    _olive(model, {"type": "OnnxStaticQuantization", "data_config": "texts"}, [data], out)


def olive_dynamic(model: Path, texts: Path, tokenizer: Path, out: Path) -> None:
    """Olive's dynamic quantization."""
    _olive(model, {"type": "OnnxDynamicQuantization"}, [], out)


def _olive(model: Path, quantization: dict[str, str], data: list[dict[str, object]], out: Path) -> None:
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    folder = out.with_suffix(".olive")
    folder.mkdir()
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [cpu]}},
        "data_configs": data,
        "passes": {"int8": quantization},
        "host": "here",
        "target": "here",
        "evaluate_input_model": False,
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }
    (folder / "workflow.json").write_text(json.dumps(workflow))
    command = [str(Path(sys.executable).with_name("olive")), "run", "--config", str(folder / "workflow.json")]
    quiet = {"CI": "1", "HOME": str(folder), "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env={**os.environ, **quiet})
    (file,) = (folder / "out").rglob("*.onnx")
    file.rename(out)


def _folder(model: Path, tokenizer: Path, out: Path) -> Path:
    """A folder as optimum wants one: the model beside its config."""
    folder = out.with_suffix(".folder")
    folder.mkdir()
    shutil.copyfile(model, folder / "model.onnx")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(tokenizer.with_name(name), folder / name)
    return folder


def _take(made: Path, out: Path) -> None:
    (file,) = made.glob("*.onnx")
    file.rename(out)


WHICH = {
    "modelopt": modelopt,
    "olive-dynamic": olive_dynamic,
    "olive-static": olive_static,
    "optimum-dynamic": optimum_dynamic,
    "optimum-static": optimum_static,
}

if __name__ == "__main__":
    which, *paths = sys.argv[1:]
    WHICH[which](*map(Path, paths))
