"""How far rehearsals are from published measurements of training: ``python tests/accuracy/published_training.py``.

The rows are in ``tests/data/published_training.json``: every one is rehearsed or has its reason here. They were made with
older releases than the one installed, whose difference is known and is played as a second column: see :data:`RELEASES`.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch  # noqa: E402
from transformers.loss.loss_utils import LOSS_MAPPING  # noqa: E402

from planner.scenario import parse_scenario  # noqa: E402
from probes.rehearsal import Rehearsal  # noqa: E402
from probes.rehearsal_order import rehearse_request  # noqa: E402
from probes.worker import adapters, losses  # noqa: E402
from probes.worker.errors import WorkerError  # noqa: E402
from probes.worker.order import parse_order  # noqa: E402
from probes.worker.run import run, versions  # noqa: E402
from resources.plan import make_plan  # noqa: E402

DATA = ROOT / "tests" / "data" / "published_training.json"
GPU = {"A100-SXM4-80GB": "A100 SXM4 80GB", "NVIDIA L40S": "L40S 48GB"}
CATALOG = {
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
    "NousResearch/Llama-2-70b-hf": "meta-llama/Llama-2-70b-hf",
    "TheBloke/Llama-2-70B-GPTQ": "meta-llama/Llama-2-70b-hf",
}
"""Models of the same shape."""
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One published figure; ``setup`` is what else is known of the run."""

    id: str
    run: str
    source: int
    versions: int
    gpu: str
    model: str
    method: str
    quantisation: str | None
    batch: int | None
    sequence: int | None
    gpus: int | None
    what: str
    value: float
    unit: str
    setup: dict[str, Any]

    @property
    def measured_bytes(self) -> int:
        return int(self.value * (MIB if self.unit == "MiB" else 1))


@dataclass(frozen=True)
class Figures:
    """What a rehearsal says, bytes: peaks over all phases, and what is allocated after the last step."""

    peak_allocated: int
    allocated_after_train: int
    reserved: int
    device: int


@dataclass(frozen=True)
class Comparison:
    """A row with the figures as installed and, where its release differed, as that release computed."""

    row: Row
    installed: int
    released: int | None
    bound: bool = False
    """The row's padded lengths are not published; the rehearsal is of the longest, so it must not be below."""

    @property
    def error(self) -> float:
        return self.installed / self.row.measured_bytes - 1

    @property
    def released_error(self) -> float | None:
        return None if self.released is None else self.released / self.row.measured_bytes - 1


# -- what older releases did otherwise

UPCAST_IN_MODEL = "16-bit logits replaced by fp32 ones in the model"
UPCAST_IN_LOSS = "fp32 logits beside the model's own"
NOT_UPCAST = "logits in their own dtype"


def _older_loss(kind: str) -> Callable[..., torch.Tensor]:
    """Cross-entropy of a contiguous copy of all logits but the last; since 4.50 the labels are shifted instead."""

    def loss(logits: torch.Tensor, labels: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        logits = logits if kind == NOT_UPCAST else logits.float()
        shifted, targets = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
        return torch.nn.functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), targets.view(-1))

    return loss


