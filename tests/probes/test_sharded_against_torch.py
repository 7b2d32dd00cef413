"""FSDP2 as torch runs it, over a process group that moves nothing: storages counted on the CPU against the prediction."""

from __future__ import annotations

from typing import Any

import pytest

from planner.scenario import parse_scenario
from resources.plan import make_plan

torch = pytest.importorskip("torch", reason="running FSDP2 needs torch")
pytest.importorskip("transformers", reason="running FSDP2 needs transformers")

from tests.probes.fake_ranks import Unlabelled, ranks, two_steps  # noqa: E402

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 320,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
TIED = CONFIG | {"tie_word_embeddings": True}
ODD = CONFIG | {"vocab_size": 1001, "hidden_size": 120, "intermediate_size": 322}
WORLD, BATCH, SEQUENCE = 4, 2, 64
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PHASES = ("load", "forward", "backward", "optimizer")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched; what follows shards looks for several ranks."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WORLD_SIZE", str(WORLD))


def with_adapters(model: Any) -> Any:
    """16-bit weights, frozen, with low-rank adapters in fp32 beside queries and values."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    return peft.get_peft_model(model.to(torch.bfloat16), peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))


def wrap(model: Any, world: int, dtypes: dict[str, Any]) -> None:
    """Units as accelerate makes them: layers, embedding, norm with head; what is tied goes with the root."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options = {"mesh": init_device_mesh("cpu", (world,)), "mp_policy": MixedPrecisionPolicy(**dtypes)}
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True, **options)
    if not model.config.tie_word_embeddings:
        fully_shard(model.model.embed_tokens, reshard_after_forward=True, **options)
        fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False, **options)
    fully_shard(model, **options)


def measured(
    config: dict[str, Any], *, rank: int = 0, checkpointing: bool = False, micro: int = 1, adapted: bool = False,
    tensor: bool = False, **dtypes: Any,
) -> dict[str, int]:  # fmt: skip
    """Allocated by phase of the second step, each storage rounded to 512 bytes."""
    import transformers

    from probes.worker.distributed import Layout, following_shards, split
    from probes.worker.tracker import StorageTracker

    tracker, found = StorageTracker(Unlabelled()), dict[str, int]()
    with ranks(WORLD, rank), tracker, following_shards(tracker):
        asked = transformers.AutoConfig.for_model(**config)
        model = base = transformers.AutoModelForCausalLM.from_config(asked, attn_implementation="sdpa").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if adapted:
            model = with_adapters(base)
        if tensor:
            split(base, Layout("tensor", WORLD), torch.device("cpu"), "fp32")
        else:
            wrap(base, WORLD, dtypes)
        found["load"] = tracker.allocated
        optimizer = torch.optim.AdamW(model.parameters(), fused=not tensor, foreach=False)
        found |= two_steps(tracker, model, optimizer, (BATCH, SEQUENCE), micro)
    return found


def predicted(config: dict[str, Any], which: int = 0, parallel: dict[str, object] | None = None, **training: Any) -> dict[str, int]:
    document = {
        "version": 1, "model": {"config": config}, "task": "training", "hardware": {"gpu": "A100 SXM4 80GB", "gpus": WORLD},
        "training": {"batch": BATCH, "sequence": SEQUENCE, "precision": "fp32", "attention": "sdpa"} | training,
        "parallel": parallel or {"sharding": "fsdp"},
    }  # fmt: skip
    answer = make_plan(parse_scenario(document), network=False, device="cpu").footprint
    return {phase.name: phase.allocated for phase in answer.gpus[which].phases}


MIXED = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}


@pytest.mark.parametrize(
    ("run", "ask"),
    [
        ({"config": CONFIG}, {"config": CONFIG}),
        ({"config": TIED}, {"config": TIED}),
        ({"config": CONFIG, "checkpointing": True}, {"config": CONFIG, "checkpointing": "full"}),
        ({"config": ODD, "rank": 3}, {"config": ODD, "which": -1}),
        ({"config": CONFIG, **MIXED}, {"config": CONFIG, "precision": "amp-bf16", "engine": "fsdp"}),
        ({"config": CONFIG, "micro": 2}, {"config": CONFIG, "gradient_accumulation": 2, "engine": "fsdp"}),
        ({"config": CONFIG, "adapted": True}, {"config": CONFIG, "precision": "bf16", "method": "lora", "lora": {"rank": 8}}),
    ],
    ids=["plain", "tied", "checkpointed", "last rank of odd sizes", "mixed precision", "two micro-batches", "adapters"],
)
def test_fully_shard(run: dict[str, Any], ask: dict[str, Any]) -> None:
    """Gathered units, prefetch, reductions and shards, phase by phase within a thousandth."""
    found, said = measured(**run), predicted(**ask)
    for name in PHASES:
        assert said[name] == pytest.approx(found[name], rel=0.0012, abs=4096), (name, found, said)


WIDE = CONFIG | {"num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tensor_parallel(*, checkpointing: bool) -> None:
    """Heads and widths of a rank, the residual stream whole, its part of the logits beside the gathered ones."""
    found = measured(WIDE, tensor=True, checkpointing=checkpointing)
    asked = {"optimizer": "adamw", "checkpointing": "full" if checkpointing else "none"}
    said = predicted(WIDE, parallel={"tensor": WORLD}, **asked)
    for name in PHASES:
        assert said[name] == pytest.approx(found[name], rel=0.0012, abs=4096), (name, found, said)
