"""Own data by BP, by DP and by scikit-learn's own MLP, on the same splits: a table of docs/data.md.

    python scripts/own_data.py --out results/own-data-2026-11-28.json

Iris, wine, breast cancer and diabetes are written as CSV with the names of their columns, digits as
a folder of PNGs, squares cut from two photographs (a temple, a flower) as a folder of JPEGs; all
ship with scikit-learn. Each is read as a user's own would be. BP and DP train
a network of one hidden layer; scikit-learn's MLP has the same layer, and else its defaults, with as
many epochs as it takes to converge. Its inputs are the training part's standardised ones, and its
targets too."""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from sklearn.neural_network import MLPClassifier, MLPRegressor

from dualprop import data, training
from dualprop.analysis import differences
from dualprop.losses import from_name
from dualprop.models import MLP
from dualprop.rules import Backprop, DualPropagation
from dualprop.training import environment
from dualprop.training.recipe import Optimizer, Recipe
from dualprop.training.records import Result

TABLES = ("iris", "wine", "breast_cancer", "diabetes")
WIDTH, BATCH_SIZE = 64, 16
SQUARE = 32  # pixels of a side
RULES = {"BP": Backprop, "DP": DualPropagation}


def main() -> None:
    """Parse, make the files, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; rows of other data in it are kept")
    parser.add_argument("--data", nargs="*", help="names of the data sets; by default all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for path in (path for path in make(Path(folder)) if not options.data or path.stem in options.data):
            results = {name: trained(path, kind, options, Path(folder) / "runs") for name, kind in RULES.items()}
            results["scikit-learn"] = [by_scikit_learn(path, seed) for seed in range(options.seeds)]
            rows = [each for each in rows if each["data"] != path.name] + [row(path, results)]
            print(line(rows[-1]), flush=True)
            content = {"environment": environment.describe("cpu"), "epochs": options.epochs, "rows": rows}
            options.out.write_text(json.dumps(content, indent=1) + "\n")


def make(folder: Path) -> list[Path]:
    """The files, as a user might have them."""
    paths = []
    for name in TABLES:
        settings = {"scaled": False} if name == "diabetes" else {}
        made = getattr(sklearn.datasets, f"load_{name}")(**settings)
        target = made.target.tolist() if name == "diabetes" else made.target_names[made.target].tolist()
        paths.append(folder / f"{name}.csv")
        with paths[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*made.feature_names, "target"])
            writer.writerows([*x, y] for x, y in zip(made.data.tolist(), target, strict=True))
    digits = sklearn.datasets.load_digits()
    for number, (pixels, y) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        place = folder / "digits" / str(y)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9375).astype(np.uint8)).save(place / f"{number:04}.png")
    for name, pixels in zip(("temple", "flower"), sklearn.datasets.load_sample_images().images, strict=True):
        place = folder / "photographs" / name
        place.mkdir(parents=True)
        for top in range(0, len(pixels) - SQUARE + 1, SQUARE):
            for left in range(0, pixels.shape[1] - SQUARE + 1, SQUARE):
                square = pixels[top : top + SQUARE, left : left + SQUARE]
                Image.fromarray(square).save(place / f"{top:03}-{left:03}.jpg", quality=95)
    return [*paths, folder / "digits", folder / "photographs"]


def trained(path: Path, kind: Any, options: argparse.Namespace, folder: Path) -> list[Result]:
    """The results of a rule, by seed."""
    task = data.load(str(path)).task
    recipe = Recipe(
        name=path.stem, dataset=str(path), model=MLP(widths=(WIDTH,)), rule=kind(loss=from_name("cross_entropy")),
        optimizer=Optimizer(name="adam", learning_rate=3e-3, weight_decay=1e-4, cosine=True), batch_size=BATCH_SIZE,
        epochs=options.epochs, align=False,
    ).for_task(task)  # fmt: skip
    run = training.create(folder / f"{path.stem}-{kind.__name__}", recipe, tuple(range(options.seeds)))
    training.train(run)
    return run.results()


def by_scikit_learn(path: Path, seed: int) -> Result:
    """The result of scikit-learn's MLP on the seed's training part."""
    splits = data.load(str(path), seed=seed)
    (x, y), (x_test, y_test) = (
        [each.flatten(1).numpy() if each.dim() > 1 else each.numpy() for each in part.batch(torch.arange(len(part)))]
        for part in (splits.train, splits.test)
    )
    is_classes = splits.task.kind == "classification"
    model = (MLPClassifier if is_classes else MLPRegressor)(hidden_layer_sizes=(WIDTH,), max_iter=1000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged, where it has not
        model.fit(x, y if is_classes else y[:, 0])
    score = float(model.score(x_test, y_test if is_classes else y_test[:, 0]))
    named = {"test_accuracy": score} if is_classes else {"test_r2": score}
    return Result(seed=seed, test_loss=None, num_test=len(splits.test), best_epoch=0, epochs=model.n_iter_, stopped="", **named)  # type: ignore[arg-type]


def row(path: Path, results: dict[str, list[Result]]) -> dict[str, Any]:
    """A line of the table as plain values."""
    splits = data.load(str(path))
    of_dp = differences.difference(results["DP"], results["BP"])
    others = {name: differences.difference(results[name], results["scikit-learn"]) for name in RULES}
    return {
        "data": path.name,
        "task": str(splits.task)[:60],
        "examples": [len(splits.train), len(splits.validation), len(splits.test)],
        "score": results["BP"][0].headline,
        "scores": {name: [100 * each.score for each in of_seeds] for name, of_seeds in results.items()},
        "DP - BP": plain(of_dp),
        "BP - scikit-learn": plain(others["BP"]),
        "DP - scikit-learn": plain(others["DP"]),
    }


def plain(difference: differences.Difference | None) -> list[float] | None:
    """Points and chance."""
    return None if difference is None else [round(difference.points, 2), round(difference.chance, 2)]


def line(row: dict[str, Any]) -> str:
    """It in Markdown."""
    scores = [f"{mean(values):.1f} ± {stdev(values):.1f}" for values in row["scores"].values()]
    apart = [f"{points:+.1f} ± {chance:.1f}" for points, chance in (row["DP - BP"], row["DP - scikit-learn"])]
    parts = " + ".join(map(str, row["examples"]))
    return f"| {row['data']} | {parts} | {row['score']} | {' | '.join([*scores, *apart])} |"


if __name__ == "__main__":
    main()
