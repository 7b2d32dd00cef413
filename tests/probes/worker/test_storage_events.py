"""The stream of a rehearsal: whole, consistent with the phases it reports, the same when decode steps are unrolled."""

from collections import Counter

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")
INFERENCE = {"batch": 2, "prompt_tokens": 44, "new_tokens": 15}


def entries(events):
    """Entries with their strings in place."""
    strings = []
    for event, fields in events:
        if event == "storage":
            strings += fields["strings"]
            for kind, *rest in fields["batch"]:
                match kind:
                    case "a":
                        ident, nbytes, component, module, op = rest
                        yield ("a", ident, nbytes, strings[component], strings[module], strings[op])
                    case "c":
                        yield ("c", rest[0], strings[rest[1]])
                    case "p":
                        yield ("p", strings[rest[0]], *rest[1:])
                    case _:
                        yield (kind, *rest)


def replay(events):
    """Peak of every phase from nothing but the stream, as {(name, step): (bytes, components)}."""
    live, total, peaks, current = {}, Counter(), {}, None
    for entry in entries(events):
        if entry[0] == "p":
            current = (entry[1], entry[3]) if entry[2] == "begin" else None
        elif entry[0] == "a":
            assert entry[1] not in live
            live[entry[1]] = (-(-entry[2] // 512) * 512, entry[3])
            total[entry[3]] += live[entry[1]][0]
        elif entry[0] == "f":
            size, component = live.pop(entry[1])
            total[component] -= size
        else:
            size, component = live[entry[1]]
            total[component] -= size
            total[entry[2]] += size
            live[entry[1]] = (size, entry[2])
        if current is not None:
            peaks[current] = max(peaks.get(current, 0), sum(total.values()))
    return peaks


@pytest.mark.parametrize(
    ("name", "task", "workload"),
    [
        ("mixtral", "inference", INFERENCE),
        ("llama", "training", {"batch": 1, "sequence": 64, "checkpointing": "full", "gradient_accumulation": 2}),
    ],
)
def test_stream_replayed_gives_the_reported_peaks(run_worker, name, task, workload):
    events = run_worker("rehearse", name, task, workload)
    assert replay(events) == {key: allocated for key, (allocated, _) in events.phases.items()}


def test_attribution_names_modules_and_components(run_worker):
    events = run_worker("rehearse", "llama", "training", {"batch": 1, "sequence": 64})
    allocations = [entry for entry in entries(events) if entry[0] == "a"]
    relabelled = Counter(entry[2] for entry in entries(events) if entry[0] == "c")
    assert {"model.embed_tokens", "model.layers.0.mlp.down_proj", "model.norm"} <= {entry[4] for entry in allocations}
    assert ("logits", "lm_head") in {(entry[3], entry[4]) for entry in allocations}
    parameters = 3 * 9 + 2  # nine tensors a layer, the tied embedding, the last norm
    assert relabelled["gradients"] == 2 * parameters
    assert relabelled["optimizer_state"] == 3 * parameters  # exp_avg, exp_avg_sq and the fused optimizer's step


@pytest.mark.parametrize(("name", "steps"), [("llama", 7), ("gemma3", 15), ("jamba", 7)])
def test_unrolled_decode_equals_every_step_traced(run_worker, name, steps):
    """gemma3's windows of 48 fill up after four of the steps."""
    workload = INFERENCE | {"new_tokens": steps}
    every = run_worker("rehearse", name, "inference", workload, decode_steps="all")
    unrolled = run_worker("rehearse", name, "inference", workload)
    assert unrolled.phases == every.phases
    assert list(entries(unrolled)) == list(entries(every))
    assert not any("pattern" in note for note in unrolled.result["notes"])


def test_unrolled_decode_traces_few_steps(run_worker):
    events = run_worker("rehearse", "llama", "inference", INFERENCE | {"new_tokens": 1000})
    traced = sum(event == "progress" and fields["what"] == "decode" for event, fields in events)
    assert traced < 10
    kv_bytes = 2 * 3 * 2 * 16 * 1044 * 2 * 2  # keys and values, layers, heads, width, tokens, batch, bytes
    assert events.phases["decode", 0][1]["kv_cache"] == pytest.approx(kv_bytes, rel=0.005)
