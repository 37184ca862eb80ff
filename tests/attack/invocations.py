"""Trials of the command line: the options of every command, as its dataclasses have them, with
values that nobody sane gives; consoles and environments likewise."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import materials
from attempts import Answer
from moments import Moment
from sandbox import NOVEL, OF_TORCH, Look
from trials import SHORT, Trial
from verdicts import INTERRUPTED, OK, PLAIN_CODES, REFUSED

# Steps after which a run that is long for good reasons is interrupted; so are writes of a fresh
# process.
ENOUGH = 300
_BENCH = ("--models", "mlp", "--rules", "dp", "--rounds", "1", "--seconds", "0", "--batch-size", "2", "--no-memory",
          "--no-ceilings", "--threads", "1")  # fmt: skip
# Each measures steps in fresh processes, for longer than a hang may be on a busy machine.
_TOO_SLOW = ("--memory", "--ceilings", "--costs", "--twin", "--minutes")
_WRITING = (["bench"], ["predict"], ["evaluate"], ["export"], ["report"])
_PATHS = ("--from", "--start-from", "--out", "--resume", "--data", "--run", "--figure", "--reference", "--dataset")
_CONSOLES = ({"encoding": "cp1252"}, {"encoding": "ascii"}, {"encoding": "latin-1"}, {"stdout": "closed"}, {"stdout": "full"},
             {"stderr": "closed"}, {"stderr": "full"}, {"stdout": "full", "stderr": "closed"})  # fmt: skip
_ENVIRONMENTS = (
    ("COLUMNS", ("20", "1", "0", "-1", "x", "", "99999999999")),
    ("HOME", ("/proc/absent", "", "file")),
    ("XDG_CACHE_HOME", ("relative", "/proc/absent")),
    ("TMPDIR", ("/absent", "")),
    ("TERM", ("dumb", "xterm", "")),
    ("DUALPROP_DATA", ("file", "/absent", "fifo", "loop", "folder", "")),
    ("DUALPROP_REFERENCE", ("file", "fifo", "folder", "/absent")),
    ("DUALPROP_MIRROR", ("file:///etc", "x", "http://", "http://[::1", "ftp://127.0.0.1:1", "http://127.0.0.1:1/\n")),
    ("NO_COLOR", ("1",)),
    ("PYTHONWARNINGS", ("error",)),
    ("MPLBACKEND", ("nonsense",)),
    ("LANG", ("C", "POSIX", "xx_XX", "tr_TR.ISO-8859-9")),
    ("CC", ("/absent", "file", "")),
    ("PATH", ("", "/absent")),
    ("DUALPROP_NATIVE", ("0", "x", "")),
    ("PYTHONIOENCODING", ("cp1252", "ascii")),
    ("OMP_NUM_THREADS", ("2", "0", "x")),
)


def attack(trial: Trial) -> None:
    """One invocation, before and after which the sandbox is looked at."""
    dice = trial.dice
    if dice.random() < 0.2:
        trial.user = None  # root where we are: devices can be replaced, permissions do not count
    sandbox = trial.sandbox
    sandbox.plant_paths()
    for name in ("run", "comparison"):
        materials.put(trial, name, sandbox.work / name)
    (sandbox.work / "link-to-run").symlink_to("run")
    materials.put_npz(sandbox.work)
    given = words(dice)
    is_fresh = dice.random() < 0.03
    environment = _environment(dice) if dice.random() < 0.15 else {}
    streams = dice.choice(_CONSOLES) if dice.random() < 0.12 and not is_fresh else {}
    before = sandbox.look()
    enough = Moment("write" if is_fresh else "step", ENOUGH, signal.SIGINT)
    codes = PLAIN_CODES | {INTERRUPTED} | ({1} if given[:1] == ["check"] else set())
    is_mute = bool({"closed", "full"} & {streams.get("stderr"), streams.get("stdout")})
    answer = trial.run(
        *given, codes=codes, environment=environment, streams=streams, moment=enough, is_fresh=is_fresh, is_judged=not is_mute
    )
    if is_mute:
        _judge_mute(trial, answer)
    trial.place.counts[f"exit code {answer.code}"] += 1
    trial.compare(before, _may_change(given, before, answer, sandbox.work))


def _judge_mute(trial: Trial, answer: Answer) -> None:
    """Where nobody reads: no crash, no hang, no traceback where one can be read."""
    if answer.code not in (OK, REFUSED, INTERRUPTED, 1, 3):
        trial.fail("hang" if answer.hangs else "exit code", f"{answer.code} to a closed or full stream")
    if "Traceback" in answer.err + answer.out or "Exception ignored" in answer.err:
        trial.fail("traceback", f"to a closed or full stream: {answer.err.strip().splitlines()[-1][:100]}")


def words(dice: random.Random) -> list[str]:
    """A command line, without the program's name."""
    makers: list[Callable[[random.Random], list[str]]] = [
        _train,
        _compare,
        _bench,
        _check,
        _report,
        _list,
        _top,
        _reproduce,
        _after,
    ]
    return dice.choices(makers, (40, 20, 12, 2, 10, 5, 5, 6, 15))[0](dice)


