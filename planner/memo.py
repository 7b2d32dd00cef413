"""Remembering results for an object that is slow to hash."""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Owner = TypeVar("Owner")
Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


def remember_by_identity(
    maximum: int,
) -> Callable[[Callable[Concatenate[Owner, Parameters], Result]], Callable[Concatenate[Owner, Parameters], Result]]:
    """Keep the last ``maximum`` results of a pure function whose first argument is immutable, large and long-lived.

    ``functools.lru_cache`` would hash an architecture of a hundred layers on every call; its identity does as well. The
    object is kept with the result, so that its identity is not used again while the result is remembered.
    """

    def decorate(function: Callable[Concatenate[Owner, Parameters], Result]) -> Callable[Concatenate[Owner, Parameters], Result]:
        remembered: OrderedDict[object, tuple[Owner, Result]] = OrderedDict()

        @functools.wraps(function)
        def call(owner: Owner, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            key = (id(owner), args, tuple(sorted(kwargs.items())))
            found = remembered.get(key)
            if found is None:
                found = remembered.setdefault(key, (owner, function(owner, *args, **kwargs)))
                if len(remembered) > maximum:
                    with contextlib.suppress(KeyError):
                        remembered.popitem(last=False)
            return found[1]

        return call

    return decorate
