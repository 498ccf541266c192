"""int8: what is quantized and how well, which nodes, by which calibration, in how much memory, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelbuild import artifact, kind
from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import Problem, ProblemError
from modelbuild.lib import calibration, onnx_files, samples, sessions
from tests import models
from tests.kinds.run import Heard, run_kind

Make = Callable[[str], Artifact]
REPOSITORY = Path(__file__).parents[2]
WIDTH = 32


def quantize(
    folder: Path, source: Artifact, data: Artifact | None = None, heard: Heard | None = None, **values: Any
) -> Artifact:
    inputs = {"from": source} | ({"calibration": data} if data else {})
    folder.mkdir(exist_ok=True)
    return run_kind("int8", folder, values, inputs=inputs, heard=heard)


def refusal(folder: Path, source: Artifact, data: Artifact | None = None, **values: Any) -> Problem:
    with pytest.raises(ProblemError) as caught:
        quantize(folder, source, data, **values)
    (found,) = caught.value.problems
    return found


def graph(built: Artifact) -> Any:
    return onnx.load(built.model_path).graph


def operators(built: Artifact) -> Counter[str]:
    return Counter(n.op_type for n in graph(built).node)


def stored(built: Artifact) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in graph(built).initializer}


def handmade(
    folder: Path,
    nodes: Sequence[Any],
    constants: Mapping[str, Any],
    *,
    shape: Sequence[int | str] = ("batch", WIDTH),
    opset: int = 17,
) -> Artifact:
    """An ONNX artifact of `nodes`, from the input `x` to the output `y`."""
    made = helper.make_graph(
        list(nodes),
        "handmade",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    artifact.write(folder, Descriptor(format="onnx", components={"model": onnx_files.component(model)}))
    return artifact.read(folder)


def weights(*shape: int, seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[-1])).astype("float32")


def tensors(folder: Path, values: Any) -> Artifact:
    """A dataset of the input `x`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x.npy", np.asarray(values, dtype="float32"))
    samples.write_arrays(folder, len(values), {"x": "x.npy"})
    artifact.write(folder, Descriptor(format="dataset"))
    return artifact.read(folder)


def normal(folder: Path, count: int = 64, *shape: int) -> Artifact:
    return tensors(folder, np.random.default_rng(1).standard_normal((count, *(shape or (WIDTH,)))))


def texts(folder: Path, tokens: Sequence[Sequence[int]], **header: Any) -> Artifact:
    """A dataset of token ids."""
    samples.write_texts(folder, [samples.Encoded(t) for t in tokens], samples.Header(count=0, **header))
    artifact.write(folder, Descriptor(format="dataset"))
    return artifact.read(folder)


def ragged(folder: Path, count: int = 32, **header: Any) -> Artifact:
    random = np.random.default_rng(2)
    return texts(
        folder, [random.integers(5, models.VOCAB_SIZE, n).tolist() for n in random.integers(3, 40, count)], **header
    )


def product(name: str, x: str, weight: str, y: str) -> Any:
    return helper.make_node("MatMul", [x, weight], [y], name=name)


@pytest.fixture
def two(tmp_path: Path) -> Artifact:
    """Two products with a ReLU between them."""
    nodes = [product("first", "x", "a", "h"), helper.make_node("Relu", ["h"], ["r"]), product("second", "r", "b", "y")]
    return handmade(tmp_path / "two", nodes, {"a": weights(WIDTH, 64), "b": weights(64, WIDTH, seed=1)})


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    return normal(tmp_path / "data")


