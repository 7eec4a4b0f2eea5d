"""A pytest plugin for a machine with a GPU: tests of the simulator alone are skipped, not built for minutes."""

import sys
from typing import NoReturn

import pytest


def _skip() -> NoReturn:
    pytest.skip("hostsim is not what this run is about")


def pytest_collection_modifyitems() -> None:
    """By now conftest.py has imported `backends`, which is where every test gets the simulator from."""
    backends = sys.modules.get("backends")
    if backends is not None:
        backends.hostsim_module = _skip  # type: ignore[attr-defined]
