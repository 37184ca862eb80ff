"""A trial: what a seed and a number make of it, what was run in it, and what was wrong.

A trial depends on its seed, kind and number alone, so that each can be run again by itself.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attempts
import verdicts
from attempts import Answer, Attempt
from moments import Moment
from sandbox import NOBODY, Look, Sandbox, changes, is_root
from verdicts import PLAIN_CODES, Failure

# A run of digits that takes a fraction of a second.
SHORT = ("--epochs", "1", "--seeds", "1", "--no-align", "--batch-size", "64", "--model.widths", "8", "--num-threads", "1")


class Place:
    """A folder of the campaign: homes of the users, made once, and a sandbox for each trial."""

    def __init__(self, seed: int, keeps: bool = False) -> None:
        self.seed, self.keeps = seed, keeps
        self.root = Path(tempfile.mkdtemp(prefix="attack-"))
        self.root.chmod(0o755)
        self.counts: Counter[str] = Counter()
        self.materials: dict[str, Path] = {}

    def environment(self, user: int | None, temporary: Path) -> dict[str, str]:
        """The user's environment: a home of their own, no network, no GPU, one thread."""
        home = self.root / f"home-{'own' if user is None else user}"
        if not home.exists():
            home.mkdir(mode=0o700)
            if user is not None:
                os.chown(home, user, user)
        return {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"),
            "TMPDIR": str(temporary), "DUALPROP_MIRROR": "http://127.0.0.1:1", "OMP_NUM_THREADS": "1", "COLUMNS": "120",
            "LANG": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg",
        }  # fmt: skip

    def close(self) -> None:
        if not self.keeps:
            shutil.rmtree(self.root, ignore_errors=True)


class Trial:
    """One trial of a kind. `user` is who its commands are run as; where we are root, nobody."""

    def __init__(self, place: Place, kind: str, number: int) -> None:
        self.place, self.kind, self.number = place, kind, number
        self.dice = random.Random(f"{place.seed} {kind} {number}")
        self.failures: list[Failure] = []
        self.commands: list[str] = []
        self.answers: list[Answer] = []
        self.user = NOBODY if is_root() else None
        self._sandbox: Sandbox | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.number}"

    @property
    def sandbox(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = Sandbox(self.place.root / f"{self.kind}-{self.number}", self.user)
            self._sandbox.hand_over()
        return self._sandbox

    def run(
        self,
        *words: str,
        codes: frozenset[int] = PLAIN_CODES,
        environment: dict[str, str] | None = None,
        moment: Moment | None = None,
        streams: dict[str, str] | None = None,
        is_fresh: bool = False,
        counts_calls: bool = False,
        is_judged: bool = True,
    ) -> Answer:
        """Run the command in the sandbox's folder of work, and judge how it ends."""
        if is_fresh and self.user is not None and not attempts.may_start(self.user):
            self.user = None
        settings = self.place.environment(self.user, self.sandbox.temporary) | (environment or {})
        attempt = Attempt(
            words, self.sandbox.work, settings, self.user, moment, counts_calls, is_fresh=is_fresh, streams=streams or {}
        )
        answer = attempts.make(attempt)
        self.answers.append(answer)
        self._note(words, environment, moment, streams, is_fresh, answer)
        self.place.counts["invocations"] += 1
        self.place.counts["fresh processes"] += is_fresh
        if is_judged:
            for failure in verdicts.judge(answer, codes):
                self.fail(failure.kind, failure.detail)
        return answer

    def fail(self, kind: str, detail: str) -> None:
        """Note what is wrong. The sandbox's name is left out: it tells no two failures
        apart."""
        self.failures.append(Failure(kind, detail.replace(str(self.sandbox.root), "…").replace(str(self.place.root), "…")))

    def compare(self, before: Look, may_change: Callable[[str], bool]) -> None:
        """Fail for each path of the sandbox that is no longer what it was, but where it may be."""
        told = changes(before, self.sandbox.look(), may_change)
        if told:
            self.fail("files touched", "; ".join(told[:5]) + (f"; {len(told) - 5} more" if len(told) > 5 else ""))

    def close(self) -> None:
        if self._sandbox is not None and not self.place.keeps:
            self._sandbox.remove()

    def _note(
        self,
        words: tuple[str, ...],
        environment: dict[str, str] | None,
        moment: Moment | None,
        streams: dict[str, str] | None,
        is_fresh: bool,
        answer: Answer,
    ) -> None:
        shown = shlex.join(["dualprop", *words])
        parts = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
        about = [*([str(moment)] if moment else []), *([f"streams {streams}"] if streams else []),
                 *(["fresh process"] if is_fresh else []), f"→ {answer.code}"]  # fmt: skip
        self.commands.append(f"{' '.join([*parts, shown])}   # {', '.join(about)}"[:3000])