def _train(dice: random.Random) -> list[str]:
    from dualprop import recipes, rules
    from dualprop.cli.train import TrainOptions

    rule = dice.choice(list(rules.RULES))
    words = ["train", *_recipe(dice), *SHORT]
    if dice.random() < 0.6:
        words += ["--rule", rule]
    else:
        rule = "dual_propagation"
    default = TrainOptions(recipes.from_name("digits-mlp").with_rule(rule))
    return _with_options(dice, words, default)


def _compare(dice: random.Random) -> list[str]:
    from dualprop import recipes
    from dualprop.cli.compare import CompareOptions
    from dualprop.recipes.variants import VARIANTS

    words = ["compare", *_recipe(dice), *SHORT, "--no-costs"]
    if dice.random() < 0.5:
        words += ["--variants", ",".join(dice.sample(list(VARIANTS), dice.choice((1, 1, 2))))]
    return _with_options(dice, words, CompareOptions(recipes.from_name("digits-mlp")))


def _bench(dice: random.Random) -> list[str]:
    from dualprop.bench.options import BenchOptions

    words = ["bench", *_BENCH]
    if dice.random() < 0.4:
        words += [dice.choice(("--out", "--figure")), hostile.value(dice, is_path=True)]
    return _with_options(dice, words, BenchOptions())


def _reproduce(dice: random.Random) -> list[str]:
    from dualprop.cli.reproduce import ReproduceOptions
    from dualprop.reproduction.items import ITEMS

    # So little time that neither is a device tested nor a step taken.
    words = ["reproduce", *dice.sample([*ITEMS, hostile.value(dice)], dice.choice((0, 1, 1, 2))), "--minutes", "1e-6"]
    return _with_options(dice, words, ReproduceOptions())


def _check(dice: random.Random) -> list[str]:
    from dualprop.analysis.evidence import CheckOptions

    return _with_options(dice, ["check"], CheckOptions())


def _report(dice: random.Random) -> list[str]:
    return ["report", *(hostile.value(dice, is_path=True) for _ in range(dice.choice((0, 1, 1, 1, 2))))]


def _after(dice: random.Random) -> list[str]:
    """What comes after training. A program of torch.export takes longer than a hang may be."""
    from dualprop.cli.evaluate import EvaluateOptions
    from dualprop.cli.export import ExportOptions
    from dualprop.cli.predict import PredictOptions

    run = Path("run")
    named = ["run" if dice.random() < 0.6 else hostile.value(dice, is_path=True)]
    command = dice.choice(("predict", "evaluate", "export"))
    if command == "predict":
        named += [hostile.value(dice, is_path=True) for _ in range(dice.choice((0, 1, 1, 2)))]
        return _with_options(dice, [command, *named], PredictOptions(run))
    if command == "evaluate":
        return _with_options(dice, [command, *named], EvaluateOptions(run))
    form = dice.choice(("torchscript", "safetensors", "onnx", "pickle"))
    words = _with_options(dice, [command, *named], ExportOptions(run))
    return [*(word for word in words if "format" not in word and word != "torch"), "--format", form]


