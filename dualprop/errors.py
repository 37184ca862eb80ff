"""Errors a user can make. Each message is one line that names the remedy.

The command line prints it and exits with 2.
"""


class DualpropError(Exception):
    """Base of every error that this package raises on purpose.

    Its message is printable: what a file, a path or an option holds reaches no terminal as it is.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class SettingError(DualpropError, ValueError):
    """A hyperparameter, option or argument outside what is possible."""


class OutOfMemoryError(DualpropError, MemoryError, RuntimeError):
    """Memory that can't be had. It is a RuntimeError too, as PyTorch's own is to tools that then
    try a smaller batch."""


class UnsupportedModuleError(DualpropError, TypeError):
    """A module that can't be split into synapses and neurons, or converted."""


class DataError(DualpropError, ValueError):
    """A data set that is missing, damaged or malformed."""


class CheckpointError(DualpropError):
    """A checkpoint that is corrupt, foreign or does not fit the run."""


class RunError(DualpropError):
    """A run folder that can't be used as asked."""


class NudgeWarning(UserWarning):
    """What is to be known of a rule's nudge: it takes many units across a kink, or a β was chosen.
    One line, once for a network."""


def printable(text: str) -> str:
    """The text with control characters, lone surrogates and the like as Python escapes them."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def closest(name: object, known: list[str]) -> str:
    """ " Did you mean 'x'?" where a known name is close to `name`, else an empty string."""
    import difflib

    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
