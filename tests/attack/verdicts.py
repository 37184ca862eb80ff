"""What every end of the command must be like, whatever it was given."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from attempts import Answer

OK, REFUSED, DIVERGED, INTERRUPTED = 0, 2, 3, 130
# Beside predictions, which may be read by another program.
NOTE = "dualprop: note: "
PLAIN_CODES = frozenset({OK, REFUSED, DIVERGED})
# What may follow a signal. One that comes after the work changes nothing, or ends Python's own end.
CODES_AFTER = {
    signal.SIGKILL: frozenset({-signal.SIGKILL}),
    signal.SIGTERM: frozenset({-signal.SIGTERM, 128 + signal.SIGTERM}),
    signal.SIGINT: frozenset({INTERRUPTED, -signal.SIGINT}),
}
_UNSEEMLY = re.compile(
    r"Traceback \(most recent call last\)|Traceback of the harness|Exception ignored|Fatal Python error|Segmentation fault"
)
_ESCAPE = re.compile(r"[\x1b\x07\x08\x9b]")


@dataclass(frozen=True)
class Failure:
    """What is wrong: its `kind`, and what tells two of a kind apart."""

    kind: str
    detail: str


def judge(answer: Answer, codes: frozenset[int] = PLAIN_CODES) -> list[Failure]:
    """Everything that is wrong with the answer by itself."""
    if answer.hangs:
        return [Failure("hang", _last_line(answer.err) or _last_line(answer.out))]
    failures = []
    told = answer.out + answer.err
    if _UNSEEMLY.search(told):
        failures.append(Failure("traceback", _place(told)))
    elif answer.code not in codes:
        failures.append(Failure("exit code", f"{answer.code}: {_last_line(answer.err)[:160]}"))
    elif not _is_one_line(answer):
        failures.append(Failure("not one line", repr(answer.err[:200])))
    elif answer.code == OK and any(not line.startswith(NOTE) for line in answer.err.strip().splitlines()):
        failures.append(Failure("something on stderr", repr(_last_line(answer.err)[:200])))
    if _ESCAPE.search(told):
        failures.append(Failure("terminal escape", repr(_ESCAPE.split(told)[0][-80:])))
    return failures


def _is_one_line(answer: Answer) -> bool:
    """Whether what ended the command is told in one line, which a refusal begins alike."""
    lines = [line for line in answer.err.splitlines() if line.strip()]
    begins = "dualprop: error: " if answer.code == REFUSED else ""
    return answer.code not in (REFUSED, INTERRUPTED) or (len(lines) == 1 and lines[0].startswith(begins))


def _place(told: str) -> str:
    """The exception and the innermost line of the package that raised it."""
    lines = told.splitlines()
    places = [
        re.sub(r'.*/dualprop/(.*)", line (\d+), in (.*)', r"\1 \3", line)
        for line in lines
        if "/dualprop/" in line and ", line " in line
    ]
    named = [
        line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt|Warning|Exit)\b|Exception ignored|Fatal", line)
    ]
    error = (named or lines or [""])[-1]
    return f"{places[-1] if places else '?'}: {re.sub(r'[0-9]+', 'N', error)[:120]}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
