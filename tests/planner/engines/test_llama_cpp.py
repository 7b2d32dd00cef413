"""llama.cpp: every recorded buffer to the byte, and the rules its allocator and its layout keep."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.architecture import Architecture, read_config
from planner.engines.llama_cpp import LOOPBACK, llama_cpp_footprint
from planner.engines.llama_cpp.allocator import GIVE, FreeList, Tape, played
from planner.engines.llama_cpp.compute import compute_buffers, copied_weights
from planner.engines.llama_cpp.context import Context, context_of
from planner.engines.llama_cpp.families import FAMILIES
from planner.engines.llama_cpp.footprint import COMPONENTS
from planner.engines.llama_cpp.graph import Graph, like, packed, product, view, weight
from planner.engines.llama_cpp.graph import given as given_input
from planner.engines.llama_cpp.model_graph import model_graph
from planner.engines.llama_cpp.placement import CUDA, Checkpoint, placement_of
from planner.engines.llama_cpp.scheduler import scheduled
from planner.engines.llama_cpp.sketch import placed_layers
from planner.faults import Faults
from planner.formats import gguf_tensors, parse_format
from planner.modelled import NotModelled
from planner.scenario import parse_scenario

REPORT = Path(__file__).parents[2] / "accuracy" / "llama_cpp.py"


@cache
def report():
    import sys

    spec = importlib.util.spec_from_file_location("llama_cpp_accuracy", REPORT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def model(name: str) -> Architecture:
    return report().architecture_of(name)


def footprint(name: str, devices: int = 1, kind=LOOPBACK, weights: str = "gguf:Q4_K_M", **inference):
    options = inference.pop("options", {})
    document = {
        "version": 1,
        "model": name,
        "task": "inference",
        "weights": weights,
        "inference": {"engine": "llama.cpp", "prompt_tokens": 1024, "new_tokens": 256, "engine_options": options, **inference},
    }
    return llama_cpp_footprint(model(name), parse_scenario(document), parse_format(weights), devices, kind=kind)


def test_recorded_buffers_are_exact() -> None:
    """A fixed sample of them; the report has all."""
    wrong = Counter((found.family, found.component) for found in report().evaluate(step=7) if found.predicted != found.measured)
    assert not wrong


def test_the_report_has_a_line_for_each_component_and_family() -> None:
    lines = report().table(report().evaluate(step=40)).splitlines()
    assert lines[0].split() == ["component", "family", "rows", "exact", "median", "mean", "p95", "bias", "under"]
    assert {line.split()[0] for line in lines[1:]} == set(COMPONENTS)


GRAPHS = json.loads((Path(__file__).parents[2] / "data" / "llamacpp_graphs.json").read_text())


@pytest.mark.parametrize("graph", GRAPHS["models"], ids=lambda graph: graph["config"]["model_type"])
def test_a_familys_graph_takes_what_the_program_reserves(graph) -> None:
    architecture = read_config(graph["config"])
    placement = placement_of(len(architecture.decoder.layers), 0)
    family = FAMILIES[architecture.model_type]
    for case, measured in zip(GRAPHS["cases"], graph["compute_bytes"], strict=True):
        if measured is not None:
            assert compute_buffers(architecture, family, context_of(case, None), placement) == (measured,)


def test_a_wrapper_is_drawn_as_its_decoders_family() -> None:
    """Ministral 3 scales its queries by their position, which Mistral Small 3 in the same wrapper does not."""
    text = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096}  # fmt: skip
    sizes: list[int] = []
    for kind in ("mistral", "ministral3"):
        config = {"model_type": "mistral3", "text_config": {"model_type": kind, **text}, "vision_config": {}}
        document = {"version": 1, "model": {"config": config}, "task": "inference", "inference": {"engine": "llama.cpp"}}
        architecture = read_config(config)
        found = llama_cpp_footprint(architecture, parse_scenario(document), parse_format("gguf:Q4_K_M"), 0)
        assert (
            found.host.components()["workspace"] == compute_buffers(architecture, FAMILIES[kind], found.context, found.placement)[0]
        )
        sizes.append(found.host.components()["workspace"])
    assert sizes[0] < sizes[1]


def test_a_type_without_a_converter_says_so() -> None:
    config = {"model_type": "opt", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 512,
              "vocab_size": 1000, "max_position_embeddings": 1024, "word_embed_proj_dim": 256}  # fmt: skip
    document = {"version": 1, "model": {"config": config}, "task": "inference", "inference": {"engine": "llama.cpp"}}
    with pytest.raises(NotModelled, match="runs no opt"):
        llama_cpp_footprint(read_config(config), parse_scenario(document), parse_format("gguf:Q4_K_M"), 0)


LIGHTNING = {
    "model_type": "minimax", "hidden_size": 256, "num_hidden_layers": 3, "vocab_size": 1000, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512, "num_local_experts": 4, "num_experts_per_tok": 2,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"], "max_position_embeddings": 4096,
}  # fmt: skip


def test_decays_are_worked_out_and_not_in_the_file() -> None:
    """Lightning attention's projections are named for the quantiser's rules; what they decay by is an input of the graph."""
    names = {tensor.name for tensor in gguf_tensors(read_config(LIGHTNING), "F16") if tensor.layer == 0}
    assert not {name for name in names if "decay" in name or "slope" in name}
    assert {"blk.0.attn_qkv.weight", "blk.0.attn_gate.weight", "blk.0.attn_output.weight"} <= names


def test_slots_that_share_no_batch_evenly_are_told_of() -> None:
    notes = []
    for slots in (2, 3):
        document = {
            "version": 1, "model": {"config": LIGHTNING}, "task": "inference",
            "inference": {"engine": "llama.cpp", "engine_options": {"n_ctx": 4096, "n_seq_max": slots}},
        }  # fmt: skip
        found = llama_cpp_footprint(read_config(LIGHTNING), parse_scenario(document), parse_format("gguf:Q8_0"), 0)
        notes.append(any("aborts on such a model" in note for note in found.notes))
    assert notes == [False, True]


def whole(architecture: Architecture, context: Context, placement, checkpoint) -> tuple[int, ...]:
    """The buffers of the graph with every layer drawn."""
    layers = placed_layers(architecture, placement, range(len(architecture.decoder.layers)))
    copied = copied_weights(architecture, placement, checkpoint) if placement.offloads else None
    graph = model_graph(architecture, FAMILIES[architecture.model_type], context, layers, placement, copied)
    if placement.host:
        schedule = scheduled(graph, placement.host, pipelined=placement.pipelined, offloads=placement.offloads)
        tape = Tape(schedule.nodes, schedule.leaves, [])
    else:
        tape = Tape(graph.nodes, graph.leaves, [])
    return played(tape, [0], placement.alignments)


HYBRID = {
    "model_type": "qwen3_next", "hidden_size": 256, "vocab_size": 1000, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "partial_rotary_factor": 0.5, "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16",
}  # fmt: skip
WINDOWED = {
    "model_type": "gpt_oss", "hidden_size": 192, "vocab_size": 1000, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "intermediate_size": 192, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 128,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "attention_bias": True, "torch_dtype": "bfloat16",
}  # fmt: skip


@settings(max_examples=100)
@given(
    kinds=st.lists(st.booleans(), min_size=2, max_size=14),
    family=st.sampled_from([(WINDOWED, "sliding_attention"), (HYBRID, "linear_attention"), (LIGHTNING, "linear_attention")]),
    devices=st.integers(0, 2),
    gpu_layers=st.integers(-1, 16),
    sequences=st.sampled_from([1, 3]),
    flash=st.booleans(),
    type_v=st.sampled_from(["f16", "q8_0"]),
    cpu_experts=st.integers(0, 4),
    kind=st.sampled_from([LOOPBACK, CUDA]),
    caches_on_host=st.booleans(),
)
def test_drawing_each_surrounding_once_gives_the_buffers_of_the_whole_graph(
    kinds, family, devices, gpu_layers, sequences, flash, type_v, cpu_experts, kind, caches_on_host
) -> None:
    """Rule: a piece of the tape depends on its layer, the one before, the devices around and the inputs used up there."""
    one_of_it, other = family
    types = [other if kind else "full_attention" for kind in kinds]
    config = one_of_it | {"num_hidden_layers": len(kinds), "layer_types": types}
    architecture = read_config(config)
    options = {"n_ctx": 1024, "n_seq_max": sequences, "flash_attn": flash, "type_k": type_v if flash else "f16"}
    context = context_of(options | {"type_v": type_v if flash else "f16", "n_ubatch": 96}, 4096)
    placement = placement_of(len(kinds), devices, gpu_layers, cpu_experts, kind, caches_on_host=caches_on_host)
    file = Checkpoint(gguf_tensors(architecture, "F16"))
    drawn_once = compute_buffers(architecture, FAMILIES[architecture.model_type], context, placement, file)
    assert drawn_once == whole(architecture, context, placement, file)


SMALL = {
    "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "intermediate_size": 512, "vocab_size": 1000, "vocab_size_per_layer_input": 1000, "sliding_window": 128,
    "max_position_embeddings": 4096, "num_kv_shared_layers": 3, "hidden_size_per_layer_input": 32, "torch_dtype": "bfloat16",
}  # fmt: skip
TYPES = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention",
         "sliding_attention", "sliding_attention", "full_attention"]  # fmt: skip
VISION = {"depth": 2, "deepstack_visual_indexes": [0, 1], "hidden_size": 64, "num_heads": 2, "intermediate_size": 64}
UNLIKE = [
    SMALL | {"model_type": "gemma4_text", "layer_types": TYPES, "global_head_dim": 128},
    SMALL | {"model_type": "gemma4_text", "layer_types": TYPES, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
             "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64, "attention_k_eq_v": True},
    SMALL | {"model_type": "gemma3n_text", "layer_types": TYPES, "altup_num_inputs": 4, "laurel_rank": 16},
    SMALL | {"model_type": "llama4_text", "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
             "intermediate_size_mlp": 512, "no_rope_layer_interval": 4, "attention_chunk_size": 512},
    SMALL | {"model_type": "glm_moe_dsa", "num_key_value_heads": 4, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
             "qk_rope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
             "moe_intermediate_size": 64, "first_k_dense_replace": 1, "index_n_heads": 4, "index_head_dim": 64, "index_topk": 512},
    {"model_type": "qwen3_vl", "text_config": SMALL | {"model_type": "qwen3_vl_text"}, "vision_config": VISION},
]  # fmt: skip


@settings(max_examples=60)
@given(
    config=st.sampled_from(UNLIKE),
    devices=st.integers(0, 3),
    gpu_layers=st.integers(-1, 9),
    sequences=st.sampled_from([1, 3]),
    flash=st.booleans(),
    cpu_experts=st.integers(0, 4),
    kind=st.sampled_from([LOOPBACK, CUDA]),
    caches_on_host=st.booleans(),
)
def test_layers_that_are_unlike_by_place_are_told_apart(
    config, devices, gpu_layers, sequences, flash, cpu_experts, kind, caches_on_host
) -> None:
    """Rule: shared caches, inputs of each layer's own and first layers that differ leave the buffers of the whole graph."""
    architecture = unlike(json.dumps(config))
    options = {"n_ctx": 1024, "n_seq_max": sequences, "flash_attn": flash, "n_ubatch": 96}
    placement = placement_of(8, devices, gpu_layers, cpu_experts, kind, caches_on_host=caches_on_host)
    file = Checkpoint(gguf_tensors(architecture, "F16"))
    context = context_of(options, 4096)
    assert compute_buffers(architecture, FAMILIES[architecture.model_type], context, placement, file) == whole(
        architecture, context, placement, file
    )


