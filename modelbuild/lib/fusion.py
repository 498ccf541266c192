"""ONNX Runtime's transformer fusions, run without torch, and what can be said of a graph before and after them."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelbuild.errors import problem
from modelbuild.lib import onnx_files, optional_inputs, sessions

ORT_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "albert", "bert", "camembert", "deberta", "distilbert", "electra", "ernie", "mpnet", "nomic_bert",
            "roberta", "xlm-roberta", "xlm-roberta-xl", "layoutlm", "mobilebert", "deit",
        ),
        "bert",
    ),
    **dict.fromkeys(("vit", "beit", "dinov2"), "vit"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), "gpt2"),
    **dict.fromkeys(("bart", "mbart", "marian"), "bart"),
    **dict.fromkeys(("t5", "mt5", "longt5"), "t5"),
    **dict.fromkeys(("clip", "clip_text_model"), "clip"),
    **{name: name for name in ("gpt_neox", "phi", "qwen3", "swin", "conformer")},
    **{name: name for name in ("unet", "vae", "tnlr", "sam2", "mmdit")},
}  # fmt: skip
"""transformers' `model_type` -> the family whose patterns ONNX Runtime's optimizer looks for."""
GENERAL = "bert"
"""The family for all others: its layer norms and GELUs are every family's, and its attention matches no other's."""

ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "PackedMultiHeadAttention")
FUSED = (
    *ATTENTION,
    "BiasGelu", "BiasSplitGelu", "EmbedLayerNormalization", "FastGelu", "FusedMatMul", "Gelu", "GemmFastGelu",
    "GroupNorm", "QuickGelu", "RotaryEmbedding", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "LayerNormalization", "RMSNormalization",
)  # fmt: skip
"""Operators that stand for several simpler ones."""
CPU_LEAVES_OUT = ("skip_layer_norm", "bias_skip_layer_norm", "embed_layer_norm")
"""Fusions whose CPU kernels are slower than what they replace: SkipLayerNormalization about 7 times per element."""


class Patterns(msgspec.Struct, frozen=True):
    """What ONNX Runtime's optimizer is to look for: the arguments of its `FusionOptions`."""

    family: str
    heads: int
    hidden_size: int
    leave_out: tuple[str, ...] = ()
    mask_index: bool = False
    shape_inference: bool = False


def simplified(path: Path, scratch: Path, *, level: int, provider: str) -> Any:
    """The model after ONNX Runtime's own graph optimizer at `level` (1 basic, 2 extended, 99 all; 0: as it is).

    The stock `optimize_model` would do the same but imports torch to learn whether it was built for AMD.
    """
    if level == 0:
        return onnx_files.load(path)
    ort = sessions.runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = {1: levels.ORT_ENABLE_BASIC, 2: levels.ORT_ENABLE_EXTENDED}.get(
        level, levels.ORT_ENABLE_ALL
    )
    optimized = scratch / "simplified.onnx"
    options.optimized_model_filepath = str(optimized)
    # Protobuf holds no more than 2 GiB: weights always go beside.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "simplified.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Shared constants hide the patterns; the MatMul fusions would take the attention's MatMuls away.
    disabled = ["ConstantSharing"]
    if level > 1:
        disabled += ["MatMulScaleFusion", "MatMulAddFusion", "MatmulTransposeFusion", "GemmActivationFusion"]
        disabled += ["BiasSoftmaxFusion"]
    names = ["CUDAExecutionProvider"] if provider == "cuda" and level > 1 else []
    with sessions.failures(f"ONNX Runtime does not load `{path.name}`"):
        ort.InferenceSession(
            str(path), options, providers=[*names, "CPUExecutionProvider"], disabled_optimizers=disabled
        )
    model = onnx_files.load(optimized)
    for file in (optimized, scratch / "simplified.data"):
        file.unlink(missing_ok=True)
    return model


