"""Imports run one way (DESIGN §2), read from the source; and `import dualprop` brings in torch and little else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dualprop

PACKAGE = Path(dualprop.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# The floors of the house, from the ground up; a module imports from its own floor or from below. errors is the ground.
FLOORS = [
    {"errors"},
    {"neurons", "losses", "pooling", "schedules", "settings", "simplex"},
    {
        "synapses",
        "network",
        "states",
        "stretches",
        "kernels",
        "native",
        "recompute",
        "relaxation",
        "dyadic",
        "activations",
        "conversion",
        "energies",
        "equilibria",
        "estimators",
        "implicit",
        "layered",
        "feedback",
        "feedback_maps",
        "holomorphic",
        "maps",
        "reconstruction",
        "spectra",
    },
    {"rules"},
    {"training", "analysis"},
    {"recipes"},
    {"cli"},
]
RANK = {name: rank for rank, floor in enumerate(FLOORS) for name in floor}
# Beside the house: they may use errors, neurons, pools and layered models, and only training and above may use them.
BESIDE = {"data", "models"}


def name_of(path):
    """The top-level part of the package that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path):
    """The top-level parts of the package that a file imports, with the line; type-checking imports too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path}:{node.lineno} is a relative import, which hides its floor")
        else:
            continue
        found += [(name.split(".")[1], node.lineno) for name in names if name.startswith("dualprop.") and name.count(".")]
    return [(part, line) for part, line in found if not part.startswith("__")]


def files():
    return [path for path in MODULES if name_of(path) not in ("__init__",)]


def test_every_part_of_the_package_has_its_floor():
    """A part that no one placed is a part that no one watches."""
    parts = {name_of(path) for path in files()}
    assert parts <= set(RANK) | BESIDE | {"__main__"}, parts - set(RANK) - BESIDE


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    """A rule that reads recipes, or a network that knows a rule, can't be replaced or tested alone."""
    own = name_of(path)
    known = set(RANK) | BESIDE
    for part, line in imported(path):
        if part not in known:
            # A name of the package's own front page, such as dualprop.__version__ or dualprop.Network.
            assert own in ("cli", "recipes", "training", "analysis", "__main__"), f"{path}:{line} imports the front page"
            continue
        if own in BESIDE:
            assert part in BESIDE | {"errors", "neurons", "pooling", "layered"}, f"{path}:{line} imports {part}"
        elif part in BESIDE:
            assert RANK[own] >= RANK["training"], f"{path}:{line}: {own} imports {part}"
        elif own in RANK:
            assert RANK[part] <= RANK[own], f"{path}:{line}: {own} imports {part}, which stands above it"


def test_importing_the_package_brings_in_no_more_than_it_needs():
    """It costs little over `import torch`: what draws, parses or downloads is imported where it is used."""
    heavy = ["rich", "tyro", "sklearn", "matplotlib", "pooch", "dualprop.cli", "dualprop.data", "dualprop.training"]
    # torch may import some of them on its own account; then it is not ours to answer for.
    code = (
        f"import sys, torch; heavy = {heavy}; before = {{m for m in heavy if m in sys.modules}}\n"
        "import dualprop; print(' '.join(m for m in heavy if m in sys.modules and m not in before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split() == []


def test_the_front_page_names_what_it_exports():
    """A name in __all__ that is missing breaks `from dualprop import *`, and only that."""
    assert all(hasattr(dualprop, name) for name in dualprop.__all__)