@cache
def unlike(config: str) -> Architecture:
    return read_config(json.loads(config))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5000), st.integers(0, 50)), max_size=80))
def test_the_free_list_hands_out_disjoint_aligned_blocks(steps) -> None:
    """Rule: blocks in use never overlap, addresses are aligned, and what is all given back is one block again."""
    free, used = FreeList(32), []
    for is_give, size, choice in steps:
        if is_give and used:
            free.give(*used.pop(choice % len(used)))
        else:
            used.append((free.take(size), size))
    spans = sorted((start, start + -(-size // 32) * 32) for start, size in used)
    assert all(start % 32 == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert free.peak >= sum(end - start for start, end in spans)
    for block in used:
        free.give(*block)
    assert free.starts == [0]


def test_the_free_list_takes_the_smallest_hole_that_fits() -> None:
    free = FreeList(32)
    blocks = [(free.take(size), size) for size in (320, 32, 64, 32, 96, 32)]
    for index in (0, 2, 4):
        free.give(*blocks[index])
    assert free.take(64) == blocks[2][0]
    assert free.take(90) == blocks[4][0]
    assert free.take(128) == blocks[0][0]
    assert free.take(1000) == blocks[5][0] + 32


def test_an_operation_in_place_takes_over_a_source_only_it_needs() -> None:
    graph = Graph()
    alone, shared = like("cont", given_input(64)), like("cont", given_input(64))
    scaled, other = like("scale", alone), like("scale", shared)
    graph.expand(packed(scaled))
    total = graph.expand(like("add", other, shared))
    Tape(graph.nodes, graph.leaves, [])
    assert scaled.slot == alone.slot
    assert other.slot != shared.slot
    assert total.slot == other.slot


def test_a_view_keeps_what_it_shows_alive() -> None:
    graph = Graph()
    shown = packed(given_input(64))
    part = graph.expand(view(shown, (32,)))
    between = graph.expand(packed(given_input(64)))
    graph.expand(packed(part))
    graph.expand(packed(between))
    events = [event[:2] for event in Tape(graph.nodes, graph.leaves, []).pieces[0].events]
    assert events.index((between.slot, 256)) < events.index((shown.slot, GIVE))
    assert part.slot == 0


def test_sources_on_another_device_are_copied_where_the_split_begins() -> None:
    graph = Graph()
    x = given_input(64, element_bytes=4)
    graph.expand(product(weight(16, device=0), x))
    schedule = scheduled(graph, 1)
    assert played(Tape(schedule.nodes, schedule.leaves, []), [0], (32, 32)) == (256 + 64, 256)


def test_contexts_are_padded_and_shared_among_slots() -> None:
    context = context_of({"n_ctx": 5000, "n_seq_max": 3, "n_ubatch": 500}, None)
    assert (context.cells, context.streams, context.tokens) == (1792, 3, 501)
    unified = context_of({"n_ctx": 5000, "n_seq_max": 3, "kv_unified": True}, None)
    assert (unified.cells, unified.streams) == (5120, 1)
    assert unified.window_cells(1024) == 3584
    assert context_of({}, 32768).cells == 32768


@pytest.mark.parametrize("name", ["llama3.1-8b-L32", "gemma3-4b-L34", "granite4.0-h-tiny-L40", "deepseek-v2-lite-L27"])
def test_layers_of_all_devices_add_up_to_one_machine(name: str) -> None:
    """Rule: moving layers moves their caches and states, it makes no more and no fewer."""
    alone = footprint(name, 0).host
    for devices, layers in ((1, -1), (1, 7), (3, -1), (2, 20)):
        spread = footprint(name, devices, options={"n_gpu_layers": layers})
        for component in ("kv_cache", "recurrent_state"):
            assert sum(getattr(part, component) for part in (*spread.devices, spread.host)) == getattr(alone, component)


@pytest.mark.parametrize("name", ["llama3.1-8b-L32", "jamba-1.5-mini-L32", "gpt-oss-20b-L24"])
def test_terms_add_up_to_the_components_of_each_holder(name: str) -> None:
    answer = footprint(name, 2, batch=3)
    sums: Counter = Counter()
    for term in answer.terms:
        sums[term.values["holder"], term.component] += term.bytes
        if term.component in ("kv_cache", "recurrent_state", "logits"):
            product_of = 1
            for factor in ("layers", "streams", "cells", "sequences", "vocab_size", "fp32_bytes"):
                product_of *= term.values.get(factor, 1)
            width = sum(term.values.get(part, 0) for part in ("key_bytes", "value_bytes", "conv_values", "state_values")) or 1
            assert product_of * width == term.bytes
    holders = {"device 0": answer.devices[0], "device 1": answer.devices[1], "host": answer.host}
    for holder, buffers in holders.items():
        assert {name: size for (owner, name), size in sums.items() if owner == holder} == buffers.components()


def test_after_loading_only_the_weights_are_there() -> None:
    part = footprint("llama3.1-8b-L32").devices[0]
    assert part.components("load") == {"weights": part.weights}
    assert part.total_bytes == sum(part.components("decode").values())


@settings(max_examples=25)
@given(context=st.integers(1, 40), slots=st.integers(1, 8))
def test_the_cache_grows_with_context_and_slots(context: int, slots: int) -> None:
    """Rule: monotone in cells and in sequences."""

    def held(tokens: int, batch: int) -> int:
        options = {"n_ctx": tokens * 256 * batch, "n_seq_max": batch}
        return footprint("qwen2.5-0.5b-L24", 1, options=options).devices[0].kv_cache

    assert held(context, slots) < held(context + 1, slots)
    assert held(context, slots) < held(context, slots + 1)


def test_experts_on_the_host_are_copied_to_compute_large_batches() -> None:
    here = footprint("qwen3-30b-a3b-L48", kind=CUDA)
    away = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"n_cpu_moe": 48})
    assert away.devices[0].weights < 0.1 * here.devices[0].weights
    assert away.devices[0].kv_cache == here.devices[0].kv_cache
    assert away.devices[0].workspace > here.devices[0].workspace
    partly = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"n_cpu_moe": 10})
    assert away.devices[0].weights < partly.devices[0].weights < here.devices[0].weights


