"""Tables on the console: results of runs, with their cost per step beside back-propagation's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean, stdev

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table

from dualprop import recipes
from dualprop.analysis import differences, reports
from dualprop.analysis.reports import Report
from dualprop.bench.showing import new_table, say
from dualprop.bench.timing import PLAIN, PLAIN_AGAIN
from dualprop.cli import data_told
from dualprop.data import title as title_of
from dualprop.training.recipe import Recipe
from dualprop.training.records import WORDS, Cost, Result
from dualprop.training.runs import Run

# Scores that are shown beside the headline: how they are called, and what they are multiplied by.
BESIDE = {
    "balanced_accuracy": ("balanced (%)", 100.0),
    "mae": ("MAE", 1.0),
    "mean_average_precision": ("mAP (%)", 100.0),
}
# Settings that are shown where runs differ in many.
MOST_SETTINGS = 20
# The exit code of a command that has trained all, but of which a seed diverged or collapsed.
DIVERGED = 3


def show_report(report: Report, console: Console) -> None:
    """The table of its runs, and where its pictures lie."""
    show_runs(list(report.runs.items()), console, report.costs)
    for path in report.figures:
        say(console, f"picture: {path}")


def show_beside(report: Report, console: Console) -> None:
    """Runs that may have nothing in common: a row each, and in what their settings differ."""
    settings = reports.settings_that_differ(report.runs)
    datasets = {label: title_of(run.recipe.dataset) for label, run in report.runs.items()}
    are_alike = len(set(datasets.values())) == 1
    table = new_table(f"{len(report.runs)} runs" + (f" on {next(iter(datasets.values()))}" if are_alike else ""), None, [])
    # Words are broken where the console is narrow, and numbers never.
    for heading in ("run", "rule", *([] if are_alike else ["data"])):
        table.add_column(heading, overflow="fold")
    headlines = {result.headline for run in report.runs.values() for result in run.results()}
    numbers = {}
    for label, run in report.runs.items():
        results = run.results()
        accuracy = _over_seeds([result.score for result in results])
        numbers[label] = [str(len(run.seeds)), _epochs(results), accuracy, _worst_cosine(run)]
    for heading, cells in zip(("seeds", "epochs", "test (%)", "cosine"), zip(*numbers.values(), strict=True), strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=max(map(len, (heading, *cells))))
    for label, run in report.runs.items():
        table.add_row(label, run.recipe.rule_name, *([] if are_alike else [datasets[label]]), *numbers[label])
    console.print(table)
    if len({run.recipe.dataset for run in report.runs.values()}) > 1 or len(headlines) > 1:
        say(console, "not all are of the same data: their scores do not compare.", style="yellow")
    for name in list(next(iter(settings.values())))[:MOST_SETTINGS]:
        say(console, f"{name}: " + ", ".join(f"{label} {_cut(each[name])}" for label, each in settings.items()))
    for path in report.figures:
        say(console, f"picture: {path}")


def _cut(value: str) -> str:
    return value if len(value) <= 40 else f"{value[:39]}…"


def show_trained(report: Report, console: Console) -> None:
    """The report of what was trained just now. Exits with `DIVERGED` where a seed stopped early."""
    show_report(report, console)
    if any(result.stopped for run in report.runs.values() for result in run.results()):
        raise SystemExit(DIVERGED)


def show_runs(labelled: list[tuple[str, Run]], console: Console, costs: dict[str, Cost] | None = None) -> None:
    """One row per rule: scores over seeds, cost per step, and the last epoch's alignment."""
    results_of_all = [result for _, run in labelled for result in run.results()]
    title = f"{labelled[0][1].recipe.name}, {_seeds(labelled[0][1])}, {_counted(results_of_all)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAVY, pad_edge=False)
    table.add_column("rule", no_wrap=True)
    published = dict(labelled[0][1].recipe.published)
    is_published = any(name in published for name, _ in labelled)
    has_views = any(result.test_accuracy_over_views is not None for result in results_of_all)
    shown = [name for name in BESIDE if any(getattr(result, f"test_{name}") is not None for result in results_of_all)]
    if not any(result.imbalance for result in results_of_all):
        shown = [name for name in shown if name != "balanced_accuracy"]
    headline = next((result.headline for result in results_of_all), "accuracy")
    headings = [
        "test (%)" if headline == "accuracy" else f"test {WORDS[headline]} (%)",
        *(BESIDE[name][0] for name in shown),
        *(["over views"] if has_views else []),
        *(["published"] if is_published else []),
        *(["count/BP", "time/BP", "MB"] if costs is not None else []),
        "cosine",
    ]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, run in labelled:
        results = run.results()
        cells = [_over_seeds([result.score for result in results])]
        cells += [_over_seeds([getattr(result, f"test_{score}") for result in results], BESIDE[score][1]) for score in shown]
        cells += [_over_seeds([result.test_accuracy_over_views for result in results])] if has_views else []
        cells += [published.get(name, "–")] if is_published else []
        if costs is not None:
            cost = costs[name]
            assert cost.memory is not None  # `Comparison.costs` says so
            cells += [f"{cost.count_ratio:.2f}", f"{cost.ratio:.3f}", f"{cost.memory.peak:.0f}"]
        table.add_row(name, *cells, _worst_cosine(run))
    console.print(table)
    say(console, *_explanations(labelled))
    say(console, *_remarks(labelled), style="yellow")
    updates = {name: run.recipe.updates_per_batch for name, run in labelled}
    for name, difference in differences.to_twin({name: run.results() for name, run in labelled}).items():
        times = f", by {updates[name]} updates a batch" if updates[name] != updates.get("bp", updates.get("backprop")) else ""
        say(console, f"{name}: {difference}{times}.")
    if is_published:
        say(console, _say_published(labelled[0][1].recipe, results_of_all))
    if costs is not None:
        say(console, "count/BP: drives, feedbacks and gradients of a step, by those of a BP step (L, L-1 and L).")
        floor = costs[PLAIN_AGAIN]
        say(
            console,
            f"time/BP: against a plain PyTorch loop, which takes {costs[PLAIN].milliseconds:.2f} ms a step; the same "
            f"loop again in the same rounds has {floor.ratio:.3f} (quartiles {floor.lower_quartile:.3f} to "
            f"{floor.upper_quartile:.3f}): the noise.",
        )


