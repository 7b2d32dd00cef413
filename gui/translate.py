"""One gate for texts that people read: Qt's translations, when some are installed for the language."""

from __future__ import annotations

from PySide6.QtCore import QCoreApplication

CONTEXT = "Highwater"


def tr(text: str) -> str:
    """``text`` in the language of the application; as it is where there is no translation."""
    return QCoreApplication.translate(CONTEXT, text)
