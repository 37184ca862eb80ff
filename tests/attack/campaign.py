"""A campaign: trials of each kind by their numbers, and what came of them as plain values.

python campaign.py SEED kill=20 folder=10          so many of each kind; prints the summary as JSON
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attempts
import folders
import invocations
import kills
from sandbox import is_root
from trials import Place, Trial

KINDS = {"invocation": invocations.attack, "folder": folders.attack, "kill": kills.attack}
# How many of each kind come in turn: an invocation costs the least.
SHARES = {"invocation": 5, "folder": 3, "kill": 3}
# Examples kept of each way to fail.
EXAMPLES = 3


class Campaign:
    """Trials of one seed, run one after the other."""

    def __init__(self, seed: int, keeps: bool = False) -> None:
        attempts.load()
        self.place = Place(seed, keeps)
        self.trials: Counter[str] = Counter()
        self.failures: dict[str, dict[str, Any]] = {}

    def run(self, kind: str, number: int) -> Trial:
        """Run one trial, and note how it went."""
        trial = Trial(self.place, kind, number)
        try:
            KINDS[kind](trial)
        except Exception as error:
            trial.commands.append(traceback.format_exc()[-1500:])
            trial.fail("harness", f"{type(error).__name__}: {error}"[:200])
        finally:
            trial.close()
        self.trials[kind] += 1
        for failure in trial.failures:
            group = self.failures.setdefault(
                f"{failure.kind}: {failure.detail}",
                {"kind": failure.kind, "detail": failure.detail, "count": 0, "examples": []},
            )
            group["count"] += 1
            if len(group["examples"]) < EXAMPLES:
                repeat = f"python scripts/attack.py --seed {self.place.seed} --only {trial.name}"
                group["examples"].append({"repeat": repeat, "commands": trial.commands})
        return trial

    def summary(self) -> dict[str, Any]:
        """What was run and what failed."""
        return {
            "trials": dict(self.trials),
            "counts": dict(self.place.counts),
            "keeping_state": sorted(kills.keeping_state()),
            "as_root": is_root(),
            "failures": list(self.failures.values()),
        }

    def close(self) -> None:
        self.place.close()


def counted(seed: int, numbers: dict[str, int]) -> dict[str, Any]:
    """The summary of the first so many trials of each kind."""
    campaign = Campaign(seed)
    for kind, number in numbers.items():
        for i in range(number):
            campaign.run(kind, i)
    campaign.close()
    return campaign.summary()


def numbered(worker: int = 0, workers: int = 1) -> Iterator[tuple[str, int]]:
    """Kinds and numbers of trials without end, those of one of several workers."""
    turns = [kind for kind, share in SHARES.items() for _ in range(share)]
    counts = Counter[str]()
    index = 0
    while True:
        for kind in turns:
            if index % workers == worker:
                yield kind, counts[kind]
            counts[kind] += 1
            index += 1


def merged(seed: int, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """The summaries of several workers in one."""
    trials, counts, states = Counter[str](), Counter[str](), set[str]()
    groups: dict[str, dict[str, Any]] = {}
    for each in summaries:
        trials.update(each["trials"])
        counts.update(each["counts"])
        states |= set(each["keeping_state"])
        for failure in each["failures"]:
            group = groups.setdefault(f"{failure['kind']}: {failure['detail']}", {**failure, "count": 0, "examples": []})
            group["count"] += failure["count"]
            group["examples"] = (group["examples"] + failure["examples"])[:EXAMPLES]
    failed = Counter[str]()
    for group in groups.values():
        failed[group["kind"]] += group["count"]
    return {
        "seed": seed,
        "as_root": any(each["as_root"] for each in summaries),
        "trials": dict(sorted(trials.items())),
        "counts": dict(sorted(counts.items())),
        "rules_keeping_state": {name: counts[f"kills of {name}"] for name in sorted(states)},
        "failed": dict(sorted(failed.items())),
        "failures": sorted(groups.values(), key=lambda group: (group["kind"], -group["count"])),
    }


def shown(summary: dict[str, Any]) -> str:
    """The summary in lines for people, the failures by kind."""
    lines = [f"seed {summary['seed']}, {'as root and nobody' if summary['as_root'] else 'as one user'}"]
    lines += [f"  {count:7} {kind} trials" for kind, count in summary["trials"].items()]
    lines += [f"  {count:7} {what}" for what, count in summary["counts"].items() if not what.startswith("kills of")]
    states = summary["rules_keeping_state"]
    if states:
        lines.append(f"rules that keep a state: {', '.join(f'{name} ({kills} kills)' for name, kills in states.items())}")
    for group in summary["failures"]:
        lines += ["", f"{group['count']} × {group['kind']}: {group['detail']}"]
        for example in group["examples"][:1]:
            lines += [f"    {example['repeat']}", *(f"      {command[:300]}" for command in example["commands"])]
    lines += ["", "; ".join(f"{count} × {kind}" for kind, count in summary["failed"].items()) or "nothing failed"]
    return "\n".join(lines)


def as_json(summary: dict[str, Any]) -> str:
    return json.dumps(summary, indent=2) + "\n"


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    seed, *words = sys.argv[1:]
    print(as_json(merged(int(seed), [counted(int(seed), {kind: int(n) for kind, n in (word.split("=") for word in words)})])))
