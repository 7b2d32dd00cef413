"""``python -m probes.worker``."""

from .main import main

main()