def test_fused_attention_on_cuda_copies_a_quantised_cache_to_16_bit() -> None:
    plain = footprint("llama3.1-8b-L32", kind=CUDA, options={"n_ctx": 131072})
    packed_cache = footprint("llama3.1-8b-L32", kind=CUDA, options={"n_ctx": 131072, "type_k": "q8_0", "type_v": "q8_0"})
    copy_bytes = 131072 * 8 * (128 + 128) * 2
    assert 0 < packed_cache.devices[0].workspace - copy_bytes < plain.devices[0].workspace


PYTHIA = {
    "model_type": "gpt_neox", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 10240, "vocab_size": 50304, "rotary_pct": 0.25, "use_parallel_residual": True,
    "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
COMMAND_R = {
    "model_type": "cohere", "hidden_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 64,
    "num_key_value_heads": 64, "intermediate_size": 22528, "vocab_size": 256000, "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip


def mib(size_bytes: int) -> float:
    return round(size_bytes / 2**20, 2)


def on_cuda(config: dict, weights: str, devices: int, **options):
    document = {"version": 1, "model": "m", "task": "inference", "weights": weights,
                "inference": {"engine": "llama.cpp", "engine_options": options}}  # fmt: skip
    return llama_cpp_footprint(read_config(config), parse_scenario(document), parse_format(weights), devices)


def test_published_logs_of_cuda_machines() -> None:
    """ggml-org/ci, build 3738, pythia-2.8b on a V100; a Command-R issue log with 12 and 28 of 40 layers on two cards."""
    pythia = on_cuda(PYTHIA, "gguf:F16", 1, n_ctx=2048, flash_attn=False)
    assert (mib(pythia.devices[0].weights), mib(pythia.host.weights)) == (5049.71, 245.62)
    assert mib(pythia.devices[0].kv_cache) == 640.0
    command_r = on_cuda(COMMAND_R, "gguf:Q4_K_S", 2, n_ctx=4096, flash_attn=False)
    assert mib(sum(device.weights for device in command_r.devices)) == round(5434.38 + 13989.53, 2)
    assert mib(sum(device.kv_cache for device in command_r.devices)) == 1536.0 + 3584.0


@pytest.mark.parametrize(
    ("name", "options", "path"),
    [
        ("tinyllama-1.1b-L22", {"flash_attn": False, "type_v": "q8_0"}, "inference.engine_options.type_v"),
        ("deepseek-v2-lite-L27", {"flash_attn": False, "type_k": "q8_0"}, "inference.engine_options.type_k"),
        ("llama3.1-8b-L32", {"n_seq_max": 300}, "inference.engine_options.n_seq_max"),
    ],
)
def test_what_llama_cpp_refuses_is_refused_with_the_field(name: str, options: dict, path: str) -> None:
    with pytest.raises(Faults) as caught:
        footprint(name, options=options)
    assert [fault.path for fault in caught.value.faults] == [path]


def test_weights_that_are_no_gguf_are_refused() -> None:
    with pytest.raises(Faults, match="GGUF"):
        footprint("llama3.1-8b-L32", weights="fp8")


def test_tensor_parallelism_is_refused() -> None:
    document = {"version": 1, "model": "m", "task": "inference", "weights": "bf16", "parallel": {"tensor": 2},
                "inference": {"engine": "llama.cpp"}}  # fmt: skip
    with pytest.raises(Faults, match=r"parallel\.tensor"):
        llama_cpp_footprint(model("llama3.1-8b-L32"), parse_scenario(document), parse_format("bf16"))


def test_a_graph_that_is_not_derived_is_said_so() -> None:
    config = {"model_type": "rwkv", "hidden_size": 256, "num_hidden_layers": 2, "vocab_size": 100, "attention_hidden_size": 256}
    document = {"version": 1, "model": "m", "task": "inference", "inference": {"engine": "llama.cpp"}}
    with pytest.raises(NotModelled, match="rwkv"):
        llama_cpp_footprint(read_config(config), parse_scenario(document), parse_format("bf16"))


def placed(name: str, devices: int, **options):
    return footprint(name, devices, options=options, kind=CUDA).placement


def test_layers_are_split_by_shares() -> None:
    """``std::upper_bound`` over the accumulated shares: of 33 places the first 24 (3/4) and one more begin below 3/4."""
    split = placed("llama3.1-8b-L32", 2, tensor_split="3,1")
    assert split.layers.count(0) == 25
    assert split.output == 1
    assert placed("llama3.1-8b-L32", 2, tensor_split="1/1").layers == placed("llama3.1-8b-L32", 2).layers
    assert set(placed("llama3.1-8b-L32", 3, tensor_split="1,0,1").layers) == {0, 2}


def test_one_device_alone_holds_everything() -> None:
    alone = footprint("llama3.1-8b-L32", 1, kind=CUDA)
    found = footprint("llama3.1-8b-L32", 3, kind=CUDA, options={"split_mode": "none", "main_gpu": 1})
    assert [device.weights for device in found.devices] == [0, alone.devices[0].weights, 0]
    assert found.devices[1].kv_cache == alone.devices[0].kv_cache
    assert found.devices[1].workspace == alone.devices[0].workspace
    assert found.devices[0].total_bytes == found.devices[2].total_bytes == 0


def test_matrices_spread_by_rows_leave_the_caches_with_their_layers() -> None:
    layers = footprint("llama3.1-8b-L32", 2, kind=CUDA)
    rows = footprint("llama3.1-8b-L32", 2, kind=CUDA, options={"split_mode": "row"})
    assert sum(device.weights for device in rows.devices) == sum(device.weights for device in layers.devices)
    assert [device.kv_cache for device in rows.devices] == [device.kv_cache for device in layers.devices]
    assert abs(rows.devices[0].weights - rows.devices[1].weights) < 0.01 * rows.devices[0].weights
    assert not rows.placement.pipelined
    assert layers.placement.pipelined


def test_caches_kept_on_the_host_leave_the_device() -> None:
    here = footprint("jamba-1.5-mini-L32", 1, kind=CUDA)
    away = footprint("jamba-1.5-mini-L32", 1, kind=CUDA, options={"offload_kqv": False})
    assert (away.devices[0].kv_cache, away.devices[0].recurrent_state) == (0, 0)
    assert away.host.kv_cache == here.devices[0].kv_cache
    assert away.host.recurrent_state == here.devices[0].recurrent_state
    assert not footprint("llama3.1-8b-L32", 2, kind=CUDA, options={"offload_kqv": False}).placement.pipelined


def test_every_layers_experts_on_the_host() -> None:
    every = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"cpu_moe": True})
    assert every.devices == footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"n_cpu_moe": 48}).devices


