"""Trials of damaged run folders: one or two damages, then `report`, `train --resume`, `compare
--resume` or `bench --run`."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import materials
import mutations
from sandbox import NOVEL, OF_TORCH
from trials import Trial
from verdicts import DIVERGED, OK, REFUSED

_COMMANDS = (("report", "{}"), ("train", "--resume", "{}"), ("compare", "--resume", "{}"),
             ("evaluate", "{}"), ("predict", "{}", "good.npz"), ("export", "{}", "--format", "safetensors"),
             ("train", "--resume", "{}", "--epochs", "3"))  # fmt: skip
_BENCH = ("bench", "--table", "relaxations", "--run", "{}", "--rounds", "1", "--seconds", "0", "--batch-size", "2",
          "--no-memory", "--no-ceilings", "--threads", "1")  # fmt: skip


# What says which run it is.
_DESCRIPTIONS = ("recipe.json", "comparison.json")


def attack(trial: Trial) -> None:
    """Damage a folder and run two commands on it."""
    dice, sandbox = trial.dice, trial.sandbox
    name = dice.choice(list(materials.MADE_BY))
    folder = sandbox.work / "run"
    materials.put(trial, name, folder)
    materials.put_npz(sandbox.work)
    done = [mutations.damage(folder, sandbox, dice) for _ in range(dice.choice((1, 1, 1, 2)))]
    for path in (folder / NOVEL, folder / "notes.txt", sandbox.work / NOVEL, sandbox.work / "notes.txt"):
        path.write_text("mine\nlast line")
    if trial.user is not None and dice.random() < 0.1:
        trial.user = None
    else:
        sandbox.hand_over()
    mutations.settle_owners()
    trial.commands.append(f"damage to a {name}: {'; '.join(done)}")
    commands = [*dice.sample(_COMMANDS, 2), _BENCH] if dice.random() < 0.15 else dice.sample(_COMMANDS, dice.choice((1, 2)))
    before = sandbox.look()
    for words in commands:
        num_failures, weights = len(trial.failures), _weights(folder)
        answer = trial.run(*(word.format("run") for word in words), is_fresh=dice.random() < 0.02)
        trial.place.counts[f"exit code {answer.code}"] += 1
        reads = words[0] not in ("train", "compare")
        trial.compare(before, lambda path, reads=reads: _may_change(path, reads))
        # Another command than the first meets what that has left.
        before = sandbox.look()
        if not reads and "--epochs" not in words and answer.code == OK and len(trial.failures) == num_failures:
            _compare_weights(trial, materials.of(trial.place, name.removeprefix("partial ")), folder, weights)
        if answer.code not in (OK, REFUSED, DIVERGED):
            break


def _may_change(path: str, reads: bool) -> bool:
    """In the run folder a resume may write, and `report` draw; the user's own files stay."""
    if path.startswith(OF_TORCH):
        return True
    if path.endswith((NOVEL, "notes.txt", "mine.txt")):
        return False
    return (
        path.startswith(("work/run/figures", "work/run/model.safetensors"))
        if reads
        else path == "work/run" or path.startswith("work/run/")
    )


def _weights(folder: Path) -> dict[str, object]:
    """The checkpoints below the folder, links left out: all but the conditions that they note, of
    which a change is told (git does not show another user the commit)."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size < 1 << 26:
            found[path.relative_to(folder).as_posix()] = _without_conditions(path.read_bytes())
    return found


def _without_conditions(content: bytes) -> object:
    """A checkpoint's header without them and without the digest that covers them, and its tensors;
    what is no checkpoint as it is."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        about = json.loads(header["__metadata__"]["dualprop"])
        del about["sha256"], about["about"]["conditions"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return content
    header["__metadata__"]["dualprop"] = about
    return header, content[8 + length :]


def _compare_weights(trial: Trial, expected: Path, folder: Path, before: dict[str, object]) -> None:
    """A resume that says nothing and writes weights must write those of the undisturbed run."""
    if any(
        _plain(folder / path.relative_to(expected)) != _plain(path)
        for path in expected.rglob("*.json")
        if path.name in _DESCRIPTIONS
    ):
        return  # another run, which is as good as the first
    right = _weights(expected)
    for name, content in _weights(folder).items():
        if content != before.get(name) and content != right.get(name):
            trial.fail("unequal resume", f"{name} differs, and nothing was said")


def _plain(path: Path) -> object:
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError):
        return None
