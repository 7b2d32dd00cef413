"""What can go wrong, as one typed error with its exit status."""

from __future__ import annotations

EXIT_RESULT = 0
EXIT_BAD_INPUT = 2
EXIT_NOT_HERE = 3
EXIT_INTERRUPTED = 130

_EXIT_STATUS = {"bad_order": EXIT_BAD_INPUT, "bad_config": EXIT_BAD_INPUT, "interrupted": EXIT_INTERRUPTED}


class WorkerError(Exception):
    """A run that cannot go on. ``kind`` is a wire error kind, ``message`` says the remedy, ``field`` the faulty path.

    ``told``: what else the error event says.
    """

    def __init__(self, kind: str, message: str, field: str | None = None, **told: object) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.field = field
        self.told = told

    @property
    def exit_status(self) -> int:
        """The process's exit status for this error."""
        return _EXIT_STATUS.get(self.kind, EXIT_NOT_HERE)


def missing_package(name: str) -> WorkerError:
    """The error for a package that has to be installed first."""
    return WorkerError("missing_package", f"{name} is not installed here: python -m pip install {name}")


class OutOfMemory(Exception):
    """Memory ran out, or the budget did. Bytes are None where the framework does not say them."""

    def __init__(self, message: str, requested_bytes: int | None, free_bytes: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.requested_bytes = requested_bytes
        self.free_bytes = free_bytes