def drafting(method: str = "draft", tokens: int = 4, **options):
    draft = report().runs()["models"]["qwen2.5-0.5b-L24"] if method == "draft" else None
    speculation = {"method": method, "tokens": tokens, "draft": draft}
    return footprint("qwen2.5-7b-L28", kind=CUDA, speculation=speculation, batch=4, options=options)


def test_a_draft_model_has_buffers_of_its_own() -> None:
    """llama-server: as many cells and slots as the target's, one output a slot; the target's outputs take in the proposals."""
    found = drafting()
    target = footprint("qwen2.5-7b-L28", kind=CUDA, batch=4, options={"n_outputs_max": 20})
    alone = footprint("qwen2.5-0.5b-L24", kind=CUDA, batch=4)
    assert [device.total_bytes for device in found.devices] == [target.devices[0].total_bytes + alone.devices[0].total_bytes]
    assert found.host.total_bytes == target.host.total_bytes + alone.host.total_bytes
    assert sum(term.bytes for term in found.terms) == found.host.total_bytes + found.devices[0].total_bytes
    assert {term.values.get("model") for term in found.terms} == {None, "draft"}


def test_a_draft_model_on_the_host_with_a_cache_of_its_own_type() -> None:
    found = drafting(n_gpu_layers_draft=0, type_k_draft="q8_0", type_v_draft="q8_0")
    target = footprint("qwen2.5-7b-L28", kind=CUDA, batch=4, options={"n_outputs_max": 20})
    assert found.devices[0].weights == target.devices[0].weights
    assert (
        found.host.kv_cache == footprint("qwen2.5-0.5b-L24", 0, batch=4, options={"type_k": "q8_0", "type_v": "q8_0"}).host.kv_cache
    )


