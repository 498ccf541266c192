"""What a model's activations look like on real data, gathered batch by batch in memory that does not grow with it.

The graph itself reduces each activation to its lowest and highest value per channel (ReduceMin, ReduceMax) and hands
out a thinned sample of its rows; no activation leaves ONNX Runtime as a whole. Histograms, for the calibrations that
need them, take a second pass (`modelbuild.lib.histograms`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from modelbuild.errors import problem, suggestion
from modelbuild.lib import sessions
from modelbuild.lib.onnx_graph import Graph
from modelbuild.lib.samples import Samples

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ROWS = 256
"""Rows kept of each activation; memory is this times the model's channels, 16 MB for MiniLM."""
START, STRIDE = "modelbuild_start", "modelbuild_stride"
Batch = tuple[int, dict[str, Any]]
"""How many samples, and the inputs by name."""


class Observed(msgspec.Struct, frozen=True):
    """An activation over all samples: per channel (last axis) `low` and `high` [K], and sampled `rows` [R, K].

    An activation observed as a whole (images) has `low` and `high` of shape [] and no rows.
    """

    low: Any
    high: Any
    rows: Any


def require_inputs(inputs: Mapping[str, str], samples: Samples) -> None:
    """A `ProblemError` when the dataset is empty or lacks one of the graph's `inputs` (name -> dtype)."""
    if not len(samples):
        raise problem("the calibration dataset is empty", hint="32 samples or more of real data calibrate well")
    missing = [name for name in inputs if name not in samples.inputs and not _follows(name)]
    if missing:
        near = suggestion(missing[0], samples.inputs)
        raise problem(
            f"the calibration dataset has no values for the input `{missing[0]}`",
            graph_needs=", ".join(inputs),
            dataset_has=", ".join(samples.inputs),
            hint=near or "build the dataset with the model's own tokenizer, or with columns named as the inputs",
        )


def batches(
    samples: Samples, inputs: Mapping[str, tuple[str, tuple[int | str, ...]]], size: int, limit: int | None
) -> Iterator[Batch]:
    """The first `limit` samples in batches of at most `size`, short ones first, cast to the graph's dtypes.

    Only samples of one length share a batch, so nothing is padded and no padding enters a range. A graph with a fixed
    sequence gets it, padded; one with a fixed batch gets its last batch filled up with repetitions.
    `inputs`: name -> (dtype, shape).
    """
    import numpy as np

    fixed = {s[0] for _, s in inputs.values() if s and isinstance(s[0], int)}
    width = next((s[1] for _, s in inputs.values() if len(s) == 2 and isinstance(s[1], int)), None)
    if fixed:
        (size,) = fixed if len(fixed) == 1 else (1,)
    dtypes = {name: dtype for name, (dtype, _) in inputs.items()}
    order = np.argsort(samples.lengths, kind="stable")
    given = [name for name in inputs if name in samples.inputs]
    wanted: list[dict[str, Array]] = []

    def whole(singles: Sequence[Mapping[str, Array]]) -> Batch:
        count, feeds = _stacked(singles, size if fixed else 0)
        return count, _completed(feeds, inputs)

    singles = samples.batches(1, pad=width, sort_by_length=True, names=given, dtypes=dtypes)
    for index, single in zip(order, singles, strict=True):
        if limit is not None and index >= limit:
            continue
        sample = single if width else _unpadded(single)
        if wanted and (len(wanted) == size or _shapes(wanted[0]) != _shapes(sample)):
            yield whole(wanted)
            wanted = []
        wanted.append(sample)
    if wanted:
        yield whole(wanted)


def _follows(name: str) -> bool:
    """Whether an input follows from the tokens of a text that begins: positions, and the cache, which is empty."""
    return name == "position_ids" or name.startswith("past_key_values.")


def _completed(feeds: dict[str, Array], inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]) -> dict[str, Array]:
    """The feeds with those inputs that follow from them."""
    import numpy as np

    rows = next(iter(feeds.values())).shape[0]
    for name, (dtype, shape) in inputs.items():
        if name in feeds:
            continue
        if name == "position_ids":
            length = feeds["input_ids"].shape[1]
            feeds[name] = np.broadcast_to(np.arange(length, dtype=dtype), (rows, length)).copy()
        else:
            feeds[name] = np.zeros((rows, *(n if isinstance(n, int) else 0 for n in shape[1:])), dtype)
    return feeds


def _shapes(sample: Mapping[str, Array]) -> list[tuple[int, ...]]:
    return [a.shape for a in sample.values()]


def _unpadded(sample: dict[str, Array]) -> dict[str, Array]:
    """One sample without the places its attention mask hides."""
    mask = sample.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.all() or not mask.any():
        return sample
    kept = mask[0] != 0
    return {n: a[:, kept] if a.ndim == 2 and a.shape[1] == len(kept) else a for n, a in sample.items()}


