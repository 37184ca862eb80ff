"""What the command line does, called from Python: the same defaults, the same results
(docs/python.md)."""

import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from dualprop import analysis, bench, recipes, reproduction, trained
from dualprop.analysis import evidence, reports, showing
from dualprop.bench import ceilings, experiments, loader, models, runtime, tables
from dualprop.cli import compare, evaluate, export, main, predict, reproduce, show, train
from dualprop.cli import tables as shown_tables
from dualprop.errors import SettingError
from dualprop.models import MLP, VGG, ConvNet
from dualprop.reproduction import running
from dualprop.trained import evaluating, exporting, predicting

PAGE = (Path(__file__).parents[2] / "docs/python.md").read_text()
PAIRS = re.findall(r"^\| `(dualprop .*?)` \| `(.*?)` \|$", PAGE, re.MULTILINE)
# Call, the dataclass of its keywords, and the dataclass that the command reads its options into.
OPTIONS = {
    "train": (bench.train, bench.TrainOptions, train.TrainOptions),
    "compare": (bench.compare, bench.CompareOptions, compare.CompareOptions),
    "bench": (bench.measure, bench.BenchOptions, bench.BenchOptions),
    "reproduce": (reproduction.reproduce, reproduction.ReproduceOptions, reproduce.ReproduceOptions),
    "check": (analysis.check, analysis.CheckOptions, analysis.CheckOptions),
    "show": (analysis.show, analysis.ShowOptions, analysis.ShowOptions),
    "predict": (trained.predict, predicting.PredictOptions, predict.PredictOptions),
    "evaluate": (trained.evaluate, evaluating.EvaluateOptions, evaluate.EvaluateOptions),
    "export": (trained.export, exporting.ExportOptions, export.ExportOptions),
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Networks, matrices and images of a few units under the benchmark's names."""
    tiny = {
        "mlp": models.Subject(MLP(widths=(8, 8)), (12,)),
        "conv": models.Subject(ConvNet(channels=(4, 4)), (3, 8, 8)),
        "conv-stride": models.Subject(ConvNet(channels=(4, 4), pool="stride"), (3, 8, 8)),
    }
    monkeypatch.setattr(models, "MODELS", tiny)
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (16,), "cuda": (16,)})
    monkeypatch.setattr(loader, "SHAPE", (3, 8, 8))
    monkeypatch.setattr(runtime, "SHAPE", (3, 8, 8))
    pc = recipes.from_name("cifar10-vgg5-pc")
    assert isinstance(pc.model, VGG)
    model = dataclasses.replace(pc.model, channels=(4,) * len(pc.model.channels), pooled=(2, 3))
    monkeypatch.setitem(recipes.RECIPES, "cifar10-vgg5-pc", lambda: dataclasses.replace(pc, model=model))


@pytest.mark.parametrize("command", OPTIONS)
def test_a_call_has_the_defaults_of_the_command(command):
    """Two lists of defaults drift apart, and a table made from Python is then another."""
    call, by_keyword, by_option = OPTIONS[command]
    empty = inspect.Parameter.empty
    defaults = {name: each.default for name, each in inspect.signature(call).parameters.items()}
    defaults = {name: dataclasses.MISSING if default is empty else default for name, default in defaults.items()}
    made = {each.name for each in dataclasses.fields(by_keyword) if each.default_factory is not dataclasses.MISSING}
    defaults = {name: default for name, default in defaults.items() if name not in made}
    assert defaults == {each.name: each.default for each in dataclasses.fields(by_keyword) if each.name not in made}
    parsed = {each.name: each.default for each in dataclasses.fields(by_option) if each.name not in {"recipe", *made}}
    assert parsed.items() <= defaults.items()


@pytest.mark.parametrize(("command", "call"), PAIRS, ids=lambda text: text)
def test_each_command_of_the_page_is_the_call_beside_it(command, call, monkeypatch, capsys):
    """A row that is copied must do what the other column does."""
    asked = []

    def recorder(name):
        def record(options, *_):
            resolved = dataclasses.asdict(options) if dataclasses.is_dataclass(options) else {"folder": options}
            if isinstance(resolved.get("recipe"), str):
                resolved["recipe"] = dataclasses.asdict(recipes.from_name(resolved["recipe"]))
            asked.append((name, {key: value for key, value in resolved.items() if key != "resume"}))
            return predicting.Predicted([], []) if name == "run_prediction" else evidence.Check([], None, [("", [])])

        return record

    for name in ("show_report", "show_trained", "show_beside"):
        monkeypatch.setattr(shown_tables, name, lambda *_: None)
    for module in (reproduce, predict, evaluate, export):
        monkeypatch.setattr(module, "show", lambda *_: None)
    monkeypatch.setattr(show, "lines", lambda _: ())
    asking = ((tables, "run"), (running, "run"), (evidence, "run_check"), (analysis, "report"), (reports, "report"),
              (analysis, "beside"), (reports, "beside"), (predicting, "run_prediction"), (evaluating, "run_evaluation"),
              (exporting, "run_export"), (showing, "run_show"))  # fmt: skip
    for module, name in asking:
        monkeypatch.setattr(module, name, recorder(name))
    resume = recorder("resume")
    monkeypatch.setattr(experiments, "resume", lambda folder, *_, **__: resume(folder))
    start = recorder("start")
    monkeypatch.setattr(
        experiments,
        "start",
        lambda made, *given, **more: start(
            {label: each.to_plain() for label, each in made.items()} | more | {"given": given[:3]}
        ),
    )
    _, *words = shlex.split(command)
    main(words)
    eval(call, {"analysis": analysis, "bench": bench, "reproduction": reproduction, "trained": trained, "Path": Path})
    by_command, by_call = asked
    assert by_command == by_call