def test_looking_up_ngrams_takes_outputs_alone() -> None:
    plain = footprint("qwen2.5-7b-L28", kind=CUDA, batch=4)
    found = drafting("ngram", 31)
    assert found.context.outputs == 128
    assert found.devices[0].kv_cache == plain.devices[0].kv_cache


@pytest.mark.parametrize("method", ["mtp", "eagle"])
def test_speculation_that_is_not_derived_is_said_so(method: str) -> None:
    with pytest.raises(NotModelled, match="not derived"):
        drafting(method)


@pytest.mark.parametrize(
    ("options", "path"),
    [({"tensor_split": "a,b"}, "tensor_split"), ({"tensor_split": "0,0,1"}, "tensor_split"),
     ({"tensor_split": "-1,2"}, "tensor_split"), ({"split_mode": "none", "main_gpu": 5}, "main_gpu")],
)  # fmt: skip
def test_splits_that_leave_no_device_are_refused(options: dict, path: str) -> None:
    with pytest.raises(Faults) as caught:
        footprint("llama3.1-8b-L32", 2, kind=CUDA, options=options)
    assert [fault.path for fault in caught.value.faults] == [f"inference.engine_options.{path}"]


def test_layers_that_reuse_keys_and_values_have_no_cache_but_their_projections() -> None:
    document = {"version": 1, "model": "m", "task": "inference", "inference": {"engine": "llama.cpp", "prompt_tokens": 500}}
    architecture = unlike(json.dumps(UNLIKE[0]))
    found = llama_cpp_footprint(architecture, parse_scenario(document), parse_format("bf16"), 1)
    assert sum(term.values["layers"] for term in found.terms if term.component == "kv_cache") == 5
    assert sum("attn_k.weight" in tensor.name for tensor in gguf_tensors(architecture, "BF16")) == 8


