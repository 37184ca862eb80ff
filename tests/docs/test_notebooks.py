"""The notebooks of examples/: each runs from top to bottom in a fresh kernel, and is kept without
outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples/notebooks").glob("*.ipynb"))


def cells_of(path):
    return json.loads(path.read_text())["cells"]


@pytest.mark.notebooks
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    """What is said to run in an evening must not stop at the third cell."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


def test_there_are_five():
    """A dyad, one's own model, one's own data, a new rule, a table."""
    assert [path.stem for path in NOTEBOOKS] == ["1_a_dyad", "2_your_own_model", "3_your_own_data", "4_a_new_rule", "5_a_table"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    """Outputs make every run a change, and age unseen."""
    for cell in cells_of(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_the_new_rule_is_that_of_the_page():
    """Two copies of one rule drift apart."""
    root = Path(__file__).parents[2]
    page = (root / "docs/adding-a-rule.md").read_text()
    written = page.partition("class RoundedErrors")[2].partition("```")[0].strip()
    first = next("".join(cell["source"]) for cell in cells_of(NOTEBOOKS[3]) if cell["cell_type"] == "code")
    assert first.partition("class RoundedErrors")[2].strip() == written
