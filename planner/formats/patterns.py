r"""Matching module names against skip lists, in time linear in the name.

Quantisation configs carry regular expressions, globs and plain suffixes, and they come from strangers: Python's
``re`` can be made to run for ever. The subset that such lists really use (literals, ``.``, ``.*``, ``.+``, ``\d+``,
``[0-9]+``, ``(a|b)``, ``^``, ``$``, ``*``) is compiled to a list of steps and simulated as an automaton.
A pattern outside it is taken literally.
"""

from __future__ import annotations

import re
from functools import lru_cache

from planner.record import record

MAX_PATTERN_CHARACTERS = 512
MAX_ALTERNATIVES = 64

_GROUP = re.compile(r"\((?:\?:)?([^()*+?{}\[\]]*\|[^()*+?{}\[\]]*)\)(?![*+?{])")
_PLAIN = re.compile(r"[\w.\-/]+")
_STEP = re.compile(
    r"(?P<any>\.[*+]\??)|(?P<digits>(?:\\d|\[0-9\])[+*]?)|(?P<escaped>\\.)|(?P<star>\*)|(?P<dot>\.)|(?P<end>\$)|(?P<plain>[^\\$*])",
    re.DOTALL,
)


@record
class _Step:
    """One position of the automaton: which character passes, and whether it may be left out or repeated."""

    accepts: str
    optional: bool = False
    repeats: bool = False

    def passes(self, character: str) -> bool:
        """Whether ``character`` passes: ``any``, ``digit``, or itself. The ``*`` of a folded path is any number."""
        if self.accepts == "any":
            return True
        if self.accepts == "digit":
            return character.isdigit() or character == "*"
        return character == self.accepts


def matches_any(module: str, patterns: tuple[str, ...]) -> bool:
    """Whether a skip list names ``module``: from the start up to a dot, or as its end, as transformers 5 reads them.

    Source of the rule: transformers ``quantizers/quantizers_utils.py`` ``should_convert_module``; compressed-tensors
    marks its regular expressions with ``re:``.
    """
    names, others = _by_kind(patterns)
    if names.isdisjoint(_paths_to(module)):
        return any(matches(module, pattern) for pattern in others) or module.endswith(tuple(names))
    return True


@lru_cache(maxsize=256)
def _by_kind(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """(plain module names, patterns). Lists of hundreds of names are common: they are looked up, not matched one by one."""
    bare = {pattern: pattern.removeprefix("re:").removesuffix(".weight") for pattern in patterns}
    plain = {pattern: name for pattern, name in bare.items() if _PLAIN.fullmatch(name)}
    return frozenset(plain.values()), tuple(pattern for pattern in patterns if pattern not in plain)


@lru_cache(maxsize=4096)
def _paths_to(module: str) -> tuple[str, ...]:
    """The module and everything it lies in, with and without the dot behind."""
    cuts = [at for at, character in enumerate(module) if character == "."]
    return (module, *(module[:at] for at in cuts), *(module[: at + 1] for at in cuts))


@lru_cache(maxsize=65536)
def matches(module: str, pattern: str) -> bool:
    """Whether one pattern names ``module`` or something it lies in."""
    bare = pattern.removeprefix("re:").removesuffix(".weight")
    return module.endswith(bare) or any(_run(steps, module) for steps in _compile(bare))


def names_layers(patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names single layers, so that equal layers can't be treated as one."""
    return any(re.search(r"(?<![A-Za-z_0-9])\d+(?![A-Za-z_0-9])|\|", pattern) for pattern in patterns)


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> tuple[tuple[_Step, ...], ...]:
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return ()
    return tuple(_steps(alternative.removeprefix("^")) for alternative in _alternatives(pattern))


def _alternatives(pattern: str) -> list[str]:
    """The pattern with its groups multiplied out."""
    pending = [pattern]
    done: list[str] = []
    while pending and len(pending) + len(done) <= MAX_ALTERNATIVES:
        head = pending.pop()
        group = _GROUP.search(head)
        if group is None:
            done.append(head)
        else:
            pending.extend(head[: group.start()] + choice + head[group.end() :] for choice in group[1].split("|"))
    return done


def _steps(pattern: str) -> tuple[_Step, ...]:
    steps = []
    for token in _STEP.finditer(pattern):
        kind, text = token.lastgroup, token.group()
        if kind in ("any", "star"):
            steps.append(_Step("any", optional="+" not in text, repeats=True))
        elif kind == "digits":
            steps.append(_Step("digit", optional=text.endswith("*"), repeats=text[-1] in "+*"))
        elif kind == "dot":
            steps.append(_Step("any"))
        else:
            steps.append(_Step("end" if kind == "end" else text[-1]))
    return tuple(steps)


def _run(steps: tuple[_Step, ...], module: str) -> bool:
    """Simulate all paths at once: match from the start, ending at a dot or at the end."""
    states = _skip_optional(steps, {0})
    for position, character in enumerate(module):
        if len(steps) in states and (character == "." or module[position - 1 : position] == "."):
            return True
        states = _skip_optional(steps, _advance(steps, states, character))
        if not states:
            return False
    return len(steps) in states or any(index == len(steps) - 1 and steps[index].accepts == "end" for index in states)


def _advance(steps: tuple[_Step, ...], states: set[int], character: str) -> set[int]:
    after = set()
    for index in states:
        if index < len(steps) and steps[index].passes(character):
            after.add(index + 1)
            if steps[index].repeats:
                after.add(index)
    return after


def _skip_optional(steps: tuple[_Step, ...], states: set[int]) -> set[int]:
    reached = set(states)
    for index in sorted(states):
        position = index
        while position < len(steps) and steps[position].optional:
            position += 1
            reached.add(position)
    return reached
