"""Experiments: a recipe trained in a new folder, or by several rules in one, with their figures.

    bench.train("mnist-mlp", seeds=1)                     what `dualprop train` does
    bench.compare("mnist-mlp", variants="published")      what `dualprop compare` does

A comparison also measures what a step of each rule costs, see `bench.rows`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dualprop import recipes as recipe_table
from dualprop import rules as rule_table
from dualprop.analysis import reports
from dualprop.analysis.keywords import by_keyword
from dualprop.analysis.reports import Report
from dualprop.bench import rows
from dualprop.data import Splits, own, title
from dualprop.errors import DualpropError, RunError, SettingError
from dualprop.loggers import names as loggers
from dualprop.loggers.base import AbstractLogger
from dualprop.loggers.reporting import Logs
from dualprop.recipes import variants
from dualprop.settings import NumSeeds
from dualprop.training import Reporter, comparisons, environment, files, folders, runs
from dualprop.training.comparisons import Comparison
from dualprop.training.recipe import Recipe
from dualprop.training.runs import Run

# The recipe that is taken where none is named.
DEFAULT_RECIPE = "digits-mlp"
# Names with commas between, or several names and loggers.
Logging = str | AbstractLogger | Sequence[str | AbstractLogger]


@dataclass(frozen=True)
class TrainOptions:
    """Train a recipe: dualprop train [RECIPE] [--rule NAME] [--model NAME|path.py:build] [options].

    Attributes:
        recipe: a recipe, or the name of one.
        out: the new run folder; by default one in runs/ named after recipe and time.
        resume: continue this run folder where it stopped; no other option but --data and
            --allow-changed goes with it.
        allow_changed: resume although data, code or machine changed, so that the end can't be the
            uninterrupted run's; results say so.
        data: folder of the data sets; by default $DUALPROP_DATA, then the download cache.
        seeds: how many seeds to train in turn; by default all of the recipe's.
        budget: the recipe's short form: fewer epochs (--budget-epochs), warm-up and cosine
            compressed with them.
        twin: train the back-propagation twin beside it, from the same seeds.
        log: names with commas between of what logs the metrics: tensorboard, wandb, mlflow, csv; in
            Python loggers of one's own too. A resume logs on.
    """

    recipe: Recipe | str = field(default=DEFAULT_RECIPE, metadata={"flat": True})
    out: Path | None = None
    resume: Path | None = None
    allow_changed: bool = False
    data: Path | None = None
    seeds: NumSeeds | None = None
    budget: bool = False
    twin: bool = False
    log: Logging = ""


@dataclass(frozen=True)
class CompareOptions:
    """Compare rules on a recipe: dualprop compare [RECIPE] [--rules NAME,NAME | --variants
    NAME,NAME] [--model NAME|path.py:build] [--seeds N] [options].

    Options --rule.… are the recipe's own rule's; other rules run at their defaults with the same
    loss, and variants change of them what defines the variant.

    Attributes:
        recipe: a recipe, or the name of one.
        rules: names with commas between; by default back-propagation and the recipe's own rule.
        variants: names with commas between (`dualprop list variants`), "all", those that the recipe
            has "published" figures of, or its "grid" of α and β; in place of rules.
        budget: the recipe's short form: fewer epochs (--budget-epochs), warm-up and cosine
            compressed with them.
        seeds: how many seeds; by default all of the recipe's.
        out: the new folder; by default one in runs/ named after recipe and time.
        resume: continue this comparison where it stopped; no other option but --data, --no-costs
            and --allow-changed goes with it.
        allow_changed: resume although data, code or machine changed, so that the end can't be the
            uninterrupted run's; results say so.
        data: folder of the data sets; by default $DUALPROP_DATA, then the download cache.
        costs: measure time and memory per step after training.
        settings: of single rules or variants, by label: {"dp": {"beta": 0.1}}, on the command line
            --dp.beta 0.1.
        log: names with commas between of what logs the metrics: tensorboard, wandb, mlflow, csv; in
            Python loggers of one's own too. A resume logs on.
    """

    recipe: Recipe | str = field(default=DEFAULT_RECIPE, metadata={"flat": True})
    rules: str = ""
    variants: str = ""
    budget: bool = False
    seeds: NumSeeds | None = None
    out: Path | None = None
    resume: Path | None = None
    allow_changed: bool = False
    data: Path | None = None
    costs: bool = True
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    log: Logging = ""


class Watch:
    """What is told while recipes are trained. This one is silent; the command line's prints."""

    def read(self, recipe: Recipe, splits: Splits) -> None:
        """The data of a recipe, before anything else."""

    def started(self, folder: Path, recipes: dict[str, Recipe], is_comparison: bool, num_seeds: int) -> None: ...
    def measuring_costs(self) -> None: ...

    def logging(self, lines: list[str]) -> None:
        """Where metrics are logged, a line each."""

    def training(self, label: str, recipe: Recipe) -> AbstractContextManager[Reporter]:
        """What is told while this recipe is trained."""
        return contextlib.nullcontext(Reporter())


