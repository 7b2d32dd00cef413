"""No test writes into the folder of the user who runs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Recordings, history and calibrations of this run, and of the processes it starts, lie in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIGHWATER_HOME", str(tmp_path_factory.mktemp("home")))
        yield
