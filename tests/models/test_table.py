"""The tables of docs/your-own-model.md say what the library does today."""

import pytest
import table
from architectures import ARCHITECTURES

ROWS = {row.split("`")[1]: row for row in table.on_page("architectures")[2:]}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_row_of_an_architecture_is_what_engines_and_rules_make_of_it(name):
    """A table that once was true is believed."""
    assert ROWS[name] == table.architecture_row(name), "run: python tests/models/table.py"


def test_the_table_has_a_row_for_each_architecture_and_none_is_wrong():
    assert list(ROWS) == list(ARCHITECTURES)
    assert table.on_page("architectures")[:2] == table.architectures_table()[:2]
    assert [name for name, row in ROWS.items() if "wrong" in row] == []


def test_the_table_of_rules_has_their_passes_and_the_reasons_of_refusals():
    assert table.on_page("rules") == table.rules_table(), "run: python tests/models/table.py"