@by_keyword(TrainOptions)
def train(options: TrainOptions) -> Report:
    """Train a recipe in a new folder, and draw its figures.

    The arguments are the fields of `TrainOptions`. Data and device are tried first, so that a
    mistake leaves no folder behind. With `twin` the folder is a comparison's. Raises DataError,
    RunError, SettingError or UnsupportedModuleError, with the remedy.
    """
    return run_training(options)


@by_keyword(CompareOptions)
def compare(options: CompareOptions) -> Report:
    """Train several rules on one recipe from the same seeds, measure their costs, draw figures.

    The arguments are the fields of `CompareOptions`. Data and device are tried first, so that a
    mistake leaves no folder behind. Raises DataError, RunError, SettingError or
    UnsupportedModuleError, with the remedy.
    """
    return run_comparison(options)


def run_training(options: TrainOptions, watch: Watch | None = None) -> Report:
    """What `train` does by options that are there already, and told to `watch`."""
    if options.resume is not None:
        return resume(_resumed(options, options.resume), options.data, watch, options.allow_changed, log=options.log)
    recipe = _started(options)
    recipe = recipe.compressed() if options.budget else recipe
    names = [recipe.rule_name]
    if options.twin:
        if recipe.rule_name == "backprop":
            raise SettingError("--twin adds the back-propagation twin, and this rule is back-propagation already.")
        names.append("backprop")
    recipes = {name: recipe.with_rule(name) for name in names}
    seeds = recipe.seeds(options.seeds)
    return start(recipes, seeds, options.out, options.data, watch, is_comparison=options.twin, log=options.log)


def run_comparison(options: CompareOptions, watch: Watch | None = None) -> Report:
    """What `compare` does by options that are there already, and told to `watch`."""
    if options.resume is not None:
        how = {"measures_costs": options.costs, "allow_changed": options.allow_changed}
        return resume(_resumed(options, options.resume, "costs"), options.data, watch, **how, log=options.log)
    recipe, recipes = _started(options), compared(options)
    for label, settings in options.settings.items():
        if label not in recipes:
            raise SettingError(f"settings names '{label}', which is not compared. There are {', '.join(recipes)}.")
        recipes[label] = recipes[label].with_settings(settings)
    if options.budget:
        recipes = {label: each.compressed() for label, each in recipes.items()}
    if options.settings or not _is_published(recipe):
        recipes = {label: dataclasses.replace(each, published=()) for label, each in recipes.items()}
    seeds = recipe.seeds(options.seeds)
    return start(recipes, seeds, options.out, options.data, watch, measures_costs=options.costs, log=options.log)


def compared(options: CompareOptions) -> dict[str, Recipe]:
    """The recipes that are compared by label, before settings of single ones."""
    recipe = _started(options)
    return _by_variants(options, recipe) if options.variants else _by_rules(options, recipe)


