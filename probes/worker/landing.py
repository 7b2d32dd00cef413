"""How the package runs where it is not installed: its sources arrive on standard input and are imported from memory.

Only the standard library, and no import of the package: the text of this file is what runs first on the other side.
Nothing is written to the disk there.
"""

from __future__ import annotations

import base64
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import sys
import types
import zipfile
from collections.abc import Sequence

PACKAGE = "highwater_worker"
"""What the package is called where it has landed."""
START = "import sys;exec(sys.stdin.buffer.readline())"
"""The program for ``python3 -c``. It has only such quotes as every shell leaves alone between double ones."""


class Landed(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of one package from their sources, by dotted name."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module, if it is one of ours."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in self._sources else None

    def get_source(self, fullname: str) -> str:
        """Its text; tracebacks show it."""
        if fullname not in self._sources:
            raise ImportError(f"{fullname} did not travel", name=fullname)
        return self._sources[fullname]

    def is_package(self, fullname: str) -> bool:
        """Whether modules lie below it."""
        return any(name.startswith(fullname + ".") for name in self._sources)


def unpack(parcel: str) -> dict[str, str]:
    """The sources by dotted name, from a zip in base64."""
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(parcel))) as archive:
        texts = {name: archive.read(name).decode("utf-8") for name in archive.namelist()}
    names = {name: name[: -len(".py")].replace("/", ".").removesuffix(".__init__") for name in texts}
    return {names[name]: text for name, text in texts.items()}


def land(parcel: str) -> None:
    """Run the package that is in the parcel, to the end of the process."""
    sys.path[:] = [entry for entry in sys.path if entry]  # the folder one happens to be in shadows nothing
    sys.meta_path.insert(0, Landed(unpack(parcel)))
    importlib.import_module(f"{PACKAGE}.main").main(landed=True)
