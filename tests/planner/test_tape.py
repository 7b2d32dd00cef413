from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.components.tape import BLOCK_BYTES, Course, Held, Level, Size, Tape


def size(blocks: int) -> Size:
    return Size(blocks=blocks, bytes=BLOCK_BYTES)


def test_a_size_is_the_product_of_its_factors_rounded_to_the_allocators_block() -> None:
    made = Size(batch=3, features=7, bytes=2)
    assert (made.bytes, made.text()) == (512, "batch · features · bytes")
    assert Size(rows=257, bytes=2).bytes == 1024


def test_what_autograd_saves_outlives_its_last_use() -> None:
    for saving, live in ((True, {"x"}), (False, set())):
        tape = Tape(saving=saving)
        tape.hold("x", size(1), saved=True)
        tape.hold("y", size(2))
        tape.free("x", "y")
        span = tape.span()
        assert set(span.live) == live
        assert span.peak == 3 * BLOCK_BYTES
        assert span.end == len(live) * BLOCK_BYTES


def test_saved_tensors_count_as_activations_and_consumed_ones_go() -> None:
    tape = Tape(saving=True)
    tape.hold("x", size(1))
    tape.keep("x")
    assert tape.span().live["kept x"].component == "activations"
    tape.consume("kept x")
    assert tape.span().end == 0


def test_a_repeated_block_peaks_in_its_last_repeat_when_it_leaves_something() -> None:
    tape = Tape()
    tape.hold("kept", size(1))
    tape.hold("moment", size(5))
    tape.free("moment")
    course = Course()
    course.run(tape.span(), 10, "layers")
    assert course.level.total == 10 * BLOCK_BYTES
    assert course.peak.level.total == 15 * BLOCK_BYTES
    assert course.peak.where == "layers"


def test_a_block_that_frees_peaks_in_its_first_repeat() -> None:
    course = Course()
    course.hold("activations", "saved", size(1), 10)
    course.begin_phase()
    tape = Tape(start={"saved": Held(size(1), "activations")})
    tape.hold("moment", size(3))
    tape.consume("saved", "moment")
    course.run(tape.span(), 10)
    assert course.level.total == 0
    assert course.peak.level.total == 13 * BLOCK_BYTES


steps = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9), st.booleans()), max_size=30)


@given(steps, st.integers(1, 4))
def test_running_a_block_n_times_equals_laying_it_n_times(moves: list[tuple[str, int, bool]], times: int) -> None:
    """A course of n repeats at once has the level and the peak of n single runs (the level is linear in the repeat)."""
    tape = Tape()
    for name, blocks, make in moves:
        tape.consume(name)
        if make:
            tape.hold(name, size(blocks))
    span = tape.span()
    at_once, singly = Course(), Course()
    at_once.run(span, times)
    for _ in range(times):
        singly.run(span)
    assert at_once.level.total == singly.level.total
    assert at_once.peak.level.total == singly.peak.level.total


@given(steps)
def test_components_add_up_to_the_total(moves: list[tuple[str, int, bool]]) -> None:
    """Σ components = total, at the peak and after."""
    tape = Tape()
    for name, blocks, make in moves:
        tape.consume(name)
        if make:
            tape.hold(name, size(blocks), "logits" if blocks % 2 else "workspace")
    course = Course()
    course.run(tape.span(), 3)
    for level in (course.level, course.peak.level):
        assert sum(level.components().values()) == level.total


def test_levels_do_not_share_what_they_count() -> None:
    level = Level()
    level.change("weights", "w", size(1), 1)
    other = level.copy()
    other.change("weights", "w", size(1), 4)
    assert (level.total, other.total) == (BLOCK_BYTES, 5 * BLOCK_BYTES)
