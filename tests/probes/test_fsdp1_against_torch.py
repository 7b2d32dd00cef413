"""FSDP1 as torch runs it, over a process group that moves nothing: storages counted on the CPU against the prediction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

torch = pytest.importorskip("torch", reason="running FSDP1 needs torch")
pytest.importorskip("transformers", reason="running FSDP1 needs transformers")

from tests.probes.fake_ranks import Unlabelled, ranks, two_steps  # noqa: E402

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 320,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 200,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
WORLD, BATCH, SEQUENCE = 4, 2, 256
PHASES = ("load", "forward", "backward", "optimizer")
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


@contextlib.contextmanager
def following_flat_parameters(tracker: Any) -> Iterator[None]:
    """FSDP1 empties and fills the storages of its flat parameters beside all operators."""
    from torch.distributed.fsdp import _flat_param

    def watched(change: Callable[..., None]) -> Callable[..., None]:
        def call(tensor: Any, *size: Any) -> None:
            change(tensor, *size)
            tracker.look(tensor, change.__name__)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_alloc_storage", "_free_storage"):
            patch.setattr(_flat_param, name, watched(getattr(_flat_param, name)))
        yield


class Recomputed(torch.nn.Module):
    """A layer that is called through a checkpoint, its unit inside, as models of transformers called theirs before 4.53."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, states: Any, **others: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(partial(self.unit, **others), states, use_reentrant=True)


def wrapped(model: Any, adapters: list[Any], dtypes: dict[str, Any]) -> Any:
    """Layers and adapters' linears are units, as accelerate and PEFT have them wrapped."""
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    def is_unit(module: Any, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or isinstance(module, LlamaDecoderLayer) or module in adapters

    mixed = MixedPrecision(**dtypes) if dtypes else None
    base = model.get_base_model() if adapters else model
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=is_unit, use_orig_params=True, mixed_precision=mixed, device_id=torch.device("cpu")
    )
    base.model.layers = torch.nn.ModuleList(map(Recomputed, base.model.layers))
    return sharded


def measured(*, adapted: bool = False, **dtypes: Any) -> dict[str, int]:
    """Allocated by phase of the second step, each storage rounded to 512 bytes."""
    import transformers

    from probes.worker.tracker import StorageTracker

    tracker, found = StorageTracker(Unlabelled()), dict[str, int]()
    with ranks(WORLD), tracker, following_flat_parameters(tracker):
        asked = transformers.AutoConfig.for_model(**CONFIG)
        model = transformers.AutoModelForCausalLM.from_config(asked, attn_implementation="sdpa").train()
        model.enable_input_require_grads()
        if adapted:
            peft = pytest.importorskip("peft", reason="adapters need peft")
            model = peft.get_peft_model(model.to(torch.bfloat16), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
        lora = [module for name, module in model.named_modules() if name.endswith(".default")]
        model = wrapped(model, lora, dtypes)
        found["load"] = tracker.allocated
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        found |= two_steps(tracker, model, optimizer, (BATCH, SEQUENCE))
    return found


def predicted(**training: Any) -> dict[str, int]:
    document = {
        "version": 1, "model": {"config": CONFIG}, "task": "training", "hardware": {"gpu": "A100 SXM4 80GB", "gpus": WORLD},
        "training": {
            "batch": BATCH, "sequence": SEQUENCE, "precision": "fp32", "attention": "sdpa", "checkpointing": "full",
            "engine_options": {"fsdp_version": 1, "version": "4.51.3"},
        } | training,
        "parallel": {"sharding": "fsdp"},
    }  # fmt: skip
    answer = make_plan(parse_scenario(document), network=False, device="cpu").footprint
    assert answer.gpus, answer.notes
    return {phase.name: phase.allocated for phase in answer.gpus[0].phases}


@pytest.mark.parametrize(
    ("run", "ask"),
    [
        ({}, {}),
        ({"param_dtype": torch.bfloat16, "reduce_dtype": torch.bfloat16}, {"precision": "amp-bf16"}),
        ({"adapted": True}, {"precision": "bf16", "method": "lora", "lora": {"rank": 8, "targets": ["q_proj", "v_proj"]}}),
    ],
    ids=["plain", "mixed precision", "adapters"],
)
def test_flat_parameters(run: dict[str, Any], ask: dict[str, Any]) -> None:
    """Gathered units, flat gradients and their reduced parts, and the inputs that hooks of frozen layers keep.

    A rank has no part of some parameters of a unit, and no step counter of them: less than a block for each of 30.
    """
    found, said = measured(**run), predicted(**ask)
    for name in PHASES:
        assert said[name] == pytest.approx(found[name], rel=0.001, abs=30 * 512), (name, found, said)
