"""`dualprop bench` as a user runs it, on networks of a few units."""

import json

import pytest
import torch

from dualprop.bench import BenchOptions, ceilings, contenders, memory, models, options, settling, steps, timing
from dualprop.bench.contenders import Contender
from dualprop.cli import main
from dualprop.errors import SettingError
from dualprop.models import MLP, ConvNet
from dualprop.recipes.variants import VARIANTS

QUICK = ("--rounds", "2", "--batch-size", "4", "--no-memory")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Networks and matrices of a few units under the benchmark's names."""
    tiny = {
        "mlp": models.Subject(MLP(widths=(8, 8, 8)), (12,)),
        "conv": models.Subject(ConvNet(channels=(4, 4)), (3, 8, 8)),
        "conv-stride": models.Subject(ConvNet(channels=(4, 4), pool="stride"), (3, 8, 8)),
    }
    monkeypatch.setattr(models, "MODELS", tiny)
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (16,), "cuda": (16,)})


def measured(folder, *words):
    """The groups that the command wrote."""
    main(["bench", *words, "--out", str(folder / "bench.json")])
    return json.loads((folder / "bench.json").read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--models", "mpl"], "Did you mean 'mlp'"),
        (["--models", "mlp,mlp"], "names one twice"),
        (["--engines", "explizit"], "Did you mean 'explicit'"),
        (["--precisions", "bfloat"], "Did you mean 'bfloat16'"),
        (["--rules", "kpdp"], "Did you mean"),
        (["--alphas", "half"], "--alphas 0,0.5,1"),
        (["--alphas", "2"], "must be in [0, 1]"),
        (["--table", "step"], "Did you mean 'steps'"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--out", "no/such/folder/b.json"], "does not exist"),
        (["--figure", "no/such/folder/b.png"], "does not exist"),
        (["--figure", "b.pdf"], "b.png"),
        (["--out", "b.png"], "Use --figure b.png"),
        (["--table", "settling", "--figure", "b.png"], "has no figure"),
        (["--table", "loader", "--models", "mlp"], "Try --models conv"),
        (["--channels-last", "yes"], "channels_last"),
        (["--device", "nonsense"], "--device cpu"),
        (["--table", "settling", "--rules", "dp"], "table 'settling' does not read --rules"),
        (["--table", "relaxations", "--alphas", "0"], "table 'relaxations' does not read --alphas"),
        (["--table", "loader", "--seconds", "5"], "table 'loader' does not read --seconds"),
        (["--betas", "0.1"], "table 'steps' does not read --betas"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_is_measured(words, told, refused):
    """The remedy is in the line; a bench takes minutes."""
    assert told in refused("bench", *words)


def test_every_contender_is_measured_against_the_plain_loop(capsys, tmp_path):
    """A row for each with ratios to the loop and its speed, the ceilings, and the environment in
    the file."""
    written = measured(tmp_path, "--models", "mlp", "--engines", "explicit,dualized", *QUICK)
    shown = capsys.readouterr().out
    (group,) = written["groups"]
    rows = {row["label"]: row for row in group["rows"]}
    by_engines = [f"{rule} {engine}" for rule in ("DP α=½", "DP⊤ α=0") for engine in ("explicit", "dualized")]
    assert list(rows) == [timing.PLAIN, timing.PLAIN_AGAIN, "bp", *by_engines]
    assert rows[timing.PLAIN]["ratio"] == 1.0
    assert group["refused"] == {}
    assert written["environment"]["torch"] in shown
    assert str(tmp_path) not in json.dumps(written), "published numbers name a folder of this machine"
    assert {"instructions", "instruction_sets", "mkldnn"} <= written["environment"].keys()
    # Units of 12 and three times 8, four examples: 6 FLOPs a multiply-add, less the first layer's
    # input gradient.
    assert group["flops"] == 6 * 4 * (12 * 8 + 8 * 8 + 8 * 8 + 8 * 10) - 2 * 4 * 12 * 8
    for row in rows.values():
        assert row["lower_quartile"] <= row["ratio"] <= row["upper_quartile"]
        assert row["rounds"] == 2
        assert row["gflops"] == pytest.approx(group["flops"] / row["milliseconds"] / 1e6)
        assert row["of_model_ceiling"] == pytest.approx(row["gflops"] / group["ceilings"]["model"])
        assert row["of_matmul"] == pytest.approx(row["gflops"] / group["ceilings"]["matmul"])
    assert {each["rule"] for each in group["verdicts"]} == {"DP α=½", "DP⊤ α=0"}
    assert "best engine" in shown
    assert "★" in shown


def test_rules_are_measured_by_their_counted_operations_too(capsys, tmp_path):
    """The cost table: a variant whose settings were lost on the way would show the counts of
    another."""
    (group,) = measured(tmp_path, "--models", "mlp", "--rules", "all", *QUICK)["groups"]
    rows = {row["label"]: row for row in group["rows"]}
    assert list(rows) == [timing.PLAIN, timing.PLAIN_AGAIN, *VARIANTS]
    assert "count_ratio" not in rows[timing.PLAIN]
    counts = {name: tuple(rows[name][kind] for kind in contenders.COUNTS) for name in VARIANTS}
    # Four layers. One sweep: L drives, L-1 feedbacks, L gradients; two updates have two times L
    # gradients.
    for name in ("bp", "dp", "dp-transposed", "kp-dp", "fa-dp", "sign-dp"):
        assert counts[name] == (4, 3, 4), name
        assert rows[name]["count_ratio"] == 1.0
    # An up and a down sweep from earlier states: L drives for the prediction, of which the first is
    # shared, L-1 more on the way up; a feedback for each hidden layer on both ways.
    assert counts["l-dp"] == (7, 6, 4)
    assert counts["ms-dp"] == (4 + 7, 3 + 6, 8), "the first update of a batch starts from the forward pass"
    assert rows["ms-dp"]["count_ratio"] == pytest.approx((11 + 9 + 8) / 11)
    assert " 1.00 " in capsys.readouterr().out


def test_what_cannot_run_here_is_listed_with_the_reason(capsys, tmp_path):
    """A row that is missing without a word would read as one that was measured and forgotten."""
    words = ("--models", "mlp", "--rules", "dp,l-dp,lpom", "--engines", "explicit,dualized", "--precisions", "float32,tf32")
    plain, rounded = measured(tmp_path, *words, *QUICK)["groups"]
    assert [row["label"] for row in plain["rows"]][2:] == ["DP α=½ explicit", "DP α=½ dualized", "l-dp α=½ explicit", "lpom"]
    assert "engine='fused' needs" in plain["refused"]["l-dp α=½ dualized"]
    assert "rows" not in rounded
    assert "NVIDIA" in rounded["refused"]["everything in tf32"]
    shown = capsys.readouterr().out
    assert "can't run here: l-dp α=½ dualized: " in shown
    assert "can't run here: everything in tf32: " in shown


def test_a_compiler_that_fails_is_listed_and_the_others_are_measured(monkeypatch, tmp_path):
    """Inductor without a C++ compiler raises errors of its own."""
    take = Contender.step

    def failing(self, *arguments):
        if self.engine.endswith("compiled"):
            raise RuntimeError("no C++ compiler found\nand much more")
        return take(self, *arguments)

    monkeypatch.setattr(Contender, "step", failing)
    (group,) = measured(tmp_path, "--models", "mlp", "--engines", "explicit,compiled", *QUICK)["groups"]
    assert group["refused"]["DP α=½ explicit-compiled"] == "no C++ compiler found"
    assert "DP α=½ explicit" in [row["label"] for row in group["rows"]]


def test_alphas_and_engines_cross_every_rule_that_has_them(tmp_path):
    """Back-propagation has neither."""
    words = ("--models", "mlp", "--rules", "bp,dp-transposed", "--alphas", "0,1", "--engines", "explicit,dualized")
    (group,) = measured(tmp_path, *words, *QUICK, "--no-ceilings")["groups"]
    crossed = [f"DP⊤ α={alpha} {engine}" for alpha in "01" for engine in ("explicit", "dualized")]
    assert [row["label"] for row in group["rows"]][2:] == ["bp", *crossed]
    assert "ceilings" not in group


def test_an_engine_is_what_its_name_says():
    """A kernel or an engine that is lost on the way would be measured under the name of another."""
    from dualprop.recipes.variants import VARIANTS

    rules = {"dp": VARIANTS["dp"].apply}
    base = models.recipe("mlp", 4, "cpu", 1)
    for name, engine in contenders.ENGINES.items():
        if engine.is_captured or engine.kernel == "native":  # these need a device and a compiler
            continue
        ((entry,), refused) = contenders.contenders(base, rules, [0.25], [name])
        rule = entry.recipe.rule
        assert refused == {}
        assert (entry.label, entry.rule, entry.engine) == (f"DP α=0.25 {name}", "DP α=0.25", name)
        assert (entry.how == "dualized") == name.startswith("dualized")
        assert (rule.engine == "explicit") == name.startswith("explicit")
        assert entry.recipe.kernel == (name.split("-")[1] if name.endswith(("compiled", "eager")) else "auto")
        assert entry.recomputes_states == (name != "dualized-keeping")
        assert entry.recipe.capture == "off"
        assert entry.is_one_sweep
        assert Contender.from_plain(json.loads(json.dumps(entry.to_plain()))) == entry


def test_every_rules_step_is_captured_where_one_is(tmp_path):
    """Back-propagation's too, or DP's would be compared with one at a disadvantage."""
    words = ("--models", "mlp", "--rules", "bp,dp", "--engines", "explicit,captured", *QUICK)
    (group,) = measured(tmp_path, *words)["groups"]
    labels = {"bp captured", "DP α=½ explicit-captured", "DP α=½ fused-captured"}
    assert labels <= {row["label"] for row in group["rows"]}
    assert group["refused"] == {}


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch, tmp_path, capsys):
    """A bench of VGG16 takes long enough to be stopped."""
    fill = steps.fill

    def interrupted(group, plan, keep):
        if group["model"] == "conv":
            raise KeyboardInterrupt
        fill(group, plan, keep)

    monkeypatch.setattr(steps, "fill", interrupted)
    with pytest.raises(SystemExit) as stopped:
        measured(tmp_path, "--models", "mlp,conv", "--rules", "dp", *QUICK)
    assert stopped.value.code == 130
    (group,) = [group for group in json.loads((tmp_path / "bench.json").read_text())["groups"] if "rows" in group]
    assert group["model"] == "mlp"
    assert (tmp_path / "bench.png").is_file()


def test_the_figure_shows_every_contender(tmp_path, monkeypatch):
    """Time and memory of each row; one panel per model."""
    from dualprop.analysis import drawing

    kept = []
    monkeypatch.setattr(drawing, "save", lambda figure, path: kept.append(figure))
    words = ("--models", "mlp,conv", "--rules", "dp,dp-transposed", "--engines", "explicit,dualized", *QUICK)
    written = measured(tmp_path, *words)
    panels = kept[-1].axes
    assert len(panels) == 4
    for axes, group in zip(panels[::2], written["groups"], strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == [row["label"] for row in group["rows"]]
        assert group["model"] in axes.get_title(loc="left")


def test_settling_tells_that_passes_and_one_sweep_agree(capsys, tmp_path):
    """At α of 0 and 1 to rounding, at others not; and that passes cost no more, where without reuse
    they would."""
    groups = measured(tmp_path, "--table", "settling", "--models", "mlp,conv", "--alphas", "0,1,0.5", *QUICK)["groups"]
    found = {(group["model"], group["alpha"]): group for group in groups}
    assert len(found) == 6
    for (model, alpha), group in found.items():
        depth = {"mlp": 4, "conv": 3}[model]
        assert group["passes"] == depth
        assert group["without_reuse"] == pytest.approx((2 * depth + depth * (2 * depth - 1)) / (3 * depth - 1))
        if alpha in (0, 1):
            assert group["is_rounding"]
            assert group["sweep"] == group["by_passes"] == 1
        else:
            assert group["by_passes"] > group["sweep"]
    assert "rounding" in capsys.readouterr().out
    assert not (tmp_path / "bench.png").exists(), "this table has no figure"


def test_relaxations_are_measured_by_cost_and_by_gradient(capsys, tmp_path, monkeypatch):
    """Predictive coding against its most settled state and back-propagation, Hopfield against its
    implicit gradient."""
    from dualprop.bench import relaxations
    from dualprop.models import VGG

    small = VGG((4, 5), (1, 2), (), "hard_sigmoid", "before", init="uniform", gain=0.5)
    monkeypatch.setitem(models.MODELS, "hopfield", models.Subject(small, (3, 8, 8)))
    words = ("--table", "relaxations", "--models", "mlp,hopfield", "--betas", "0.05", *QUICK)
    groups = {group["model"]: group for group in measured(tmp_path, *words)["groups"]}
    assert {name: group["beta"] for name, group in groups.items()} == {"mlp": 0.05, "hopfield": 0.05}
    rows = {row["label"]: row for row in groups["mlp"]["rows"]}
    assert list(rows) == list(relaxations.PREDICTIVE)
    # L = 4: drives, feedbacks and gradients 4 + 2·3, 2·3, 2·4 of 11.
    assert rows["1 pair"]["work"] == pytest.approx(24 / 11)
    assert rows["1 pair, random sign"]["work"] == pytest.approx((7 + 3 + 4) / 11)
    assert rows["even/odd × 60"]["angle"] == pytest.approx(0.0, abs=1e-3)
    assert rows["even/odd × 60"]["timing"] is None
    assert rows["1 pair"]["timing"]["ratio"] > 0
    assert 0 < rows["1 pair"]["angle_to_exact"] < 10
    rows = {row["label"]: row for row in groups["hopfield"]["rows"]}
    assert rows["to 0.1"]["work"] < rows["to 0.001"]["work"] < rows["250 and 60"]["work"]
    assert rows["250 and 60"]["angle"] == rows["250 and 60"]["angle_to_exact"] < 5
    assert "equilibrium" not in capsys.readouterr().err


def test_relaxations_are_measured_at_the_weights_and_on_the_examples_of_a_run(tmp_path, capsys):
    """Initial weights on noise are not what training meets; the run itself is left as it is."""
    from dualprop.bench import relaxations
    from dualprop.training import runs

    words = ("train", "digits-mlp", "--rule", "equilibrium_propagation", "--epochs", "2", "--seeds", "1", "--num-threads", "1")
    main([*words, "--model.widths", "12", "10", "--out", str(tmp_path / "run")])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    seen = []
    compare = relaxations.compare
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(relaxations, "compare", lambda *given: seen.append(given) or compare(*given))
        words = ("--table", "relaxations", "--run", str(tmp_path / "run"), "--betas", "0.05", *QUICK)
        (group,) = measured(tmp_path, *words)["groups"]
    assert (group["model"], group["beta"]) == ("digits-mlp", 0.05)
    assert {row["label"] for row in group["rows"]} == set(relaxations.PREDICTIVE)
    ((base, _, is_hopfield, problem, _, _),) = seen
    assert not is_hopfield
    model, x, y = problem()
    run = runs.load(tmp_path / "run")
    splits = runs.load_data(run.recipe, run.seeds[0])
    assert len(x) == base.batch_size == 4
    assert {image.numpy().tobytes() for image in x} <= {
        image.numpy().tobytes() for image in splits.train.batch(torch.arange(len(splits.train)))[0]
    }
    with torch.no_grad():
        x, y = splits.test.batch(torch.arange(len(splits.test)))
        accuracy = float((model(x).argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(run.results()[0].test_accuracy, abs=1e-6)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--table", "steps", "--run", "x"), "table 'steps' does not read --run"),
        (("--table", "relaxations", "--run", "nowhere"), "holds no recipe.json"),
        (("--table", "relaxations", "--run", "x", "--models", "mlp"), "--run brings its own network"),
        (("--table", "relaxations", "--data", "x"), "--data is of the data set of --run"),
    ],
)
def test_a_run_that_is_not_there_or_not_read_is_told_in_one_line(words, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_a_run_that_was_published_without_its_weights_and_a_comparison_are_told_for_what_they_are(tmp_path, capsys):
    """To be told to remove a folder of results would be bad advice, and a comparison holds runs
    that can be named."""
    words = (
        "compare",
        "digits-mlp",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--num-threads",
        "1",
        "--no-costs",
        "--model.widths",
        "4",
    )
    main([*words, "--out", str(tmp_path / "both")])
    run = tmp_path / "both" / "backprop"
    for path in run.rglob("*.safetensors"):
        path.unlink()
    for folder, told in (
        (tmp_path / "both", f"Give one of its runs: {run}, {tmp_path / 'both' / 'dual_propagation'}."),
        (run, "there is no best.safetensors, which published results leave out. Give a run that has one."),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["bench", "--table", "relaxations", "--run", str(folder)])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize("betas", ["0.1,x", "0", "inf"])
def test_betas_that_are_none_are_refused(betas):
    with pytest.raises(SettingError, match="betas must be"):
        options.parse_betas(betas)


def test_the_loaders_batches_are_set_beside_a_step_of_a_model_that_reads_images(monkeypatch, tmp_path, capsys):
    """A loader beside a step of an MLP on 784 numbers would prove nothing."""
    from dualprop.bench import loader

    asked = []
    row = {"label": "normalised", "milliseconds": 1.0, "examples_per_second": 5000.0, "times_the_step": 20.0}
    monkeypatch.setattr(loader, "measure", lambda **given: asked.append(given) or [row])
    monkeypatch.setattr(loader, "SHAPE", (3, 8, 8))
    (group,) = measured(tmp_path, "--table", "loader", *QUICK)["groups"]
    assert (group["model"], group["rows"]) == ("conv", [row])
    assert (asked[0]["batch_size"], asked[0]["rounds"]) == (4, 2)
    asked[0]["step"]()
    assert "5,000" in capsys.readouterr().out


def test_differences_of_gradients_are_relative_to_the_largest_entry():
    """Against zeros, nothing but zeros is near."""
    one = torch.tensor([1.0, -4.0])
    assert settling.relative_difference(one + torch.tensor([0.0, 0.5]), one) == 0.125
    assert settling.relative_difference(torch.zeros(2), torch.zeros(2)) == 0
    assert settling.relative_difference(one, torch.zeros(2)) == float("inf")


def test_rounds_stop_when_the_time_is_over_but_not_before_five(monkeypatch):
    """A step of VGG16 takes a second, and a hundred rounds of twelve contenders twenty minutes."""
    clock = iter(range(10_000))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(clock)))
    both = {timing.PLAIN: lambda: None, "other": lambda: None}
    assert timing.interleaved(both, 100, seconds=0)["other"].rounds == timing.LEAST_ROUNDS
    assert timing.interleaved(both, 3, seconds=0)["other"].rounds == 3
    assert timing.LEAST_ROUNDS < timing.interleaved(both, 100, seconds=50)["other"].rounds < 20
    assert timing.interleaved(both, 7)["other"].rounds == 7


def test_a_ratio_is_the_median_of_the_ratios_within_rounds():
    """Not the ratio of medians: what slows a whole round down slows both."""
    found = timing._timing([2.0, 30.0, 4.0], [1.0, 10.0, 4.0])
    assert found.ratio == 2.0
    assert (found.milliseconds, found.least_milliseconds) == (4000.0, 2000.0)


def test_quartiles_of_few_rounds_lie_among_the_ratios():
    """Extrapolated from two rounds, a quartile was below nought."""
    found = timing._timing([1.0, 9.0], [1.0, 1.0])
    assert 1.0 <= found.lower_quartile <= found.ratio <= found.upper_quartile <= 9.0


def test_memory_is_that_of_a_fresh_process(monkeypatch):
    """A child's ru_maxrss begins at its parent's; 256 MB held here must not show in the child."""
    held = torch.ones(64_000_000)
    monkeypatch.setitem(models.MODELS, "mlp", models.Subject(MLP(widths=(1000, 1000, 1000)), (784,)))
    entry = contenders.yardsticks(models.recipe("mlp", 4, "cpu", 1))[0]
    found = memory.measure(entry, (784,), 10, steps=1)
    # Parameters, gradients and two moments of 2.8 million float32 are 45 MB, of which the steps add
    # 34.
    assert 25 < found.by_steps < 150
    assert 33 < found.tensors < 36
    assert len(held) == 64_000_000


def test_the_peak_of_tensors_counts_what_is_alive_at_once():
    """Not the sum of all that is allocated."""

    def step():
        a = torch.ones(250_000)  # 1 MB
        del a
        b, c = torch.ones(500_000), torch.ones(250_000)
        return len(b) + len(c)

    assert memory.peak_of_tensors(step) == pytest.approx(3e6, rel=0.01)


def test_bench_says_its_defaults():
    """The issue's setting: an MLP and small conv nets at batch 100."""
    assert BenchOptions().batch_size == 100
    assert {"mlp", "conv"} <= set(BenchOptions().models.split(","))
