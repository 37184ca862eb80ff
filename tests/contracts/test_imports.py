"""Imports run one way, read from the source; and `import dualprop` brings in torch and little
else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dualprop

PACKAGE = Path(dualprop.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# The floors of the house, from the ground up. A module imports from its own floor or from below.
FLOORS = [
    {"captures", "compilation", "errors", "lazy", "memory", "system"},
    {"settings"},
    {"kernels", "neurons", "losses", "schedules", "softmax"},
    {"feedback", "reading"},
    {"network"},
    {"settling", "fused", "objectives"},
    {"equilibrium"},
    {"rules"},
    {"alignment"},
    {"training"},
    {"recipes", "analysis", "loggers"},
    {"trained"},
    {"sklearn"},
    {"bench"},
    {"reproduction"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, floor in enumerate(FLOORS) for name in floor}
# Beside the house: only training and above may use them, and they use what a model is made of.
BESIDE = {"data", "models"}
FOR_BESIDE = BESIDE | {"errors", "memory", "settings", "neurons", "softmax", "system", "dualprop.network.layered"}


def module_name(path):
    """The dotted name of a file's module."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


def part_of(name):
    """The room that a module belongs to: the second part of its dotted name."""
    return name.split(".")[1] if "." in name else ""


def imported(path):
    """The modules of the package that a file imports, with the line; lazy and type-checking imports
    too."""
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
        for name in names:
            while name and name not in NAMES:
                name = name.rpartition(".")[0]
            if name:
                found.append((name, node.lineno))
    return found


def files():
    return [path for path in MODULES if module_name(path) != "dualprop"]


def test_every_part_of_the_package_has_its_floor():
    """A part that no one placed is a part that no one watches."""
    parts = {part_of(module_name(path)) for path in files()}
    assert parts <= set(RANK) | BESIDE, parts - set(RANK) - BESIDE


def test_few_modules_stand_beside_the_rooms():
    """Each is one more thing to know before the house is simple."""
    assert len([path for path in MODULES if path.parent == PACKAGE]) <= 12


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    """A rule that reads recipes, or a network that knows a rule, can't be replaced or tested
    alone."""
    own = part_of(module_name(path))
    for name, line in imported(path):
        part, where = part_of(name), f"{path}:{line}"
        if not part:
            # A name of the package's own front page, such as dualprop.__version__.
            assert own in ("cli", "bench", "recipes", "training", "analysis"), f"{where} imports the front page"
        elif own in BESIDE:
            assert {part, name} & FOR_BESIDE, f"{where} imports {name}"
        elif part in BESIDE:
            assert RANK[own] >= RANK["training"], f"{where}: {own} imports {part}"
        else:
            assert RANK[part] <= RANK[own], f"{where}: {own} imports {part}, which stands above it"


def test_no_two_modules_import_each_other():
    """In a circle of imports no module can be read, tested or replaced without the others."""
    # A package's front page only gathers its own modules' names: what asks it for one asks for
    # them.
    edges = {name: {target for target, _ in imported(path)} - {name} for name, path in NAMES.items()}
    edges["dualprop"] = set()
    done = set()

    def walk(name, trail):
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in edges[name]:
                walk(target, [*trail, name])
            done.add(name)

    for name in edges:
        walk(name, [])


def test_importing_the_package_brings_in_no_more_than_it_needs():
    """It costs little over `import torch`: what draws, parses or downloads is imported where it is
    used."""
    heavy = ["rich", "tyro", "sklearn", "matplotlib", "pooch", "dualprop.cli", "dualprop.data", "dualprop.training"]
    # torch may import some of them on its own account; then it is not ours to answer for.
    code = (
        f"import sys, torch; heavy = {heavy}; before = {{m for m in heavy if m in sys.modules}}\n"
        "import dualprop; print(' '.join(m for m in heavy if m in sys.modules and m not in before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_the_front_page_names_what_it_exports():
    """A name in __all__ that is missing breaks `from dualprop import *`, and only that."""
    assert all(hasattr(dualprop, name) for name in dualprop.__all__)
    assert set(dualprop.__all__) <= set(dir(dualprop))
