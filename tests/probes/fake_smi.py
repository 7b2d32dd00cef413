"""A stand-in for ``nvidia-smi``: a program of that name that prints recorded answers, whatever is in its folder now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_PROGRAM = """#!/bin/sh
case "$1" in
  --query-gpu=*mig.mode.current*) name=gpus ;;
  --query-gpu=*) name=gpus_older ;;
  --query-compute-apps=*) name=apps ;;
  *) name=xml ;;
esac
cat "{folder}/$name"
test ! -e "{folder}/$name.status" || exit "$(cat "{folder}/$name.status")"
"""

GPUS = (
    "0, GPU-513536b6-7d19-9063-b049-1e69664bb298, 00000000:01:00.0, 535.54.03, 81920, 4051, 76998, 37, 67.03, 27, Disabled, "
    "NVIDIA A100-SXM4-80GB\n"
    "1, GPU-0a1b36b6-7d19-9063-b049-1e69664bb299, 00000000:41:00.0, 535.54.03, 81920, 50, 80999, [N/A], [N/A], 31, Disabled, "
    "NVIDIA A100-SXM4-80GB\n"
)
"""As a driver of release 535 writes it: ``--format=csv,noheader,nounits``."""
APPS = "GPU-513536b6-7d19-9063-b049-1e69664bb298, 4242, 4000\nGPU-513536b6-7d19-9063-b049-1e69664bb298, 7, [N/A]\n"


class FakeSmi:
    """The program and its answers."""

    def __init__(self, folder: Path) -> None:
        if os.name != "posix":
            pytest.skip("the stand-in is a shell script")
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.path = folder / "nvidia-smi"
        self.path.write_text(_PROGRAM.format(folder=folder))
        self.path.chmod(0o755)
        self.say("gpus", GPUS)
        self.say("apps", APPS)

    def say(self, name: str, text: str, status: int = 0) -> None:
        """Answer so from now on: ``gpus``, ``gpus_older`` (drivers that know no MIG), ``apps``, ``xml``."""
        for file, told in ((self.folder / f"{name}.status", str(status)), (self.folder / name, text)):
            fresh = file.with_suffix(".new")
            fresh.write_text(told)
            fresh.replace(file)
