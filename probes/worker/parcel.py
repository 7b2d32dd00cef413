"""The package as one line of Python, to be sent to where it is not installed (:mod:`probes.worker.landing`)."""

from __future__ import annotations

import base64
import io
import pkgutil
import sys
import zipfile
from functools import cache
from importlib.util import find_spec

from .landing import PACKAGE


@cache
def parcel_line() -> bytes:
    """A line that :data:`probes.worker.landing.START` reads and runs. After it on the same stream comes the order."""
    landing = base64.b64encode(source_of(f"{__package__}.landing").encode()).decode()
    parcel = base64.b64encode(_zipped()).decode()
    code = (
        "import base64;space={'__name__':'landing'};"
        f"exec(compile(base64.b64decode('{landing}'),'landing.py','exec'),space);space['land']('{parcel}')\n"
    )
    return code.encode("ascii")


def _zipped() -> bytes:
    package = sys.modules[__package__ or ""]
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__)) or _landed_names()
    with io.BytesIO() as held:
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{PACKAGE}/__init__.py", source_of(package.__name__))
            for name in names:
                archive.writestr(f"{PACKAGE}/{name}.py", source_of(f"{package.__name__}.{name}"))
        return held.getvalue()


def _landed_names() -> list[str]:
    """The modules beside this one when they were imported from memory."""
    spec = find_spec(__name__)
    sources = getattr(spec.loader if spec else None, "_sources", {})
    return sorted(name.rpartition(".")[2] for name in sources if name.startswith(f"{__package__}."))


def source_of(name: str) -> str:
    """The text of a module of the package, also where it was imported from memory. Raises ImportError."""
    spec = find_spec(name)
    text = spec.loader.get_source(name) if spec and spec.loader and hasattr(spec.loader, "get_source") else None
    if text is None:
        raise ImportError(f"the source of {name} is not to be had", name=name)
    return str(text)
