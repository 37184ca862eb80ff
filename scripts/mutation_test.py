"""Plants one-line defects in a copy of the package, one at a time; tests should notice each.

    python scripts/mutation_test.py                 all defects, two at a time
    python scripts/mutation_test.py pool beta       those whose description holds one of the words
    python scripts/mutation_test.py --area kernels  those of scripts/defects/kernels.toml
    python scripts/mutation_test.py --check         no test; can each defect still be planted?

Exits with 1 if a defect survives, if its line is not found exactly once (it is stale), or if the
tests fail without any defect.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
AREAS = {path.stem: path for path in sorted((ROOT / "scripts" / "defects").glob("*.toml"))}
# Seconds of processor time for the tests of one defect; one that never ends is caught by it. By the
# clock, a busy machine would pass for a defect that is caught.
TIME_LIMIT = 280


@dataclass(frozen=True)
class Defect:
    """`old`, found once in `dualprop/{file}`, becomes `new`; `tests/{caught_by}` must then fail."""

    what: str
    file: str
    old: str
    new: str
    caught_by: str


def read(area: str) -> list[Defect]:
    try:
        return [Defect(**entry) for entry in tomllib.loads(AREAS[area].read_text(encoding="utf-8"))["defect"]]
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise SystemExit(f"{AREAS[area]}: {error}") from None


def stale(defect: Defect, root: Path) -> str:
    """Why the defect cannot be planted in the package under `root`, or ''."""
    path = root / "dualprop" / defect.file
    if not path.is_file():
        return f"there is no dualprop/{defect.file}"
    if not (root / "tests" / defect.caught_by).is_file():
        return f"there is no tests/{defect.caught_by}"
    if (count := path.read_text(encoding="utf-8").count(defect.old)) != 1:
        return f"its line is found {count} times in dualprop/{defect.file}"
    return "it changes nothing" if defect.new == defect.old else ""


def check(defects: list[Defect]) -> int:
    """Name each defect that cannot be planted and each description that stands twice; how many."""
    wrong = [(d.what, reason) for d in defects if (reason := stale(d, ROOT))]
    wrong += [(what, "described twice") for what, count in Counter(d.what for d in defects).items() if count > 1]
    for what, reason in wrong:
        print(f"{what}: {reason}")
    print(f"{len(defects)} defects, {len(wrong)} not as they should be")
    return len(wrong)


def copied(folder: Path) -> Path:
    """A copy of package, tests and settings, with the pages and results that tests read. Shared
    reference cases lie beside it, as here."""
    copy = folder / "main"
    for name in ("dualprop", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name in ("docs", "results"):
        (copy / name).symlink_to(ROOT / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (folder / "shared").symlink_to(shared)
    return copy


def run_tests(copy: Path, files: list[str], *options: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run these test files on the package in the copy, which comes before any installed one."""
    # No bytecode: a defect may keep a file's size and second, by which Python would take the old
    # bytecode for the new.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options]
    command += [f"tests/{file}" for file in files]
    if limit is not None:
        command = ["sh", "-c", f'ulimit -S -t {limit}; exec "$@"', "sh", *command]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


def first_failure(output: str) -> str:
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    return failed[0].split("::")[-1].split(" - ")[0] if failed else ""


def judged(defect: Defect, copy: Path) -> tuple[str, str]:
    """("caught", by which test) or what is wrong."""
    if reason := stale(defect, copy):
        return "STALE", reason
    path = copy / "dualprop" / defect.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    try:
        run = run_tests(copy, [defect.caught_by], "-x", limit=TIME_LIMIT)
    finally:
        path.write_text(text, encoding="utf-8")
    if run.returncode == -signal.SIGXCPU:
        return "caught", "by running into the time limit"
    if run.returncode == 0:
        return "SURVIVED", defect.caught_by
    if run.returncode != 1 or not first_failure(run.stdout):
        return "BROKEN", (run.stdout + run.stderr).strip().splitlines()[-1]
    return "caught", first_failure(run.stdout)


def judged_without(defects: list[Defect], copy: Path) -> tuple[str, str]:
    """("passes", "") if the tests that should catch the defects pass where none is planted."""
    run = run_tests(copy, sorted({d.caught_by for d in defects}))
    return ("passes", "") if run.returncode == 0 else ("FAILS", first_failure(run.stdout) or run.stdout[-300:])


def run_all(defects: list[Defect], workers: int) -> int:
    """Print a verdict on each defect; how many are not as they should be."""
    began, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        free: queue.Queue[Path] = queue.Queue()
        for number in range(workers):
            free.put(copied(Path(folder) / str(number)))

        def in_a_copy(judge: Callable[[Any, Path], tuple[str, str]], what_is_judged: Any) -> tuple[str, str]:
            copy = free.get()
            try:
                return judge(what_is_judged, copy)
            finally:
                free.put(copy)

        jobs = [("(no defect)", pool.submit(in_a_copy, judged_without, defects))]
        jobs += [(d.what, pool.submit(in_a_copy, judged, d)) for d in defects]
        for what, job in jobs:
            result, by = job.result()
            wrong += result not in ("caught", "passes")
            print(f"{result:9} {what:62} {by[:90]}", flush=True)
    print(f"{len(defects)} defects, {wrong} not as they should be, {time.monotonic() - began:.0f} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only the defects whose description holds one of these")
    parser.add_argument("--area", metavar="NAME", choices=AREAS, action="append", help="only those of defects/NAME.toml")
    parser.add_argument("--check", action="store_true", help="run no test; name the defects that cannot be planted")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    defects = [defect for area in AREAS if area in (arguments.area or AREAS) for defect in read(area)]
    chosen = [d for d in defects if not arguments.words or any(word in d.what for word in arguments.words)]
    if not chosen:
        parser.error("no defect holds any of these words")
    wrong = check(chosen) if arguments.check else run_all(chosen, arguments.workers)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
