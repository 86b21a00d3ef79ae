"""Fixtures for all tests."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch as th

from tests.ranks import Ranks


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The networks here are small, and the suite runs in several processes at once."""
    th.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Environments that draw from the global generators, before a model has seeded them, draw the same each time."""
    np.random.seed(0)
    th.manual_seed(0)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two ranks that stay for the whole session. A test leaves them in step."""
    with Ranks(2) as pair:
        yield pair
