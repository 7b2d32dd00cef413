"""Fields for what the scenario has and the form's table does not name: by their type, among the seldom-used ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from gui.form.editors import ChoiceField, Editor, NamesField
from gui.form.numbers import NumberField, ShareField, read_count
from gui.form.options import OptionsField
from gui.translate import tr
from planner.scenario import Scenario


class NumbersField(NamesField):
    """Whole numbers parted by commas."""

    def value(self) -> object:
        """The numbers; a part that is none stays as it was typed."""
        return tuple(read_count(name) for name in super().value())  # type: ignore[attr-defined]

    def set_value(self, value: object) -> None:
        """Show ``value`` unless the text already means it."""
        if isinstance(value, tuple) and self.value() != value:
            self.setText(", ".join(map(str, value)))


class TextField(NamesField):
    """One word."""

    def value(self) -> object:
        """The text; None where there is none."""
        return self.text().strip() or None

    def set_value(self, value: object) -> None:
        """Show ``value`` unless the text already means it."""
        if self.value() != value:
            self.setText("" if value is None else str(value))


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every choice of a scenario by its path, with its annotation."""
    for item in dataclasses.fields(value):  # type: ignore[arg-type]
        inner, path = getattr(value, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{path}.")
        else:
            yield path, str(item.type)


def all_leaves() -> dict[str, str]:
    """Those of every scenario."""
    return dict(leaves(Scenario("model", "inference")))


def editor_of(annotation: str) -> Callable[[], Editor] | None:
    """What makes an editor for values of this type; None where a line of text can't hold them."""
    if annotation.startswith("Mapping") and annotation.endswith("None"):
        return None
    return next((make for words, make in _MAKERS.items() if annotation.startswith(words)), None)


def _counts() -> Editor:
    return NumbersField()


def _on_off() -> Editor:
    return ChoiceField([(False, tr("off")), (True, tr("on"))])


_MAKERS: Mapping[str, Callable[[], Editor]] = {
    "tuple[int": _counts, "tuple[str": NamesField, "int": lambda: NumberField(least=0), "float": ShareField, "bool": _on_off,
    "str": TextField, "Mapping[str, object]": OptionsField,
}  # fmt: skip
