"""Attack the command line, run folders and the moments of a run, by trials that a seed determines.

    python scripts/attack.py --minutes 60 --seed 3             as `make attack` does
    python scripts/attack.py --trials kill=40,folder=10        so many of each kind, in one process
    python scripts/attack.py --seed 3 --only folder:117        one again, its sandbox kept

Prints what failed, by kind, each with the command that repeats it; writes all of it as JSON with
--out. Exits with 1 if anything failed. What a trial is: tests/attack. As root most commands are run
as nobody, and permissions, devices and others' files are attacked too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Children are forked, and threads would not come with them.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "attack"), str(ROOT)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--trials", help="counts in place of minutes, such as invocation=100,kill=20")
    parser.add_argument("--only", help="one trial, such as kill:17; its sandbox is kept")
    parser.add_argument("--out", type=Path, help="a JSON file for the summary")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    import campaign

    if options.only:
        _repeat(options.seed, *options.only.split(":"))
        return
    if options.trials:
        counts = {kind: int(number) for kind, number in (word.split("=") for word in options.trials.split(","))}
        summaries = [campaign.counted(options.seed, counts)]
    else:
        summaries = _timed(options.seed, options.minutes, options.workers)
    summary = campaign.merged(options.seed, summaries)
    print(campaign.shown(summary))
    if options.out:
        options.out.write_text(campaign.as_json(summary))
    raise SystemExit(1 if summary["failures"] else 0)


def _repeat(seed: int, kind: str, number: str) -> None:
    from campaign import Campaign

    campaign = Campaign(seed, keeps=True)
    trial = campaign.run(kind, int(number))
    print(f"sandbox: {trial.sandbox.root}", *trial.commands, *(f"{f.kind}: {f.detail}" for f in trial.failures), sep="\n")
    for answer in trial.answers:
        print(f"--- {answer.code}\n{answer.out[-3000:]}{answer.err[-6000:]}")
    raise SystemExit(1 if trial.failures else 0)


def _timed(seed: int, minutes: float, workers: int) -> list[dict[str, Any]]:
    """Summaries of as many workers, each a process that forks its own children."""
    from campaign import Campaign, numbered

    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for worker in range(workers):
            if child := os.fork():
                children.append(child)
                continue
            campaign = Campaign(seed)
            for kind, number in numbered(worker, workers):
                if time.monotonic() > end:
                    break
                campaign.run(kind, number)
            campaign.close()
            Path(folder, str(worker)).write_text(json.dumps(campaign.summary()))
            os._exit(0)
        for child in children:
            os.waitpid(child, 0)
        return [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]


if __name__ == "__main__":
    main()
