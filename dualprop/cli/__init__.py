"""The `dualprop` command: parsing only. Nothing slow is imported before a command is known, so that
--help is instant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from dualprop.cli.outlets import Outlet

COMMANDS = {
    "train": ("dualprop.cli.train", "train a recipe; --twin trains its back-propagation twin beside it"),
    "compare": ("dualprop.cli.compare", "train several rules on one recipe and show them in one table"),
    "data": ("dualprop.cli.data", "`data describe PATH` shows what own data would be read as"),
    "check": ("dualprop.cli.check", "print the evidence on this machine that the rules are right"),
    "bench": ("dualprop.cli.bench", "measure time and memory of a step against a plain PyTorch loop"),
    "report": ("dualprop.cli.report", "show finished runs again, and redraw their figures"),
    "predict": ("dualprop.cli.predict", "what a run's model says of new files: pictures, tables, arrays"),
    "evaluate": ("dualprop.cli.evaluate", "what a run's model gets wrong: confusions, classes, the worst mistakes"),
    "export": ("dualprop.cli.export", "a run's model in others' formats: torch, torchscript, onnx, safetensors"),
    "reproduce": ("dualprop.cli.reproduce", "run the papers' tables and figures, as many as --minutes allow"),
    "show": ("dualprop.cli.show", "draw one inference: two states a neuron, parting layer by layer"),
    "list": ("dualprop.cli.listing", "list rules, recipes, items, datasets, models or neurons"),
    "completion": ("dualprop.cli.completion", "a script by which bash, zsh or fish complete commands and options"),
}

USAGE = """usage: dualprop COMMAND [options]      `dualprop COMMAND --help` shows a command's options

Train PyTorch networks without back-propagation: by dual propagation and its relatives.

{commands}

examples:
  dualprop compare                              handwritten digits by two rules, in a minute
  dualprop train mnist-mlp --rule.beta 0.1      any field of a recipe is an option
  dualprop train mnist-mlp --rule backprop      the back-propagation twin
  dualprop compare --dataset iris.csv           your own table, folder of images, or arrays
  dualprop predict runs/mine new.csv            classes and probabilities, a line an example
  dualprop reproduce --minutes 8                the papers' tables: what is worth most, whole
  dualprop list recipes

exit codes: 0 done; 2 an error, told in a line; 3 trained, but a run diverged or collapsed, or an item failed;
130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, with 2 and one line for a user's error, with 3 after
    training of which a run diverged or an item failed, or with 130 when interrupted.

    Without arguments it is the program itself, and takes those of the process.
    """
    if arguments is not None:
        _answer(list(arguments), None)
        return
    from dualprop.system.isolation import import_paths

    sys.path[:] = import_paths()
    from dualprop.cli import interrupts

    interrupts.listen()
    try:
        code = _program(sys.argv[1:])
    except KeyboardInterrupt:
        _stop(is_program=True)
    interrupts.end_at_the_next()
    raise SystemExit(code)


def _program(arguments: list[str]) -> int:
    """The exit code of the program with these arguments."""
    from dualprop.cli.surroundings import settle

    outlet, code = settle(), 0
    if outlet.heartbeat is not None:
        outlet.heartbeat.begin()
    try:
        _answer(arguments, outlet)
        sys.stdout.flush()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
        sys.stdout.flush()
    finally:
        if outlet.heartbeat is not None:
            outlet.heartbeat.end()
    return code or (2 if outlet.is_lost else 0)


def _answer(arguments: list[str], outlet: Outlet | None) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:11}{summary}" for name, (_, summary) in COMMANDS.items())
        print(USAGE.format(commands=commands), end="")
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"dualprop {version('dualprop')}")
        return
    if arguments[0] not in COMMANDS:
        from dualprop.errors import closest

        _fail(f"unknown command '{arguments[0]}'.{closest(arguments[0], list(COMMANDS))} Known: {', '.join(COMMANDS)}.")
    if outlet is not None:
        outlet.stops = not _leaves_files(arguments)
    _run(COMMANDS[arguments[0]][0], arguments[1:], is_program=outlet is not None)


def _leaves_files(arguments: list[str]) -> bool:
    """Whether the command is of use when nobody reads what it prints."""
    leaving = ("--out", "--figure")
    return arguments[0] in ("train", "compare", "reproduce", "evaluate", "export") or any(
        word.split("=")[0] in leaving for word in arguments
    )


def _run(module: str, arguments: list[str], is_program: bool) -> None:
    from dualprop.cli import interrupts

    try:
        import_module(module).main(arguments)
    except KeyboardInterrupt:
        _stop(is_program)
    except Exception as error:
        if is_program and interrupts.were_asked():
            _stop(is_program)
        if (told := _told(error)) is None:
            raise
        _fail(told)


def _told(error: Exception) -> str | None:
    """What a user is told of an error; None of one that must not happen."""
    from dualprop.errors import DualpropError

    if isinstance(error, DualpropError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{where}. What was written before is whole; a training run continues with --resume."
    if isinstance(error, MemoryError | RuntimeError):
        from dualprop import memory

        if memory.is_lacking(error):
            remedy = "Take fewer examples, a smaller batch or model; a training run continues with --resume."
            return str(memory.told(error, "this command", remedy))
    return None


def _stop(is_program: bool) -> NoReturn:
    """End as interrupted."""
    if is_program:
        from dualprop.cli.interrupts import end_at_the_next

        end_at_the_next()
    print("\ndualprop: stopped. Continue a training run with --resume and its folder.", file=sys.stderr)
    raise SystemExit(130) from None


def _fail(message: str) -> NoReturn:
    from dualprop.cli.outlets import shown

    print(f"dualprop: error: {shown(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(2)
