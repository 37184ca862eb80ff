"""Seeds that step together as one stacked model: against the same seeds trained one after another;
killed, stopped and resumed.

The oracle is independent: a run of single seeds shares no product, loss or optimizer with a stack.
"""

import dataclasses
import json

import pytest
import safetensors.torch
import torch
from killing import kill
from test_capture import StandIn
from test_resuming import assert_all_equal
from torch.utils._python_dispatch import TorchDispatchMode

from dualprop import training
from dualprop.errors import RunError, SettingError
from dualprop.models import MLP, VGG
from dualprop.network import Network
from dualprop.network.stacked import stack
from dualprop.recipes.variants import VARIANTS
from dualprop.rules import Backprop, DualPropagation, EquilibriumPropagation, Lifted, PredictiveCoding
from dualprop.training import Optimizer, Reporter, checkpoint, execution, optimization, step, stepping
from dualprop.training.weights import belongs_to

SEEDS = (0, 1, 2)
SGD = Optimizer(name="sgd", learning_rate=0.05, momentum=0.9, weight_decay=1e-3, cosine=True)
ADAM = Optimizer(learning_rate=1e-2)
RULES = {
    "back-propagation": Backprop(),
    "dual propagation": DualPropagation(),
    "dual propagation, fused": DualPropagation(engine="fused"),
    "dual propagation, transposed": DualPropagation(coupling="transposed", alpha=0.0, schedule="bottom_up(3)"),
    "dual propagation from previous states": DualPropagation(start="previous", alpha=0.3, coupling="transposed"),
    "predictive coding": PredictiveCoding(steps=6),
    "equilibrium propagation": EquilibriumPropagation(),
}


def files_of(run, seed):
    """A seed's weights, metrics and result: names and values, numbers as floats."""
    folder, found = run.seed_folder(seed), {}
    for name in ("last", "best"):
        for key, tensor in safetensors.torch.load_file(folder / f"{name}.safetensors").items():
            found[f"{name}.{key}"] = tensor
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    plain = {"metrics": [json.loads(line) for line in lines], "result": json.loads((folder / "result.json").read_text())}

    def walk(value, path):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in items:
            # An angle of 10⁻⁶ degrees is a cosine's last digit.
            if key != "angle":
                walk(each, f"{path}.{key}")
        if not isinstance(value, dict | list):
            found[path] = value

    walk(plain, "")
    return found


