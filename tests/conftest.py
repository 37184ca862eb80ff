"""What every test shares: one thread (the machine is small, and sums then have one order), and the
shared folder."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# A shell's background jobs ignore Ctrl-C, and so would the commands that the tests start and
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are derived from the test's own code, so a run is the same everywhere; a slow machine is
# no failure.
settings.register_profile(
    "repeatable",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    database=None,
    print_blob=False,
)
settings.load_profile("repeatable")

# pytest starts in the package's repository; the shared reference data lies beside it, where it lies
# at all.
SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked sampled(every) one case in so many is run with all tests; the others are
    slow."""
    seen: Counter[str] = Counter()
    for item in items:
        if (mark := item.get_closest_marker("sampled")) is not None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % mark.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1


@pytest.fixture(autouse=True)
def subnormals() -> Iterator[None]:
    """Training flushes subnormal numbers for its whole process; other tests must not inherit
    that."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with the authors' reference cases and the documents."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared folder is not at {SHARED}")
    return SHARED
