"""One trainer for every rule: epochs, validation, the best model tested at the end, and a resume
that is bit-exact.

What follows a seed's last checkpoint is a deterministic function of it and of its conditions, so a
run that was killed and resumed writes the same metrics and weights as one that was not. Checkpoints
and metrics of another moment of the same run are told from its own. Times are kept apart, in
timing.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dualprop.data import Splits
from dualprop.training import execution, files, folders, readings, weights
from dualprop.training.recipe import Recipe
from dualprop.training.reporting import Reporter
from dualprop.training.seeds import Seed
from dualprop.training.starts import Starts
from dualprop.training.stepping import AbstractSteps, Alone, Stack


def train_seeds(
    recipe: Recipe,
    numbers: Sequence[int],
    wanted: Collection[int],
    load: Callable[[int], Splits],
    folder_of: Callable[[int], Path],
    reporter: Reporter,
    starts: Starts,
) -> None:
    """Train the wanted of a run's seeds, each in its folder, from its last checkpoint if there is
    one, on what `load` gives: one after another, or as a stack, which has a place for every number.

    Raises:
        CheckpointError: a checkpoint that is corrupt, of another run or of another moment.
        RunError: a result or metrics of which that is so, or conditions that changed, see `starts`.
        OSError: a folder can't be written; what was written before stays whole.
    """
    how = execution.resolve(recipe, len(numbers))
    for group in [numbers] if how.num_stacked else [[number] for number in numbers]:
        seeds = []
        for number in group:
            if number not in wanted:
                continue
            folder = folder_of(number)
            if result := readings.result(folder, number, weights.owners(recipe, number, starts.epochs_before)):
                reporter.seed_finished(result)
                continue
            files.make_folder(folder)
            folders.remove_leftovers(folder)
            seeds.append(Seed(recipe, number, load(number), folder, reporter, how, starts.epochs_before))
        if seeds:
            steps = Stack(recipe, how, group, like=seeds[0]) if how.num_stacked else Alone(recipe, how, seeds[0])
            _train(seeds, steps, starts)


def _train(seeds: list[Seed], steps: AbstractSteps, starts: Starts) -> None:
    """Train seeds together, those first that a kill left behind."""
    for seed in seeds:
        seed.begin(starts)
    seeds.sort(key=lambda seed: seed.moment)
    seeds[0].tell()
    for seed in seeds:
        seed.write_first()
    while seeds:
        for seed in [seed for seed in seeds if seed.is_over]:
            steps.leave(seed)
            result = seed.result()
            files.write_json(seed.folder / "result.json", result.to_plain())
            seed.reporter.seed_finished(result)
            seeds.remove(seed)
        if not seeds:
            return
        if not any(seed.is_told for seed in seeds):
            seeds[0].tell()
        earliest = min(seed.moment for seed in seeds)
        together = [seed for seed in seeds if seed.moment == earliest]
        # The one that is told of comes last: a reporter that ends the run leaves no other behind.
        together.sort(key=lambda seed: seed.is_told)
        steps.take(together)