def assert_same(one, other, tolerance=1e-9):
    """The same files but for rounding."""
    for seed in one.seeds:
        expected, found = files_of(one, seed), files_of(other, seed)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            if isinstance(value, float | torch.Tensor):
                torch.testing.assert_close(
                    torch.as_tensor(found[name]), torch.as_tensor(value), rtol=tolerance, atol=tolerance,
                    msg=lambda told, name=name, seed=seed: f"seed {seed}, {name}: {told}",
                )  # fmt: skip
            else:
                assert found[name] == value, f"seed {seed}, {name}"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("optimizer", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("rule", RULES)
def test_stacked_seeds_end_as_seeds_trained_one_after_another(rule, optimizer, recipe, train):
    """Another seed's examples, weights or momenta in a seed's step would still learn, and pass for
    its own."""
    made = recipe(rule=RULES[rule], optimizer=optimizer, model=MLP((8, 7)), dtype="float64", batch_size=115)
    single = train(dataclasses.replace(made, stack_seeds="off"), SEEDS, "single")
    stacked = train(dataclasses.replace(made, stack_seeds="on"), SEEDS, "stacked")
    assert len({files_of(single, seed)[".metrics.2.train_loss"] for seed in SEEDS}) == 3
    assert_same(single, stacked)


def stackable(name):
    made = VARIANTS[name].apply(plain())
    return not made.rule.stacking_obstacle and made.feedback == "exact"


def plain(**changes):
    base = training.Recipe(
        name="stacked", dataset="none", model=MLP((8, 7)), rule=DualPropagation(), optimizer=ADAM, batch_size=6, dtype="float64"
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("name", [name for name in VARIANTS if stackable(name)])
def test_a_step_of_a_stack_is_the_step_of_each_model_by_every_rule_that_allows_it(name):
    """A rule that joins what belongs to different models (a norm over all, a first example that
    tells) is found here."""
    made = VARIANTS[name].apply(plain())
    torch.manual_seed(1)
    models = [execution.resolve(made).place(made.build((5,), 4)) for _ in SEEDS]
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.mul_(0.7)  # Hopfield networks settle
    stacked = stack(models)
    networks, whole = [Network.from_module(model) for model in models], Network.from_module(stacked)
    assert not whole.is_recorded
    x, y = torch.randn(18, 5, dtype=torch.float64), torch.randint(4, (18,))
    outcomes, _ = step.training_step(made, whole, optimization.build(made.optimizer, stacked), x, y, None, None)
    for number, (model, network) in enumerate(zip(models, networks, strict=True)):
        part = slice(6 * number, 6 * number + 6)
        optimizer = optimization.build(made.optimizer, model)
        alone, _ = step.training_step(made, network, optimizer, x[part], y[part], None, None)
        for own, other in zip((outcome.of_model(number) for outcome in outcomes), alone, strict=True):
            assert own.gradients.keys() == other.gradients.keys()
            for key, gradient in other.gradients.items():
                torch.testing.assert_close(own.gradients[key], gradient, rtol=1e-8, atol=1e-11)
            torch.testing.assert_close((own.loss, own.logits), (other.loss, other.logits))
            assert own.unsettled[:40] == other.unsettled[:40]
            assert own.diagnostics == pytest.approx(other.diagnostics, rel=1e-6, abs=1e-9)


def test_what_can_not_be_stacked_says_why():
    """The list of those that can is no longer than what is tested above."""
    told = {name: VARIANTS[name].apply(plain()) for name in VARIANTS if not stackable(name)}
    assert set(told) == {"r-dp-100", "damped-dp", "lpom", "ep-random", "hep", "dtp", "kp-dp", "fa-dp", "dfa", "sign-dp"}
    for made in told.values():
        with pytest.raises(SettingError, match=r"stack_seeds='on' can't be had: .+\. Use stack_seeds='auto'\."):
            execution.resolve(dataclasses.replace(made, stack_seeds="on"))
        assert not execution.resolve(made, 5).num_stacked
    for changes, why in (
        ({"model": VGG((4,), (1,), ())}, "only an MLP"),
        ({"model": MLP((8,), output="softmax"), "rule": DualPropagation(loss="log_loss")}, "softmax output"),
        ({"rule": Lifted(tolerance=0.0, update="majorized")}, "majorizing"),
        ({"rule": DualPropagation(tolerance=0.1, schedule="bottom_up(9)")}, "tolerance"),
    ):
        with pytest.raises(SettingError, match=why):
            execution.resolve(plain(stack_seeds="on", **changes))


def test_a_stack_is_chosen_on_cuda_alone_where_it_is_left_open():
    """Where a device is filled by one seed, a stack saves nothing, and rounds differently."""
    assert execution.resolve(plain(), 5).num_stacked == 0
    assert execution.resolve(plain(stack_seeds="on"), 1).num_stacked == 0
    how = execution.resolve(plain(stack_seeds="on"), 5)
    assert how.num_stacked == 5
    assert str(how).endswith("5 seeds stacked")
    on_cuda = plain(device="cuda", capture="off", kernel="eager", dtype="float32")
    assert execution.resolve(on_cuda, 5).num_stacked == 5
    assert execution.resolve(dataclasses.replace(on_cuda, model=VGG((4,), (1,), ())), 5).num_stacked == 0
    filling = dataclasses.replace(on_cuda, batch_size=4096, model=MLP((8, 512)))
    assert execution.resolve(filling, 5).num_stacked == 0
    assert execution.resolve(dataclasses.replace(filling, stack_seeds="on"), 5).num_stacked == 5
    refused = execution.resolve(dataclasses.replace(on_cuda, rule=EquilibriumPropagation(estimator="random_sign")), 5)
    assert refused.num_stacked == 0
    assert "seeds not stacked: what is random in it is drawn anew for each batch" in str(refused)


class Calls(TorchDispatchMode):
    """Counts the operations that compute: no views, and no empty memory."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = any(argument.alias_info is not None for argument in func._schema.returns) and not func._schema.is_mutable
        self.number += not (is_view or "empty" in func.name())
        return result


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_a_stack_takes_as_many_operations_as_that_of_one_model(rule):
    """Where a network is small each operation costs the same however many models it is of."""

    def count(num_models):
        made = plain(rule=RULES[rule])
        built = [execution.resolve(made).place(made.build((5,), 4)) for _ in range(num_models)]
        model = built[0] if num_models == 1 else stack(built)
        network, optimizer = Network.from_module(model), optimization.build(made.optimizer, model)
        x, y = torch.randn(6 * num_models, 5, dtype=torch.float64), torch.zeros(6 * num_models).long()
        _, state = step.training_step(made, network, optimizer, x, y, None, None)
        with Calls() as calls:
            step.training_step(made, network, optimizer, x, y, state, None)
        return calls.number

    one, two, five = count(1), count(2), count(5)
    assert two == five
    # The mean loss of each model is taken, and their sum: forward, and for autograd backward.
    assert five <= one + 5


def test_a_stacked_run_killed_at_random_events_ends_as_if_left_alone(recipe, tmp_path):
    """A kill between the checkpoints of two seeds leaves one behind. It must catch up on the same
    numbers, though the others' places are then empty."""
    made = recipe(
        rule=DualPropagation(start="previous"), model=MLP((8, 6)), optimizer=ADAM, stack_seeds="on", batch_size=115, epochs=2,
        checkpoint_every=4, align=False,
    )  # fmt: skip
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0, 1, 2], "folder": str(tmp_path),
            "moments": "random events", "kills": 12, "dice": 3, "within": 120,
        }
    )  # fmt: skip
    assert sum(len(trial["kills"]) for trial in trials) >= 12
    assert_all_equal(trials)