def fuse(model: Any, patterns: Patterns) -> Any:
    """The model with the patterns found in it replaced by `com.microsoft` operators, in topological order."""
    sessions.runtime()
    from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
    from onnxruntime.transformers.optimizer import optimize_by_fusion

    options = FusionOptions(patterns.family)
    for name in patterns.leave_out:
        setattr(options, f"enable_{name}", False)
    options.enable_shape_inference = patterns.shape_inference
    if options.attention_mask_format != AttentionMaskFormat.NoMask:
        options.use_raw_attention_mask(not patterns.mask_index)
    model.producer_name = ""
    optional_inputs.write_out(model)
    with _quiet(), sessions.failures("ONNX Runtime's transformer optimizer fails on this graph"):
        try:
            fused = optimize_by_fusion(model, patterns.family, patterns.heads, patterns.hidden_size, options)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as e:
            raise problem(
                "ONNX Runtime's transformer optimizer fails on this graph",
                model_type=patterns.family,
                cause=f"{type(e).__name__}: {e}",
                hint="try another `model_type`, or leave out a fusion by `disable`",
            ) from e
    return fused.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The optimizer warns and prints for each pattern it tries; we count what it did instead."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def count(model: Any) -> Counter[str]:
    """How often each of `FUSED` occurs in the main graph."""
    return Counter(n.op_type for n in model.graph.node if n.op_type in FUSED)


def attentions(model: Any) -> int:
    """How many attentions the graph computes, fused or not: a Softmax that a MatMul reads, or an Attention operator."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    fused = [n for n in model.graph.node if n.op_type in ATTENTION]
    plain = [n for n in model.graph.node if n.op_type == "Softmax" and _feeds_matmul(n, readers)]
    return len(fused) + len(plain)


def _feeds_matmul(node: Any, readers: Mapping[str, list[Any]]) -> bool:
    """Whether a MatMul reads the node's result, at most a cast, dropout or guard against NaN between them."""
    passing = {"Cast", "Dropout", "Where", "Identity", "Mul", "Reshape"}
    frontier, seen = [node], 0
    while frontier and seen < 8:
        seen += 1
        for reader in readers.get(frontier.pop().output[0], ()):
            if reader.op_type in ("MatMul", "FusedMatMul", "Einsum"):
                return True
            if reader.op_type in passing:
                frontier.append(reader)
    return False


def detect_heads(model: Any) -> tuple[int, int]:
    """(heads, hidden size) from the reshape that splits the last axis into heads, or (0, 0).

    Exporters write its shape as a constant or as a Concat of constants and sizes: [.., heads, size], where heads may
    be -1 and then follows from the width of what is reshaped. The most frequent pair wins.
    """
    constants = {t.name: t for t in model.graph.initializer}
    made = {o: n for n in model.graph.node for o in n.output}
    found = Counter(pair for node in model.graph.node if (pair := heads_of(node, constants, made)))
    return max(found, key=lambda pair: (found[pair], pair)) if found else (0, 0)


def heads_of(node: Any, constants: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[int, int] | None:
    """(heads, hidden size) where the node is a Reshape that splits the last axis into heads, else None."""
    from onnx import numpy_helper

    if node.op_type != "Reshape":
        return None
    shape = made.get(node.input[1])
    if node.input[1] in constants:
        dims = numpy_helper.to_array(constants[node.input[1]]).tolist()
    elif shape is not None and shape.op_type == "Concat":
        dims = [_single(constants.get(name)) for name in shape.input]
    else:
        return None
    if len(dims) != 4 or dims[3] <= 1 or (dims[0] > 0 and dims[1] > 0):
        return None
    width = _width(node.input[0], constants, made)
    heads = width // dims[3] if dims[2] in (0, -1) else dims[2]
    return (heads, heads * dims[3]) if heads > 1 else None


def _single(tensor: Any) -> int:
    """The one value of a tensor of one element, else 0."""
    from onnx import numpy_helper

    values = [] if tensor is None or tensor.dims[:] not in ([], [1]) else numpy_helper.to_array(tensor).reshape(-1)
    return int(values[0]) if len(values) == 1 else 0


def _width(name: str, constants: Mapping[str, Any], made: Mapping[str, Any]) -> int:
    """The last axis of a projection with or without bias, 0 for anything else."""
    node = made.get(name)
    if node is not None and node.op_type == "Add":
        node = next((made[i] for i in node.input if i in made), None)
    if node is None or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        return 0
    return int(constants[node.input[1]].dims[-1])