def test_the_scorers_of_sparse_attention_have_a_cache_of_their_own() -> None:
    config = next(graph["config"] for graph in GRAPHS["models"] if graph["config"]["model_type"] == "glm_moe_dsa")
    document = {"version": 1, "model": "m", "task": "inference", "inference": {"engine": "llama.cpp", "prompt_tokens": 500}}
    found = llama_cpp_footprint(read_config(config), parse_scenario(document), parse_format("bf16"), 1)
    widths = {term.values["key_bytes"] for term in found.terms if term.component == "kv_cache"}
    assert widths == {2 * (config["kv_lora_rank"] + config["qk_rope_head_dim"]), 2 * config["index_head_dim"]}


def test_a_cache_that_is_offloaded_whole_stays_on_the_host() -> None:
    def ask(share: float):
        document = {"version": 1, "model": "m", "task": "inference", "weights": "gguf:Q4_K_M", "offload": {"kv_cache": share},
                    "inference": {"engine": "llama.cpp", "prompt_tokens": 1000, "new_tokens": 24}}  # fmt: skip
        return llama_cpp_footprint(model("llama3.1-8b-L32"), parse_scenario(document), parse_format("gguf:Q4_K_M"), 1)

    assert ask(1.0).devices[0].kv_cache == 0
    assert ask(1.0).host.kv_cache == ask(0.0).devices[0].kv_cache
    with pytest.raises(Faults, match=r"offload\.kv_cache: .*use 0 or 1"):
        ask(0.5)