def test_a_stacked_run_killed_between_two_seeds_checkpoints_ends_as_if_left_alone(recipe, tmp_path):
    """The moments at which seeds stand at different epochs, each in turn."""
    made = recipe(
        model=MLP((4,)), stack_seeds="on", batch_size=210, epochs=1,
        optimizer={"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    )  # fmt: skip
    trials = kill(
        {
            "kind": "run", "recipe": made.to_plain(), "seeds": [0, 1, 2], "folder": str(tmp_path),
            "moments": "each", "only": ["renamed last", "renamed result.json"],
        }
    )  # fmt: skip
    assert len(trials) == 1 + 3 * (2 + 1)
    assert_all_equal(trials)


def test_a_seed_that_diverges_leaves_and_the_others_do_not_notice(recipe, train, monkeypatch):
    """A number that is none, in one place, would end all of them if a norm were of all."""
    made = recipe(model=MLP((8,)), dtype="float64", optimizer=SGD, epochs=3, batch_size=115)
    single = train(dataclasses.replace(made, stack_seeds="off"), SEEDS, "single")
    enter = stepping.Stack._enter

    def spoiled(self, seed):
        if seed.seed == 1:
            with torch.no_grad():
                next(seed.learner.model.parameters())[0, 0] = torch.inf
        enter(self, seed)

    monkeypatch.setattr(stepping.Stack, "_enter", spoiled)
    stacked = train(dataclasses.replace(made, stack_seeds="on"), SEEDS, "stacked")
    results = {result.seed: result for result in stacked.results()}
    assert "diverged in epoch 1" in results[1].stopped
    assert results[1].epochs == 1
    for seed in (0, 2):
        assert not results[seed].stopped
        assert_same(dataclasses.replace(single, seeds=(seed,)), stacked)


def test_seeds_of_a_stack_that_are_trained_by_themselves_end_as_all_together(recipe, train, tmp_path):
    """Bit for bit: a product of other shapes would round otherwise."""
    made = recipe(rule=DualPropagation(start="previous"), model=MLP((8,)), stack_seeds="on", batch_size=210)
    whole = train(made, SEEDS, "whole")
    run = training.create(tmp_path / "apart", made, SEEDS)
    for seeds, done in (((2,), [2]), ((0, 1), [0, 1, 2])):
        training.train(run, seeds=seeds)
        assert [result.seed for result in run.results()] == done
    for seed in SEEDS:
        for name in ("last.safetensors", "best.safetensors", "metrics.jsonl", "result.json"):
            assert (run.seed_folder(seed) / name).read_bytes() == (whole.seed_folder(seed) / name).read_bytes(), (
                f"{seed}: {name}"
            )


class Stopper(Reporter):
    """Ends a run after an epoch, and keeps what it is told."""

    def __init__(self, epoch=None):
        self.epoch, self.told, self.started, self.epochs = epoch, [], [], []

    def changed(self, what):
        self.told.append(what)

    def seed_started(self, seed, num_steps, done):
        self.started.append(seed)

    def epoch_done(self, metrics):
        self.epochs.append(metrics["epoch"])
        if metrics["epoch"] == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("before", ["off", "on"])
def test_a_run_stopped_one_way_is_resumed_the_other_only_if_allowed_which_its_results_say(before, recipe, train, tmp_path):
    """The two round differently: a resume would not end as the run left alone, and nobody would
    know."""
    made = recipe(model=MLP((8,)), dtype="float64", optimizer=ADAM, epochs=3, batch_size=115)
    first = dataclasses.replace(made, stack_seeds=before)
    then = dataclasses.replace(made, stack_seeds="off" if before == "on" else "on")
    whole = train(first, SEEDS, "whole")
    run = training.create(tmp_path / "run", first, SEEDS)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=Stopper(2))
    other = dataclasses.replace(run, recipe=then)
    with pytest.raises(RunError, match=r"execution changed from .*to .*Restore that"):
        training.train(other)
    stopper = Stopper()
    training.train(other, reporter=stopper, allow_changed=True)
    assert any("3 seeds stacked" in told for told in stopper.told)
    results = {result.seed: result for result in run.results()}
    assert any("the execution changed" in remark for remark in results[0].remarks)
    for seed in SEEDS:
        found, expected = files_of(run, seed), files_of(whole, seed)
        for name, value in expected.items():
            if name.startswith("last.model"):
                torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9)