def _stacked(samples: Sequence[Mapping[str, Array]], size: int) -> Batch:
    """Samples as one batch, the last one repeated up to `size`."""
    import numpy as np

    filled = [*samples, *[samples[-1]] * (size - len(samples))]
    return len(samples), {name: np.concatenate([s[name] for s in filled]) for name in samples[0]}


def require_ids_fit(graph: Graph, batch: Mapping[str, Array]) -> None:
    """A `ProblemError` when ids in the batch lie outside the embedding table that they are looked up in."""
    for name, ids in batch.items():
        rows = _table_rows(graph, name)
        if rows is not None and ids.size and (int(ids.max()) >= rows or int(ids.min()) < -rows):
            raise problem(
                "the calibration dataset does not fit the model: ids outside its embedding table",
                input=name,
                ids=f"{int(ids.min())} to {int(ids.max())}",
                table_rows=rows,
                hint="build the dataset with the tokenizer of this model's checkpoint",
            )


def with_real_ids(graph: Graph, cases: Iterable[dict[str, Array]]) -> Iterator[Batch]:
    """Made-up inputs with ids from all over the embedding tables that they are looked up in."""
    import numpy as np

    for seed, feeds in enumerate(cases):
        random = np.random.default_rng(seed)
        for name, ids in feeds.items():
            rows = _table_rows(graph, name)
            if rows is not None and rows > 16 and ids.any() and "mask" not in name and "position" not in name:
                feeds[name] = random.integers(0, rows, ids.shape).astype(ids.dtype)
        yield len(next(iter(feeds.values()))), feeds


def _table_rows(graph: Graph, name: str) -> int | None:
    """The rows of the table that the input `name` indexes, seen through casts."""
    names = {name}
    for node in graph.nodes:
        if node.op_type == "Cast" and node.input[0] in names:
            names.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in names and node.input[0] in graph.constants:
            return int(graph.constants[node.input[0]].shape[0])
        elif node.op_type == "EmbedLayerNormalization" and node.input[0] in names:
            return int(graph.constants[node.input[2]].shape[0])
    return None


class Probe:
    """A session over the graph that observes some of its activations."""

    def __init__(self, graph: Graph, channels: Mapping[str, int | None], *, whole: bool = False) -> None:
        """`channels`: activation -> its last axis, None to observe it as a whole. `whole` hands out all values."""
        from onnx import helper

        self.activations = list(channels)
        self._observed = [] if whole else [o for a in self.activations for o in _observers(a, channels[a])]
        self.channels = channels
        self._fetch = self.activations if whole else self._observed
        model, arrays = _without_weights(graph)
        if not whole:
            _add_observers(model, channels, graph.opset)
        new = [name for name in self._fetch if name not in graph.outputs]
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in new)
        self._session = _open(model, arrays)
        self._options = sessions.runtime().RunOptions()
        self._options.only_execute_path_to_fetches = True

    def values(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All values of the activations on a batch (a probe made with `whole`)."""
        return dict(zip(self.activations, self._run(feeds), strict=True))

    def reduced(self, feeds: Mapping[str, Array], start: int, stride: int) -> list[Any]:
        """low, high and rows (no rows for an activation observed as a whole) of each activation, in one list."""
        import numpy as np

        extra = {START: np.asarray([start], dtype=np.int64), STRIDE: np.asarray([stride], dtype=np.int64)}
        return self._run({**feeds, **extra})

    def _run(self, feeds: Mapping[str, Array]) -> list[Any]:
        with sessions.failures("the model does not run on the calibration data"):
            got: list[Any] = self._session.run(self._fetch, dict(feeds), self._options)
        return got


def outputs(graph: Graph, chosen: Iterable[Batch]) -> list[tuple[dict[str, Array], list[Array]]]:
    """The graph's own outputs on some batches, with their inputs."""
    session = _open(*_without_weights(graph))
    done = []
    for _, feeds in chosen:
        with sessions.failures("the model does not run on the calibration data"):
            done.append((feeds, session.run(graph.outputs, feeds)))
    return done


def _observers(activation: str, channels: int | None) -> list[str]:
    parts = ("low", "high") if channels is None else ("low", "high", "rows")
    return [f"{activation}/modelbuild_{part}" for part in parts]


def _without_weights(graph: Graph) -> tuple[Any, dict[str, Array]]:
    """(the model without its big weights, those weights by name)."""
    import numpy as np
    from onnx import TensorProto

    big = {n: np.ascontiguousarray(a) for n, a in graph.constants.items() if a.nbytes >= 1024 and a.dtype == np.float32}
    model = graph.model([name for name in graph.constants if name not in big])
    for name, value in big.items():
        tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="memory")
    return model, big


