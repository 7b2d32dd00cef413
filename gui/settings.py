"""What the window remembers between starts: every setting, declared once with its type and default."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PySide6.QtCore import QByteArray, QSettings

from resources.home import highwater_home

logger = logging.getLogger(__name__)
_HEAD = 4096
Value = TypeVar("Value", bool, int, str, list[str], bytes)


@dataclass(frozen=True, slots=True)
class Setting(Generic[Value]):
    """A key with its default; the default's type is the setting's type."""

    key: str
    default: Value


THEME = Setting("window/theme", "system")
GEOMETRY = Setting("window/geometry", b"")
TAB = Setting("window/tab", "footprint")
ADVANCED = Setting("form/advanced", default=False)
RECENT_FILES: Setting[list[str]] = Setting("files/recent", [])
SESSION = Setting("session/scenario", "")
PINS: Setting[list[str]] = Setting("compare/pins", [])
UNITS = Setting("window/units", "GiB")
ZOOM_PERCENT = Setting("window/zoom", 100)


class Settings:
    """Typed values in one INI file. INI keeps everything as text, so every value is stored as JSON.

    A file that can't be read is set aside and a new one begun; :attr:`trouble` says so.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or highwater_home() / "settings.ini"
        self.trouble = ""
        self._store = QSettings(str(self.path), QSettings.Format.IniFormat)
        if self._store.status() != QSettings.Status.NoError or not _is_ini(self.path):
            self._set_aside()

    def _set_aside(self) -> None:
        aside = next(name for number in range(1, 1000) if not (name := self.path.with_suffix(f".broken{number}.ini")).exists())
        try:
            self.path.rename(aside)
        except OSError as error:
            self.trouble = f"The settings in {self.path} can't be read and are not kept: {error.strerror or error}"
        else:
            self.trouble = f"The settings could not be read; they were set aside as {aside.name} and begun anew"
        logger.info(self.trouble)
        self._store = QSettings(str(self.path), QSettings.Format.IniFormat)

    def get(self, setting: Setting[Value]) -> Value:
        """The stored value, or the default when there is none or it is not of the setting's type."""
        text = self._store.value(setting.key)
        if text is None:
            return setting.default
        try:
            value = _decode(str(text), setting.default)
        except ValueError as error:
            logger.warning("setting %s is unreadable and was reset: %s", setting.key, error)
            return setting.default
        return value

    def set(self, setting: Setting[Value], value: Value) -> None:
        """Remember ``value``."""
        encoded = QByteArray(value).toBase64().data().decode() if isinstance(value, bytes) else value
        self._store.setValue(setting.key, json.dumps(encoded))


def _is_ini(path: Path) -> bool:
    """Qt takes any bytes for an INI file: ours is text, and has a section before anything else."""
    try:
        text = path.read_bytes()[:_HEAD].decode()
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    return not text.strip() or text.lstrip().startswith("[")


def _decode(text: str, default: Value) -> Value:
    value = json.loads(text)
    if isinstance(default, bytes) and isinstance(value, str):
        return QByteArray.fromBase64(value.encode()).data()
    if type(value) is not type(default):
        raise ValueError(f"expected {type(default).__name__}, found {type(value).__name__}")
    return value  # type: ignore[no-any-return]