def test_one_seed_of_a_stack_is_told_of_and_who_ends_the_run_leaves_none_behind(recipe, tmp_path):
    """A bar that jumped from seed to seed would tell nothing; and a time that is over after an
    epoch must find all seeds saved."""
    made = recipe(model=MLP((8,)), stack_seeds="on", batch_size=210, epochs=2)
    run = training.create(tmp_path / "run", made, SEEDS)
    stopper = Stopper(1)
    with pytest.raises(KeyboardInterrupt):
        training.train(run, reporter=stopper)
    assert (stopper.started, stopper.epochs) == ([0], [0, 1])
    lengths = [len((run.seed_folder(seed) / "metrics.jsonl").read_text().splitlines()) for seed in SEEDS]
    assert lengths == [2, 2, 2]
    saved = [checkpoint.read(run.seed_folder(seed) / "last.safetensors", belongs_to(made, seed)) for seed in SEEDS]
    assert [each.about["epoch"] for each in saved] == [1, 1, 1]


class InPlace(StandIn):
    """Captures as a graph does: the optimizer's state stays where it lies."""

    def capture(self, function):
        lying = {p: dict(state) for p, state in self.optimizer.state.items()}
        results = super().capture(function)
        for p, state in lying.items():
            for name, value in state.items():
                self.optimizer.state[p][name] = value.copy_(self.optimizer.state[p][name])
        return results


def test_a_captured_step_of_a_stack_is_the_step_as_it_is(recipe, train, monkeypatch):
    """What a seed's place is given must lie where the graph reads it."""
    made = recipe(model=MLP((8,)), dtype="float64", optimizer=SGD, stack_seeds="on", batch_size=115)
    expected = train(made, SEEDS, "plain")

    class Captured(stepping.Stack):
        def __init__(self, recipe, how, numbers, like):
            super().__init__(recipe, how, numbers, like)
            self.step = stepping.CapturedStep(self._uncaptured, recipe, InPlace(self.model, self.optimizer))

    monkeypatch.setattr("dualprop.training.trainer.Stack", Captured)
    assert_same(expected, train(made, SEEDS, "captured"))
