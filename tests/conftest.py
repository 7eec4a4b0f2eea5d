"""Fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import backends
import pytest
import torch

DATA = Path(os.environ.get("COSEGFLOW_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny tensors: where other programs run, a second thread stretches every parallel region."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=backends.NAMES)
def backend(request: pytest.FixtureRequest):
    """Each backend in turn. COSEGFLOW_TEST_BACKENDS=cuda (a comma-separated list) restricts them."""
    chosen = os.environ.get("COSEGFLOW_TEST_BACKENDS")
    if chosen and request.param not in chosen.split(","):
        pytest.skip(f"COSEGFLOW_TEST_BACKENDS={chosen}")
    return backends.get(request.param)