def _open(model: Any, arrays: Mapping[str, Array]) -> Any:
    """A session of the model on one thread, which takes its weights from `arrays` as they lie in memory."""
    ort = sessions.runtime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    options.log_severity_level = 3
    # Shapes differ from batch to batch: a memory plan per shape, or malloc, would keep holes that nothing fits.
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    options.add_external_initializers(list(arrays), [ort.OrtValue.ortvalue_from_numpy(a) for a in arrays.values()])
    with sessions.failures("ONNX Runtime does not load the model for calibration"):
        return ort.InferenceSession(model.SerializeToString(), options, providers=list(sessions.CPU))


def _add_observers(model: Any, channels: Mapping[str, int | None], opset: int) -> None:
    """Per activation: Reshape to [-1, K], ReduceMin and ReduceMax over the rows, and a Slice of every n-th row."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    add = graph.initializer.append
    add(numpy_helper.from_array(np.asarray([0], dtype=np.int64), "modelbuild_axis"))
    add(numpy_helper.from_array(np.asarray([np.iinfo(np.int64).max], dtype=np.int64), "modelbuild_end"))
    graph.input.extend(helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in (START, STRIDE))
    for activation, width in channels.items():
        names = _observers(activation, width)
        source = activation
        if width is not None:
            source, shape = f"{activation}/modelbuild_2d", f"{activation}/modelbuild_shape"
            add(numpy_helper.from_array(np.asarray([-1, width], dtype=np.int64), shape))
            graph.node.append(helper.make_node("Reshape", [activation, shape], [source]))
            ends = [source, START, "modelbuild_end", "modelbuild_axis", STRIDE]
            graph.node.append(helper.make_node("Slice", ends, [names[2]]))
        for op, name in zip(("ReduceMin", "ReduceMax"), names, strict=False):
            if width is None:
                graph.node.append(helper.make_node(op, [source], [name], keepdims=0))
            elif opset >= 18:
                graph.node.append(helper.make_node(op, [source, "modelbuild_axis"], [name], keepdims=0))
            else:
                graph.node.append(helper.make_node(op, [source], [name], keepdims=0, axes=[0]))


def observe(
    probe: Probe,
    batched: Iterable[Batch],
    *,
    tokens: int,
    step: Callable[[int], None],
    averaging: float | None = None,
) -> dict[str, Observed]:
    """Run all batches and sum up what was seen of each activation; `step` hears how many samples are done.

    `tokens` is about how many rows most activations will have in all, from which the sample of rows is spread.

    `averaging` is ONNX Runtime's CalibMovingAverageConstant: ranges are then moving averages over batches, not the
    extremes.
    """
    import numpy as np

    ranges: list[list[Any]] = []
    rows: list[list[Any]] = [[] for _ in probe.activations]
    stride, done = max(1, tokens // ROWS), 0
    for number, (count, feeds) in enumerate(batched):
        _gather(probe, probe.reduced(feeds, number * 7 % stride, stride), ranges, rows, averaging)
        while max(sum(map(len, r)) for r in rows) > 2 * ROWS:
            rows, stride = [[np.concatenate(r)[::2]] if r else [] for r in rows], stride * 2
        done += count
        step(done)
    return _summary(probe, ranges, rows)


def _gather(
    probe: Probe, got: list[Any], ranges: list[list[Any]], rows: list[list[Any]], averaging: float | None
) -> None:
    """Take one batch's observations in."""
    import numpy as np

    rest = iter(got)
    for i, activation in enumerate(probe.activations):
        low, high = next(rest), next(rest)
        if probe.channels[activation] is not None:
            rows[i].append(next(rest))
        if len(ranges) <= i:
            ranges.append([low, high])
        elif averaging is not None:
            ranges[i] = [
                old + np.float32(averaging) * (new - old) for old, new in zip(ranges[i], (low, high), strict=True)
            ]
        else:
            ranges[i] = [np.minimum(ranges[i][0], low), np.maximum(ranges[i][1], high)]


def _summary(probe: Probe, ranges: list[list[Any]], rows: list[list[Any]]) -> dict[str, Observed]:
    """What was observed, by activation; a `ProblemError` when values were not finite."""
    import numpy as np

    found = {}
    for activation, (low, high), parts in zip(probe.activations, ranges, rows, strict=True):
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise problem(
                "the float model gives NaN or infinity on the calibration data",
                activation=activation,
                hint="the data may not be what the model expects, or the model is broken",
            )
        found[activation] = Observed(low, high, np.concatenate(parts) if parts else None)
    return found
