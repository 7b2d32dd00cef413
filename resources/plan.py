"""From a scenario to its footprint: find the model and the card, read the architecture, predict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from planner.architecture import Architecture, read_config
from planner.defaults import DEFAULT_GPU
from planner.describe import ModelDescription, describe_model
from planner.faults import Fault, Faults
from planner.footprint import Footprint
from planner.formats import GGML_TYPES, FileHeader, Format, GgufTensor, native_format
from planner.gpu import Gpu
from planner.predict import Device, predict
from planner.scenario import ModelPath, ModelRef, Scenario, parse_scenario
from resources import gpus
from resources.calibration import with_calibration
from resources.sources import ModelSource, resolve
from resources.tensors import StoredTensors


@dataclass(frozen=True)
class Model:
    """A model found: where it came from, what it is, how its checkpoint is stored."""

    source: ModelSource
    architecture: Architecture
    native: Format

    @cached_property
    def described(self) -> ModelDescription:
        """What it is in figures."""
        return describe_model(self.architecture, self.native)


@dataclass(frozen=True)
class Plan:
    """A footprint with what it was made from."""

    scenario: Scenario
    footprint: Footprint
    model: Model
    gpu: Gpu

    @cached_property
    def settled(self) -> Scenario:
        """The scenario with every default filled in."""
        return parse_scenario(self.footprint.scenario)

    @property
    def architecture(self) -> Architecture:
        """What the model is."""
        return self.model.architecture

    @property
    def source(self) -> ModelSource:
        """Where the model came from."""
        return self.model.source

    @property
    def cards(self) -> str:
        """The cards in words: ``H100 SXM5 80GB``, ``2 × GeForce RTX 4090 + GeForce RTX 3090``."""
        counts = Counter(self.scenario.hardware.cards) or Counter({self.gpu.name: self.footprint.cards})
        return " + ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())

    @property
    def title(self) -> str:
        """``meta-llama/Llama-3.1-8B · inference · 2 × H100 SXM5 80GB``."""
        return f"{self.source.label} · {self.scenario.task} · {self.cards}"


def find_model(model: ModelRef, *, network: bool = True) -> Model:
    """The model a scenario names. May read disk and network.

    Raises :class:`planner.faults.Faults`, ``UnknownArchitecture`` or an error of ``resources`` whose text says what to do.
    """
    if isinstance(model, str):
        return _by_name(model, network)
    reference = {"path": model.path} if isinstance(model, ModelPath) else {"config": dict(model.config)}
    return _read(resolve(reference, network=network))


def make_plan(scenario: Scenario, *, network: bool = True, device: Device = "cuda", calibrated: bool = True) -> Plan:
    """Answer a scenario; ``calibrated``: with what was measured of its card on this machine.

    Raises what :func:`find_model` raises, and Faults for a GPU that is not in the catalog.
    """
    model = find_model(scenario.model, network=network)
    gpu = find_gpu(scenario.hardware.gpu)
    if calibrated:
        gpu = with_calibration(gpu)
    if scenario.hardware.cards:
        gpu = _with_others(gpu, scenario.hardware.cards[1:])
    footprint = predict(scenario, model.architecture, gpu, model.native, device=device)
    return Plan(scenario, footprint, model, gpu)


def find_gpu(name: str | None) -> Gpu:
    """The card of that name, the default card for None; Faults with the nearest names otherwise."""
    try:
        return gpus.gpu(name or DEFAULT_GPU)
    except gpus.UnknownGpu as error:
        raise Faults([Fault("hardware.gpu", str(error).removeprefix("hardware.gpu: "))]) from error


def _with_others(gpu: Gpu, names: tuple[str, ...]) -> Gpu:
    """A card with those beside it, the same object as long as it stays the same."""
    key = (id(gpu), names)
    if key not in _mixed or _mixed[key][0] is not gpu:
        _mixed[key] = gpu, replace(gpu, beside=tuple(_other(name) for name in names))
    return _mixed[key][1]


def _other(name: str) -> Gpu:
    try:
        return gpus.gpu(name)
    except gpus.UnknownGpu as error:
        raise Faults([Fault("hardware.cards", str(error).removeprefix("hardware.gpu: "))]) from error


_mixed: dict[tuple[int, tuple[str, ...]], tuple[Gpu, Gpu]] = {}


@lru_cache(maxsize=64)
def _by_name(name: str, network: bool) -> Model:  # noqa: FBT001  a cache key
    return _read(resolve(name, network=network))


def _read(source: ModelSource) -> Model:
    architecture = read_config(source.config)
    native = native_format(source.config, source.hf_quant_config)
    if source.tensors is not None:
        native = replace(native, header=_header(source.tensors))
    return Model(source, architecture, native)


def _header(stored: StoredTensors) -> FileHeader:
    """What the files say, in the planner's words."""
    tensors = tuple(_gguf_tensors(stored)) if stored.container == "gguf" else ()
    return FileHeader(stored.total_bytes, stored.parameters, stored.bytes_by_dtype, tensors)


def _gguf_tensors(stored: StoredTensors) -> Iterator[GgufTensor]:
    """Every tensor by its own name; those whose names hold more numbers than a layer's keep the folded one."""
    for group in stored.groups:
        kind = GGML_TYPES[group.dtype]
        numbers: Sequence[int | str] = group.layers if len(group.layers) == group.count else ("*",) * group.count
        for number in numbers:
            yield GgufTensor(group.name.replace("*", str(number), 1), group.shape, kind)
