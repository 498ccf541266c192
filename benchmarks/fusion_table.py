"""What `fused` fuses in which architecture, and what that costs or gains on this CPU, as a Markdown table.

    python benchmarks/fusion_table.py [--exporter dynamo] [--only bert,gpt2] > docs/measurements/fusion.md

Models are random, of each architecture's real layout: 4 layers, 256 wide, 4 heads, 128 tokens or 64 x 64 pixels.
Time is CPU time of one thread, medians of runs in turn, so that other work on the machine tells little.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}

import onnx

from modelbuild import tools
from modelbuild.artifact import Artifact
from modelbuild.errors import ProblemError
from modelbuild.lib import fusion, sessions
from tests import models
from tests.kinds.run import Heard, run_kind

CASES = {
    "albert": "feature-extraction",
    "bart": "text2text-generation",
    "bert": "feature-extraction",
    "camembert": "feature-extraction",
    "deit": "image-classification",
    "dinov2": "image-feature-extraction",
    "distilbert": "feature-extraction",
    "electra": "feature-extraction",
    "gpt2": "text-generation",
    "llama": "text-generation",
    "marian": "text2text-generation",
    "mistral": "text-generation",
    "modernbert": "feature-extraction",
    "mpnet": "feature-extraction",
    "qwen2": "text-generation",
    "qwen3": "text-generation",
    "roberta": "feature-extraction",
    "t5": "text2text-generation",
    "vit": "image-classification",
    "whisper": "automatic-speech-recognition",
    "xlm-roberta": "feature-extraction",
}
LARGER = {32: 256, 64: 1024, 16: 64, 8: 64}
WIDTHS = ("d_ff", "d_kv", "d_model", "dim", "embedding_size", "head_dim", "hidden_dim", "hidden_size", "image_size")
WIDTHS += ("intermediate_size", "n_embd", "encoder_ffn_dim", "decoder_ffn_dim")
LAYERS = ("decoder_layers", "encoder_layers", "n_layer", "n_layers", "num_hidden_layers", "num_layers")
HEADS = ("encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_attention_heads", "num_heads")
POSITIONS = ("max_position_embeddings", "max_target_positions", "n_positions")
SIZES = {"batch": 1, "sequence": 128, "past_sequence": 0, "source_sequence": 128}
RUNS = 21
NORMS = (
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)
GELUS = ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")
EMBEDDINGS = ("EmbedLayerNormalization",)


@contextlib.contextmanager
def larger_models() -> Iterator[None]:
    """The tests' tiny models at the sizes of this benchmark."""
    tiny = dict(models.SIZES)
    models.SIZES |= {name: _larger(sizes) for name, sizes in tiny.items()}
    try:
        yield
    finally:
        models.SIZES |= tiny


def _larger(sizes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(sizes) | {k: LARGER.get(v, v) for k, v in sizes.items() if k in WIDTHS}
    changed |= {k: 4 for k in sizes if k in (*LAYERS, *HEADS)} | {k: 200 for k in sizes if k in POSITIONS}
    return changed | ({"sliding_window": 160} if "sliding_window" in sizes else {})


def operators(made: Artifact) -> Counter[str]:
    """How often each operator occurs, in all graphs of the model."""
    graphs = (
        onnx.load(made.path / c.file, load_external_data=False).graph for c in made.descriptor.components.values()
    )
    return Counter(n.op_type for graph in graphs for n in graph.node)


def seconds(made: Mapping[str, Artifact]) -> dict[str, float]:
    """Median CPU seconds of a run of all graphs, one thread, the artifacts in turn."""
    runs: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for name, one in made.items():
        parts = one.descriptor.components.values()
        runs[name] = [
            (sessions.open_session(one.path / c.file, threads=1), sessions.random_inputs(c.inputs, SIZES))
            for c in parts
        ]
    spent: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(RUNS):
        for name, graphs in runs.items():
            start = time.process_time()
            for session, feeds in graphs:
                session.run(None, feeds)
            spent[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def listed(found: Counter[str], names: tuple[str, ...]) -> str:
    return ", ".join(f"{found[n]} {n}" for n in names if found[n]) or "none"


def row(model_type: str, task: str, exporter: str, folder: Path) -> str:
    """The table's row of an architecture."""
    model = models.write_model(folder / "m", model_type, task=task, lively=False)
    checkpoint = run_kind("checkpoint", folder / "c", {}, sources={"path": model})
    plain = run_kind("onnx", folder / "o", {"exporter": exporter, "task": task}, inputs={"from": checkpoint})
    made, heard = {"plain": plain}, Heard()
    for provider in ("cpu", "cuda"):
        options = {"provider": provider, "require": []}
        made[provider] = run_kind("fused", folder / provider, options, inputs={"from": plain}, heard=heard)
    counts = {name: operators(one) for name, one in made.items()}
    total = sum(
        fusion.attentions(onnx.load(plain.path / c.file, load_external_data=False))
        for c in plain.descriptor.components.values()
    )
    found = counts["cuda"]
    fused = sum(found[op] for op in fusion.ATTENTION)
    difference = max(float(text.split("at most ")[1].split(" ")[0]) for text in heard.logs if "at most" in text)
    times = seconds({name: made[name] for name in ("plain", "cpu")})
    cells = [
        model_type,
        f"{fused} of {total}: {listed(found, fusion.ATTENTION)}",
        listed(found, NORMS),
        listed(found, GELUS),
        listed(found, EMBEDDINGS),
        f"{sum(counts['plain'].values())} → {sum(found.values())}",
        f"{difference:.0e}",
        f"{1e3 * times['plain']:.1f} → {1e3 * times['cpu']:.1f}",
        f"{times['plain'] / times['cpu']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    parser.add_argument("--only", default="", help="architectures, by commas")
    options = parser.parse_args()
    versions = tools.versions(("torch", "transformers", "onnxruntime"))
    out = [
        "| architecture | attention | layer norms | GELU | embeddings | nodes | difference | CPU ms | CPU gain |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    with larger_models():
        for model_type, task in CASES.items():
            if options.only and model_type not in options.only.split(","):
                continue
            sys.stderr.write(f"{model_type}\n")
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
                try:
                    out.append(row(model_type, task, options.exporter, Path(folder)))
                except ProblemError as e:
                    out.append(f"| {model_type} | {e.problems[0].title} |" + " |" * 7)
    sys.stdout.write("\n".join(out) + "\n\n")
    named = ", ".join(f"{k} {v}" for k, v in versions.items())
    sys.stdout.write(f"Exporter `{options.exporter}`; {named}; {platform.processor() or platform.machine()}.\n")


if __name__ == "__main__":
    main()
