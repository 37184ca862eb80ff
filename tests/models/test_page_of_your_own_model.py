"""docs/your-own-model.md: its blocks run as they stand, in one namespace, in their order."""

import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import table

import dualprop as dp

PAGE = table.PAGE.read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FRAMEWORKS = ("lightning", "accelerate")


def framework_of(block):
    return next((name for name in FRAMEWORKS if f"import {name}\n" in block), None)


def run(frameworks):
    """The namespace after all blocks, those of other packages only if asked for."""
    names = {"__name__": "page"}
    for block in BLOCKS:
        code = compile(block, table.PAGE.name, "exec")
        if not block.startswith("# train.py") and (frameworks or framework_of(block) is None):
            exec(code, names)
    return names


def test_the_lines_of_the_page_run(capsys):
    """The first thing that is copied must not fail."""
    names = run(frameworks=False)
    told = str(names["network"])
    assert "relu of" in told


@pytest.mark.frameworks
@pytest.mark.filterwarnings("default")
def test_the_lines_of_the_page_run_with_those_of_other_packages(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FRAMEWORKS:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    run(frameworks=True)


def test_what_the_page_shows_of_a_network_is_what_is_printed(capsys):
    """Read in the page, looked for in the terminal."""
    (shown,) = re.findall(r"^```text\n(Network.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names = {"__name__": "page"}
    exec(compile(BLOCKS[0], table.PAGE.name, "exec"), names)
    printed, shown = str(names["network"]).splitlines(), shown.splitlines()
    assert [line.partition(", since")[0] for line in printed] == [line.partition(", since")[0] for line in shown]


def test_two_processes_end_with_the_same_weights(tmp_path):
    """Each sees other data: without the wrapper's averages their weights would part."""
    (block,) = (block for block in BLOCKS if block.startswith("# train.py"))
    (tmp_path / "train.py").write_text(block)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    norms = re.findall(r"rank (\d): ([\d.]+)", result.stdout)
    assert {rank for rank, _ in norms} == {"0", "1"}
    assert len({norm for _, norm in norms}) == 1


def test_each_activation_that_is_named_is_one():
    """A name in prose that is none would be looked for in vain."""
    known = {getattr(function, "__name__", "") for function in dp.activations.READERS}
    paragraph = PAGE.partition("- **Activations**")[2].partition("- **Left")[0]
    named = re.findall(r"`(?:F\.)?(\w+)`", paragraph)
    assert len(named) > 4
    assert [name for name in named if name not in known] == []
