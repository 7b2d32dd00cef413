"""One order from its reading to its result."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import device as devices
from . import vendors
from .adapters import is_adapter
from .attribution import ADAPTERS, QUANTIZATION_STATE, Attribution
from .build import Built, Maker, attention_of, build, make_fake, make_filler, make_real, materialise
from .distributed import following_shards, place, split
from .errors import OutOfMemory, WorkerError
from .fake import Answers, fake_tensors
from .flash import NOTE as FLASH_NOTE
from .fold import Folder, FoldError
from .inference import InferenceLoad, MakeUnroller
from .kernels import missing_kernels
from .memo import Memo
from .objectives import build_reference, has_reference_model, load_reference, make_training_load
from .order import Order
from .parallel import Layout
from .personality import CudaPersonality
from .phases import PhaseListener, Phases, Sampler
from .quantised import parameters_of, quantisation_state
from .segments import WindowSink
from .trace import Trace
from .tracker import Differences, StorageTracker, rounded
from .training import TrainingLoad
from .unroll import Recorder, Slot, Unroller
from .walk import Walk
from .wire import HeldWire, Sender, Wire

_logger = logging.getLogger(__name__)


def versions() -> dict[str, str | None]:
    """What the run rests on."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": _peft_version(),
        "cuda": torch.version.cuda,
    }


def hello(wire: Wire, order: Order) -> None:
    """Send the first event."""
    wire.send(
        "hello", protocol=1, pid=os.getpid(), rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")), versions=versions(), device=devices.describe(order.device),
    )  # fmt: skip


def run(order: Order, wire: Wire, layout: Layout | None = None) -> None:
    """Run the order and send its result. Raises :class:`WorkerError`; running out of memory is a result."""
    Run(order, wire, layout).run()


