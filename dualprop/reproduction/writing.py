"""What came out: results.json, the same as tables in Markdown, and pictures.

A row is a figure: ours beside the published one, the verdict on the two, and the difference to the
back-propagation twin of the same seeds. All of it is computed from the run folders, each time anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dualprop.analysis import differences, plots
from dualprop.analysis.differences import Published
from dualprop.reproduction import failing, selftest
from dualprop.reproduction.failing import Failure
from dualprop.reproduction.items import Figure, Item
from dualprop.reproduction.jobs import Jobs
from dualprop.training import files
from dualprop.training.records import Result
from dualprop.training.runs import Run

PICTURES = "figures"
HEADINGS = ("test (%)", "seeds", "setting", "published", "verdict", "beside BP", "angle (°)")


def write(jobs: Jobs, failures: list[Failure]) -> dict[str, Any]:
    """Write results.json and results.md as they stand; returns the former."""
    results = {
        "environment": jobs.environment,
        "setting": jobs.setting.to_plain(),
        "items": {name: _item(jobs, item) for name, item in jobs.setting.table.items()},
        "failures": [{"label": each.label, "error": each.error} for each in failures],
    }
    files.write_json(jobs.folder / "results.json", results)
    files.write(jobs.folder / "results.md", ("\n".join(_markdown(results)) + "\n").encode())
    return results


def diverged(results: dict[str, Any]) -> bool:
    """Whether a run in the results did."""
    return any(row["stopped"] for item in results["items"].values() for row in item.get("rows", ()))


def _item(jobs: Jobs, item: Item) -> dict[str, Any]:
    about: dict[str, Any] = {"summary": item.summary}
    if item.task == "self-test":
        checks = selftest.read(jobs.folder / selftest.FILE)
        return about | {"checks": {each: check.to_plain() for each, check in checks.items()}}
    if item.task:
        return about | {"groups": jobs.runtime.groups()}
    rows = [row_of(jobs, item, figure) for figure in item.figures]
    done, wanted = sum(row["num_seeds"] for row in rows), sum(row["wanted"] for row in rows if row["wanted"])
    return about | {
        "sources": item.sources,
        "is_whole": all(row["is_whole"] for row in rows),
        "done": done,
        "wanted": wanted,
        "rows": rows,
    }


def row_of(jobs: Jobs, item: Item, figure: Figure) -> dict[str, Any]:
    """What came out for a figure, as plain values."""
    row: dict[str, Any] = {"recipe": figure.recipe, "variant": figure.variant}
    if not figure.is_there:
        nothing = {"num_seeds": 0, "wanted": 0, "is_whole": False, "stopped": [], "remarks": []}
        return row | nothing | {"missing": f"there is no recipe '{figure.recipe}' yet"}
    recipe, seeds, run = jobs.recipes[figure.label], jobs.setting.seeds_of(item, figure), jobs.begun(figure.label)
    results = _of(run, seeds)
    accuracies = [100 * result.score for result in results]
    of_views = [100 * each.test_accuracy_over_views for each in results if each.test_accuracy_over_views is not None]
    wanted = len(item.seeds(figure))
    row |= {
        "epochs": recipe.epochs,
        "dtype": recipe.dtype,
        "deviations": jobs.setting.deviations(figure),
        "seeds": [result.seed for result in results],
        "num_seeds": len(results),
        "wanted": wanted,
        "is_whole": len(results) >= wanted,
        "accuracies": accuracies,
        "mean": mean(accuracies) if accuracies else None,
        "std": stdev(accuracies) if len(accuracies) > 1 else None,
        "mean_over_views": mean(of_views) if of_views else None,
        "published": figure.published or None,
        "largest_angle": _largest_angle(run, seeds),
        "stopped": [f"seed {result.seed}: {result.stopped}" for result in results if result.stopped],
        "remarks": [f"seed {result.seed}: {remark}" for result in results for remark in result.remarks],
    }
    if figure.published:
        verdict = differences.to_published(results, Published.parse(figure.published, len(figure.made().seed_list)), wanted)
        row |= {"verdict": verdict.words, "points": verdict.points, "chance": verdict.chance, "told": str(verdict)}
    if figure.twin is not None:
        found = differences.difference(results, _of(jobs.begun(figure.twin.label), seeds))
        row["to_twin"] = None if found is None else {**asdict(found), "verdict": found.verdict}
    return row


def _of(run: Run | None, seeds: tuple[int, ...]) -> list[Result]:
    return [] if run is None else [result for result in run.results() if result.seed in seeds]


def _largest_angle(run: Run | None, seeds: tuple[int, ...]) -> float | None:
    """Degrees to back-propagation after the last epoch: the largest of a layer, mean over seeds."""
    largest = []
    for seed in seeds if run is not None else ():
        assert run is not None
        aligned = [epoch.alignment for epoch in run.metrics(seed) if epoch.alignment]
        angles = [math.nan if layer.angle is None else layer.angle for layer in (aligned[-1] if aligned else ())]
        largest += [max(angles)] if angles and not any(map(math.isnan, angles)) else []
    return mean(largest) if largest else None


def draw(jobs: Jobs, recipe: str) -> list[Path]:
    """The pictures of all runs of a recipe that have begun; returns their paths."""
    begun = []
    for label, figure in jobs.figures.items():
        run = jobs.begun(label) if figure.recipe == recipe else None
        if run is not None and any(run.metrics(seed) for seed in run.seeds):
            begun.append((figure.variant, run))
    files.make_folder(jobs.folder / PICTURES)
    return plots.draw(begun, jobs.folder / PICTURES / recipe) if begun else []


def _markdown(results: dict[str, Any]) -> Iterator[str]:
    about = results["environment"]
    where = about.get("accelerator") or f"{about['processor']}, {about['threads']} threads"
    yield f"# Reproduced: dualprop {about['dualprop']}, commit {about['commit']}, torch {about['torch']}, {where}"
    for name, item in results["items"].items():
        yield from ("", f"## {name}: {item['summary']}", "")
        if "checks" in item:
            yield from _of_checks(item["checks"])
        elif "groups" in item:
            yield from _of_runtime(item["groups"])
        else:
            yield from _of_rows(item)
    if results["failures"]:
        yield from ("", f"## Failed (tracebacks: {failing.FILE})", "")
        yield from (f"- {each['label']}: {each['error']}" for each in results["failures"])


def _of_rows(item: dict[str, Any]) -> Iterator[str]:
    yield f"| figure | {' | '.join(HEADINGS)} |"
    yield "|---" * (1 + len(HEADINGS)) + "|"
    for row in item["rows"]:
        yield f"| {' | '.join(cells(row))} |"
    yield ""
    if not item["is_whole"]:
        yield f"Not whole: {item['done']} of {item['wanted']} runs are done. A row with too few seeds says so."
    yield from (f"Published: {source}." for source in item["sources"])
    for row in item["rows"]:
        if row.get("told") and row["num_seeds"]:
            yield f"- {row['recipe']} {row['variant']} beside the published figure: {row['told']}."
        yield from (f"- {row['recipe']} {row['variant']}, {told}." for told in (*row["stopped"], *row["remarks"]))


def cells(row: dict[str, Any]) -> list[str]:
    """A row of a table: the figure, and what stands below HEADINGS."""
    name = f"{row['recipe']} {row['variant']}"
    if "missing" in row:
        return [name, "–", "0", row["missing"], "–", "–", "–", "–"]
    spread = f" ± {row['std']:.2f}" if row["std"] is not None else ""
    views = f" ({row['mean_over_views']:.2f} over views)" if row["mean_over_views"] is not None else ""
    accuracy = f"{row['mean']:.2f}{spread}{views}" if row["mean"] is not None else "–"
    setting = f"{row['epochs']} epoch{'s' if row['epochs'] > 1 else ''}, {row['dtype']}"
    other = f" (not the published setting: {', '.join(row['deviations'])})" if row["deviations"] else ""
    twin = row.get("to_twin")
    beside = (
        f"{twin['points']:+.2f} ± {twin['chance']:.2f}: {twin['verdict'].removesuffix(' back-propagation')}" if twin else "–"
    )
    angle = f"{row['largest_angle']:.1f}" if row["largest_angle"] is not None else "–"
    verdict = f"{row['verdict']}{other}" if "verdict" in row else "–"
    return [name, accuracy, f"{row['num_seeds']} of {row['wanted']}", setting, row["published"] or "–", verdict, beside, angle]


def _of_checks(checks: dict[str, Any]) -> Iterator[str]:
    held = [name for name, check in checks.items() if check["result"] == "holds"]
    yield f"{len(held)} checks in float64 hold, to {max((checks[name]['difference'] for name in held), default=0.0):.0e}."
    yield from (f"- {name} fails: {check['error']}." for name, check in checks.items() if check["result"] == "fails")
    for name, check in checks.items():
        if check.get("ratios"):
            told = ", ".join(f"{label} {ratio:.2f}" for label, ratio in check["ratios"].items())
            yield f"- {name}, by a plain loop's: {told}."


def _of_runtime(groups: list[dict[str, Any]]) -> Iterator[str]:
    yield "| network | method | s/epoch | published, other machines | ÷ BP |"
    yield "|---|---|---|---|---|"
    for group in groups:
        for row in group["rows"]:
            published = row.get("published")
            yield (
                f"| {group['model']} | {row['label']} | {row['seconds_per_epoch']:.3g} | "
                f"{'–' if published is None else published} | {row['ratio']:.2f} |"
            )
        yield from (
            f"| {group['model']} | {label} | can't run here: {why} | – | – |" for label, why in group["refused"].items()
        )
