"""What a run's model says of new files: an example a line, as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dualprop.analysis.keywords import by_keyword
from dualprop.errors import SettingError, printable
from dualprop.settings import SeedNumber, conform
from dualprop.trained import inputs
from dualprop.trained.inputs import Given
from dualprop.trained.loading import load
from dualprop.trained.model import Trained
from dualprop.training import files, folders

# Examples that are predicted at once.
BATCH = 500


@dataclass(frozen=True)
class PredictOptions:
    """Predict files by a run's model: dualprop predict RUN FILE [FILE …] [options].

    Files are pictures (.png, .jpg, …), tables (.csv, .tsv, .parquet), and arrays (.npy, .npz).

    Attributes:
        run: the run's folder.
        files: what to predict.
        seed: one of the run's; by default the first that has weights.
        format: "csv", a table whose first line names its columns, or "jsonl", a JSON object a line.
        out: the file to write; by default standard output.
        data: folder of the data sets; for runs of earlier versions, whose data is needed.
    """

    run: Path
    files: tuple[Path, ...] = ()
    seed: SeedNumber | None = None
    format: Literal["csv", "jsonl"] = "csv"
    out: Path | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        conform(self)


@dataclass(frozen=True)
class Prediction:
    """Of one example.

    Attributes:
        file: as it was given.
        place: where in the file; "" where it holds one example.
        said: the class; or the numbers, or the labels that are more likely than not.
        values: by output: probabilities where the model gives them, else its outputs.
        are_probabilities: whether they are.
    """

    file: str
    place: str
    said: str | tuple[str, ...] | None
    values: dict[str, float]
    are_probabilities: bool

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        name = "probabilities" if self.are_probabilities else "outputs"
        return {"file": self.file, "place": self.place, "prediction": self.said, name: self.values}


@dataclass(frozen=True)
class Predicted:
    """All predictions in the order of the files, and what is to be known of them."""

    predictions: list[Prediction]
    remarks: list[str]

    def lines(self, form: str) -> Iterator[str]:
        """They as text, each with its end."""
        if form == "jsonl":
            yield from (json.dumps(each.to_plain()) + "\n" for each in self.predictions)
            return
        first = self.predictions[0]
        mark = "p" if first.are_probabilities else "output"
        yield _row(["file", "place", "prediction", *(f"{mark}({name})" for name in first.values)])
        for each in self.predictions:
            said = each.said if isinstance(each.said, str) else " ".join(each.said or ())
            yield _row([each.file, each.place, said, *(f"{value:.6g}" for value in each.values.values())])


@by_keyword(PredictOptions)
def predict(options: PredictOptions) -> list[Prediction]:
    """The predictions of all examples in the files, which `out` gets too. The arguments are the
    fields of `PredictOptions`. Raises DataError for a file that can't be read, and what `load`
    raises."""
    return run_prediction(options).predictions


def run_prediction(options: PredictOptions) -> Predicted:
    """What `predict` does by options that are there already, and what is to be known of it."""
    if not options.files:
        raise SettingError("predict needs the files to predict: dualprop predict RUN FILE [FILE …].")
    model = load(options.run, options.seed, data=options.data)
    # All are read before any is predicted.
    given = [inputs.read(path, model.description) for path in options.files]
    remarks = [remark for each in given for remark in each.remarks]
    remarks += [f"{each.path}: {told}" for each in given if (told := model.doubt(torch.from_numpy(each.x)))]
    predictions = [prediction for each in given for prediction in _of_file(model, each)]
    if not predictions:
        raise SettingError(f"{', '.join(map(str, options.files))[:200]} holds no example. Give files that do.")
    predicted = Predicted(predictions, remarks)
    if options.out is not None:
        with folders.held_file(options.out):
            files.write(options.out, "".join(predicted.lines(options.format)).encode())
    return predicted


@torch.no_grad()
def outputs(model: Trained, x: np.ndarray) -> torch.Tensor:
    """The model's outputs (N, K) for examples as the data set holds them, some at a time."""
    parts = torch.from_numpy(x).split(BATCH)
    return torch.cat([model.of_normalised(model.standardisation(part)).float() for part in parts])


def _of_file(model: Trained, given: Given) -> Iterator[Prediction]:
    if not len(given.x):
        return
    task, made = model.description.task, outputs(model, given.x)
    is_multilabel = task.kind == "multilabel"
    are_probabilities = model.gives_probabilities
    values = model.as_probabilities(made) if are_probabilities else made
    if task.mean:
        values = values * torch.tensor(task.std) + torch.tensor(task.mean)
    for place, row in zip(given.places, values.tolist(), strict=True):
        said: Any = None
        if task.kind == "classification":
            said = task.names[max(range(len(row)), key=row.__getitem__)]
        elif is_multilabel:
            said = tuple(name for name, value in zip(task.names, row, strict=True) if value > 0.5)
        else:
            said = tuple(f"{value:.6g}" for value in row)
        yield Prediction(str(given.path), place, said, dict(zip(task.names, row, strict=True)), are_probabilities)


def _row(cells: Sequence[str]) -> str:
    """A line of CSV, in which no name steers a terminal."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([printable(cell.replace("\n", "\\n")) for cell in cells])
    return line.getvalue()