def start(
    recipes: dict[str, Recipe],
    seeds: tuple[int, ...],
    out: Path | None = None,
    data: Path | None = None,
    watch: Watch | None = None,
    *,
    is_comparison: bool = True,
    measures_costs: bool = True,
    log: Logging = "",
) -> Report:
    """Create the folder, then train the labelled recipes. No comparison is of the first alone.

    Logs, data and device are tried first, so that a mistake leaves no folder behind.
    """
    logs = Logs(log, is_comparison)
    recipe = next(iter(recipes.values()))
    runs.prepare(recipe)
    splits = runs.load_data(recipe, seeds[0], data)
    watch = watch or Watch()
    watch.read(recipe, splits)
    recipes = {label: each.for_task(splits.task) for label, each in recipes.items()}
    recipes = {label: runs.chosen(each, splits, seeds[0]) for label, each in recipes.items()}
    for each in recipes.values():
        runs.check_fit(each, splits)
        runs.check_start(each, splits, seeds)
    folder = out or _new_folder(recipe.name)
    # Held from before its first file until its last: who comes second is told so.
    with folders.claimed(folder):
        if not is_comparison:
            return _train_run(runs.create(folder, next(iter(recipes.values())), seeds), logs, data, watch)
        return _train_comparison(comparisons.create(folder, recipes, seeds, measures_costs), logs, data, watch)


def resume(
    folder: Path,
    data: Path | None = None,
    watch: Watch | None = None,
    allow_changed: bool = False,
    *,
    measures_costs: bool = True,
    epochs: int | None = None,
    log: Logging = "",
) -> Report:
    """Continue a run or a comparison where it stopped, or over more `epochs` than it was begun for.

    It is logged as it was begun, and by `log` too. Costs are measured where the comparison has them
    and they are not declined this time. Raises RunError where there is none, or where it would not
    end as it was begun and that is not allowed, see `training.conditions`.
    """
    is_comparison = comparisons.is_comparison(folder)
    logs = Logs(loggers.beside(folder, log), is_comparison)
    if is_comparison:
        comparison = comparisons.load(folder)
        measures_costs = measures_costs and comparison.measures_costs
        with folders.held(folder):
            comparison = comparison if epochs is None else comparisons.extended(comparison, epochs)
            comparison = dataclasses.replace(comparison, measures_costs=measures_costs)
            return _train_comparison(comparison, logs, data, watch or Watch(), allow_changed)
    run = runs.load(folder)
    if epochs is not None and comparisons.is_comparison(folder.absolute().parent):
        parent = folder.parent
        raise RunError(f"{folder} is one of several that are compared. Extend them all: compare --resume {parent} --epochs …")
    with folders.held(folder):
        run = run if epochs is None else runs.extended(run, epochs)
        return _train_run(run, logs, data, watch or Watch(), allow_changed)


def _resumed(options: TrainOptions | CompareOptions, folder: Path, *beside: str) -> Path:
    """The folder to resume. Raises SettingError for an option that says otherwise."""
    for each in fields(options):
        if each.name not in ("resume", "data", "allow_changed", "log", *beside) and getattr(options, each.name) != each.default:
            raise SettingError(f"resume keeps the recipe and the options of its folder. Leave out {each.name}, or start anew.")
    return folder


def _started(options: TrainOptions | CompareOptions) -> Recipe:
    """The recipe of what begins anew. Raises SettingError for an option of a resume."""
    if options.allow_changed:
        raise SettingError("allow_changed has no meaning without resume. Leave it out.")
    return _resolved(options.recipe)


def _resolved(recipe: Recipe | str) -> Recipe:
    """The recipe. A path of own data is made absolute, so that a run resumes from any folder, and a
    recipe of other data than it was made for is named after the data, and publishes nothing."""
    recipe = recipe_table.from_name(recipe) if isinstance(recipe, str) else recipe
    if own.is_path(recipe.dataset):
        recipe = dataclasses.replace(recipe, dataset=str(Path(recipe.dataset).expanduser().resolve()))
    if recipe.start_from:
        recipe = recipe.starting_from(str(Path(recipe.start_from).expanduser().resolve()))
    original = recipe_table.RECIPES.get(recipe.name)
    if original is None or (original().dataset, type(original().model)) == (recipe.dataset, type(recipe.model)):
        return recipe
    # What a folder can be named after.
    words = re.findall(r"[A-Za-z0-9._-]+", title(recipe.dataset))
    name = "-".join([*words, *re.findall(r"[A-Za-z0-9._-]+", recipe.model_title)]).lstrip("._-")
    return dataclasses.replace(recipe, name=name, cites="", published=())


