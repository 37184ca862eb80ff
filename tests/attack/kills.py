"""Trials of kills: a command ended by a signal at an exact moment, then continued until it is done.
What it then has written is what the undisturbed command writes, byte for byte."""

from __future__ import annotations

import functools
import json
import random
import signal
import typing
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from attempts import Answer
from moments import KINDS, Moment
from sandbox import OF_TEMPFILE, OF_TORCH
from trials import Place, Trial
from verdicts import CODES_AFTER, OK

# Kills in one trial: a continued command is killed again.
MOST = 3
_DIGITS = ("digits-mlp", "--epochs", "2", "--no-align", "--batch-size", "64", "--model.widths", "8", "6",
           "--checkpoint-every", "7", "--num-threads", "1")  # fmt: skip
# Times and machines may differ; the lock is empty.
_MAY_DIFFER = ("timing.jsonl", "environment.json", ".lock")
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_CHUNKS = {"event": 3, "write": 4, "checkpoint": 2, "metrics": 2, "step": 2, "call": 3}


@dataclass(frozen=True)
class Case:
    """A command without its folder, and the rule or variant that it trains by."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Undisturbed:
    """What a command writes, what moments it has, and whether its rule keeps a state."""

    contents: dict[str, bytes]
    counts: dict[str, int]
    keeps_state: bool


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every rule by `train`, from previous states where it can start there; every variant by
    `compare`; and commands of several."""
    from dualprop import feedback, rules
    from dualprop.recipes.variants import VARIANTS

    found = []
    for name, kind in rules.RULES.items():
        words = ["--rule", name, "--seeds", "1"]
        if "previous" in typing.get_args(typing.get_type_hints(kind).get("start")):
            words += ["--rule.start", "previous"]
        found.append(Case(name, ("train", *_DIGITS, *words)))
    for name in VARIANTS:
        found.append(Case(f"variant {name}", ("compare", *_DIGITS, "--seeds", "1", "--no-costs", "--variants", name)))
    for name in feedback.KINDS:
        found.append(Case(f"{name} feedback", ("train", *_DIGITS, "--seeds", "1", "--feedback", name)))
    found.append(Case("two seeds", ("train", *_DIGITS, "--seeds", "2", "--align", "--optimizer.name", "sgd")))
    found.append(Case("two rules", ("compare", *_DIGITS, "--seeds", "1", "--no-costs", "--rules", "backprop,dual_propagation")))
    return tuple(found)


def attack(trial: Trial) -> None:
    """Kill one case, in turn, once to `MOST` times, and compare with the undisturbed command."""
    case = cases()[trial.number % len(cases())]
    expected = undisturbed(trial.place, case)
    # All by one user: what a run notes of its surroundings (the commit, say) may depend on that.
    trial.user = None
    dice, folder = trial.dice, trial.sandbox.work / "run"
    (trial.sandbox.work / "notes.txt").write_text("mine")
    trial.sandbox.hand_over()
    before = trial.sandbox.look()
    is_fresh = dice.random() < 0.03
    for _ in range(dice.choice((1, 1, 2, MOST))):
        moment = _moment(dice, expected.counts, is_fresh)
        answer = _go_on(trial, case, folder, moment, is_fresh)
        if trial.failures:
            return
        if answer.code == OK:  # the signal came when all was done, or never
            if _differences(expected.contents, contents(folder)):
                trial.fail("exit code", f"{case.name}: 0, and it is not finished: {moment}")
            break
        for counted in (
            "kills",
            f"kills of {case.name}",
            f"kills by {signal.Signals(moment.signal).name}",
            f"kills at {moment.kind}",
        ):
            trial.place.counts[counted] += 1
    answer = _go_on(trial, case, folder, None, is_fresh=False)
    if answer.code == OK and not trial.failures:
        trial.place.counts["resumes compared"] += 1
        different = _differences(expected.contents, contents(folder))
        if different:
            trial.fail("unequal resume", f"{case.name}: {', '.join(different)}")
    elif not trial.failures:
        trial.fail("unequal resume", f"{case.name}: can't be continued: {answer.err.strip()[:200]}")
    trial.compare(before, _may_change)


def _may_change(path: str) -> bool:
    return path == "work/run" or path.startswith(("work/run/", OF_TORCH)) or OF_TEMPFILE.fullmatch(path) is not None


def undisturbed(place: Place, case: Case) -> Undisturbed:
    """The command left alone; made once in a campaign."""
    if case.name not in _made:
        trial = Trial(place, f"undisturbed-{len(_made)}", 0)
        trial.user = None
        try:
            answer = trial.run(*case.words, "--out", "run", counts_calls=True)
            if answer.code != OK or trial.failures:
                raise RuntimeError(f"{case.name} can't be trained: {answer} {trial.failures}")
            folder = trial.sandbox.work / "run"
            _made[case.name] = Undisturbed(contents(folder), answer.counts, _keeps_state(folder))
        finally:
            trial.close()
    return _made[case.name]


_made: dict[str, Undisturbed] = {}


def keeping_state() -> Counter[str]:
    """The names of the cases made so far whose rule keeps a state in its checkpoint."""
    return Counter(name for name, made in _made.items() if made.keeps_state)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that must not differ, by its path in the folder. Of a comparison's results, all
    but the environment; of a picture, that it is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _MAY_DIFFER:
            content = b"" if path.suffix == ".png" else path.read_bytes()
            if path == folder / "results.json" and b'"environment"' in content:
                content = json.dumps({k: v for k, v in json.loads(content).items() if k != "environment"}).encode()
            found[path.relative_to(folder).as_posix()] = content
    return found


def _moment(dice: random.Random, counts: dict[str, int], is_fresh: bool) -> Moment:
    """A moment among those that the undisturbed command has."""
    kinds = [kind for kind in KINDS if counts.get(kind) and not (is_fresh and kind == "step")]
    kind = dice.choices(kinds, [_CHUNKS[kind] for kind in kinds])[0]
    number = 1 + dice.randrange(counts[kind])
    if is_fresh and kind in ("event", "call"):
        number *= dice.choice((1, 10))  # it imports, too
    return Moment(kind, number, dice.choice(_SIGNALS), dice.choice((1.0, dice.random())))


def _go_on(trial: Trial, case: Case, folder: Path, moment: Moment | None, is_fresh: bool) -> Answer:
    """Start the command, or continue it where its folder can be continued."""
    is_begun = (folder / "recipe.json").exists() or (folder / "comparison.json").exists()
    words = (case.words[0], "--resume", "run") if is_begun else (*case.words, "--out", "run")
    codes = frozenset({OK}) | (frozenset() if moment is None else CODES_AFTER[signal.Signals(moment.signal)])
    answer = trial.run(*words, codes=codes, moment=moment, is_fresh=is_fresh)
    if is_begun:
        trial.place.counts["resumes"] += 1
    return answer


def _keeps_state(folder: Path) -> bool:
    from safetensors import safe_open

    for path in folder.rglob("last.safetensors"):
        with safe_open(path, framework="pt") as file:
            if any(name.startswith("rule.") for name in file.keys()):  # noqa: SIM118 — not a dictionary
                return True
    return False


def _differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    return [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
