"""Runs the engines on 80 public architectures, unmodified, and prints a table: which are right.

    pip install "dualprop[zoo]"
    python scripts/public_zoo.py                            every engine on every architecture
    python scripts/public_zoo.py --engines fused --only vit convnext
    python scripts/public_zoo.py --engines autograd         only whether they load and run

Nothing is downloaded: weights are random, configurations are small. All is float64, in training
mode, at a batch of 4. A cell holds the least cosine to autograd's gradient over all parameters at a
small β. It is "right" from 0.999 on; "wrong" below; "refused" where the library says no, with its
message beneath; and "failed" where something else was raised. A little noise is added to every
parameter first: many a network starts with branches at exactly zero, and units there lie at their
kink, where a dyad's slope is ½ and a derivative is 0.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

import stubs
from zoo import ZOO
from zoo_verdicts import BETAS, ENGINES, case_of, verdict


def main() -> None:
    parser = argparse.ArgumentParser(description="Which engines are right on 80 public architectures.")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=["fused", "explicit", "ep"])
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="architectures whose name holds one of these")
    parser.add_argument("--betas", type=float, nargs="+", default=BETAS, help="per term of the loss; one must do")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    stubs.declare_torchvision_operators()
    entries = [entry for entry in ZOO if any(word in f"{entry.source} {entry.name}" for word in options.only)]
    totals: dict[str, Counter[str]] = {name: Counter() for name in options.engines}
    loaded = 0
    print(f"{'architecture':<30} {'from':<13}", *(f"{name:<16}" for name in options.engines), flush=True)
    for entry in entries:
        try:
            case = case_of(entry)
        except Exception as error:
            print(
                f"{entry.name:<30} {entry.source:<13} does not run: {type(error).__name__}: {error}".splitlines()[0], flush=True
            )
            continue
        loaded += 1
        cells, notes = [], []
        for name in options.engines:
            word, cell, note = verdict(ENGINES[name], case, options.betas)
            totals[name][word] += 1
            cells.append(f"{cell:<16}")
            notes += [f"    {name}: {note}"] if note else []
            gc.collect()
        print(f"{entry.name:<30} {entry.source:<13}", *cells, *("\n" + note for note in notes), flush=True)
    print(f"\n{loaded} of {len(entries)} load and run")
    for name, counted in totals.items():
        print(f"{name}: " + ", ".join(f"{counted[word]} {word}" for word in ("right", "wrong", "refused", "failed")))


if __name__ == "__main__":
    main()
