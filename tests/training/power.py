"""Runs whose power is cut: a program of its own, and `cut`, which starts it.

A child trains a run in a folder, "disk", and at each of its events (a file opened, half written,
synced, about to be renamed, renamed, a folder made, a step) it notes what a power cut would leave.

On a "model" disk, by what POSIX promises and nothing more: a file has the content that it had when
it was last synced, a folder the names that it had then. Three states for each event: nothing that
was not synced is there; or all names are and no such content; or all content is and no such name.
On an "ext4" disk, by what the file system has sent to its block device, a file in a loop.

Each state that differs from those before it is then resumed in a child of its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killing

Tree = dict[str, bytes | None]
"""Files by their names within the disk, with their contents, and folders, with None."""


def cut(task: dict[str, Any]) -> dict[str, Any]:
    """Run the task in a fresh process. Returns "whole", the uninterrupted run's folder; "states",
    of each the events that it is of, what the run had told by then, how many epochs its checkpoint
    holds, and the folder in which it was resumed; and "renamed_unsynced"."""
    states: dict[str, Any] = killing.answer(__file__, task)
    return states


class ModelDisk:
    """What is on the disk for certain, noted by the calls of os.fsync."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {folder.stat().st_ino: {}}
        self.folders: set[int] = set()
        self.kept: list[int] = []
        self.unsynced: list[str] = []
        self.sync, self.replace = os.fsync, os.replace

    def install(self, watch: Any) -> None:
        os.fsync = self.fsync
        replace = os.replace  # the watched one

        def checked(source: Any, target: Any) -> None:
            if self.contents.get(os.stat(source).st_ino) != Path(source).read_bytes():
                self.unsynced.append(Path(target).name)
            replace(source, target)

        os.replace = checked

    def fsync(self, descriptor: int) -> None:
        self.sync(descriptor)
        # Held open, a file that is replaced keeps its number for itself.
        self.kept.append(os.dup(descriptor))
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            entries = [(entry.name, entry.stat().st_ino, entry.is_dir()) for entry in os.scandir(descriptor)]
            self.names[status.st_ino] = {name: number for name, number, _ in entries}
            self.folders |= {number for _, number, is_folder in entries if is_folder}
        else:
            self.contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def states(self) -> Iterator[tuple[str, Tree]]:
        now: Tree = {}
        numbers: dict[int, bytes | None] = {}
        later: Tree = {}
        for path in sorted(self.folder.rglob("*")):
            name, number = str(path.relative_to(self.folder)), path.stat().st_ino
            now[name] = numbers[number] = None if path.is_dir() else path.read_bytes()
            later[name] = None if path.is_dir() else self.contents.get(number, b"")
        yield "all names, synced contents", later
        root = self.folder.stat().st_ino
        yield "synced names and contents", self._named(root, "", self.contents)
        yield "synced names, all contents", self._named(root, "", {**self.contents, **numbers})

    def _named(self, folder: int, prefix: str, contents: Any) -> Tree:
        tree: Tree = {}
        for name, number in self.names.get(folder, {}).items():
            is_folder = number in self.folders
            tree[prefix + name] = None if is_folder else contents.get(number, b"")
            if is_folder:
                tree |= self._named(number, f"{prefix}{name}/", contents)
        return tree