def _explanations(labelled: list[tuple[str, Run]]) -> Iterator[str]:
    """What the columns mean, and of which rules something else is to be known."""
    yield "cosine: to back-propagation, of the gradients after the last epoch, in the layer where it is least."
    if settling := [name for name, run in labelled if run.recipe.rule.predicts_by_equilibrium]:
        yield f"{', '.join(settling)}: predictions are an equilibrium's, and the cosine is to the implicit gradient there."
    if any(result.imbalance for _, run in labelled for result in run.results()):
        yield "balanced (%): the mean over classes of the share of each that is right."
    choosing = [result for _, run in labelled if run.recipe.select == "best" for result in run.results()]
    if sizes := [(each.num_validation, each.headline) for each in choosing if each.num_validation is not None]:
        yield from data_told.too_few(*min(sizes))
    if any(result.test_accuracy_over_views is not None for _, run in labelled for result in run.results()):
        shown = sorted({run.recipe.views.replace("_", " ") for _, run in labelled if run.recipe.views != "none"})
        yield f"over views: logits averaged over {', '.join(shown)} of each test image; test (%) is of the image itself."
    yield from (f"{name}: {run.recipe.chosen} (auto)." for name, run in labelled if run.recipe.chosen)
    words = {name: run.recipe.rule.loss.name.replace("_", " ") for name, run in labelled}
    first = labelled[0][0]
    for name in (name for name in words if words[name] != words[first]):
        yield f"{name}: trained by {words[name]}, {first} by {words[first]}."
    for updates in sorted({run.recipe.updates_per_batch for _, run in labelled} - {1}):
        names = ", ".join(name for name, run in labelled if run.recipe.updates_per_batch == updates)
        yield f"{names}: {updates} updates of the weights a batch, and the cosine of what they add up to."


def _remarks(labelled: list[tuple[str, Run]]) -> Iterator[str]:
    """What is to be known of single results: which stopped early, went on under changed conditions,
    or learned at a loss off its scale."""
    for name, run in labelled:
        for result in run.results():
            stopped = [f"stopped early: {result.stopped}"] if result.stopped else []
            for remark in (*stopped, *result.remarks):
                yield f"{name}, seed {result.seed}: {remark}"


def _say_published(recipe: Recipe, results: list[Result]) -> str:
    """What the published figures are, and whether these runs were as long."""
    source = f"published: {recipe.cites}"
    longest = max((result.epochs for result in results), default=0)
    whole = recipes.from_name(recipe.name).epochs if recipe.name in recipes.RECIPES else recipe.epochs
    return f"{source}." if longest == whole else f"{source}; these runs are {longest} of {whole} epochs long: no comparison."


def _over_seeds(scores: Sequence[float | None], unit: float = 100) -> str:
    """Mean and sample standard deviation; of shares in percent."""
    values = [unit * score for score in scores if score is not None]
    digits = 2 if unit == 100 or not values or abs(mean(values)) >= 10 else 4
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}" if values else "–"


def _seeds(run: Run) -> str:
    return f"seed {run.seeds[0]}" if len(run.seeds) == 1 else f"seeds {', '.join(map(str, run.seeds))}"


def _counted(results: list[Result]) -> str:
    number = _epochs(results)
    return f"{number} epoch" if number == "1" else f"{number} epochs"


def _epochs(results: list[Result]) -> str:
    done = sorted({result.epochs for result in results})
    return "–" if not done else str(done[0]) if len(done) == 1 else f"{done[0]}–{done[-1]}"


def _worst_cosine(run: Run) -> str:
    """The least cosine over layers after the last epoch, averaged over seeds."""
    least = []
    for seed in run.seeds:
        aligned = [epoch.alignment for epoch in run.metrics(seed) if epoch.alignment]
        if aligned:
            cosines = [layer.cosine for layer in aligned[-1] if layer.cosine is not None]
            least += [min(cosines)] if cosines else []
    return f"{mean(least):.4f}" if least else "–"