def _upcasting_head(own: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The worker's own loss, with a head that hands out fp32."""

    def loss(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        handle = model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: out.float())
        try:
            return own(model, input_ids)
        finally:
            handle.remove()

    return loss


def _norms_only(model: torch.nn.Module) -> None:
    """TRL until 0.16 cast embeddings and head back to 16 bit after PEFT's preparation (peft_module_casting_to_bf16)."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.to(torch.float32)


RELEASES = {"transformers 4.45.2": UPCAST_IN_MODEL, "transformers 4.48.1": UPCAST_IN_LOSS}
OWN_LOSS = {"bigcode/gpt_bigcode-santacoder": NOT_UPCAST}
"""GPTBigCode computed its loss itself until 4.49."""


@contextmanager
def playing(loss: str) -> Iterator[None]:
    """The older loss, and TRL's older preparation, instead of the installed ones."""
    own = _upcasting_head(losses._own) if loss == UPCAST_IN_MODEL else losses._own
    with (
        mock.patch.dict(LOSS_MAPPING, ForCausalLM=_older_loss(loss)),
        mock.patch.object(losses, "_own", own),
        mock.patch.object(adapters, "cast_unquantised", _norms_only),
    ):
        yield


# -- from a row to a scenario, or to the reason why not


def reason(row: Row) -> str | None:
    """Why the row is not rehearsed; None when it is."""
    return next((text for test, text in REASONS if test(row)), None)


def _framework(row: Row) -> str:
    return str(row.setup.get("framework", ""))


def _plain_lora(row: Row) -> bool:
    return any(row.run.endswith(end) for end in ("-rank32", "-rank64", "-rank10-target-mlp", "-rank32-dora"))


STACKED_EXPERTS = (
    "transformers 5 stacks the experts, which bitsandbytes leaves in 16 bit; the release measured had them as linear layers"
)
REASONS: tuple[tuple[Callable[[Row], bool], str], ...] = (
    (
        lambda row: row.setup["engine"] == "qwen script",
        "Qwen 1 brings code of its own, which is never run; the meter is not stated either",
    ),
    (lambda row: row.setup["engine"] in ("trl", "peft"), "batch and sequence are not published"),
    (lambda row: row.setup["engine"] == "transformers", "the config of the reduced model is not published"),
    (lambda row: (row.gpus or 1) > 1, "sharded by FSDP over several GPUs; a rehearsal is of one"),
    (
        lambda row: _framework(row).endswith(("foak", "fast-kernels")),
        "fms-acceleration's own Triton kernels replace loss, norms and adapters; no scenario names them",
    ),
    (
        lambda row: row.quantisation == "bnb nf4" and "Mixtral" in row.model,
        STACKED_EXPERTS,
    ),
    (
        lambda row: row.setup["engine"] == "peft loop" and (row.method != "lora" or not _plain_lora(row)),
        "a PEFT method that no scenario names",
    ),
    (
        lambda row: row.setup["engine"] == "peft loop" and row.what == "peak_reserved",
        "the peak is that of generation at batch 50 between steps",
    ),
    (
        lambda row: row.what == "mem_allocated_between_steps_avg",
        "a mean over padded lengths that are not published, with the step's logits still held",
    ),
)


def scenario_of(row: Row) -> dict[str, Any]:
    """The scenario of a row that has no reason against it."""
    config = data()["models"].get(row.model)
    training: dict[str, Any] = {"batch": row.batch, "sequence": row.sequence, "optimizer": "adamw_foreach"}
    training |= _of_peft_loop(row) if row.setup["engine"] == "peft loop" else _of_trainer(row)
    return {
        "model": {"config": _without_source(config)} if config else CATALOG.get(row.model, row.model),
        "task": "training",
        "weights": {"bnb nf4": "nf4-dq", "gptq int4": "gptq-int4-g-1"}.get(row.quantisation or "", "bf16"),
        "training": training,
        "hardware": {"gpu": GPU[row.gpu]},
    }


def _without_source(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "_source"}


def _of_trainer(row: Row) -> dict[str, Any]:
    """fms-acceleration, scripts/benchmarks/scenarios.yaml and defaults.yaml."""
    amp = row.setup.get("amp")
    found: dict[str, Any] = {"checkpointing": "full", "attention": "flash", "method": row.method}
    found["precision"] = "bf16" if row.method == "full" or amp is None else f"amp-{amp}"
    if row.method != "full":
        targets = ["c_attn"] if "santacoder" in row.model else ["q_proj", "k_proj", "v_proj", "o_proj"]
        found["lora"] = {"rank": 16, "alpha": 16, "dropout": 0.1, "targets": targets}
    if _framework(row).endswith("-liger"):
        found["loss"] = "fused"
    if _framework(row) == "baseline-peft-bnb":
        found["engine_options"] = {"prepare_for_kbit_training": True}
    return found


def _of_peft_loop(row: Row) -> dict[str, Any]:
    """peft, method_comparison/MetaMathQA/run.py: a loop of its own around AdamW, nothing checkpointed."""
    method = "dora" if row.run.endswith("-dora") else "lora"
    return {"method": method, "lora": {"rank": row.setup["rank"] or 8, "targets": sorted(row.setup["targets"] or ())}}


# -- rehearsing


@cache
def data() -> dict[str, Any]:
    """The published rows with their sources."""
    return json.loads(DATA.read_bytes())


def rows() -> list[Row]:
    return [Row(*values) for values in data()["rows"]]


def release_of(row: Row) -> str:
    return str(data()["versions"][row.versions])


def loss_of(row: Row) -> str | None:
    """What the row's release computed as loss, None where it is what the installed one computes; Liger's is its own."""
    if _framework(row).endswith("-liger"):
        return None
    loss = next((loss for name, loss in RELEASES.items() if name in release_of(row)), None)
    return None if loss is None else OWN_LOSS.get(row.model, loss)


class _Wire:
    """Hands the worker's events to a rehearsal of this process."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal

    def send(self, event: str, **fields: Any) -> None:
        self._rehearsal.add({"event": event, "t": 0.0, **fields})

    close = send


@cache
def figures(scenario: str, loss: str | None, torch_version: str) -> Figures:
    """Rehearse a scenario (JSON) once, with the allocator of the release."""
    plan = make_plan(parse_scenario(json.loads(scenario)), network=False)
    order = dict(rehearse_request(plan).order)
    order["card"] = {**order["card"], "torch_version": torch_version}
    rehearsal = Rehearsal(order)
    wire: Any = _Wire(rehearsal)
    if loss is None:
        run(parse_order(order), wire)
    else:
        with playing(loss):
            run(parse_order(order), wire)
    meters = [step.meters for step in rehearsal.steps.values()]
    peaks = {name: max(meter[name] for meter in meters) for name in ("allocated", "reserved", "device")}
    return Figures(peaks["allocated"], rehearsal.timeline_points(None)[-1][2], peaks["reserved"], peaks["device"])


def compare(row: Row) -> Comparison | str:
    """The row beside its rehearsal, or in the worker's words why there is none."""
    try:
        return _compare(row)
    except WorkerError as error:
        return error.message


def _compare(row: Row) -> Comparison:
    scenario = json.dumps(scenario_of(row))
    torch_version = release_of(row).split()[1].strip(",").partition("+")[0]
    loss = loss_of(row)
    installed = _figure(figures(scenario, None, torch_version), row.what)
    released = None if loss is None else _figure(figures(scenario, loss, torch_version), row.what)
    return Comparison(row, installed, released, bound=row.what == "reserved_p99_of_train_steps")


def _figure(found: Figures, what: str) -> int:
    names = {"nvidia_smi_total": "device", "reserved_p99_of_train_steps": "reserved"}
    return int(getattr(found, names.get(what, what)))


# -- the report


def summary(comparisons: list[Comparison]) -> str:
    """By method, setup and meter: mean and largest absolute error, bias, under-predictions; then as the release computed."""
    groups: dict[tuple[str, str, str], list[Comparison]] = defaultdict(list)
    for found in comparisons:
        if not found.bound:
            groups[found.row.method, _setup(found.row), found.row.what].append(found)
    heads = ("rows", "median", "mean", "max", "bias", "under")
    lines = [f"{'method':<7}{'setup':<22}{'meter':<23}{''.join(f'{head:>9}' for head in heads)} | as released: mean, max"]
    for (method, setup, what), group in sorted(groups.items()):
        errors = [found.error for found in group]
        absolute = [abs(error) for error in errors]
        played = [abs(found.released_error) for found in group if found.released_error is not None]
        lines.append(
            f"{method:<7}{setup:<22}{what:<23}{len(group):>9}{median(absolute):>9.3%}{mean(absolute):>9.3%}{max(absolute):>9.3%}"
            f"{mean(errors):>+9.3%}{mean(error < 0 for error in errors):>9.0%} |"
            + (f"{mean(played):>9.3%}{max(played):>9.3%}" if played else "")
        )
    return "\n".join(lines)


def _setup(row: Row) -> str:
    """The loss decides most: GPTBigCode has its own, and Liger brings one."""
    name = _framework(row).removeprefix("accelerated-").removesuffix("-liger")
    return "GPTBigCode" if row.model in OWN_LOSS else "Liger" if _framework(row).endswith("-liger") else name


def table(comparisons: list[Comparison]) -> str:
    """One line a row."""
    heads = f"{'row':<6}{'run':<38}{'model':<26}{'batch x tokens':>15} {'meter':<28}"
    lines = [f"{heads}{'measured':>16}{'rehearsed':>16}{'error':>9}{'release':>9}"]
    for found in comparisons:
        row, released = found.row, found.released_error
        run_name = f"{row.run} {_framework(row)}".strip()
        place = (
            f"{row.id:<6}{run_name[:37]:<38}{row.model.rpartition('/')[2]:<26}{f'{row.batch} x {row.sequence}':>15} {row.what:<28}"
        )
        told = "" if released is None else f"{released:>+9.3%}"
        lines.append(f"{place}{row.measured_bytes:>16,}{found.installed:>16,}{found.error:>+9.3%}{told}")
    return "\n".join(lines)


def left_out(answers: list[tuple[Row, Comparison | str]]) -> str:
    """Every row that was not rehearsed, by its reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for row, answer in answers:
        if isinstance(answer, str):
            reasons[answer].append(row.id)
    paragraphs = [
        f"{len(ids)} rows: {text}\n" + textwrap.fill(" ".join(ids), 130, initial_indent="    ", subsequent_indent="    ")
        for text, ids in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
    return "Not rehearsed\n" + "\n".join(paragraphs)


NOTES = """\
Column `release`: with the loss of the release measured, which copied the shifted logits once more (4.45: after the model had
replaced its 16-bit logits by fp32 ones; 4.46 to 4.49: beside them; GPTBigCode: in 16 bit), and with TRL's older preparation of
a 4-bit base (norms alone in fp32). What stays there is GPTBigCode's: one more tensor of 16-bit logits than its loss explains.
Liger: its fused loss; the other kernels of that setup (norms, rotary embedding, adapters) are not played.
nvidia_smi_total is the simulated allocator's reserved memory and the CUDA context; the release's allocator is simulated."""


def report() -> str:
    """The whole report, as it is committed."""
    answers = [(row, reason(row) or compare(row)) for row in rows()]
    kept = [answer for _, answer in answers if isinstance(answer, Comparison)]
    installed = versions()
    measured = Counter(release_of(row) for row in rows())
    return "\n\n".join(
        [
            f"Rehearsed with torch {installed['torch']}, transformers {installed['transformers']}, peft {installed['peft']}.\n"
            f"{len(rows())} published rows, {len(kept)} of them rehearsed; their releases:\n"
            + "\n".join(f"{count:>6} rows  {name}" for name, count in measured.items()),
            NOTES,
            summary(kept),
            table([found for found in kept if not found.bound]),
            "Bounds: 99th percentile of memory reserved over steps of unpublished padded lengths, against the longest one",
            table([found for found in kept if found.bound]),
            left_out(answers),
            "Sources\n" + "\n".join(f"    {source}" for source in data()["sources"]),
        ]
    )


if __name__ == "__main__":
    print(report())
