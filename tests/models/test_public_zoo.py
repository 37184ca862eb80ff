"""The public zoo where timm, transformers and torchvision are installed (`dualprop[zoo]`).

An engine may refuse an architecture by name. It may not be wrong, nor fail in its own words.
"""

from importlib.util import find_spec

import pytest
import stubs
from zoo import ZOO
from zoo_verdicts import ENGINES, case_of, verdict

pytestmark = [
    pytest.mark.slow,
    # What others warn of is not ours.
    pytest.mark.filterwarnings("ignore"),
]
# The least number of 80 that each engine must read: the rest is refused.
GOALS = {"fused": 76, "explicit": 72, "ep": 64}


def test_the_zoo_has_eighty():
    names = [(entry.source, entry.name) for entry in ZOO]
    assert len(set(names)) == len(names) == 80


@pytest.mark.parametrize("engine", GOALS)
def test_no_engine_is_silently_wrong_and_most_are_read(engine):
    """One table, so that a failure shows all of it."""
    missing = [name for name in ("timm", "transformers", "torchvision") if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    stubs.declare_torchvision_operators()
    rows = {entry.name: verdict(ENGINES[engine], case_of(entry)) for entry in ZOO}
    told = {
        word: [f"{name}: {cell} {note}" for name, (w, cell, note) in rows.items() if w == word]
        for word in ("wrong", "failed", "refused")
    }
    assert not told["wrong"] + told["failed"], "\n".join(told["wrong"] + told["failed"])
    assert len(rows) - len(told["refused"]) >= GOALS[engine], "\n".join(told["refused"])