class LoopDisk:
    """An ext4 in a file. The file holds what has reached the block device."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.image = folder, folder.with_suffix(".image")
        folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "1024", self.image], check=True)
        # Nothing reaches the device but what is synced: no commit by the clock, and no allocation
        # on a rename, by which ext4 makes up for programs that forget to sync.
        mount = ["mount", "-o", "loop,commit=1000,noauto_da_alloc", self.image, folder]
        subprocess.run(mount, check=True, capture_output=True)
        self.unsynced: list[str] = []
        self.last = b""

    def install(self, watch: Any) -> None:
        pass

    def states(self) -> Iterator[tuple[str, Tree]]:
        content = self.image.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest == self.last:
            return
        self.last = digest
        copy, folder = self.image.with_suffix(".cut"), self.folder.with_suffix(".cut-folder")
        copy.write_bytes(content)
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", "loop", copy, folder], check=True)
        try:
            paths = [path for path in sorted(folder.rglob("*")) if path.name != "lost+found"]
            yield (
                "what the device has",
                {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths},
            )
        finally:
            subprocess.run(["umount", folder], check=True)

    def close(self) -> None:
        subprocess.run(["umount", self.folder], check=False)


def lay_out(tree: Tree, folder: Path) -> None:
    folder.mkdir()
    for name, content in sorted(tree.items()):
        if content is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def in_a_child(work: Any) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("a child failed")


def train(folder: Path, recipe: Any, watch: Any = None, reporter: Any = None) -> None:
    """Start or continue in `folder`, as a user would after the power is back."""
    from dualprop import training

    if watch is not None:
        killing.watch_everything(watch)
    is_there = (folder / "recipe.json").exists()
    run = training.load(folder) if is_there else training.create(folder, recipe, (0,))
    training.train(run, reporter=reporter)


def epochs_in(tree: Tree) -> int:
    """The epochs that the last checkpoint of this state holds; -1 without one."""
    content = tree.get("run/seed-0/last.safetensors")
    if content is None:
        return -1
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]["dualprop"]
    return int(json.loads(header)["about"]["epoch"])


def record(disk: Any, recipe: Any, out: Path) -> None:
    """Train on the disk, and write every new state and what is known of it to `out`."""
    from dualprop.training import Reporter

    seen: dict[str, dict[str, Any]] = {}
    told = [-1]

    class Telling(Reporter):
        def epoch_done(self, metrics: dict[str, Any]) -> None:
            told[0] = metrics["epoch"]

    def watch(event: str) -> None:
        for kind, tree in disk.states():
            digest = hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()
            if digest not in seen:
                folder = out / str(len(seen))
                lay_out(tree, folder)
                seen[digest] = {"folder": str(folder), "kind": kind, "events": [], "epochs": epochs_in(tree), "told": told[0]}
            seen[digest]["events"].append(event)
            seen[digest]["told"] = max(told[0], seen[digest]["told"])

    mkdir = os.mkdir

    def watched_mkdir(path: Any, *given: Any, **options: Any) -> None:
        mkdir(path, *given, **options)
        if str(path).startswith(str(disk.folder)):
            watch(f"made {Path(path).name}")

    os.mkdir = watched_mkdir
    training_watch = watch
    killing.watch_everything(training_watch)  # type: ignore[arg-type]
    disk.install(watch)
    killing.watch_everything = lambda _: None
    train(disk.folder / "run", recipe, reporter=Telling())
    watch("the end")
    (out / "states.json").write_text(json.dumps({"states": list(seen.values()), "renamed_unsynced": disk.unsynced}))


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Every state that a power cut may leave, each with its run continued."""
    from dualprop.training.recipe import Recipe

    recipe, root = Recipe.from_plain(task["recipe"]), Path(task["folder"])
    whole, out = root / "whole", root / "states"
    out.mkdir()
    in_a_child(lambda: train(whole, recipe))
    disk = {"model": ModelDisk, "ext4": LoopDisk}[task["disk"]](root / "disk")
    with contextlib.ExitStack() as stack:
        if isinstance(disk, LoopDisk):
            stack.callback(disk.close)
        in_a_child(lambda: record(disk, recipe, out))
    told = json.loads((out / "states.json").read_text())
    for state in told["states"]:
        in_a_child(lambda state=state: train(Path(state["folder"]) / "run", recipe))
    shutil.rmtree(root / "disk", ignore_errors=True)
    return {"whole": str(whole), **told}


def main() -> None:
    import sklearn.datasets
    import torch
    import torch._dynamo

    from dualprop.training import environment

    torch.set_num_threads(1)
    # Once, and not in every child.
    environment.commit = lambda: None
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
