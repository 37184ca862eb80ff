"""The pages of docs/: every block of Python runs, every price is counted, a new rule is added
literally."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dualprop as dp
from dualprop import recipes
from dualprop.models import MLP
from dualprop.recipes.variants import VARIANTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Their blocks run in tests of their own, which know what they need.
ELSEWHERE = {"python.md": "tests/cli/test_python_calls.py", "your-own-model.md": "tests/models/test_page_of_your_own_model.py"}
LITERALLY, TUTORIAL = "adding-a-rule.md", "tutorial.md"


def blocks(page, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


WITH_CODE = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if blocks(page))
RUN_HERE = [page for page in WITH_CODE if page not in (*ELSEWHERE, LITERALLY, TUTORIAL)]


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch, capsys):
    """The first thing that is copied must not fail. One page is one session."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(DOCS / page), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_the_pages_that_run_elsewhere_do():
    """A page that no test runs is a page that no one has typed."""
    for page, test in ELSEWHERE.items():
        assert page in WITH_CODE
        assert f"docs/{page}" in (ROOT / test).read_text()


def test_the_tutorial_ends_with_a_network_that_has_learned(tmp_path, monkeypatch, capsys):
    """Ten minutes that end in a table of chance convince nobody."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(DOCS / TUTORIAL), start=1):
        exec(compile(block, f"{TUTORIAL}, block {number}", "exec"), names)
    assert names["accuracy"] > 0.95
    assert all(path.exists() for path in names["report"].figures)


COMMANDS = [
    (page, line.partition("#")[0].strip())
    for page in ("what-is-a-dyad.md", "tutorial.md", "choosing-a-rule.md")
    for block in blocks(DOCS / page, "console")
    for line in block.splitlines()
    if line.startswith("dualprop ")
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_on_a_page_is_one_that_is_understood(page, command):
    """Parsed, and not run."""
    from dualprop.analysis.inference import ShowOptions
    from dualprop.bench import experiments
    from dualprop.cli import arguments as args
    from dualprop.cli.compare import CompareOptions

    _, name, *words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
    if name == "show":
        args.parse(ShowOptions, ShowOptions(), words, name)
    else:
        assert name in ("compare", "train")
        recipe, words = args.take_recipe(words, "digits-mlp")
        taken, words = args.take_settings(words, CompareOptions(recipe))
        options = args.parse(CompareOptions, CompareOptions(recipe), words, name)
        args.settings_of(taken, experiments.compared(options), name)


PRICES = re.findall(
    r"^\| `([\w-]+)` \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$",
    (DOCS / "choosing-a-rule.md").read_text().partition("<!-- prices -->")[2].partition("<!-- end -->")[0],
    re.MULTILINE,
)


@pytest.mark.parametrize(("name", "drives", "feedbacks", "gradients", "price"), PRICES, ids=[row[0] for row in PRICES])
def test_a_price_is_what_the_library_counts(name, drives, feedbacks, gradients, price):
    """Of the variant's own settings, on four layers, for a batch."""
    recipe = VARIANTS[name].apply(recipes.from_name("mnist-mlp"))
    torch.manual_seed(0)
    model = MLP(widths=(8, 8, 8), activation=recipe.model.activation, output=recipe.model.output).build((8,), 4)
    network, generator = dp.Network.from_module(model), torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 8, generator=generator), torch.randint(4, (6,), generator=generator)
    state, counts = None, [0.0, 0.0, 0.0]
    for _ in range(recipe.updates_per_batch):
        outcome = recipe.rule.gradients(network, x, y, state=state, generator=generator)
        state = outcome.state if recipe.rule.keeps_state else None
        counts = [a + outcome.diagnostics[key] for a, key in zip(counts, ("drives", "feedbacks", "gradients"), strict=True)]
    assert counts == [float(drives), float(feedbacks), float(gradients)]
    assert f"{sum(counts) / (4 + 3 + 4):.1f}" == price


def test_every_rule_has_a_price_and_cheaper_ones_come_first():
    """A decision needs all of them."""
    assert [float(row[-1]) for row in PRICES] == sorted(float(row[-1]) for row in PRICES)
    priced = {type(VARIANTS[row[0]].apply(recipes.from_name("mnist-mlp")).rule) for row in PRICES}
    assert priced == set(dp.RULES.values())
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", (DOCS / "choosing-a-rule.md").read_text())) & set(VARIANTS)
    assert named <= {row[0] for row in PRICES}


def test_a_rule_is_added_by_doing_what_the_page_says(tmp_path):
    """In a copy of the repository: its file, its three lines, its test; then its commands."""
    page = DOCS / LITERALLY
    for name in ("dualprop", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = re.findall(r"^## \d\. [^\n]*: `(\S+)`$\n.*?^```(\w+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert [(path, language) for path, language, _ in files] == [
        ("dualprop/rules/rounded_errors.py", "python"),
        ("dualprop/rules/__init__.py", "text"),
        ("tests/autograd/test_rounded_errors.py", "python"),
    ]
    for path, language, text in files:
        if language == "python":
            (tmp_path / path).write_text(text)
            continue
        table, (imported, row, exported) = (tmp_path / path).read_text(), text.splitlines()
        for line, likes in (
            (imported, "from dualprop.rules.predictive"),
            (row, '    "predictive_coding":'),
            (exported, '    "Status",'),
        ):
            (like,) = (each for each in table.splitlines() if each.startswith(likes))
            table = table.replace(f"{like}\n", f"{like}\n{line}\n")
        (tmp_path / path).write_text(table)
    commands = [line for block in blocks(page, "console") for line in block.splitlines()]
    assert len(commands) == 2
    for typed in commands:
        _, *words = typed.split()
        command, told = [sys.executable, *words, "-p", "no:cacheprovider"], {**_environment(), "PYTHONPATH": str(tmp_path)}
        result = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert re.search(r"^[1-9]\d* passed", result.stdout, re.MULTILINE), result.stdout


def _environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
