"""Runs and comparisons that are killed outright and resumed: a program of its own, and `kill`,
which starts it.

The program imports everything once and forks a child for every attempt, so that an attempt costs
milliseconds and yet is a process that really dies. A child tells each event (a step, a file opened,
half written, written, about to be renamed, renamed, a figure begun) before the next can happen, and
is killed at the event whose number it was given, or after a time. That is processor time, not the
clock's, so that a busy machine kills a child no earlier in its work.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

# What a folder is resumed by.
DESCRIPTIONS = ("recipe.json", "comparison.json", "reproduction.json")


def kill(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the task in a fresh process. Returns its trials: "folder", and "kills", the events at
    which a child died; the first trial is the uninterrupted one, with all its events under
    "events"."""
    found: list[dict[str, Any]] = answer(__file__, task)
    return found


def answer(program: str, task: dict[str, Any]) -> Any:
    """What the program says of the task, in a process of its own. That waits for the next task,
    since its imports take longer than most tasks."""
    process, errors = _PROCESSES.get(program) or _started(program)
    process.stdin.write(f"{json.dumps(task)}\n")
    process.stdin.flush()
    if line := process.stdout.readline():
        return json.loads(line)
    del _PROCESSES[program]
    errors.seek(0)
    raise AssertionError(f"{program} ended with {process.wait()}:\n{errors.read()}")


_PROCESSES: dict[str, tuple[Any, Any]] = {}