def started_from(folder: Path) -> Recipe:
    """The recipe of the run in that folder, or of the run that this seed's folder is of, starting
    from its weights. Raises RunError where it is neither."""
    is_seed = not files.exists(folder / "recipe.json") and files.exists(folder / "best.safetensors")
    return runs.load(folder.parent if is_seed else folder).recipe.starting_from(str(folder))


def _is_published(recipe: Recipe) -> bool:
    """Whether its published figures belong to it: it may differ in seeds, epochs and the like."""
    original = recipe_table.from_name(recipe.name) if recipe.name in recipe_table.RECIPES else None
    defining = ("dataset", "model", "feedback", "rule", "optimizer", "batch_size", "updates_per_batch", "validation_fraction")
    return original is not None and all(getattr(recipe, name) == getattr(original, name) for name in defining)


def _by_variants(options: CompareOptions, recipe: Recipe) -> dict[str, Recipe]:
    if options.rules:
        raise SettingError("--rules and --variants exclude each other. Give one of them.")
    return {name: variants.named(name).apply(recipe) for name in variants.parse(options.variants, recipe)}


def _by_rules(options: CompareOptions, recipe: Recipe) -> dict[str, Recipe]:
    names = options.rules.split(",") if options.rules else ["backprop", recipe.rule_name]
    for name in names:
        rule_table.from_name(name)
    if len(set(names)) != len(names):
        raise SettingError(f"--rules names a rule twice: {options.rules}. Name each once.")
    return {name: recipe.with_rule(name) for name in names}


def _train_run(run: Run, logs: Logs, data: Path | None, watch: Watch, allow_changed: bool = False) -> Report:
    label = run.recipe.rule_name
    watch.started(run.folder, {label: run.recipe}, is_comparison=False, num_seeds=len(run.seeds))
    watch.logging(logs.lines(run.folder))
    with watch.training(label, run.recipe) as shown, logs.of(run, label, run.folder, shown) as reporter:
        runs.train(run, data, reporter, allow_changed=allow_changed)
    return reports.drawn(run.folder, {label: run})


def _train_comparison(
    comparison: Comparison, logs: Logs, data: Path | None, watch: Watch, allow_changed: bool = False
) -> Report:
    folders.remove_leftovers(comparison.folder)
    watch.started(comparison.folder, comparison.recipes, is_comparison=True, num_seeds=len(comparison.seeds))
    watch.logging(logs.lines(comparison.folder))
    by_label: dict[str, Run] = {}
    for label, recipe in comparison.recipes.items():
        run = comparison.begun(label) or runs.create(comparison.folder / label, recipe, comparison.seeds)
        run = runs.extended(run, recipe.epochs)
        with watch.training(label, run.recipe) as shown, logs.of(run, label, comparison.folder, shown) as reporter:
            runs.train(run, data, reporter, allow_changed=allow_changed, beside=list(by_label.values()))
        by_label[label] = run
    first = next(iter(comparison.recipes.values()))
    if comparison.measures_costs and not files.exists(comparison.costs_path):
        # Pictures first: measuring takes as long as a small training.
        reports.drawn(comparison.folder, by_label)
        watch.measuring_costs()
        splits = runs.load_data(first, comparison.seeds[0], data)
        try:
            measured = rows.costs(comparison.recipes, splits.input_shape, splits.num_classes)
        except DualpropError as error:
            remedy = f"All are trained: finish without costs by `dualprop compare --resume {comparison.folder} --no-costs`."
            raise DualpropError(f"{error} {remedy}") from error
        files.write_json(comparison.costs_path, measured)
    costs = comparison.costs()
    results = {"environment": environment.describe(first.device), **Report(by_label, costs, []).results}
    files.write_json(comparison.folder / "results.json", results)
    return reports.drawn(comparison.folder, by_label, costs)


def _new_folder(recipe_name: str) -> Path:
    """One that was not there, made so that nobody else takes its name."""
    stem = f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return folders.make_new(Path("runs"), stem)