class Run:
    """The state of one run."""

    def __init__(self, order: Order, wire: Wire, layout: Layout | None = None) -> None:
        self._order = order
        self._layout = layout
        self._fill = make_filler() if layout is not None else None
        self._wire = wire
        self._notes: list[str] = []
        self._built: Built | None = None
        self._reference: Any = None
        self._phases: Phases | None = None
        self._trace: Trace | None = None
        self._tracker: StorageTracker | None = None
        self._unroller: Unroller | None = None
        self._windows: WindowSink | None = None
        self._folder: Folder | None = None
        self._walk: Walk | None = None

    @property
    def folded_calls(self) -> int:
        """How many calls of layers were written, not traced."""
        return self._folder.written_calls if self._folder is not None else 0

    def run(self) -> None:
        """See :func:`run`."""
        try:
            self._prepare_and_load()
        except Exception as error:
            memory = devices.as_out_of_memory(error)
            if memory is None:
                raise
            self._send_result("out_of_memory", memory)
        else:
            self._send_result("completed")

    def _prepare_and_load(self) -> None:
        order = self._order
        self._wire.send("progress", what="building", done=0, total=1)
        self._build()
        if order.fake and order.attention == "flash":
            self._notes.append(FLASH_NOTE)
        self._wire.send("progress", what="building", done=1, total=1)
        if order.device == "cpu":
            self._on_tracker()
        else:
            self._on_cuda()

    def _build(self) -> None:
        self._built = build(self._order)
        self._reference = build_reference(self._order) if has_reference_model(self._order) else None

    def _weight_bytes(self) -> int:
        """Of all models that are loaded."""
        assert self._built is not None
        return sum(weight_bytes(model) for model in (self._built.model, self._reference) if model is not None)

    def _on_tracker(self) -> None:
        assert self._built is not None
        if not self._order.fake:
            devices.check_machine_memory(self._weight_bytes())
            self._measure_on_cpu()
        elif self._order.traced_layers == "all":
            self._rehearse(self._wire)
        else:
            self._rehearse_folded()

    def _measure_on_cpu(self) -> None:
        attribution = Attribution()
        tracker = StorageTracker(attribution, budget_bytes=self._order.budget_bytes)
        attribution.tracker = tracker
        self._phases = Phases(self._wire, devices.CpuMeter(tracker), on_begin=attribution.enter_phase)
        make = make_real(torch.device("cpu"))
        with tracker, self._sampling(), following_shards(tracker):
            self._load(torch.device("cpu"), make, attribution)

    def _rehearse_folded(self) -> None:
        """Held back until the end: whatever goes wrong, the rehearsal starts again and traces every layer."""
        held = HeldWire(self._wire)
        try:
            self._rehearse(held, folded=True)
        except Exception as error:
            _logger.info("tracing every layer", exc_info=error)
            if isinstance(error, FoldError):
                self._notes = ["Every layer was traced: layers that look alike did not do the same."]
            self._build()
            self._rehearse(self._wire)
        else:
            held.release()

    def _rehearse(self, wire: Sender, folded: bool = False) -> None:
        attribution = Attribution()
        trace = self._trace = Trace(wire, attribution)
        answers = Answers(attribution)
        differences = Differences(replace=answers.replacements())
        personality = self._personality(attribution)
        if personality is not None:
            differences |= personality.differences()
        tracker = self._tracker = StorageTracker(attribution, trace, differences)
        self._windows = None
        attribution.tracker = tracker
        self._folder = None
        if folded:
            self._windows = tracker.sink = WindowSink(trace, attribution)
            self._folder = Folder(tracker, self._windows, attribution, answers.asked)
        listeners: list[PhaseListener] = [trace] if self._folder is None else [self._folder, trace]
        self._phases = Phases(wire, devices.TraceMeter(tracker), listeners, on_begin=attribution.enter_phase)
        functions = personality.functions(self._amp) if personality is not None else contextlib.nullcontext()
        with fake_tensors() as mode, functions, tracker:
            tracker.run = Memo(mode)
            self._trace_load(attribution)
        if self._unroller is not None:
            self._notes += self._unroller.notes()
        if answers.asked:
            self._notes.append(f"values were assumed (no padding) where {len(answers.asked)} modules asked for them")
        if self._built is not None:
            self._notes += missing_kernels(self._built.model)

    def _trace_load(self, attribution: Attribution) -> None:
        try:
            self._load(torch.device("cpu"), make_fake, attribution)
        except (WorkerError, FoldError):
            raise
        except Exception as error:
            assert self._built is not None
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            where = f" in {attribution.module}" if attribution.module else ""
            message = f"{type(self._built.model).__name__} cannot be traced{where}: {reason}; measure it instead"
            raise WorkerError("unsupported", message) from error

    @property
    def _unroll(self) -> MakeUnroller | None:
        return self._make_unroller if self._trace is not None and self._order.decode_steps == "auto" else None

    def _make_unroller(self, slots: Callable[[], list[Slot]]) -> Unroller:
        assert self._tracker is not None
        assert self._trace is not None
        recorder = Recorder(self._trace)
        if self._windows is not None:
            self._windows.inner = recorder
        else:
            self._tracker.sink = recorder
        self._unroller = Unroller(self._tracker, recorder, self._trace, slots)
        return self._unroller

    def _personality(self, attribution: Attribution) -> CudaPersonality | None:
        if self._order.personality == "cpu":
            return None
        attribution.plays_cuda = True
        return CudaPersonality(self._order.compute_capability, attribution)

    def _on_cuda(self) -> None:
        device, meter = self._open_card()
        assert self._built is not None
        if self._layout is None:
            devices.check_free(meter.read().free, self._weight_bytes())
        self._walk = Walk(self._built.model, meter, masters=self._amp)
        self._phases = Phases(self._wire, meter, on_begin=self._walk.begin, walk_components=self._walk.components)
        with self._sampling():
            self._load(device, make_real(device), None)

    def _open_card(self) -> tuple[torch.device, devices.CudaMeter | vendors.MpsMeter | vendors.XpuMeter]:
        name, budget_bytes = self._order.device, self._order.budget_bytes
        if name.partition(":")[0] in vendors.KINDS:
            self._notes += [vendors.MPS_NOTE] if name == "mps" else []
            return vendors.open_device(name, budget_bytes)
        device = devices.open_cuda(name, budget_bytes)
        return device, devices.CudaMeter(device)

    @property
    def _amp(self) -> bool:
        return self._order.task == "training" and self._order.training.precision.startswith("amp-")

    def _load(self, device: torch.device, make: Maker, attribution: Attribution | None) -> None:
        assert self._built is not None
        assert self._phases is not None
        model = self._built.model
        if self._layout is not None:
            split(model, self._layout, device, self._order.training.precision)
        with self._phases.phase("load"):
            if self._fill is not None:
                place(model, device, self._fill)
            elif attribution is None:
                materialise(model, make)
            else:
                materialise(model, make, attribution.enter_module)
                attribution.enter_module("")
            if attribution is not None:
                self._label_weights(attribution)
            if self._reference is not None:
                load_reference(self._reference, make, attribution)
        with self._watching(attribution):
            load: InferenceLoad | TrainingLoad
            if self._order.task == "inference":
                load = InferenceLoad(self._built, self._order.inference, attribution, self._unroll, fake=self._order.fake)
            else:
                load = make_training_load(
                    self._built, self._order.training, attribution, self._order.fake, self._layout, self._reference, self._unroll
                )
            if self._walk is not None:
                self._walk.watch(load)
            load.run(self._phases, device)

    @contextlib.contextmanager
    def _watching(self, attribution: Attribution | None) -> Iterator[None]:
        assert self._built is not None
        model = self._built.model
        with contextlib.ExitStack() as stack:
            if attribution is not None:
                stack.enter_context(attribution.watching(model, self._built.vocabulary, self._reference))
            if self._folder is not None:
                stack.enter_context(self._folder.watching(model))
            yield

    def _label_weights(self, attribution: Attribution) -> None:
        assert self._built is not None
        model = self._built.model
        adapters = [value for name, value in model.named_parameters() if is_adapter(name)]
        attribution.label(quantisation_state(model), QUANTIZATION_STATE)
        if self._amp:
            attribution.master_weights(value for value in model.parameters() if value.dtype == torch.float32)
        attribution.label(adapters, ADAPTERS)

    @contextlib.contextmanager
    def _sampling(self) -> Iterator[None]:
        assert self._phases is not None
        sampler = Sampler(self._phases, self._order.sample_interval_s)
        sampler.start()
        try:
            yield
        finally:
            sampler.stop()

    def _send_result(self, outcome: str, memory: OutOfMemory | None = None) -> None:
        if self._order.snapshot:
            self._send_snapshot()
        fields: dict[str, Any] = {"outcome": outcome, **self._model_fields(), "notes": self._notes}
        fields["phases"] = self._phases.results() if self._phases else []
        if memory is not None:
            fields |= {
                "requested_bytes": memory.requested_bytes,
                "free_bytes": memory.free_bytes,
                "message": memory.message,
                "phase": self._phases.current if self._phases else "load",
            }
        self._wire.close("result", **fields)

    def _send_snapshot(self) -> None:
        """After the run and out of the sampler's way: it takes long."""
        if not self._order.device.startswith("cuda"):
            self._notes.append("an allocator snapshot needs a CUDA device: nothing else has torch's caching allocator")
            return
        self._wire.send("snapshot", segments=devices.segments(torch.cuda.memory_snapshot()))

    def _model_fields(self) -> dict[str, Any]:
        if self._built is None:
            return {}
        parameters, size_bytes = parameters_of(self._built.model)
        return {
            "parameters": parameters,
            "trainable_parameters": sum(
                parameter.numel()
                for model in (self._built.model, self._reference)
                for parameter in (model.parameters() if model is not None else ())
                if parameter.requires_grad
            ),
            "weight_bytes": size_bytes,
            "layers": self._built.layers,
            "model_class": type(self._built.model).__name__,
            "attention": attention_of(self._built),
        }


def weight_bytes(model: Any) -> int:
    """Bytes of the model's parameters and buffers as the allocator counts them."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(rounded(getattr(tensor, "packed_bytes", tensor.numel() * tensor.element_size())) for tensor in tensors)


def _peft_version() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("peft")
    except PackageNotFoundError:
        return None


__all__ = ["WorkerError", "hello", "run", "versions", "weight_bytes"]
