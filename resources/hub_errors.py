"""What can go wrong with the Hub, each its own type with the remedy in words. Texts never hold a token or a header."""

from __future__ import annotations


class HubError(Exception):
    """The Hub gave no answer for ``what``; ``message`` says why and ``remedy`` what to do."""

    def __init__(self, what: str, message: str, remedy: str) -> None:
        self.what, self.message, self.remedy = what, message, remedy
        super().__init__(f"{what}: {message}. {remedy}")


class Gated(HubError):
    """The publisher must grant access first."""

    def __init__(self, what: str, *, url: str) -> None:
        super().__init__(
            what,
            "access must be granted by its publisher",
            f"Ask for it at {url}, then log in with: hf auth login",
        )


class BadToken(HubError):
    """The saved token is not valid (any more)."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "the saved token is refused", "Log in again with: hf auth login")


class Missing(HubError):
    """No such model, revision or file; or a private one and no right to see it."""

    def __init__(self, what: str, message: str = "not found (or private)") -> None:
        super().__init__(what, message, "Check the spelling; for a private model log in with: hf auth login")


class Offline(HubError):
    """The Hub can't be reached from here."""

    def __init__(self, what: str, message: str, remedy: str = "Check the network and HF_ENDPOINT") -> None:
        super().__init__(what, message, f"{remedy}; catalog models, the local cache and folders work without it")


class RateLimited(HubError):
    """Too many requests; ``retry_after_s`` is None when the server does not say how long to wait."""

    def __init__(self, what: str, retry_after_s: float | None) -> None:
        self.retry_after_s = retry_after_s
        wait = "later" if retry_after_s is None else f"in {retry_after_s:.0f} s"
        super().__init__(what, "the Hub limits requests", f"Try again {wait}; logging in raises the limit")


class Slow(HubError):
    """No complete answer within the time allowed; ``timeout_s`` None: within what was left of it."""

    def __init__(self, what: str, timeout_s: float | None = None) -> None:
        self.timeout_s = timeout_s
        allowed = "the time allowed" if timeout_s is None else f"{timeout_s:g} s"
        super().__init__(what, f"no complete answer within {allowed}", "Try again, or use a local copy")


class ServerError(HubError):
    """The server failed, or answered with a status that fits nothing else."""

    def __init__(self, what: str, status: int) -> None:
        self.status = status
        super().__init__(what, f"the server answered with status {status}", "Try again later")


class BadData(HubError):
    """The answer is not what it should be: cut short, malformed, or more than was asked for."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(what, message, "Try again; if it stays so, the file on the server is damaged")
