"""What is run in a given time, and in which order: a pure function of what is known.

Whole tables come first, the one of most worth for its time before the others; then whole figures
with their twins; then single seeds, a twin's and its rule's together, since a figure without its
twin says little; at last twins alone, and rules whose twin can't be run. Nothing is chosen that is
not expected to end in time. A run in progress is finished before anything is begun.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True, order=True)
class Job:
    """The smallest thing that is run: a figure's label and a seed, or all where they step
    together."""

    label: str
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Wish:
    """A figure: the job of each seed, and its twin's; none where it is its own."""

    jobs: tuple[Job, ...]
    twin: tuple[Job, ...] = ()

    def pairs(self) -> Iterator[list[Job]]:
        """What is to be run together, seed by seed: the twin's, then its own. With a job of several
        seeds goes the twin's of each."""
        twins: dict[Job, list[Job]] = {}
        for twin, job in zip_longest(self.twin, self.jobs):
            its = twins.setdefault(job or twin, [])
            its += [twin] if job and twin else []
        for job, its in twins.items():
            yield [*dict.fromkeys(its), job]


# A table's name, what the jobs are worth, and the jobs.
Candidate = tuple[str, float, list[Job]]


@dataclass(frozen=True)
class Table:
    """An item: its worth, and the figures that are whole together."""

    name: str
    worth: float
    wishes: tuple[Wish, ...]

    def rules(self) -> list[Wish]:
        """The figures that have a twin; all where none has."""
        return [wish for wish in self.wishes if wish.twin] or list(self.wishes)

    def jobs(self) -> list[Job]:
        """All of them, the first seeds of all figures before the second: a plan that is cut off
        leaves rows that can be compared."""
        rounds = zip_longest(*(wish.pairs() for wish in self.wishes), fillvalue=())
        return list(dict.fromkeys(job for each in rounds for pair in each for job in pair))


@dataclass(frozen=True)
class Step:
    """A job that is run for a table, and how long that is expected to take, in seconds."""

    job: Job
    table: str
    seconds: float


@dataclass(frozen=True)
class Left:
    """A job that is not run, and why; None where what it takes is not known."""

    job: Job
    table: str
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class Plan:
    """Steps in their order, and what is left. `budget` is in seconds, infinite without a limit."""

    steps: tuple[Step, ...]
    left: tuple[Left, ...]
    budget: float

    @property
    def seconds(self) -> float:
        return math.fsum(step.seconds for step in self.steps)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, as plan.json holds them."""
        steps = [
            {"label": each.job.label, "seeds": list(each.job.seeds), "item": each.table, "seconds": each.seconds}
            for each in self.steps
        ]
        left = [
            {
                "label": each.job.label, "seeds": list(each.job.seeds), "item": each.table, "seconds": each.seconds,
                "reason": each.reason,
            }
            for each in self.left
        ]  # fmt: skip
        return {"budget": self.budget if math.isfinite(self.budget) else None, "steps": steps, "left": left}


def plan(
    tables: Sequence[Table],
    seconds: Mapping[Job, float | None],
    budget: float = math.inf,
    *,
    begun: Iterable[Job] = (),
    done: Collection[Job] = (),
    refused: Mapping[Job, str] | None = None,
) -> Plan:
    """The plan for `budget` seconds.

    Args:
        tables: what is wanted.
        seconds: what is left of each job takes; None or missing where that is not known.
        begun: jobs in progress, in the order in which they are to go on.
        done: finished jobs.
        refused: jobs that can't be run, and why.
    """
    return _Planning(tables, seconds, budget, done, refused or {}).made(begun)


class _Planning:
    def __init__(
        self,
        tables: Sequence[Table],
        seconds: Mapping[Job, float | None],
        budget: float,
        done: Collection[Job],
        refused: Mapping[Job, str],
    ) -> None:
        self.tables, self.seconds, self.budget, self.refused = tables, seconds, budget, refused
        self.open = {job: table.name for table in reversed(tables) for job in table.jobs() if job not in done}
        self.steps: list[Step] = []

    def made(self, begun: Iterable[Job]) -> Plan:
        for job in begun:
            if job in self.open and self._fits([job]):
                self._choose([job], self.open[job])
        for stage in (self._tables, self._figures, self._seeds, self._singles):
            self._choose_best_of(list(stage()))
        left = tuple(Left(job, name, self.seconds.get(job), self._reason(job)) for job, name in self._in_order())
        return Plan(tuple(self.steps), left, self.budget)

    def _tables(self) -> Iterator[Candidate]:
        for table in self.tables:
            yield table.name, table.worth, table.jobs()

    def _figures(self) -> Iterator[Candidate]:
        for table in self.tables:
            for wish in table.rules():
                yield table.name, table.worth / len(table.wishes), [job for pair in wish.pairs() for job in pair]

    def _seeds(self) -> Iterator[Candidate]:
        for table in self.tables:
            for wish in table.rules():
                for pair in wish.pairs():
                    yield table.name, table.worth / len(table.wishes) / len(wish.jobs), pair

    def _singles(self) -> Iterator[Candidate]:
        for table in self.tables:
            for wish in table.wishes:
                for *twins, job in wish.pairs():
                    if not twins or any(twin in self.open and not math.isfinite(self._cost([twin])) for twin in twins):
                        yield table.name, table.worth / len(table.wishes) / len(wish.jobs), [job]

    def _choose_best_of(self, candidates: list[Candidate]) -> None:
        """Of the candidates that fit, again and again the one of most worth for its time."""
        while True:
            able = [each for each in candidates if self._missing(each[2]) and self._fits(each[2])]
            if not able:
                return
            name, _, jobs = max(able, key=lambda each: each[1] / max(self._cost(each[2]), 1e-9))
            self._choose(jobs, name)

    def _missing(self, jobs: Iterable[Job]) -> list[Job]:
        return [job for job in dict.fromkeys(jobs) if job in self.open]

    def _cost(self, jobs: Iterable[Job]) -> float:
        each = [math.inf if job in self.refused else self.seconds.get(job) for job in self._missing(jobs)]
        return math.fsum(math.inf if seconds is None else seconds for seconds in each)

    def _fits(self, jobs: Iterable[Job]) -> bool:
        cost = self._cost(jobs)
        return math.isfinite(cost) and math.fsum(step.seconds for step in self.steps) + cost <= self.budget

    def _choose(self, jobs: Iterable[Job], table: str) -> None:
        for job in self._missing(jobs):
            seconds = self.seconds[job]
            assert seconds is not None
            self.steps.append(Step(job, table, seconds))
            del self.open[job]

    def _in_order(self) -> list[tuple[Job, str]]:
        jobs = dict.fromkeys(job for table in self.tables for job in table.jobs() if job in self.open)
        return [(job, self.open[job]) for job in jobs]

    def _reason(self, job: Job) -> str:
        if job in self.refused:
            return self.refused[job]
        return "not measured yet" if self.seconds.get(job) is None else "does not fit into the time"
