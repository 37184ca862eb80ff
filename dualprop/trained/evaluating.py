"""What a run's model gets wrong: confusions, scores by class, and the mistakes it was surest of.

The scores are scikit-learn's. N examples, K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Interval

from dualprop.analysis.keywords import by_keyword
from dualprop.data import Examples, Splits
from dualprop.errors import RunError, SettingError
from dualprop.settings import SeedNumber, conform
from dualprop.trained import mistakes
from dualprop.trained.loading import chosen_seed, of_run
from dualprop.trained.model import Trained
from dualprop.trained.scores import ClassScore, Evaluation, Mistake
from dualprop.training import files, folders, runs, starts
from dualprop.training.runs import Run

# Examples at once.
BATCH = 1000


@dataclass(frozen=True)
class EvaluateOptions:
    """Show what a run's model gets wrong: dualprop evaluate RUN [options].

    Attributes:
        run: the run's folder.
        seed: one of the run's; by default the first that has weights.
        part: of the data: "test", "validation" or "train".
        mistakes: how many of the worst to show.
        data: folder of the data sets; by default $DUALPROP_DATA, then the download cache.
        out: a file to write all numbers to, as JSON.
    """

    run: Path
    seed: SeedNumber | None = None
    part: Literal["test", "validation", "train"] = "test"
    mistakes: Annotated[int, Interval(ge=0, le=100)] = 24
    data: Path | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        conform(self)


@by_keyword(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> Evaluation:
    """Scores and pictures of a run's model on one part of its data; the pictures lie in the run's
    figures/. The arguments are the fields of `EvaluateOptions`.

    Raises RunError where the data is not that of the run, SettingError where the model predicts no
    classes, and what `load` raises.
    """
    return run_evaluation(options)


def run_evaluation(options: EvaluateOptions) -> Evaluation:
    """What `evaluate` does by options that are there already."""
    run = runs.load(options.run)
    seed = chosen_seed(run, options.seed)
    model = of_run(run, seed, data=options.data)
    task = model.description.task
    if task.kind != "classification":
        raise SettingError(f"evaluate shows confusions of classes, and this run predicts {task}. See dualprop report.")
    splits = runs.load_data(dataclasses.replace(run.recipe, device="cpu"), seed, options.data)
    _check_same(run, splits, task.names)
    examples: Examples = getattr(splits, options.part)
    logits = _outputs(model, examples)
    evaluation = _of_outputs(model, logits, examples.y, options.mistakes, run=run.folder, seed=seed, part=options.part)
    drawn = mistakes.draw(evaluation, examples, model.description, run.folder / "figures")
    evaluation = dataclasses.replace(evaluation, figures=drawn)
    if options.out is not None:
        with folders.held_file(options.out):
            files.write_json(options.out, evaluation.to_plain())
    return evaluation


@torch.no_grad()
def _outputs(model: Trained, examples: Examples) -> torch.Tensor:
    """The outputs (N, K), of inputs normalised as the trainer does it."""
    dtype = torch.float64 if model.recipe.dtype == "float64" else torch.float32
    parts = torch.arange(len(examples)).split(BATCH)
    return torch.cat([model.of_normalised(examples.batch(indices, dtype)[0]) for indices in parts])


def _check_same(run: Run, splits: Splits, names: tuple[str, ...]) -> None:
    """Raise RunError where the data is another than was trained on."""
    known = next((start["data"] for start in reversed(starts.read(run.folder)) if "data" in start), None)
    if known not in (None, splits.digest) or splits.description.task.names != names:
        raise RunError(
            f"{run.recipe.dataset} is not the data that {run.folder} was trained on: it has changed since. Restore it, or "
            f"see what the model says of other files by dualprop predict {run.folder} FILE …"
        )


def _known(score: float) -> float | None:
    return None if np.isnan(score) else float(score)


def _of_outputs(model: Trained, outputs: torch.Tensor, y: torch.Tensor, most: int, **about: Any) -> Evaluation:
    from sklearn import metrics

    names = model.names
    said = outputs.argmax(1)
    truth, taken, labels = y.numpy(), said.numpy(), list(range(len(names)))
    confusion = metrics.confusion_matrix(truth, taken, labels=labels)
    undefined = {"labels": labels, "average": None, "zero_division": np.nan}
    precision, recall, f1, number = metrics.precision_recall_fscore_support(truth, taken, **undefined)
    classes = [
        ClassScore(name, _known(p), _known(r), _known(f), int(count))
        for name, p, r, f, count in zip(names, precision, recall, f1, number, strict=True)
    ]
    values = model.as_probabilities(outputs) if model.gives_probabilities else outputs
    margins = values.gather(1, said[:, None])[:, 0] - values.gather(1, y[:, None])[:, 0]
    wrong = torch.nonzero(said != y)[:, 0]
    # Of equal margins the first example's comes first, on every machine.
    worst = wrong[torch.argsort(margins[wrong], descending=True, stable=True)][:most].tolist()
    return Evaluation(
        title=model.description.title,
        accuracy=float(metrics.accuracy_score(truth, taken)),
        balanced_accuracy=float(np.nanmean(recall)),
        confusion=confusion,
        classes=classes,
        mistakes=[Mistake(i, names[truth[i]], names[taken[i]], float(margins[i])) for i in worst],
        num_mistakes=len(wrong),
        figures=[],
        **about,
    )
