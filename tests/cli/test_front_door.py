"""What a new user meets first: the README, the pages that it leads to, the example, the wheel."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "results/README.md", *DOCS]


def test_the_lines_in_the_readme_run_as_they_stand():
    """The first thing that is copied must not fail."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_commands_on_a_page_are_options_that_exist(page, folder):
    """A renamed option must not live on in what is copied."""
    (folder / "mine.py").write_text("def build(input_shape, num_classes): ...\n")
    from dualprop.cli import arguments as args
    from dualprop.cli.compare import CompareOptions
    from dualprop.cli.train import TrainOptions

    commands = re.findall(r"^dualprop (train|compare) (.*?)(?:\s+#.*)?$", (ROOT / page).read_text(), re.MULTILINE)
    assert commands
    for command, rest in commands:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', rest)]
        recipe, words = args.take_recipe(args.in_full(words), "digits-mlp")
        kind = TrainOptions if command == "train" else CompareOptions
        assert args.parse(kind, kind(recipe), words, command).recipe.name == recipe.name


def test_commands_are_preceded_by_the_environment_that_holds_them():
    """`make demo` installs into .venv: without activating it, the shell does not know
    `dualprop`."""
    for block in re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        if "dualprop " in block:
            assert block.startswith("source .venv/bin/activate")


def test_the_readme_fits_one_screen():
    """It is the first room of the house. What grows belongs into docs/."""
    text = (ROOT / "README.md").read_text()
    lines = text.splitlines()
    assert len(lines) <= 100
    assert len(text.split()) <= 800
    assert [line for line in lines if len(line) > 140] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page):
    """A table or a page that moves must not leave a dead link behind."""
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if heading:
            assert heading in _anchors(target), f"{page} links to {link}"


@pytest.mark.parametrize("page", DOCS)
def test_prose_in_the_docs_is_at_most_100_columns_wide(page):
    """Long lines can't be read in a terminal, nor their changes in a diff. Rows of tables may be
    long."""
    lines = (line for line in _prose(page).splitlines() if not line.startswith(("|", "!")))
    assert [line for line in lines if len(line) > 100] == []


def _prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def _anchors(page):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_example_runs_and_learns():
    """Both ways of use, explicit and fused, on digits."""
    command = [sys.executable, ROOT / "examples/your_own_model.py"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    accuracies = [float(found) for found in re.findall(r"accuracy ([\d.]+)", result.stdout)]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.9


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["list", "rules"], ["train", "--epochs", "1", "--seeds", "1"]])
def test_the_wheel_runs_elsewhere(words, wheel_contents, tmp_path):
    """A module or a data file that the wheel forgets is found in the checkout and missed everywhere
    else."""
    program = (
        f"from dualprop.cli import main; import dualprop; assert {str(wheel_contents)!r} in dualprop.__file__; main({words!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel_contents)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_wheel_is_typed_and_licensed_and_holds_the_package_alone(wheel_contents):
    """Type checkers need py.typed; tests and results have no place in it."""
    assert (wheel_contents / "dualprop/py.typed").exists()
    assert {path.name.split("-")[0] for path in wheel_contents.iterdir()} == {"dualprop"}
    metadata = next(wheel_contents.glob("*.dist-info/METADATA")).read_text()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert next(wheel_contents.glob("*.dist-info/licenses/LICENSE"), None) is not None


def test_the_package_index_shows_the_readme_with_links_that_lead_somewhere(wheel_contents):
    """There a relative link is dead, and a relative picture an empty frame. Each address is that of
    the repository, with the same path."""
    metadata = next(wheel_contents.glob("*.dist-info/METADATA")).read_text()
    (repository,) = re.findall(r"^Project-URL: Repository, (.*)$", metadata, re.MULTILINE)
    assert "Description-Content-Type: text/markdown" in metadata
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    told = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", metadata.partition("\n\n")[2])
    written = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert written
    expected = [
        (mark, path if "://" in path else f"{raw}/main/{path}" if mark else f"{repository}/blob/main/{path}")
        for mark, path in written
    ]
    assert told == expected


def test_the_addresses_of_the_project_are_one(wheel_contents):
    """CITATION.cff, the README and the settings of the wheel each hold it."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"repository-code: {repository}\n" in citation
    assert f"version: {project['version']}\n" in citation
    for page in ("README.md", "docs/tutorial.md", "pyproject.toml"):
        text = (ROOT / page).read_text()
        owned = [repository, repository.replace("github.com", "raw.githubusercontent.com")]
        assert any(address in text for address in owned)
        assert [found for found in re.findall(r"https://[\w.]*github\w*\.com/[\w-]+/[\w-]+", text) if found not in owned] == []


@pytest.fixture(scope="module")
def wheel_contents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    contents = folder / "contents"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(contents)
    return contents
