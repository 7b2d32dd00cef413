"""Which fields the form has: where each stands, which value of the scenario it edits, and what it teaches."""

# ruff: noqa: E501  one field a line reads as the table it is

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from gui.form.editors import ChoiceField, Editor, NamesField, SearchField, Segments
from gui.form.generic import NumbersField, all_leaves, editor_of
from gui.form.model_box import ModelBox
from gui.form.modules import ModulesField
from gui.form.numbers import NumberField, ShareField, SizeField
from gui.form.options import OptionsField
from gui.translate import tr
from planner.scenario import (
    ARRANGEMENTS,
    ATTENTIONS,
    CHECKPOINTINGS,
    GENERATORS,
    HISTORIES,
    INFERENCE_ENGINES,
    LOSSES,
    METHODS,
    OBJECTIVES,
    OFFLOAD_TARGETS,
    OPTIMIZERS,
    PRECISIONS,
    REFERENCES,
    SHARDINGS,
    SPECULATIONS,
    TASKS,
    TRAINING_ENGINES,
    Scenario,
)
from resources.gpus import find_gpus

Section = Literal["Model", "Workload", "Engine", "Hardware", "Parallelism"]
SECTIONS: tuple[Section, ...] = ("Model", "Workload", "Engine", "Hardware", "Parallelism")
LOW_RANK = ("lora", "qlora", "dora", "vera", "loha", "lokr")
VIRTUAL = ("prompt", "prefix")
KV_CACHES = ("auto", "bf16", "fp16", "fp8", "int8", "int4")
WEIGHTS = (
    "native", "fp32", "bf16", "fp16", "fp8", "int8", "nf4", "nf4-dq", "mxfp4", "nvfp4", "gptq-int4-g128", "awq-int4-g128",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field. ``task`` None: shown for every task; ``advanced``: folded away at first; ``when``: only for such scenarios."""

    path: str
    label: str
    tip: str
    section: Section
    make: Callable[[], Editor]
    task: str | None = None
    advanced: bool = False
    wide: bool = False
    when: Callable[[Scenario], bool] | None = None

    def suits(self, scenario: Scenario) -> bool:
        """Whether the field belongs to the task and method at hand."""
        return self.task in (None, scenario.task) and (self.when is None or self.when(scenario))


def _low_rank(scenario: Scenario) -> bool:
    return scenario.training.method in LOW_RANK


def _by_module(scenario: Scenario) -> bool:
    return scenario.training.method in (*LOW_RANK, "ia3")


def _virtual(scenario: Scenario) -> bool:
    return scenario.training.method in VIRTUAL


def _freezes(scenario: Scenario) -> bool:
    return scenario.training.method == "freeze"


def _scores(scenario: Scenario) -> bool:
    return scenario.training.objective != "sft"


def _rolls_out(scenario: Scenario) -> bool:
    return scenario.training.objective in ("grpo", "ppo")


def _beside_vllm(scenario: Scenario) -> bool:
    return _rolls_out(scenario) and scenario.training.rollout.engine == "vllm"


def _speculates(scenario: Scenario) -> bool:
    return scenario.inference.speculation.method != "none"


def _talks(scenario: Scenario) -> bool:
    return scenario.inference.conversation.turns > 1


def _choices(*names: str) -> Callable[[], Editor]:
    return lambda: ChoiceField([(name, name) for name in names])


def _count() -> Editor:
    return NumberField()


def _none_or_count() -> Editor:
    return NumberField(least=0)


def _tokens() -> Editor:
    return NumberField(doubles=True)


def _size() -> Editor:
    return SizeField()


def _names() -> Editor:
    return NamesField()


def _cards() -> Editor:
    return _alike(NamesField())


def _lengths() -> Editor:
    return _alike(NumbersField())


def _alike(field: NamesField) -> Editor:
    field.setPlaceholderText(tr("all alike"))
    return field


def _modules() -> Editor:
    return ModulesField()


def _options() -> Editor:
    return OptionsField()


def _on_off() -> Editor:
    return ChoiceField([(False, tr("off")), (True, tr("on"))])


def _as_engine() -> Editor:
    return ChoiceField([(None, tr("by default")), (True, tr("on")), (False, tr("off"))])


def _share() -> Editor:
    return ShareField()


def _task() -> Editor:
    return Segments([(name, tr(name.capitalize()), "") for name in TASKS])


def _model() -> Editor:
    return ModelBox()


def _gpu() -> Editor:
    return SearchField(lambda text: [found.name for found in find_gpus(text)])


_NAMED: tuple[FieldSpec, ...] = (
    FieldSpec("model", "&Model", "Any words of its name, or a folder, config.json, .gguf or .safetensors.", "Model", _model, wide=True),
    FieldSpec("weights", "&Weights", "How the weights are stored. Native: as the checkpoint has them.", "Model", _choices(*WEIGHTS)),
    FieldSpec("task", "&Task", "Run the model, or train it.", "Workload", _task, wide=True),
    FieldSpec("inference.batch", "&Batch", "Sequences that run at once.", "Workload", _count, "inference"),
    FieldSpec("inference.prompt_tokens", "&Prompt tokens", "Tokens of each prompt; 8k is 8192. Empty: what new tokens leave of a context of 8192, or of the model's limit.", "Workload", _tokens, "inference"),
    FieldSpec("inference.new_tokens", "&New tokens", "Tokens made for each sequence.", "Workload", _tokens, "inference"),
    FieldSpec("training.batch", "&Batch", "Micro-batch of one GPU.", "Workload", _count, "training"),
    FieldSpec("training.sequence", "&Sequence", "Tokens of each sample; 8k is 8192.", "Workload", _tokens, "training"),
    FieldSpec("training.method", "Met&hod", "What is trained: everything, adapters, some modules, or vectors before the input.", "Workload", _choices(*METHODS), "training"),
    FieldSpec("training.objective", "Ob&jective", "What is learnt: the next token, which of a pair is better, or from rewards of the model's own answers.", "Workload", _choices(*OBJECTIVES), "training"),
    FieldSpec("training.reference", "Reference", "What scores are held against: another model, the base without its adapters, or scores computed before.", "Workload", _choices(*REFERENCES), "training", when=_scores),
    FieldSpec("training.prompt_tokens", "Prompt tokens", "Tokens of each sequence that are prompt; the rest is scored or generated. Empty: half.", "Workload", _tokens, "training", when=_scores),
    FieldSpec("training.rollout.engine", "Generated by", "The trained model itself, vLLM beside it on the same card, or a server elsewhere.", "Workload", _choices(*GENERATORS), "training", when=_rolls_out),
    FieldSpec("training.rollout.generations", "Answers", "Answers of each prompt, which are compared with each other.", "Workload", _count, "training", when=_rolls_out),
    FieldSpec("training.rollout.steps", "Batches at once", "Micro-batches whose answers are made at once; empty: those of one optimizer step.", "Workload", _count, "training", advanced=True, when=_rolls_out),
    FieldSpec("training.rollout.gpu_memory_utilization", "vLLM's share", "Share of the card, 0 to 1, that vLLM takes beside the trainer.", "Workload", _share, "training", when=_beside_vllm),
    FieldSpec("training.rollout.sleep", "vLLM sleeps", "Give vLLM's share back while training.", "Workload", _on_off, "training", advanced=True, when=_beside_vllm),
    FieldSpec("training.precision", "P&recision", "bf16: all in bf16. amp: fp32 weights, bf16 compute.", "Workload", _choices(*PRECISIONS), "training"),
    FieldSpec("training.optimizer", "&Optimizer", "What it remembers is often larger than the weights.", "Workload", _choices(*OPTIMIZERS), "training"),
    FieldSpec("training.checkpointing", "&Checkpointing", "Recompute activations in the backward instead of keeping them.", "Workload", _choices(*CHECKPOINTINGS), "training"),
    FieldSpec("training.lora.rank", "LoRA ran&k", "Rows of each adapter: it trains rank · (in + out) parameters of every module named.", "Workload", _count, "training", when=_low_rank),
    FieldSpec("training.lora.targets", "Modules", "Modules that get an adapter: choose in the list, or type names parted by commas.", "Workload", _modules, "training", when=_by_module),
    FieldSpec("training.trainable", "Trained", "Modules that train, by name or path and parted by commas: lm_head, layers.31. Empty: the head.", "Workload", _names, "training", when=_freezes),
    FieldSpec("training.virtual_tokens", "Virtual tokens", "Trained vectors before the input, or before every layer's keys and values.", "Workload", _count, "training", when=_virtual),
    FieldSpec("training.lora.dropout", "LoRA dropout", "Share of the adapters' inputs that is dropped; a mask of it is kept for the backward.", "Workload", _share, "training", advanced=True, when=_low_rank),
    FieldSpec("training.lora.rslora", "rsLoRA", "Scale by the root of the rank. It changes no size.", "Workload", _on_off, "training", advanced=True, when=_low_rank),
    FieldSpec("training.lora.alpha", "LoRA alpha", "Scale of the adapters; empty: twice the rank. It changes no size.", "Workload", _count, "training", advanced=True, when=_low_rank),
    FieldSpec("training.data", "Arrangement", "How examples become rows: padded, packed, or one after the other in one row.", "Workload", _choices(*ARRANGEMENTS), "training", advanced=True),
    FieldSpec("training.lengths", "Lengths", "Tokens of a sample of examples where they differ, parted by commas.", "Workload", _lengths, "training", advanced=True),
    FieldSpec("training.gradient_accumulation", "Accumulation", "Micro-batches before each optimizer step.", "Workload", _count, "training", advanced=True),
    FieldSpec("training.loss", "Loss", "Default upcasts all logits to fp32; chunked and fused do not.", "Workload", _choices(*LOSSES), "training", advanced=True),
    FieldSpec("inference.engine", "&Engine", "The framework that runs the model.", "Engine", _choices(*INFERENCE_ENGINES), "inference"),
    FieldSpec("training.engine", "&Engine", "The framework that trains the model.", "Engine", _choices(*TRAINING_ENGINES), "training"),
    FieldSpec("inference.attention", "Attention", "The kernel; eager keeps all scores.", "Engine", _choices(*ATTENTIONS), "inference", advanced=True),
    FieldSpec("inference.kv_cache", "KV cache", "The format of keys and values.", "Engine", _choices(*KV_CACHES), "inference", advanced=True),
    FieldSpec("inference.max_model_len", "Max length", "Longest sequence the engine makes room for.", "Engine", _tokens, "inference", advanced=True),
    FieldSpec("inference.samples", "Samples", "Answers drawn from one prompt: they share its cache.", "Workload", _count, "inference", advanced=True),
    FieldSpec("inference.shared_prefix", "Shared prefix", "Share of the prompt, 0 to 1, that every request begins with alike.", "Workload", _share, "inference", advanced=True),
    FieldSpec("inference.chunked_prefill", "Chunked prefill", "Whether long prompts are read in pieces.", "Engine", _as_engine, "inference", advanced=True),
    FieldSpec("inference.speculation.method", "Speculation", "Tokens proposed ahead, and who proposes them.", "Engine", _choices(*SPECULATIONS), "inference", advanced=True),
    FieldSpec("inference.speculation.tokens", "Proposed", "Tokens proposed in each step.", "Engine", _count, "inference", advanced=True, when=_speculates),
    FieldSpec("inference.speculation.draft_parameters", "Draft size", "Parameters of the draft model.", "Engine", _count, "inference", advanced=True, when=_speculates),
    FieldSpec("inference.adapters.count", "LoRA slots", "Adapters served beside each other; 0 for none.", "Engine", _none_or_count, "inference", advanced=True),
    FieldSpec("inference.adapters.rank", "Slot rank", "Rank that each LoRA slot has room for.", "Engine", _count, "inference", advanced=True),
    FieldSpec("inference.conversation.turns", "Turns", "Questions and answers of a dialogue.", "Workload", _count, "inference", advanced=True),
    FieldSpec("inference.conversation.history", "History", "What stays in the context from one turn to the next.", "Workload", _choices(*HISTORIES), "inference", advanced=True, when=_talks),
    FieldSpec("inference.conversation.kept_tokens", "Kept tokens", "Tokens that stand for the history where it is not kept.", "Workload", _none_or_count, "inference", advanced=True, when=_talks),
    FieldSpec("inference.embedder.parameters", "Embedder size", "Parameters of an embedding model on the first GPU, which finds what a conversation retrieves.", "Workload", _count, "inference", advanced=True, when=_talks),
    FieldSpec("inference.engine_options", "Options", "The engine's own options as name=value, parted by commas.", "Engine", _options, "inference", advanced=True),
    FieldSpec("training.engine_options", "Options", "The framework's own options as name=value, parted by commas.", "Engine", _options, "training", advanced=True),
    FieldSpec("training.attention", "Attention", "The kernel; eager keeps all scores.", "Engine", _choices(*ATTENTIONS), "training", advanced=True),
    FieldSpec("hardware.gpu", "&GPU", "Any words of its name.", "Hardware", _gpu, wide=True),
    FieldSpec("hardware.gpus", "GP&Us", "Cards in one machine.", "Hardware", _count),
    FieldSpec("hardware.nodes", "Machines", "Machines with so many cards each.", "Hardware", _count, advanced=True),
    FieldSpec("parallel.tensor", "Tensor", "Every matrix is split over so many GPUs.", "Parallelism", _count),
    FieldSpec("parallel.data", "Data", "So many copies work on different batches.", "Parallelism", _count, "training"),
    FieldSpec("parallel.sharding", "Sharding", "What the copies share out instead of each keeping it: ZeRO's stages, or FSDP.", "Parallelism", _choices(*SHARDINGS), "training"),
    FieldSpec("parallel.pipeline", "Pipeline", "The layers are split into so many stages.", "Parallelism", _count, advanced=True),
    FieldSpec("parallel.expert", "Expert", "The experts of a layer are split over so many GPUs.", "Parallelism", _count, advanced=True),
    FieldSpec("parallel.context", "Context", "Each sequence is split over so many GPUs.", "Parallelism", _count, "training", advanced=True),
    FieldSpec("offload.weights", "Offload weights", "Share of the weights, 0 to 1, that is kept off the GPU.", "Parallelism", _share, advanced=True),
    FieldSpec("offload.kv_cache", "Offload KV", "Share of the KV cache, 0 to 1, that is kept off the GPU.", "Parallelism", _share, "inference", advanced=True),
    FieldSpec("offload.optimizer", "Offload optim.", "Share of the optimizer's state, 0 to 1, that is kept off the GPU.", "Parallelism", _share, "training", advanced=True),
    FieldSpec("offload.to", "Offload to", "Where it is kept.", "Parallelism", _choices(*OFFLOAD_TARGETS), advanced=True),
    FieldSpec("hardware.cards", "Cards", "Cards that differ, each by its name, parted by commas, in the order of devices; empty: all alike.", "Hardware", _cards, advanced=True),
    FieldSpec("hardware.capacity_bytes", "Capacity, GiB", "Memory of one GPU, for a budget or a modified card; empty: the catalog's.", "Hardware", _size, advanced=True),
)  # fmt: skip
_PLACES: dict[str, Section] = {
    "inference": "Workload", "training": "Workload", "hardware": "Hardware", "parallel": "Parallelism", "offload": "Parallelism",
}  # fmt: skip


def _others() -> Iterator[FieldSpec]:
    """What the table does not name, so that nothing of a scenario is out of reach."""
    named = {spec.path for spec in _NAMED}
    for path, annotation in all_leaves().items():
        head, _, rest = path.partition(".")
        make = editor_of(annotation)
        if path not in named and make is not None:
            label = (rest or head).replace(".", " ").replace("_", " ").capitalize()
            task = head if head in TASKS else None
            yield FieldSpec(path, label, path, _PLACES.get(head, "Model"), make, task, advanced=True)


FIELDS: tuple[FieldSpec, ...] = (*_NAMED, *_others())