def _started(program: str) -> tuple[Any, Any]:
    """The program's process, and what it writes of errors; it ends with this one, when nobody
    can give it tasks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    errors, pipe = tempfile.TemporaryFile("w+"), subprocess.PIPE  # noqa: SIM115 — read when it fails
    process = subprocess.Popen([sys.executable, program], stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment)
    _PROCESSES[program] = process, errors
    atexit.register(_end, process, errors)
    return process, errors


def _end(process: Any, errors: Any) -> None:
    process.stdin.close()
    process.stdout.close()
    process.wait()
    errors.close()


class Watch:
    """Tells events through a pipe, and kills this very process at event number `kill_at`."""

    def __init__(self, pipe: int, kill_at: int | None) -> None:
        self.pipe, self.kill_at, self.count = pipe, kill_at, 0
        self.replaced = ""  # the name of the file that is being replaced

    def __call__(self, event: str) -> None:
        os.write(self.pipe, f"{event}\n".encode())
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


class WatchedFile:
    """A file that writes in two halves."""

    def __init__(self, path: Path, mode: str, watch: Watch, **how: Any) -> None:
        self.name, self.watch = watch.replaced if path.suffix == ".writing" else path.name, watch
        watch(f"opening {self.name}")
        self.file = open(path, mode, **how)  # noqa: SIM115 — closed by __exit__

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.watch(f"half of {self.name}")
        self.file.write(content[half:])

    def flush(self) -> None:
        self.file.flush()
        self.watch(f"all of {self.name}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def watch_everything(watch: Watch) -> None:
    """Put the watch around every write, rename, step and figure of this process."""
    from matplotlib.figure import Figure

    from dualprop.training import files
    from dualprop.training.stepping import AbstractSteps

    files.open = lambda path, mode, **how: WatchedFile(path, mode, watch, **how)  # type: ignore[attr-defined]
    write, replace, take, savefig = files.write, os.replace, AbstractSteps.take, Figure.savefig

    def watched_write(path: Path, content: bytes | memoryview) -> None:
        watch.replaced = path.name
        write(path, content)

    def watched_replace(source: Path, target: Path) -> None:
        watch(f"renaming {Path(target).name}")
        replace(source, target)
        watch(f"renamed {Path(target).name}")

    def watched_take(*args: Any, **kwargs: Any) -> None:
        watch("step")
        take(*args, **kwargs)

    def watched_savefig(*args: Any, **kwargs: Any) -> None:
        watch("figure")
        savefig(*args, **kwargs)

    files.write, os.replace = watched_write, watched_replace
    AbstractSteps.take, Figure.savefig = watched_take, watched_savefig  # type: ignore[method-assign]


class Trials:
    """Attempts at one task, each in a child."""

    def __init__(self, task: dict[str, Any]) -> None:
        from dualprop.training.recipe import Recipe

        self.task, self.recipe = task, Recipe.from_plain(task["recipe"])

    def attempt(self, folder: Path, kill_at: int | None = None, seconds: float | None = None) -> tuple[bool, list[str], float]:
        """Start or continue in a child, killed at event number `kill_at` or after `seconds` of
        processor time. Returns whether it came to its end, its events and the processor time that
        it took."""
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(readable)
            if seconds is not None:
                # Nobody handles SIGPROF: it ends the process as SIGKILL does.
                signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                self.work(folder, Watch(writable, kill_at))
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        os.close(writable)
        with open(readable, encoding="utf-8") as pipe:
            told = pipe.read().splitlines()
        _, status, used = os.wait4(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
            raise SystemExit(f"the child failed in {folder} after {told[-5:]}")
        return os.WIFEXITED(status), told, used.ru_utime + used.ru_stime

    def work(self, folder: Path, watch: Watch) -> None:
        from dualprop import training
        from dualprop.analysis import plots
        from dualprop.bench import experiments
        from dualprop.training import files

        if self.task["kind"] == "reproduction":
            self.reproduce(folder, watch)
            return
        seeds = tuple(self.task["seeds"])
        if self.task["kind"] == "comparison":
            if folder.is_dir():
                watch_everything(watch)
                experiments.resume(folder)
            else:
                write_json = files.write_json

                def first_write(path: Path, value: Any) -> None:
                    # Before comparison.json is there, there is nothing to resume; from then on
                    # every event counts.
                    files.write_json = write_json
                    write_json(path, value)
                    watch_everything(watch)

                files.write_json = first_write
                recipes = {name: self.recipe.with_rule(name) for name in ("backprop", "dual_propagation")}
                experiments.start(recipes, seeds, folder, measures_costs=False)
            return
        run = training.load(folder) if folder.is_dir() else training.create(folder, self.recipe, seeds)
        watch_everything(watch)
        training.train(run)
        if self.task.get("figures", False):
            plots.draw([(run.recipe.rule_name, run)], folder / "figures")

    def reproduce(self, folder: Path, watch: Watch) -> None:
        """An item of the recipe by two variants; every event counts from the first file on."""
        from dualprop import recipes
        from dualprop.reproduction import items, running
        from dualprop.reproduction.items import Figure, Item
        from dualprop.reproduction.options import ReproduceOptions

        name = self.recipe.name
        recipes.RECIPES[name] = lambda: self.recipe
        items.ITEMS.clear()
        items.ITEMS["killed"] = Item("a table", (Figure(name, "bp"), Figure(name, "dp")))
        begun = (folder / "reproduction.json").exists()
        watch_everything(watch)
        running.run(ReproduceOptions(resume=folder) if begun else ReproduceOptions(out=folder, device="cpu"))

    def run(self) -> list[dict[str, Any]]:
        root, dice = Path(self.task["folder"]), random.Random(self.task.get("dice", 0))
        finished, events, duration = self.attempt(root / "uninterrupted")
        assert finished
        trials: list[dict[str, Any]] = [{"folder": str(root / "uninterrupted"), "kills": [], "events": events}]
        if self.task["moments"] == "each":
            chosen = [i for i, event in enumerate(events) if self._is_wanted(event)]
            for i in chosen:
                folder = root / f"killed-at-{i}"
                finished, told, _ = self.attempt(folder, kill_at=i)
                assert not finished
                assert self.attempt(folder)[0]
                trials.append({"folder": str(folder), "kills": [f"{i}: {told[-1]}"]})
            return trials
        # A chain: killed again and again until there were as many kills as asked for, then left to
        # finish.
        kills: list[str] = []
        number = 0
        while len(kills) < self.task["kills"]:
            number += 1
            folder, own = root / f"chain-{number}", []
            while True:
                enough = len(kills) >= self.task["kills"]
                if self.task["moments"] == "random events":
                    limits = {} if enough else {"kill_at": dice.randrange(self.task.get("within", 60))}
                else:
                    limits = {} if enough else {"seconds": dice.uniform(0.1, 0.9) * duration}
                finished, told, _ = self.attempt(folder, **limits)
                if not finished and not any((folder / name).exists() for name in DESCRIPTIONS):
                    shutil.rmtree(folder, ignore_errors=True)  # killed before there was anything to resume
                    continue
                if finished:
                    break
                own.append(told[-1] if told else "start")
                kills.append(own[-1])
            trials.append({"folder": str(folder), "kills": own})
        return trials

    def _is_wanted(self, event: str) -> bool:
        return not self.task.get("only") or any(word in event for word in self.task["only"])


def main() -> None:
    import sklearn.datasets
    import torch
    import torch._dynamo  # optimizers import it when they are built: seconds, which the children are spared
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dualprop.bench import experiments  # noqa: F401
    from dualprop.reproduction import running  # noqa: F401
    from dualprop.training import environment

    torch.set_num_threads(1)
    # Read the digits, find the fonts and ask git once, not in every child.
    figure = Figure()
    FigureCanvasAgg(figure).draw()
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()
    environment.commit = functools.cache(environment.commit)
    environment.commit()
    for line in sys.stdin:
        print(json.dumps(Trials(json.loads(line)).run()), flush=True)


if __name__ == "__main__":
    main()