def test_every_command_and_table_stands_on_the_page():
    """What is not shown does not exist for a user."""
    commands = {command.split()[1] for command, _ in PAIRS}
    assert commands == {"train", "compare", "bench", "reproduce", "report", "check", "show", "predict", "evaluate", "export"}
    assert all(f"table={name}" in PAGE.replace('"', "") for name in tables.TABLES if name != "steps")


def test_the_lines_of_the_page_run(folder, capsys):
    """The first thing that is copied must not fail."""
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), {})


def short_recipe():
    return dataclasses.replace(recipes.from_name("digits-mlp"), epochs=1, batch_size=64, num_threads=1)


def content(folder):
    """What training wrote, but for times and what it ran on."""
    names = ("metrics.jsonl", "result.json", "recipe.json", "best.safetensors")
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.name in names} | {
        path.relative_to(folder): b"" for path in folder.rglob("*.png")
    }


def test_training_and_comparing_give_what_the_commands_give(dualprop, folder, short, capsys):
    """Weights and metrics bit for bit, the same files and figures; and a call prints nothing."""
    assert dualprop("train", *short, "--seeds", "1", "--out", "by-command").code == 0
    report = bench.train(short_recipe(), seeds=1, out=folder / "by-call")
    assert capsys.readouterr().out == ""
    assert content(folder / "by-call") == content(folder / "by-command")
    assert [path.name for path in report.figures] == ["training_curves.png", "angle_to_backprop.png"]
    assert list(report.runs) == ["dual_propagation"]
    again = bench.train(resume=folder / "by-call")
    assert again.results == report.results == analysis.report(folder / "by-command").results

    words = ("--seeds", "1", "--no-costs", "--rules", "backprop,dual_propagation")
    assert dualprop("compare", *short, *words, "--out", "both-by-command").code == 0
    report = bench.compare(short_recipe(), rules="backprop,dual_propagation", seeds=1, costs=False, out=folder / "both-by-call")
    assert content(folder / "both-by-call") == content(folder / "both-by-command")
    written = json.loads((folder / "both-by-command/results.json").read_text())
    del written["environment"]
    assert report.results == written == analysis.report(folder / "both-by-command").results


@pytest.mark.parametrize("options", [{"seeds": 2}, {"recipe": "mnist-mlp"}, {"out": Path("other")}])
def test_resuming_by_a_call_keeps_the_options_of_its_folder(options):
    """Ignored, the user would believe that they were used."""
    with pytest.raises(SettingError, match="resume keeps the recipe and the options of its folder"):
        bench.train(resume=Path("run"), **options)


WORDS = {
    "steps": {"models": "mlp", "rules": "bp,dp", "memory": False},
    "settling": {"models": "mlp", "alphas": "0"},
    "relaxations": {"models": "mlp", "betas": "0.05"},
    "loader": {"models": "conv"},
    "runtime": {"rules": "pc", "memory": False},
}


def shape(value):
    """The value without its measured numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shape(inner) for inner in value]
    return None if isinstance(value, float) else value


@pytest.mark.parametrize("table", WORDS)
def test_a_table_by_a_call_is_that_of_the_command(table, dualprop, folder, capsys):
    """The same rows and counts, the same file; and what is shown of it is what the command
    shows."""
    keywords = {"table": table, "rounds": 2, "batch_size": 4, "threads": 1, **WORDS[table]}
    words = [f"--no-{name}" if value is False else f"--{name.replace('_', '-')}={value}" for name, value in keywords.items()]
    answer = dualprop("bench", *words, "--out", "by-command.json")
    assert (answer.code, answer.err) == (0, "")
    results = bench.measure(**keywords, out=folder / "by-call.json")
    assert capsys.readouterr().out == ""
    by_command, by_call = (json.loads((folder / f"by-{how}.json").read_text()) for how in ("command", "call"))
    assert shape(by_call["groups"]) == shape(by_command["groups"]) == shape(json.loads(json.dumps(results["groups"])))
    assert by_call["options"] == by_command["options"]
    assert (folder / "by-call.png").exists() == (folder / "by-command.png").exists()
    bench.show(by_command)
    shown = answer.out.splitlines()[2:]
    written = [line for line in shown if line.startswith("wrote ")]
    assert written == [f"wrote by-command.{kind}" for kind in ("json", "png") if (folder / f"by-command.{kind}").exists()]
    assert capsys.readouterr().out.splitlines()[2:] == [line for line in shown if line not in written]


def test_the_evidence_by_a_call_is_that_of_the_command(dualprop):
    """A check that gathers less proves less."""
    check = analysis.check(seed=1)
    assert not check.failed
    answer = dualprop("check", "--seed", "1")
    assert f"{len(check.evidence)} passed, 0 failed" in answer.out
    for item in check.evidence:
        assert f"{item.claim}: {item.measured:.1e} (bound {item.bound:.0e})" in answer.out
