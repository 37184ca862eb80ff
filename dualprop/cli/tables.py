"""Tables on the console: results of runs, with their cost per step beside back-propagation's."""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from dualprop.analysis import cost
from dualprop.training.recipe import Recipe
from dualprop.training.runs import Run


def measure_costs(recipes: dict[str, Recipe], input_shape: tuple[int, ...], num_classes: int, rounds: int = 40) -> dict[str, Any]:
    """Time per step, interleaved with a plain PyTorch loop, and peak memory in fresh processes, by rule name."""
    first = next(iter(recipes.values()))
    contenders = {cost.PLAIN: cost.Contender(cost.PLAIN, first, "plain"), cost.PLAIN_AGAIN: cost.Contender(cost.PLAIN_AGAIN, first, "plain")}
    contenders |= {name: cost.Contender(name, recipe) for name, recipe in recipes.items()}
    steps = {name: contender.step(input_shape, num_classes) for name, contender in contenders.items()}
    timings = cost.interleaved(steps, rounds)
    return {
        name: {
            **asdict(timings[name]),
            **({} if name == cost.PLAIN_AGAIN else {"memory": asdict(cost.memory(contender, input_shape, num_classes))}),
        }
        for name, contender in contenders.items()
    }


def show_runs(labelled: list[tuple[str, Run]], console: Console, costs: dict[str, Any] | None = None) -> None:
    """One row per rule: accuracy over the seeds, cost per step, and the last epoch's alignment with back-propagation."""
    table = Table(title=f"{labelled[0][1].recipe.name}, {_seeds(labelled[0][1])}", title_justify="left")
    table.add_column("rule")
    for heading in ("test accuracy (%)", "seeds", "epochs"):
        table.add_column(heading, justify="right")
    if costs is not None:
        for heading in ("ms/step", "ratio to plain BP", "peak memory (MB)"):
            table.add_column(heading, justify="right")
    table.add_column("cosine to BP, worst layer", justify="right")
    for name, run in labelled:
        results = run.results()
        accuracies = [100 * result["test_accuracy"] for result in results]
        spread = f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        cells = [f"{mean(accuracies):.2f}{spread}" if accuracies else "–", str(len(accuracies)), _epochs(results)]
        if costs is not None:
            own = costs[name]
            cells += [f"{own['milliseconds']:.2f}", f"{own['ratio']:.3f}", f"{own['memory']['peak']:.0f}"]
        table.add_row(name, *cells, _worst_cosine(run))
    console.print(table)
    if costs is not None:
        floor = costs[cost.PLAIN_AGAIN]
        console.print(
            f"One step of the plain PyTorch loop takes {costs[cost.PLAIN]['milliseconds']:.2f} ms; the same loop again in the same "
            f"rounds has ratio {floor['ratio']:.3f} (quartiles {floor['lower_quartile']:.3f}–{floor['upper_quartile']:.3f}): the noise.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _seeds(run: Run) -> str:
    return f"seed {run.seeds[0]}" if len(run.seeds) == 1 else f"seeds {', '.join(map(str, run.seeds))}"


def _epochs(results: list[dict[str, Any]]) -> str:
    done = sorted({result["epochs"] for result in results})
    return "–" if not done else str(done[0]) if len(done) == 1 else f"{done[0]}–{done[-1]}"


def _worst_cosine(run: Run) -> str:
    """The least cosine over layers after the last epoch, averaged over seeds."""
    least = []
    for seed in run.seeds:
        aligned = [m["alignment"] for m in run.metrics(seed) if m.get("alignment")]
        if aligned:
            cosines = [layer["cosine"] for layer in aligned[-1] if math.isfinite(layer["cosine"])]
            least += [min(cosines)] if cosines else []
    return f"{mean(least):.4f}" if least else "–"
