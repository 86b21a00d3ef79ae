from collections.abc import Iterator

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Two ranks that stay for the whole session. A test leaves them in step."""
    with Ranks(2) as pair:
        yield pair