class TestStatic:
    def test_writes_qdq_around_every_product_with_a_constant(
        self, two: Artifact, data: Artifact, tmp_path: Path
    ) -> None:
        built = quantize(tmp_path / "q", two, data, smooth=None)
        assert operators(built) == {"QuantizeLinear": 2, "DequantizeLinear": 4, "MatMul": 2, "Relu": 1}
        assert built.descriptor.precision == "int8"
        assert built.descriptor.metrics["cosine"] > 0.999
        assert built.descriptor.metrics["size_bytes"] == built.model_path.stat().st_size
        assert built.descriptor.model().inputs == two.descriptor.model().inputs

    def test_activations_are_uint8_and_weights_int8_per_channel(
        self, two: Artifact, data: Artifact, tmp_path: Path
    ) -> None:
        found = stored(quantize(tmp_path / "q", two, data))
        assert found["x_zero_point"].dtype == np.uint8
        assert found["a_quantized"].dtype == np.int8
        assert found["a_scale"].shape == (64,)

    def test_runs_as_integer_kernels(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        built = quantize(tmp_path / "q", two, data)
        ort = sessions.runtime()
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(str(built.model_path), options, providers=["CPUExecutionProvider"])
        found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
        assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 2
        assert found["MatMul"] == 0

    def test_products_of_two_activations_stay(self, data: Artifact, tmp_path: Path) -> None:
        nodes = [
            product("project", "x", "a", "h"),
            helper.make_node("Transpose", ["h"], ["t"]),
            product("scores", "h", "t", "y"),
        ]
        built = quantize(tmp_path / "q", handmade(tmp_path / "m", nodes, {"a": weights(WIDTH, 64)}), data)
        assert operators(built)["QuantizeLinear"] == 1

    @pytest.mark.parametrize("hidden_by", ["Constant", "Identity", "Transpose"])
    def test_finds_weights_behind(self, data: Artifact, tmp_path: Path, hidden_by: str) -> None:
        value = weights(WIDTH, 48)
        match hidden_by:
            case "Constant":
                before = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(value))
            case "Identity":
                before = helper.make_node("Identity", ["v"], ["w"])
            case _:
                before = helper.make_node("Transpose", ["v"], ["w"], perm=[1, 0])
        constants = {"v": value.T if hidden_by == "Transpose" else value} if hidden_by != "Constant" else {}
        source = handmade(tmp_path / "m", [before, product("p", "x", "w", "y")], constants)
        built = quantize(tmp_path / "q", source, data)
        assert stored(built)["w_quantized"].shape == (WIDTH, 48)
        assert built.descriptor.metrics["cosine"] > 0.999

    @pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
    def test_gemm_becomes_a_product_and_a_bias(
        self, data: Artifact, tmp_path: Path, attributes: dict[str, Any]
    ) -> None:
        value = weights(48, WIDTH) if attributes.get("transB") else weights(WIDTH, 48)
        gemm = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="gemm", **attributes)
        source = handmade(tmp_path / "m", [gemm], {"w": value, "c": weights(48, seed=3)})
        built = quantize(tmp_path / "q", source, data)
        assert operators(built)["Gemm"] == 0
        assert built.descriptor.metrics["cosine"] > 0.999

    def test_a_weight_of_several_products_is_stored_once(self, data: Artifact, tmp_path: Path) -> None:
        nodes = [product("p", "x", "w", "h"), helper.make_node("Tanh", ["h"], ["t"]), product("q", "t", "w", "y")]
        built = quantize(tmp_path / "q", handmade(tmp_path / "m", nodes, {"w": weights(WIDTH, WIDTH)}), data)
        assert [n for n in stored(built) if n.endswith("_quantized")] == ["w_quantized"]
        assert built.descriptor.metrics["cosine"] > 0.999

    def test_products_of_one_activation_share_its_codes(self, data: Artifact, tmp_path: Path) -> None:
        nodes = [product("p", "x", "a", "g"), product("q", "x", "b", "h"), helper.make_node("Add", ["g", "h"], ["y"])]
        source = handmade(tmp_path / "m", nodes, {"a": weights(WIDTH, 48), "b": weights(WIDTH, 48, seed=1)})
        assert operators(quantize(tmp_path / "q", source, data))["QuantizeLinear"] == 1

    def test_smoothing_saves_a_model_with_outliers(self, two: Artifact, tmp_path: Path) -> None:
        values = np.random.default_rng(1).standard_normal((64, WIDTH)) * np.where(np.arange(WIDTH) == 5, 200, 1)
        outliers = tensors(tmp_path / "data", values)
        rough = quantize(tmp_path / "rough", two, outliers, smooth=None)
        smooth = quantize(tmp_path / "smooth", two, outliers)
        assert "Mul" in operators(smooth)
        lost = [1 - b.descriptor.metrics["cosine"] for b in (rough, smooth)]
        assert lost[1] < 0.2 * lost[0]

    def test_bias_correction_takes_the_mean_error_out(self, data: Artifact, tmp_path: Path) -> None:
        nodes = [
            product("first", "x", "a", "h"),
            helper.make_node("Relu", ["h"], ["r"]),
            product("second", "r", "b", "p"),
            helper.make_node("Add", ["p", "c"], ["y"]),
        ]
        constants = {"a": weights(WIDTH, 64), "b": weights(64, WIDTH, seed=1), "c": weights(WIDTH, seed=2)}
        source = handmade(tmp_path / "m", nodes, constants)
        values = np.load(data.path / "x.npy")
        expected = sessions.open_session(source.model_path).run(None, {"x": values})[0]
        errors = []
        for correct in (False, True):
            built = quantize(tmp_path / str(correct), source, data, correct_bias=correct)
            got = sessions.open_session(built.model_path).run(None, {"x": values})[0]
            errors.append(float(np.abs((got - expected).mean(axis=0)).mean()))
        assert errors[1] < 0.5 * errors[0]

    def test_outputs_are_quantized_where_asked(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        assert operators(quantize(tmp_path / "q", two, data, outputs=True))["QuantizeLinear"] == 4

    def test_convolutions_run_on_integers_from_end_to_end(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("Conv", ["x", "a", "ab"], ["h"], name="one", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Conv", ["r", "b"], ["y"], name="two"),
        ]
        constants = {"a": weights(8, 3, 3, 3), "ab": weights(8, seed=4), "b": weights(4, 8, 3, 3, seed=1)}
        source = handmade(tmp_path / "m", nodes, constants, shape=["batch", 3, 12, 12])
        built = quantize(tmp_path / "q", source, normal(tmp_path / "d", 16, 3, 12, 12))
        assert built.descriptor.metrics["cosine"] > 0.99
        assert stored(built)["ab_quantized"].dtype == np.int32
        ort = sessions.runtime()
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(str(built.model_path), options, providers=["CPUExecutionProvider"])
        found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
        assert found["QLinearConv"] == 2
        assert found["Conv"] == found["Relu"] == 0

    def test_twice_gives_the_same_bytes(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        first, second = (quantize(tmp_path / name, two, data).model_path.read_bytes() for name in ("a", "b"))
        assert first == second

    def test_a_graph_with_fixed_batch_and_length_gets_them(self, tmp_path: Path) -> None:
        source = handmade(tmp_path / "m", [product("p", "x", "w", "y")], {"w": weights(WIDTH, 8)}, shape=[4, WIDTH])
        built = quantize(tmp_path / "q", source, normal(tmp_path / "d", 10))
        assert built.descriptor.metrics["cosine"] > 0.999


class TestAbsorbing:
    """Smoothing divides an activation; where a constant before it can take that, no node is added."""

    @pytest.fixture
    def outliers(self, tmp_path: Path) -> Artifact:
        values = np.random.default_rng(1).standard_normal((64, WIDTH)) * np.where(np.arange(WIDTH) == 5, 50, 1)
        return tensors(tmp_path / "outliers", values)

    @pytest.mark.parametrize("between", [["Relu"], ["Add", "Relu"], ["Add"], ["Mul"], ["LayerNormalization"]])
    def test_into_what_makes_the_activation(self, outliers: Artifact, tmp_path: Path, between: list[str]) -> None:
        name, nodes = "h", [product("first", "x", "a", "h")]
        for op in between:
            constants = {"Relu": [], "LayerNormalization": ["gain", "shift"]}.get(op, ["gain"])
            nodes.append(helper.make_node(op, [name, *constants], [f"{name}_{op}"]))
            name = nodes[-1].output[0]
        nodes.append(product("second", name, "b", "y"))
        spread = np.geomspace(1, 100, 64).astype("float32")
        constants = {"a": weights(WIDTH, 64) * spread, "b": weights(64, WIDTH, seed=1), "gain": spread, "shift": spread}
        built = quantize(tmp_path / "q", handmade(tmp_path / "m", nodes, constants), outliers, smooth=0.8)
        divisions = [n for n in graph(built).node if n.op_type == "Mul" and n.output[0].endswith("_smoothed")]
        assert [n.input[0] for n in divisions] == ["x"]
        assert built.descriptor.metrics["cosine"] > 0.999

    def test_not_where_something_else_reads_it(self, outliers: Artifact, tmp_path: Path) -> None:
        nodes = [
            product("first", "x", "a", "h"),
            helper.make_node("Relu", ["h"], ["r"]),
            product("second", "r", "b", "p"),
            helper.make_node("Add", ["p", "r"], ["y"]),
        ]
        constants = {"a": weights(WIDTH, 64), "b": weights(64, 64, seed=1)}
        built = quantize(tmp_path / "q", handmade(tmp_path / "m", nodes, constants), outliers, smooth=0.8)
        assert operators(built)["Mul"] == 2
        assert built.descriptor.metrics["cosine"] > 0.999


@pytest.mark.parametrize("smooth", ["auto", 0.5])
@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_that_are_always_zero_spoil_nothing(tmp_path: Path, per_channel: bool, smooth: str | float) -> None:
    """The digits have pixels that no image sets and neurons that never fire: smoothing knows nothing of these."""
    recipes = REPOSITORY / "recipes"
    source = run_kind("onnx", tmp_path / "onnx", {}, sources={"path": recipes / "models" / "digits.onnx"})
    images = run_kind("dataset", tmp_path / "images", {}, sources={"path": recipes / "data" / "digits.npz"})
    built = quantize(tmp_path / "int8", source, images, per_channel=per_channel, smooth=smooth)
    assert built.descriptor.metrics["cosine"] > 0.999


class TestCalibration:
    @pytest.mark.parametrize("values", [{"calibrate": "percentile", "percentile": 99.0}, {"calibrate": "entropy"}])
    def test_histograms_narrow_the_range(self, two: Artifact, tmp_path: Path, values: dict[str, Any]) -> None:
        heavy = tensors(tmp_path / "d", np.random.default_rng(1).standard_t(3, (256, WIDTH)))
        widest = stored(quantize(tmp_path / "w", two, heavy, smooth=None))["x_scale"]
        narrow = stored(quantize(tmp_path / "n", two, heavy, smooth=None, **values))["x_scale"]
        assert 0.01 * widest < narrow < widest

    def test_a_moving_average_lies_within_the_extremes(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        widest = stored(quantize(tmp_path / "w", two, data, smooth=None))["x_scale"]
        average = stored(quantize(tmp_path / "a", two, data, smooth=None, moving_average=0.1))["x_scale"]
        assert average < widest

    def test_minmax_is_the_range_of_the_data(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        values = np.load(data.path / "x.npy")
        scale = stored(quantize(tmp_path / "q", two, data, smooth=None))["x_scale"]
        assert scale == pytest.approx((values.max() - values.min()) / 255, rel=1e-5)

    def test_takes_the_first_samples_only_where_limited(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        values = np.load(data.path / "x.npy")[:5]
        scale = stored(quantize(tmp_path / "q", two, data, smooth=None, limit=5))["x_scale"]
        assert scale == pytest.approx((values.max() - values.min()) / 255, rel=1e-5)

    def test_says_how_far_it_is(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        heard = Heard()
        quantize(tmp_path / "q", two, data, heard, calibrate="percentile")
        told = [(p.done, p.total) for p in heard.progress if p.what == "calibrate"]
        assert told[0][0] <= 8
        assert told[-1] == (128, 128)

    def test_padding_enters_no_range(self, tiny_encoder: Artifact, tmp_path: Path) -> None:
        plain = ragged(tmp_path / "plain")
        padded = ragged(tmp_path / "padded", pad_to=48)
        first, second = (quantize(tmp_path / n, tiny_encoder, d) for n, d in (("a", plain), ("b", padded)))
        assert first.model_path.read_bytes() == second.model_path.read_bytes()

    def test_batches_hold_texts_of_one_length(self, tmp_path: Path) -> None:
        data = samples.of(ragged(tmp_path / "d", 64))
        inputs = {"input_ids": ("int64", ("b", "s")), "attention_mask": ("int64", ("b", "s"))}
        made = list(calibration.batches(data, inputs, 4, None))
        assert sum(count for count, _ in made) == 64
        assert max(count for count, _ in made) > 1
        assert all(feeds["attention_mask"].all() for _, feeds in made)

    def test_memory_does_not_grow_with_the_samples(self, tmp_path: Path) -> None:
        few, many = (peak_of_calibrating(tmp_path / str(n), n) for n in (256, 2048))
        assert many < few + 12


def peak_of_calibrating(folder: Path, count: int) -> float:
    """Peak memory in MB of a process that quantizes with `count` texts of every length from 3 to 258 tokens.

    Ragged, because what differs in size from batch to batch is what fragments memory.
    """
    width = 256
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        product("first", "x", "a", "h"),
        helper.make_node("Relu", ["h"], ["r"]),
        product("second", "r", "b", "y"),
    ]
    constants = {"table": weights(100, width), "a": weights(width, 512), "b": weights(512, width, seed=1)}
    made = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m").mkdir(parents=True)
    onnx.save(model, str(folder / "m" / "model.onnx"))
    artifact.write(folder / "m", Descriptor(format="onnx", components={"model": onnx_files.component(model)}))
    data = texts(folder / "d", [[i % 100] * (3 + i % 256) for i in range(count)])
    return float(run_apart(folder, folder / "m", data.path)["anonymous_mb"])


def run_apart(folder: Path, source: Path, data: Path) -> dict[str, Any]:
    """Quantize in a process of its own: its peak of memory without mapped files, and the modules it imported."""
    code = f"""
import json, sys, threading, time
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from modelbuild import artifact
from tests.kinds.run import run_kind
peak = 0
def watch():
    global peak
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max(peak, next(int(l.split()[1]) for l in lines if l.startswith("RssAnon")))
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
out = Path({str(folder / "apart")!r}); out.mkdir()
source, data = (artifact.read(Path(p)) for p in ({str(source)!r}, {str(data)!r}))
run_kind("int8", out, {{"batch_size": 1}}, inputs={{"from": source, "calibration": data}})
print(json.dumps({{"anonymous_mb": peak / 1024, "modules": sorted(sys.modules)}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_imports_neither_torch_nor_transformers(two: Artifact, data: Artifact, tmp_path: Path) -> None:
    assert {"torch", "transformers"}.isdisjoint(run_apart(tmp_path, two.path, data.path)["modules"])


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Artifact:
    """Embeddings and one product, with a table large enough to be worth int8."""
    folder = tmp_path / "encoder"
    models.write_onnx(folder / "model.onnx", rows=2048)
    component = onnx_files.component(onnx_files.load(folder / "model.onnx"))
    artifact.write(folder, Descriptor(format="onnx", components={"model": component}))
    return artifact.read(folder)


class TestTables:
    def test_embeddings_are_int8_by_row_and_looked_up_before_they_are_floats(
        self, tiny_encoder: Artifact, tmp_path: Path
    ) -> None:
        built = quantize(tmp_path / "q", tiny_encoder, ragged(tmp_path / "d"))
        found = stored(built)
        assert found["table_int8"].dtype == np.int8
        assert found["table_scale"].shape == (2048, 1)
        assert "table" not in found
        assert next(n for n in graph(built).node if n.op_type == "Gather").input[0] == "table_int8"

    def test_embeddings_stay_where_asked(self, tiny_encoder: Artifact, tmp_path: Path) -> None:
        assert "table" in stored(quantize(tmp_path / "q", tiny_encoder, ragged(tmp_path / "d"), embeddings=False))

    def test_weights_in_a_file_beside_the_model(self, tiny_encoder: Artifact, tmp_path: Path) -> None:
        data, folder = ragged(tmp_path / "d"), tmp_path / "beside"
        models.write_onnx(folder / "model.onnx", rows=2048, external=True)
        artifact.write(folder, tiny_encoder.descriptor)
        assert (folder / "model.onnx.data").is_file()
        built = [
            quantize(tmp_path / name, source, data)
            for name, source in (("a", tiny_encoder), ("b", artifact.read(folder)))
        ]
        assert built[0].model_path.read_bytes() == built[1].model_path.read_bytes()


class TestSelection:
    def test_excludes_nodes_by_pattern(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        built = quantize(tmp_path / "q", two, data, exclude=["sec*"])
        assert stored(built).keys() >= {"a_quantized", "b"}

    def test_takes_only_the_nodes_named(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        built = quantize(tmp_path / "q", two, data, nodes=["second"])
        assert stored(built).keys() >= {"a", "b_quantized"}

    def test_a_pattern_that_matches_nothing_is_a_problem(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        told = refusal(tmp_path / "q", two, data, exclude=["secund"])
        assert told.title == "`exclude`: the pattern `secund` matches no node that can be quantized"
        assert told.facts == (("nodes", "first, second"),)
        assert told.hint == "did you mean `second`?"

    def test_nothing_left_is_a_problem(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        assert "leave nothing to quantize" in refusal(tmp_path / "q", two, data, exclude=["*"]).title
        assert "leave nothing to quantize" in refusal(tmp_path / "r", two, data, ops=["Conv"]).title


class TestTypes:
    def test_for_tensorrt_everything_is_symmetric_int8(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        found = stored(quantize(tmp_path / "q", two, data, runtime="tensorrt"))
        zeros = [a for n, a in found.items() if n.endswith("_zero_point")]
        assert len(zeros) == 4
        assert all(a.dtype == np.int8 and not a.any() for a in zeros)

    def test_per_tensor_weights_have_one_scale(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        assert stored(quantize(tmp_path / "q", two, data, per_channel=False))["a_scale"].shape == ()

    @pytest.mark.parametrize(
        "values",
        [
            {"activations": "int8"},
            {"activation_symmetric": True},
            {"activations": "int8", "activation_symmetric": True},
            {"weights": "uint8"},
            {"weights": "uint8", "weight_symmetric": False},
            {"reduce_range": True},
        ],
    )
    def test_every_type_keeps_the_model(
        self, two: Artifact, data: Artifact, tmp_path: Path, values: dict[str, Any]
    ) -> None:
        assert quantize(tmp_path / "q", two, data, **values).descriptor.metrics["cosine"] > 0.999

    def test_reduced_range_leaves_a_bit(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        codes = stored(quantize(tmp_path / "q", two, data, reduce_range=True))["a_quantized"]
        assert np.abs(codes.astype(int)).max() <= 63


class TestDynamic:
    def test_needs_no_data(self, two: Artifact, tmp_path: Path) -> None:
        built = quantize(tmp_path / "q", two)
        assert operators(built)["DynamicQuantizeLinear"] == operators(built)["MatMulInteger"] == 2
        assert built.descriptor.metrics["cosine"] > 0.999

    def test_runs_fused(self, two: Artifact, tmp_path: Path) -> None:
        ort = sessions.runtime()
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        path = quantize(tmp_path / "q", two).model_path
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        assert {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node} == {
            "DynamicQuantizeMatMul",
            "Relu",
        }

    def test_convolutions_need_calibration(self, tmp_path: Path) -> None:
        conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
        source = handmade(tmp_path / "m", [conv], {"w": weights(4, 3, 3, 3)}, shape=["b", 3, 8, 8])
        told = refusal(tmp_path / "q", source)
        assert (told.title, told.hint) == ("nothing to quantize dynamically", "convolutions need `calibration`")


class TestRefusing:
    def test_a_dataset_without_an_input_the_graph_needs(
        self, tiny_encoder: Artifact, data: Artifact, tmp_path: Path
    ) -> None:
        told = refusal(tmp_path / "q", tiny_encoder, data)
        assert told.title == "the calibration dataset has no values for the input `input_ids`"
        assert told.facts == (("graph needs", "input_ids, attention_mask"), ("dataset has", "x"))

    def test_ids_outside_the_embedding_table(self, tiny_encoder: Artifact, tmp_path: Path) -> None:
        told = refusal(tmp_path / "q", tiny_encoder, texts(tmp_path / "d", [[1, 2], [3, 30000, 4]]))
        assert told.title.endswith("ids outside its embedding table")
        assert ("table rows", "2048") in told.facts

    def test_an_empty_dataset(self, two: Artifact, tmp_path: Path) -> None:
        empty = tensors(tmp_path / "d", np.zeros((0, WIDTH)))
        assert refusal(tmp_path / "q", two, empty).title == "the calibration dataset is empty"

    def test_a_model_as_calibration(self, two: Artifact, tmp_path: Path) -> None:
        assert refusal(tmp_path / "q", two, two).title == "the input is not a dataset"

    def test_a_quantized_model(self, two: Artifact, data: Artifact, tmp_path: Path) -> None:
        told = refusal(tmp_path / "r", quantize(tmp_path / "q", two, data), data)
        assert told.title == "the model is already quantized"

    def test_what_is_not_onnx(self, tokenizer_artifact: Artifact, tmp_path: Path) -> None:
        assert refusal(tmp_path / "q", tokenizer_artifact).title == "`int8` needs an ONNX model"

    def test_nothing_to_quantize(self, data: Artifact, tmp_path: Path) -> None:
        source = handmade(tmp_path / "m", [helper.make_node("Relu", ["x"], ["y"])], {})
        assert refusal(tmp_path / "q", source, data).title == "the model has nothing to quantize"

    def test_an_old_opset(self, data: Artifact, tmp_path: Path) -> None:
        source = handmade(tmp_path / "m", [product("p", "x", "w", "y")], {"w": weights(WIDTH, 8)}, opset=11)
        assert refusal(tmp_path / "q", source, data).title == "opset 11 has no scales per channel"

    def test_data_that_makes_the_model_overflow(self, two: Artifact, tmp_path: Path) -> None:
        bad = tensors(tmp_path / "d", np.full((4, WIDTH), np.nan))
        told = refusal(tmp_path / "q", two, bad)
        assert told.title == "the float model gives NaN or infinity on the calibration data"

    def test_a_quantization_that_destroys_the_model(self, two: Artifact, tmp_path: Path) -> None:
        spiky = np.random.default_rng(1).standard_normal((64, WIDTH)) * 1e-3
        spiky[::4, 0] = 1000
        told = refusal(
            tmp_path / "q", two, tensors(tmp_path / "d", spiky), calibrate="percentile", percentile=90, smooth=None
        )
        assert told.title == "quantization destroyed the model"

    @pytest.mark.parametrize(
        ("values", "field"),
        [
            ({"mode": "static"}, "mode"),
            ({"mode": "dynamic", "calibration": "d"}, "calibration"),
            ({"calibrate": "entropy"}, "calibrate"),
            ({"smooth": 0.5}, "smooth"),
            ({"calibration": "d", "smooth": 1.5}, "smooth"),
            ({"calibration": "d", "percentile": 99.9}, "percentile"),
            ({"calibration": "d", "calibrate": "entropy", "moving_average": 0.1}, "moving_average"),
            ({"runtime": "tensorrt"}, "runtime"),
            ({"runtime": "tensorrt", "calibration": "d", "activations": "uint8"}, "activations"),
            ({"runtime": "tensorrt", "calibration": "d", "activation_symmetric": False}, "activation_symmetric"),
        ],
    )
    def test_options_that_contradict(self, values: dict[str, Any], field: str) -> None:
        with pytest.raises(msgspec.ValidationError) as caught:
            msgspec.convert({"from": "onnx", **values}, kind.load("int8").Spec)
        assert isinstance(caught.value.__cause__, kind.SpecError)
        assert caught.value.__cause__.field == field


@pytest.mark.torch
class TestTransformers:
    @pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert"])
    def test_fused_attention_is_quantized_too(self, tiny_onnx: Make, tmp_path: Path, model_type: str) -> None:
        fused = run_kind("fused", tmp_path, {}, inputs={"from": tiny_onnx(model_type)})
        built = quantize(tmp_path / "q", fused, ragged(tmp_path / "d"))
        found = operators(built)
        assert found["MultiHeadAttention"] == 2
        assert found["Attention"] == 0
        assert found["MatMul"] == 8
        assert found["QuantizeLinear"] == 8
        assert built.descriptor.metrics["cosine"] > 0.99

    def test_tensorrt_takes_no_fused_graph(self, tiny_onnx: Make, tmp_path: Path) -> None:
        fused = run_kind("fused", tmp_path, {}, inputs={"from": tiny_onnx("bert")})
        told = refusal(tmp_path / "q", fused, ragged(tmp_path / "d"), runtime="tensorrt")
        assert told.title == "TensorRT does not know ONNX Runtime's fused operators"
        assert told.facts == (("operators", "Attention, BiasGelu"),)

    def test_takes_tokenizer_and_settings_along(self, tiny_onnx: Make, tmp_path: Path) -> None:
        source = tiny_onnx("bert")
        built = quantize(tmp_path / "q", source, ragged(tmp_path / "d"))
        assert built.descriptor.tokenizer == source.descriptor.tokenizer != ()
        assert all((built.path / name).is_file() for name in built.descriptor.tokenizer)
        assert built.descriptor.settings == source.descriptor.settings


@pytest.fixture(scope="module")
def exported(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_kind("onnx", tmp_path_factory.mktemp("onnx"), {}, inputs={"from": minilm})


@pytest.fixture(scope="module")
def prose(minilm: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    made = {}
    for name in ("sentences", "heldout"):
        path = REPOSITORY / "recipes" / "data" / f"{name}.jsonl"
        folder = tmp_path_factory.mktemp(name)
        options = {"max_length": 128}
        made[name] = run_kind("dataset", folder, options, inputs={"tokenizer": minilm}, sources={"path": path})
    return made


@pytest.mark.torch
class TestMiniLM:
    """The real all-MiniLM-L6-v2, calibrated and judged on this repository's prose."""

    @pytest.mark.parametrize("from_fused", [True, False])
    def test_embeddings_stay_within_half_a_percent_of_fp32(
        self, exported: Artifact, prose: dict[str, Artifact], tmp_path: Path, from_fused: bool
    ) -> None:
        source = run_kind("fused", tmp_path, {}, inputs={"from": exported}) if from_fused else exported
        built = quantize(tmp_path / "q", source, prose["sentences"])
        assert built.model_path.stat().st_size <= 29e6
        expected, got = (embeddings(a, prose["heldout"]) for a in (exported, built))
        cosine = (expected * got).sum(axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(got, axis=1)
        assert cosine.mean() >= 0.998
        assert cosine.min() >= 0.985


def embeddings(built: Artifact, data: Artifact) -> Any:
    """Mean-pooled sentence embeddings, one text at a time."""
    session = sessions.open_session(built.model_path)
    names = [i.name for i in session.get_inputs()]
    return np.concatenate(
        [session.run(None, feeds)[0].mean(axis=1) for feeds in samples.of(data).batches(1, names=names)]
    )