def _list(dice: random.Random) -> list[str]:
    known = ("rules", "recipes", "variants", "items", "datasets", "models", "neurons")
    return ["list", *(dice.choice((*known, hostile.value(dice))) for _ in range(dice.choice((0, 1, 1, 2))))]


def _top(dice: random.Random) -> list[str]:
    return dice.choice(([], ["--version"], ["--help"], ["help"], [hostile.value(dice)], [hostile.value(dice), "--out", "x"]))


def _recipe(dice: random.Random) -> list[str]:
    from dualprop import recipes

    where = dice.random()
    if where < 0.75:
        return ["digits-mlp"]
    if where < 0.85:
        return []
    return [dice.choice(list(recipes.RECIPES)) if where < 0.92 else hostile.value(dice)]


def _with_options(dice: random.Random, words: list[str], default: Any) -> list[str]:
    """The words with one to three more options, of those that the dataclass has."""
    from dualprop.cli import arguments

    known = [option for option in (*arguments.options(default), "--help") if option not in _TOO_SLOW]
    switches = {name for name in known if ".no-" in name or name.startswith("--no-")}
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        option = dice.choice(_PATHS) if dice.random() < 0.3 else dice.choice(known)
        if dice.random() < 0.04:
            option = dice.choice((option[:-1], option.upper(), option.replace("-", "_"), f"{option}x", f"-{option}"))
        given = hostile.value(dice, is_path=option in _PATHS)
        if option in switches:
            words = [*words, option, *([given] if dice.random() < 0.1 else [])]
        else:
            words = [
                *words,
                *dice.choice(([option, given], [option, given], [f"{option}={given}"], [option, given, given], [option])),
            ]
    if dice.random() < 0.05:
        dice.shuffle(words)
    return words


def _environment(dice: random.Random) -> dict[str, str]:
    return {name: dice.choice(values) for name, values in dice.sample(_ENVIRONMENTS, dice.choice((1, 1, 2)))}


def _may_change(words: list[str], before: Look, answer: Answer, work: Path) -> Callable[[str], bool]:
    """Whether a path of the sandbox may be another after these words."""
    targets = {
        option: [_below(work, value) for value in _values(words, option)] for option in ("--out", "--figure", "--resume")
    }
    named = [_below(work, word) for word in words[1:]] if words[:1] in (["report"], ["evaluate"], ["export"]) else []
    drawn = "model" if words[:1] == ["export"] else "figures"
    runs = [real for path in targets["--resume"] + named if (real := _real(path, work)) in ("work/run", "work/comparison")]
    made = [real for path in targets["--out"] + targets["--figure"] for real in (path, _real(path, work))]
    made += [f"{os.path.splitext(path)[0]}.png" for path in made]

    def may_change(path: str) -> bool:
        if path.endswith(NOVEL):
            return False
        if any(path.startswith(f"{run}/{drawn if named else ''}") for run in runs):
            return True
        if path in before:
            # A file that is there may be replaced by a bench's, or what else is one file alone.
            return words[:1] in _WRITING and path in made and len(before[path]) == 6
        if path.startswith(("work/runs", OF_TORCH)):
            return True
        is_made = any(path == each or path.startswith(f"{each}/") or each.startswith(f"{path}/") for each in made)
        return is_made and (answer.code != REFUSED or _is_begun(work.parent, made))

    return may_change


def _is_begun(root: Path, made: list[str]) -> bool:
    """Whether a run was under way when it was refused: what was written then is kept."""
    return any(
        (root / path / name).exists() for path in made for name in ("recipe.json", "comparison.json", "reproduction.json")
    )


def _values(words: list[str], option: str) -> list[str]:
    following = [words[i + 1] for i, word in enumerate(words[:-1]) if word == option]
    return following + [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]


def _below(work: Path, value: str) -> str:
    return os.path.relpath(os.path.normpath(os.path.join(work, value)), work.parent)


def _real(path: str, work: Path) -> str:
    """The path with links followed, in its folder and not in its last part."""
    whole = os.path.join(work.parent, path)
    if os.path.isdir(whole):
        return os.path.relpath(os.path.realpath(whole), os.path.realpath(work.parent))
    folder, name = os.path.split(whole)
    return os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(work.parent))
