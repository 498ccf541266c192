"""What runs a model, behind one interface: ONNX Runtime on a CPU or with CUDA, TensorRT, TensorRT-RTX.

They are Polygraphy's runners, which its comparison functions take. A plan runs only where it belongs: what it needs is
checked here first, because TensorRT's own runtime ends the process, or gives nothing, where it cannot load one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from modelbuild.artifact import Artifact, Descriptor
from modelbuild.errors import problem
from modelbuild.lib import gpu as gpus
from modelbuild.lib import plan_backend, plan_log
from modelbuild.lib.gpu import Gpu

Provider = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": ("CPUExecutionProvider",), "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider")}


class Runner(Protocol):
    """A model that runs between `with` and its end. Any runner of Polygraphy's is one."""

    name: str

    def __enter__(self) -> Runner:
        """Load the model."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Let go of it."""

    def infer(self, feed_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Output name -> numpy array, of input name -> numpy array. The arrays may be written to by the next call."""

    def last_inference_time(self) -> float:
        """Seconds that the last `infer` took."""


def prepare(*models: Artifact) -> None:
    """Make Polygraphy use the TensorRT of the plan among `models`: call it before their runners, plans or not.

    A `ProblemError` for plans of two TensorRTs: one process holds one.
    """
    plans = [m for m in models if m.descriptor.format == "trt-plan"]
    for wanted in [str(m.descriptor.settings["backend"]) for m in plans] or ["auto"]:
        if plans or not plan_backend.is_bound():
            plan_backend.bind(plan_backend.resolve(wanted))


def runner(model: Artifact, *, provider: Provider = "cpu", threads: int = 0, profile: int = 0) -> Runner:
    """What runs an ONNX artifact on `provider` with `threads` (0: all cores), or a plan with one of its profiles.

    A `ProblemError` when it cannot run here: no GPU, another GPU than the plan is for, another TensorRT, a provider
    that ONNX Runtime lacks.
    """
    match model.descriptor.format:
        case "onnx":
            prepare(model)
            return _onnxruntime(model, provider, threads)
        case "trt-plan":
            return _plan(model, profile)
        case other:
            raise problem(f"nothing here runs the format `{other}`", runs="onnx, trt-plan")


def _onnxruntime(model: Artifact, provider: Provider, threads: int) -> Runner:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    from modelbuild.lib import sessions

    def load() -> Any:
        return sessions.open_session(model.model_path, providers=PROVIDERS[provider], threads=threads)

    made: Runner = OnnxrtRunner(load, name=f"onnxruntime-{provider}")
    return made


def _plan(model: Artifact, profile: int) -> Runner:
    settings = model.descriptor.settings
    require_device(model.descriptor, gpus.first())
    backend = plan_backend.load(plan_backend.resolve(settings["backend"]))
    require_version(model.descriptor, backend.version)
    from polygraphy.backend.trt import TrtRunner

    def load() -> Any:
        return _engine(model, str(backend))

    made: Runner = TrtRunner(load, name=f"{backend.name}-{backend.version}", optimization_profile=profile)
    return made


def _engine(model: Artifact, title: str) -> Any:
    """The plan's engine, on the GPU; a `ProblemError` with TensorRT's own words when it does not load."""
    from polygraphy.backend.trt import EngineFromBytes

    with plan_log.listening() as heard:
        try:
            return EngineFromBytes(model.model_path.read_bytes())()
        except Exception as e:
            cause = plan_log.failure(heard, e)
            if cause is None:
                raise
            hint = "check the driver with `nvidia-smi`; a plan runs on the GPUs and the TensorRT version it is for"
            raise problem(f"{title} does not load the plan", cause=cause, hint=hint) from e


def require_device(plan: Descriptor, device: Gpu | None) -> None:
    """A `ProblemError` when a plan does not run on `device` (None: there is no GPU)."""
    settings = plan.settings
    told = ", ".join(settings["compute_capabilities"])
    if device is None:
        raise problem(
            "this machine has no NVIDIA GPU: a plan can be built and its structure checked here, but not run",
            plan=f"{plan_backend.TITLES[settings['backend']]} {settings['backend_version']}, for {told}",
            hint="run it on a machine with a GPU; `modelbuild show` prints what is known of it here",
        )
    if not any(_covers(each, device.sm) for each in settings["compute_capabilities"]):
        raise problem(
            f"the plan is for compute capability {told}, and this GPU has {device.sm}",
            gpu=device.name,
            hint=f'add "{device.sm}" to `compute_capabilities`, or build the plan on this machine',
        )
    if settings.get("gpu", device.name) != device.name:
        raise problem(
            "the plan is for another GPU",
            plan=settings["gpu"],
            here=device.name,
            hint="build it here, or with `hardware_compatibility: same_compute_capability`",
        )


def _covers(capability: str, sm: str) -> bool:
    if capability.endswith("+"):
        return _number(sm) >= _number(capability.rstrip("+"))
    return capability == sm


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def require_version(plan: Descriptor, version: str) -> None:
    """A `ProblemError` when a plan was made by another version of TensorRT than the installed one."""
    settings = plan.settings
    if settings["backend_version"] != version and not settings.get("version_compatible"):
        title = plan_backend.TITLES[settings["backend"]]
        raise problem(
            f"the plan was made by {title} {settings['backend_version']}, and {version} is installed",
            hint="build it again with this version (`modelbuild why` names the change), or install that one",
        )


def profile_for(plan: Descriptor, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number (from 0) of the profile nearest to `shapes` of those that take them; a `ProblemError` for none."""
    best: tuple[int, int] | None = None
    for number, profile in enumerate(plan.settings["profiles"]):
        if all(_within(profile[name], shape) for name, shape in shapes.items() if name in profile):
            away = sum(_distance(profile[name], shape) for name, shape in shapes.items() if name in profile)
            best = min(best or (away, number), (away, number))
    if best is None:
        raise problem(
            "no profile of the plan takes these shapes",
            shapes=", ".join(f"{n} {list(s)}" for n, s in shapes.items()),
            profiles="; ".join(_range(each) for each in plan.settings["profiles"]),
            hint="widen `profiles`",
        )
    return best[1]


def _range(profile: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {s['min']} to {s['max']}" for name, s in profile.items())


def _within(allowed: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    if len(allowed["min"]) != len(shape):
        return False
    return all(low <= n <= high for low, n, high in zip(allowed["min"], shape, allowed["max"], strict=True))


def _distance(allowed: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    return sum(abs(tuned - size) for tuned, size in zip(allowed["opt"], shape, strict=True))