def test_what_is_not_counted_is_said() -> None:
    assert any("repacked" in note for note in footprint("llama3.1-8b-L32", 1, options={"n_gpu_layers": 5}).notes)
    assert not any("repacked" in note for note in footprint("llama3.1-8b-L32", 1).notes)


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    speculation = {"method": "draft", "tokens": 4, "draft": report().runs()["models"]["tinyllama-1.1b-L22"]}
    with pytest.raises(Faults, match=r"inference\.speculation\.draft: .*32000 tokens"):
        footprint("llama3.1-8b-L32", speculation=speculation)


@pytest.mark.parametrize(
    ("pattern", "count"), [(r"\.ffn_(up|down|gate)_exps=CPU", 48), (r"blk\.[0-9]\.ffn_.*_exps\.=CPU,token_embd=CPU", 10)]
)
def test_experts_named_by_a_pattern_stay_on_the_host(pattern: str, count: int) -> None:
    """--cpu-moe and --n-cpu-moe are such patterns themselves (``common/arg.cpp``)."""
    named = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"override_tensor": pattern})
    counted = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"n_cpu_moe": count})
    assert (named.devices, named.host) == (counted.devices, counted.host)


def test_experts_of_any_layers_may_stay_on_the_host() -> None:
    first = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"n_cpu_moe": 8})
    last = footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"override_tensor": r"blk\.4[0-7]\.ffn_.*_exps=CPU"})
    assert last.host.weights == pytest.approx(first.host.weights, rel=0.05)
    assert last.placement.experts != first.placement.experts


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("exps", "must be pattern=buffer"),
        ("(=CPU", "no regular expression"),
        ("(.+)+x=CPU", "repeats of groups"),
        ("x" * 3000, "3000"),
    ],
)
def test_patterns_that_are_none_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(Faults, match=words):
        footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"override_tensor": pattern})


@pytest.mark.parametrize("pattern", ["attn_q=CPU", "_exps=CUDA0", "ffn_up_exps=CPU"])
def test_other_tensors_and_buffers_are_not_derived(pattern: str) -> None:
    with pytest.raises(NotModelled, match="override_tensor"):
        footprint("qwen3-30b-a3b-L48", kind=CUDA, options={"override_tensor": pattern})
