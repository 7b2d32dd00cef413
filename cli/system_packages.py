"""The system libraries Qt needs and the programs some tests need, and the Debian packages that bring them.

Run as a module it installs what is missing where root and apt are at hand, and otherwise names it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

OFFSCREEN = {
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libfontconfig.so.1": "libfontconfig1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libfreetype.so.6": "libfreetype6",
    "libX11.so.6": "libx11-6",
}
"""Library → package, for Qt without a screen."""
WINDOW = {
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}
"""The same for a window on X11 (Qt's own message names only the first)."""

TESTS = {"sshd": "openssh-server"}
"""Program → package, for tests alone: measuring over SSH is tried against a real server. Without it they are skipped."""


def missing_packages(*, offscreen: bool = False) -> tuple[str, ...]:
    """Debian packages whose library can't be loaded; nothing where Qt brings its own (Windows, macOS)."""
    if not sys.platform.startswith("linux"):
        return ()
    needed = OFFSCREEN if offscreen else OFFSCREEN | WINDOW
    return tuple(package for library, package in needed.items() if not _loads(library))


def remedy(packages: tuple[str, ...]) -> str:
    """One line to copy."""
    return f"On Debian and Ubuntu: sudo apt-get install -y {' '.join(packages)}"


def main() -> int:
    """Install what is missing as root with apt; else name it. Never fails: the tests that need it say so themselves."""
    missing = (*missing_packages(), *_missing_for_tests())
    if not missing:
        return 0
    apt = shutil.which("apt-get")
    if apt is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        sys.stderr.write(f"Qt or the tests need what is not here. {remedy(missing)}\n")
        return 0
    subprocess.run([apt, "update", "-qq"], check=False)  # noqa: S603  apt's own path, no input
    return subprocess.run([apt, "install", "-y", "-qq", *missing], check=False).returncode  # noqa: S603


def _missing_for_tests() -> tuple[str, ...]:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
    if not sys.platform.startswith("linux"):
        return ()
    return tuple(package for program, package in TESTS.items() if shutil.which(program, path=path) is None)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
