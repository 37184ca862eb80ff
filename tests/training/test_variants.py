"""The papers' named variants: which settings they are, how their states and updates run in the
trainer, what is recorded."""

import dataclasses
import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from dualprop import Network, feedback, recipes, training
from dualprop.alignment import alignment
from dualprop.data import load
from dualprop.data.examples import Examples
from dualprop.data.tasks import Task
from dualprop.errors import SettingError
from dualprop.losses import CrossEntropy, SquaredError
from dualprop.models import MLP, VGG, ConvNet
from dualprop.recipes import variants
from dualprop.recipes.variants import VARIANTS
from dualprop.rules import (
    Backprop,
    ContrastiveHebbian,
    DualPropagation,
    EquilibriumPropagation,
    Lifted,
    PredictiveCoding,
    TargetPropagation,
)
from dualprop.training import Reporter, execution, step
from dualprop.training.evaluation import evaluate

DEPTH = 4
KEPT = {"beta": 0.3, "loss": SquaredError(), "alpha": 0.5}
ONE_SWEEP = "alternating_sweeps(1)"
# From the code of Høier et al. (2023), and for DP⊤ and damped DP of Høier & Zach (2024): of a
# network of four layers, the rule's settings, then the recipe's.
EXPECTED = {
    "dp": ({"schedule": ONE_SWEEP}, {}),
    "ms-dp": ({"schedule": "up_down(1)", "start": "previous"}, {"updates_per_batch": 2, "reset_states": True}),
    "l-dp": ({"schedule": "up_down(1)", "start": "previous"}, {}),
    "p-dp": ({"schedule": "synchronous(7)", "start": "zeros"}, {}),
    "r-dp-100": ({"schedule": "random_order(100)", "start": "zeros"}, {}),
    "odd-even": ({"schedule": "odd_even(3)"}, {}),
    "bottom-up": ({"schedule": "bottom_up(4)"}, {}),
    "dp-transposed": ({"schedule": ONE_SWEEP, "coupling": "transposed", "alpha": 0.0}, {}),
    "damped-dp": ({"schedule": "up_down(8)", "alpha": 0.0, "damping": "spectral"}, {}),
    "kp-dp": ({"schedule": ONE_SWEEP}, {"feedback": "kolen_pollack"}),
    "fa-dp": ({"schedule": ONE_SWEEP}, {"feedback": "random"}),
    "sign-dp": ({"schedule": ONE_SWEEP}, {"feedback": "sign_symmetric"}),
}


def odd(recipe, **rule):
    """A recipe that differs from every default, and as far as possible from every variant."""
    return recipe(
        model=MLP(widths=(9, 8, 7)), cites="a table", published=(("dp", "98.43 ± 0.03"),), feedback="random",
        updates_per_batch=3, reset_states=True, epochs=7, batch_size=63, validation_fraction=0.2, seed_list=(5, 4),
        optimizer={"name": "sgd", "learning_rate": 0.02, "nesterov": True}, align=False, checkpoint_every=5, dtype="float64",
        rule=DualPropagation(**{**KEPT, **rule}),
    )  # fmt: skip


@pytest.mark.parametrize(
    "own",
    [
        {"schedule": "even_odd(9)", "start": "zeros"},
        {"schedule": "up_down(3)", "start": "previous", "damping": "spectral", "tolerance": 0.1},
        {"engine": "fused"},
    ],
    ids=["another order", "damped until settled", "fused"],
)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_variant_is_what_the_papers_name_so_whatever_the_recipe_was_and_keeps_the_rest(name, own, recipe):
    """A leftover of the recipe's own schedule, damping or feedback would stand in the table under
    the variant's name; a lost β, loss or seed would make it another experiment."""
    base = odd(recipe, **own)
    rule, changed = EXPECTED[name]
    # The fused engine is one downward sweep too.
    engine = base.rule.engine if rule["schedule"] == ONE_SWEEP else "auto"
    wanted = DualPropagation(**{**KEPT, "engine": engine, **rule})
    plain = {"feedback": "exact", "updates_per_batch": 1, "reset_states": False}
    assert VARIANTS[name].apply(base) == dataclasses.replace(base, rule=wanted, **{**plain, **changed})


def test_the_expectations_cover_every_variant():
    """A new variant must be written down here, from its paper."""
    others = {"bp", "chl", "dfa", "dtp", "ep-hopfield", "hep", "lpom"}
    assert set(VARIANTS) == {*others, *EXPECTED, *EXPECTED_OF_EP, *EXPECTED_OF_PC}


# Kerjan et al. (2026), eq. 7 to 20.
EXPECTED_OF_EP = {
    "ep": {},
    "ep-random": {"estimator": "random_sign"},
    "ep-forward": {"estimator": "forward"},
    "ep-backward": {"estimator": "backward"},
    "ep-clamped": {
        "energy": "predictive_coding",
        "relaxation": "blocks",
        "output_nudge": "clamped",
        "loss": SquaredError(),
    },
    "ep-two-pairs": {"relaxation": "error_sweeps(2)"},
    "ep-published": {"relaxation": "blocks"},
}


@pytest.mark.parametrize("name", EXPECTED_OF_EP)
def test_a_variant_of_equilibrium_propagation_keeps_the_recipes_own_settings(name, recipe):
    """Of a recipe by another rule its loss alone."""
    own = EquilibriumPropagation(beta=0.3, relaxation="blocks(even_odd(7))", loss=SquaredError(), output_nudge="exact")
    base = dataclasses.replace(odd(recipe), rule=own)
    changed = {"feedback": "exact", "updates_per_batch": 1, "reset_states": False}
    kept = {"relaxation": own.relaxation} if EXPECTED_OF_EP[name].get("relaxation") == "blocks" else {}
    wanted = dataclasses.replace(own, **EXPECTED_OF_EP[name] | kept)
    assert VARIANTS[name].apply(base) == dataclasses.replace(base, rule=wanted, **changed)
    other = EquilibriumPropagation(**{"loss": SquaredError(), **EXPECTED_OF_EP[name]})
    assert VARIANTS[name].apply(odd(recipe)) == dataclasses.replace(base, rule=other, **changed)


# Of a network of four layers and a recipe with 7 steps of inference: the rule's settings, then the
# recipe's.
EXACT_PC = {"steps": 3, "step_size": 1.0, "momentum": 0.0}
EXPECTED_OF_PC = {
    "pc": ({}, {}),
    "ipc": ({"steps": 1, "start": "previous"}, {"updates_per_batch": 7, "reset_states": True}),
    "pc-fixed": ({"predictions": "fixed", **EXACT_PC}, {}),
    "pc-arrival": ({"learn": "arrival", **EXACT_PC}, {}),
}


@pytest.mark.parametrize("name", EXPECTED_OF_PC)
def test_a_variant_of_predictive_coding_keeps_the_recipes_own_settings(name, recipe):
    """Of a recipe by another rule its loss alone, and the standard clamp."""
    own = PredictiveCoding(beta=0.3, steps=7, step_size=0.2, momentum=0.1, loss=SquaredError())
    base = dataclasses.replace(odd(recipe), rule=own)
    rule, changed = EXPECTED_OF_PC[name]
    plain = {"feedback": "exact", "updates_per_batch": 1, "reset_states": False}
    assert VARIANTS[name].apply(base) == dataclasses.replace(
        base, rule=dataclasses.replace(own, **rule), **{**plain, **changed}
    )
    other = VARIANTS[name].apply(odd(recipe))
    assert (other.rule.beta, other.rule.loss) == (1.0, SquaredError())
    if name == "ipc":
        assert (other.updates_per_batch, other.rule.steps) == (20, 1)


def test_incremental_pc_learns_alongside_where_the_recipe_does(recipe):
    """And what is no incremental PC, and would refuse it, at the end as ever."""
    own = PredictiveCoding(steps=1, start="previous", learn="alongside", loss=SquaredError())
    base = dataclasses.replace(odd(recipe), rule=own, updates_per_batch=7, reset_states=True)
    assert VARIANTS["ipc"].apply(base) == dataclasses.replace(base, feedback="exact")
    assert VARIANTS["pc"].apply(base).rule == dataclasses.replace(own, steps=7, start="forward", learn="end")


def test_a_held_free_state_is_kept_where_there_is_one_to_hold(recipe):
    """Predictive coding refuses it: its free state is the forward pass."""
    own = EquilibriumPropagation(energy="hopfield", estimator="forward(held)", relaxation="blocks(odd_even(3))")
    base = dataclasses.replace(odd(recipe), rule=own)
    for name in ("ep", "ep-hopfield", "ep-published"):
        assert VARIANTS[name].apply(base).rule == own
    assert str(VARIANTS["ep-two-pairs"].apply(base).rule.estimator) == "forward"


def test_holomorphic_ep_is_of_a_hopfield_network_that_is_holomorphic(recipe):
    """Sigmoids and softmax pools where the recipe has none such, whatever its energy and order
    were; the rest is kept."""
    own = EquilibriumPropagation(beta=0.3, relaxation="blocks(even_odd(7))", jacobians="free", output_nudge="exact")
    base = dataclasses.replace(odd(recipe), rule=own, model=ConvNet((4,), "relu"))
    made = VARIANTS["hep"].apply(base)
    assert made.model == ConvNet((4,), "sigmoid", pooling="softmax")
    settings = {"energy": "hopfield", "estimator": "holomorphic(4)", "relaxation": "blocks(even_odd(7))"}
    assert made.rule == EquilibriumPropagation(beta=0.3, **settings)
    assert (made.feedback, made.updates_per_batch, made.reset_states) == ("exact", 1, False)
    again = dataclasses.replace(base, rule=dataclasses.replace(made.rule, estimator="holomorphic(6)"))
    assert str(VARIANTS["hep"].apply(again).rule.estimator) == "holomorphic(6)"
    assert {str(VARIANTS[name].apply(again).rule.estimator) for name in ("ep", "ep-two-pairs", "ep-published")} == {"centered"}
    for model in (MLP((4,), "tanh"), VGG((4,), (1,), (), "tanh", pooling="average")):
        assert VARIANTS["hep"].apply(dataclasses.replace(base, model=model)).model == model


def test_ep_on_a_hopfield_network_keeps_what_is_of_one_and_no_more(recipe):
    """Error sweeps and free Jacobians are refused by a Hopfield network; its own nudge and order
    are kept."""
    of_coding = EquilibriumPropagation(beta=0.3, relaxation="error_sweeps(2)", jacobians="free", output_nudge="exact")
    made = VARIANTS["ep-hopfield"].apply(dataclasses.replace(odd(recipe), rule=of_coding))
    assert made.rule == EquilibriumPropagation(beta=0.3, energy="hopfield", relaxation="blocks")
    own = EquilibriumPropagation(energy="hopfield", output_nudge="exact", relaxation="blocks(odd_even(3))", loss=SquaredError())
    assert VARIANTS["ep-hopfield"].apply(dataclasses.replace(odd(recipe), rule=own)).rule == own
    holomorphic = dataclasses.replace(own, estimator="holomorphic(4)", output_nudge="linearized", loss=CrossEntropy())
    made = VARIANTS["ep-hopfield"].apply(dataclasses.replace(odd(recipe), rule=holomorphic))
    assert made.rule == dataclasses.replace(holomorphic, estimator="centered")


def test_back_propagation_as_a_variant_keeps_the_loss_and_undoes_what_dp_alone_needs(recipe):
    """The twin of a recipe with feedback weights must be true back-propagation."""
    base = odd(recipe)
    expected = dataclasses.replace(
        base, rule=Backprop(loss=SquaredError()), feedback="exact", updates_per_batch=1, reset_states=False
    )
    assert VARIANTS["bp"].apply(base) == expected
    assert VARIANTS["chl"].apply(base) == dataclasses.replace(expected, rule=ContrastiveHebbian(loss=SquaredError()))
    assert VARIANTS["lpom"].apply(base) == dataclasses.replace(expected, rule=Lifted(loss=SquaredError()))
    assert VARIANTS["dtp"].apply(base) == dataclasses.replace(expected, rule=TargetPropagation(loss=SquaredError()))


def test_target_propagation_as_a_variant_keeps_the_recipes_own_settings(recipe):
    """A recipe's published rates per layer must not fall back to the defaults in its comparison."""
    own = TargetPropagation(beta=0.7, iterations=(3, 0, 2), start="random", loss=SquaredError())
    base = dataclasses.replace(odd(recipe), rule=own)
    plain = {"feedback": "exact", "updates_per_batch": 1, "reset_states": False}
    assert VARIANTS["dtp"].apply(base) == dataclasses.replace(base, **plain)


def test_the_variants_of_a_recipe_by_back_propagation_take_dp_at_its_defaults(recipe):
    """There is no β to keep."""
    base = recipe(rule=Backprop(loss=SquaredError()), model=MLP(widths=(9, 8, 7)))
    for name, (rule, _) in EXPECTED.items():
        assert VARIANTS[name].apply(base).rule == DualPropagation(loss=SquaredError(), **rule)


def test_damped_dp_is_of_the_original_coupling_also_of_a_transposed_recipe(recipe):
    """DP⊤ needs no damping: damped, it would stand in the table as what it is not."""
    base = odd(recipe, coupling="transposed", alpha=0.0)
    assert VARIANTS["damped-dp"].apply(base).rule.coupling == "original"
    assert VARIANTS["dp-transposed"].apply(odd(recipe, alpha=1.0)).rule == DualPropagation(
        **{**KEPT, "coupling": "transposed", "alpha": 0.0}
    )


def first_gradient(made, seed=0):
    """The first layer's gradient of a variant's rule, for weights at which no unit is dead."""
    torch.manual_seed(seed)
    network = Network.from_module(made.build((5,), 4).double())
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(3, 5, generator=generator, dtype=torch.float64), torch.randint(4, (3,), generator=generator)
    return made.rule.gradients(network, x, y, generator=generator).gradients["0.weight"]


@pytest.mark.parametrize("depth", range(2, 8))
@pytest.mark.parametrize("name", ["p-dp", "odd-even", "bottom-up"])
def test_the_count_is_the_least_for_which_the_first_layer_learns(name, depth, recipe):
    """One fewer, and the first layer never learns, which a deep network hides well; one more is
    time for nothing.

    For P-DP that is 2L-1 steps: L up to the output, L-1 down to the first layer.
    """
    made = VARIANTS[name].apply(recipe(rule=DualPropagation(), model=MLP(widths=(6,) * (depth - 1), activation="tanh")))
    schedule = made.rule.schedule
    assert bool(first_gradient(made).any())
    assert schedule.count == {"p-dp": 2 * depth - 1, "odd-even": depth // 2 + 1, "bottom-up": depth}[name]
    shorter = dataclasses.replace(made.rule, schedule=f"{schedule.name}({schedule.count - 1})")
    assert not bool(first_gradient(dataclasses.replace(made, rule=shorter)).any())


BATCH = 115
STEPS = 11


def variant(name, recipe, **changes):
    """The variant of a recipe on digits that takes eleven steps an epoch."""
    fixed = {"model": MLP(widths=(12, 10)), "batch_size": BATCH, "epochs": 1, "align": False}
    return VARIANTS[name].apply(recipe(rule=DualPropagation(beta=0.5), **{**fixed, **changes}))


def saved(run, name="last"):
    return safetensors.torch.load_file(run.seed_folder(0) / f"{name}.safetensors")


def by_hand(made, updates, keep):
    """One epoch in plain PyTorch. `keep`: the states go on to the next batch. Returns weights, and
    the mean loss and accuracy of each update's forward pass."""
    splits = load("digits", validation_fraction=0.1, seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, splits.num_classes)
    )
    network, state = Network.from_module(model), None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    draws = torch.Generator().manual_seed(2**32)
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0)).split(BATCH)[:STEPS]
    losses, hits = [[] for _ in range(updates)], [[] for _ in range(updates)]
    for rows in order:
        x, y = splits.train.batch(rows)
        if not keep:
            state = None
        for number in range(updates):
            with torch.no_grad():
                logits = model(x)
            losses[number].append(F.cross_entropy(logits, y).item())
            hits[number].append((logits.argmax(1) == y).float().mean().item())
            out = made.rule.gradients(network, x, y, state=state, generator=draws)
            for name, parameter in model.named_parameters():
                parameter.grad = out.gradients[name]
            optimizer.step()
            state = out.state
    means = [[sum(column) / STEPS for column in table] for table in (losses, hits)]
    return dict(model.state_dict()), *means


@pytest.mark.parametrize(
    ("name", "updates", "keep"),
    [
        ("dp", 1, False),
        ("ms-dp", 2, False),
        ("l-dp", 1, True),
        ("p-dp", 1, False),
        ("r-dp-100", 1, False),
        ("damped-dp", 1, True),
    ],
)
def test_a_variant_in_the_trainer_is_a_loop_written_out_by_hand_to_the_last_bit(name, updates, keep, recipe, train):
    """States that persist where they should not (MS-DP) or not where they should (L-DP, damping's
    vectors), and an update too many (the authors' P-DP takes two a batch), all train well enough to
    go unnoticed."""
    made = variant(name, recipe)
    run = train(made)
    expected, losses, accuracies = by_hand(made, updates, keep)
    tensors = saved(run)
    for key, value in expected.items():
        assert torch.equal(tensors[f"model.{key}"], value), key
    taken = {int(tensor) for key, tensor in tensors.items() if key.endswith(".step")}
    assert taken == {updates * STEPS}, "steps of the optimizer"
    # What the network said of a batch before it had learned from it.
    metrics = run.metrics(0)[-1]
    assert metrics.train_loss == pytest.approx(losses[0], rel=1e-6)
    assert metrics.train_accuracy == pytest.approx(accuracies[0], abs=1e-6)
    if updates > 1:
        assert losses[1] < losses[0] - 1e-3, "the case can't tell the first update's from the second's"
    if name in ("ms-dp", "l-dp"):
        other = by_hand(made, updates, not keep)[0]
        assert not all(torch.equal(other[key], value) for key, value in expected.items()), "the states make no difference"


@pytest.mark.parametrize("name", ["ms-dp", "l-dp"])
def test_a_step_of_ms_dp_takes_and_leaves_no_state_and_one_of_l_dp_does_both(name, recipe):
    """The benchmark hands states on by itself; what MS-DP took from them would be L-DP's."""
    made, learned = variant(name, recipe), []
    x, y = load("digits", validation_fraction=0.1, seed=0).train.batch(torch.arange(20))
    for is_given in (False, True):
        torch.manual_seed(0)
        model = made.build((1, 8, 8), 10)
        network, optimizer = Network.from_module(model), torch.optim.SGD(model.parameters(), lr=0.1)
        stale = made.rule.infer(network, x.flip(0), y.flip(0)) if is_given else None
        outcomes, left = step.training_step(made, network, optimizer, x, y, stale, None)
        assert len(outcomes) == made.updates_per_batch
        assert (left is None) == (name == "ms-dp")
        learned.append(model[1].weight.detach())
    assert torch.equal(*learned) == (name == "ms-dp")


class Stopper(Reporter):
    """Stops a run at a step, as an interrupt would."""

    def __init__(self, at):
        self.at = at

    def step_done(self, done, num_examples, loss, num_correct):
        if done == self.at:
            raise KeyboardInterrupt


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ["l-dp", "ms-dp", "damped-dp", "kp-dp", "r-dp-100"])
@pytest.mark.parametrize("at", [5, 11, 17])
def test_a_stopped_run_of_a_variant_is_resumed_to_the_same_bytes(name, at, recipe, train, tmp_path):
    """States, vectors of the power iteration and feedback weights are part of where a run stands:
    started anew in mid-run, it would be another run."""
    made = variant(name, recipe, epochs=2, checkpoint_every=3, align=True)
    straight = train(made, name="straight")
    stopped = training.create(tmp_path / "stopped", made, (0,))
    with pytest.raises(KeyboardInterrupt):
        training.train(stopped, reporter=Stopper(at))
    assert not stopped.results()
    training.train(training.load(stopped.folder))
    for file in ("metrics.jsonl", "last.safetensors", "best.safetensors", "result.json"):
        assert (stopped.seed_folder(0) / file).read_bytes() == (straight.seed_folder(0) / file).read_bytes(), file
    held = {key.split(".")[1] for key in saved(straight) if key.startswith("rule.")}
    of_lazy = {"means", "differences", "alpha"}
    assert held == {"l-dp": of_lazy, "damped-dp": {"directions", "alpha"}}.get(name, set())


@pytest.mark.parametrize("name", ["bp", "dp", "l-dp", "kp-dp", "fa-dp", "sign-dp", "damped-dp"])
def test_the_metrics_of_every_epoch_hold_what_the_variant_has_to_tell(name, recipe, train):
    """The figures are drawn from these lines; what is not recorded is trained once more."""
    run = train(variant(name, recipe, align=True))
    layers = ["1", "3", "5"]
    has_feedback = name in ("kp-dp", "fa-dp", "sign-dp")
    for line in (json.loads(text) for text in (run.seed_folder(0) / "metrics.jsonl").read_text().splitlines()):
        assert [layer["layer"] for layer in line["alignment"]] == layers
        assert ("weight_alignment" in line) == has_feedback
        if has_feedback:
            assert [layer["layer"] for layer in line["weight_alignment"]] == layers
            assert all(-1 <= layer["cosine"] <= 1 and layer["norm_ratio"] > 0 for layer in line["weight_alignment"])
        assert ("inference" in line) == (name != "bp")
        if name != "bp":
            assert line["inference"]["residual"] >= 0
            assert len(line["inference"]["kink_crossing"]) == 3
            assert all(0 <= share <= 1 for share in line["inference"]["kink_crossing"])
        assert line["validation_accuracy"] <= line["validation_top5_accuracy"] <= 1
    # The output layer's error comes back through no weights, so feedback leaves its gradient exact.
    angles = run.metrics(0)[0].alignment
    if has_feedback:
        assert angles[-1].cosine > 0.99
        assert angles[0].cosine < 0.95


def test_kolen_pollack_weights_learn_in_the_trainer_and_random_ones_do_not(recipe, train):
    """An optimizer that never saw B would train feedback alignment under the name of KP-DP."""
    told = {}
    for name in ("kp-dp", "fa-dp"):
        made = variant(name, recipe, epochs=4, optimizer={"name": "adamw", "learning_rate": 1e-2, "weight_decay": 1.0})
        run = train(dataclasses.replace(made, align=True), name=name)
        told[name] = [[layer.cosine for layer in line.weight_alignment] for line in run.metrics(0)]
        torch.manual_seed(0)
        drawn = made.build((1, 8, 8), 10).state_dict()
        moved = {key: not torch.equal(drawn[key], saved(run)[f"model.{key}"]) for key in drawn if "feedback" in key}
        assert len(moved) == 3
        assert set(moved.values()) == {name == "kp-dp"}
    assert all(last > first + 0.3 for first, last in zip(told["kp-dp"][0], told["kp-dp"][-1], strict=True)), told["kp-dp"]


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_top_5_accuracy_is_that_of_a_count_by_hand(classes, recipe):
    """Published tables give it; one rank too many is a few tenths of a per cent."""
    generator = torch.Generator().manual_seed(classes)
    x, y = torch.randn(83, 6, generator=generator), torch.randint(classes, (83,), generator=generator)
    examples, model = Examples(x, y, torch.zeros(()), torch.ones(())), nn.Linear(6, classes)
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, 6, generator=generator))
        logits = model(x).tolist()
    ranks = [sum(value > row[label] for value in row) for row, label in zip(logits, y.tolist(), strict=True)]
    task = Task("classification", tuple(map(str, range(classes))))
    score = evaluate(model, examples, CrossEntropy(), execution.resolve(recipe()), task, batch_size=20)
    assert score.accuracy == pytest.approx(sum(rank == 0 for rank in ranks) / 83, abs=1e-12)
    assert score.top5_accuracy == pytest.approx(sum(rank < 5 for rank in ranks) / 83, abs=1e-12)
    assert (score.top5_accuracy == 1) == (classes <= 5)


KINDS = ("kolen_pollack", "random", "sign_symmetric")


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_draws_the_same_forward_weights_whatever_its_feedback(kind, recipe):
    """Two variants of one seed must differ in their feedback alone, not in their start."""
    drawn = {}
    for each in ("exact", kind):
        torch.manual_seed(3)
        drawn[each] = recipe(rule=DualPropagation(), model=MLP(widths=(9, 8)), feedback=each).build((5,), 4)
    plain, other = drawn["exact"].state_dict(), drawn[kind].state_dict()
    assert all(torch.equal(other[name], value) for name, value in plain.items())
    assert sum(name.endswith("feedback_weight") for name in other) == (0 if kind == "sign_symmetric" else 3)
    for layer in feedback.alignment(drawn[kind]):
        assert abs(layer.cosine) < 0.99, "feedback weights must not be the forward ones"


def with_feedback(kind, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return feedback.convert(model, kind)


def true_gradients(model, x, y):
    """Plain autograd on a plain network that is built anew on the same numbers."""
    modules = [nn.Linear(m.in_features, m.out_features) if hasattr(m, "weight") else nn.Tanh() for m in model]
    plain = nn.Sequential(*modules).double()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.endswith("feedback_weight")})
    F.cross_entropy(plain(x), y).backward()
    return {name: parameter.grad for name, parameter in plain.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", [Backprop(), DualPropagation(beta=0.1)], ids=["backprop", "dp"])
def test_alignment_is_with_the_true_gradient_where_feedback_has_weights_of_its_own(kind, rule):
    """Compared with a twin that sends errors through the same B, every feedback would look
    perfect."""
    model, generator = with_feedback(kind), torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (6,), generator=generator)
    network = Network.from_module(model)
    found, exact = rule.gradients(network, x, y).gradients, true_gradients(model, x, y)
    for layer, entry in zip((0, 2, 4), alignment(network, rule, x, y), strict=True):
        a, b = (torch.cat([of[f"{layer}.{name}"].flatten() for name in ("weight", "bias")]) for of in (found, exact))
        assert entry.layer == str(layer)
        assert entry.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-9)
        assert entry.norm_ratio == pytest.approx(float(a.norm() / b.norm()), rel=1e-9)
        if layer < 4:
            assert entry.cosine < 0.98
        elif isinstance(rule, Backprop):
            assert entry.cosine == pytest.approx(1, abs=1e-12)


def test_alignment_of_several_updates_is_of_their_mean():
    """The first update of incremental predictive coding has not reached the lower layers: no angle
    of it says anything."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    network, rule = Network.from_module(model), PredictiveCoding(beta=1.0, steps=1, start="previous")
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(4, (6,))
    first, *_ = alignment(network, rule, x, y)
    assert math.isnan(first.cosine)
    state, outcomes = None, []
    for _ in range(4):
        outcomes.append(rule.gradients(network, x, y, state=state))
        state = outcomes[-1].state
    of_all = [sum(outcome.gradients[f"0.{name}"] for outcome in outcomes) / 4 for name in ("weight", "bias")]
    exact = true_gradients(model, x, y)
    found, wanted = (torch.cat([g.flatten() for g in each]) for each in (of_all, [exact["0.weight"], exact["0.bias"]]))
    entry = alignment(network, rule, x, y, updates=4)[0]
    assert 0 < entry.cosine == pytest.approx(float(found @ wanted / (found.norm() * wanted.norm())), abs=1e-9)
    assert entry.norm_ratio == pytest.approx(float(found.norm() / wanted.norm()), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_copy_shares_the_parameters_is_plain_and_leaves_the_model_as_it_was(kind):
    """A copy of the weights would go stale at the next step; a converted model would train on with
    exact feedback."""
    model = with_feedback(kind)
    before = {name: (type(module), dict(module._parameters), dict(module._buffers)) for name, module in model.named_modules()}
    twin = feedback.exact(model)
    assert twin is not model
    assert [type(module) for module in twin] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    shared = dict(model.named_parameters())
    assert all(parameter is shared[name] for name, parameter in twin.named_parameters())
    assert set(dict(twin.named_parameters())) == {f"{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")}
    assert not list(twin.named_buffers())
    for name, module in model.named_modules():
        kind_before, parameters, buffers = before[name]
        assert type(module) is kind_before
        assert list(module._parameters) == list(parameters)
        assert all(module._parameters[key] is value for key, value in parameters.items())
        assert all(module._buffers[key] is value for key, value in buffers.items())
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.randint(4, (6,), generator=generator)
    expected = true_gradients(model, x, y)
    found = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
    for gradient, wanted in zip(found, expected.values(), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-14)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(twin(x), model(x))


def test_a_model_without_feedback_weights_is_its_own_exact_twin():
    """A deep copy at every measurement would be for nothing."""
    plain = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    assert feedback.exact(plain) is plain


def test_variants_are_parsed_by_name_all_of_them_or_those_published():
    """What is typed is what is compared, in that order."""
    published = recipes.from_name("mnist-mlp")
    assert variants.parse("all", published) == list(VARIANTS)
    assert variants.parse("published", published) == ["bp", "dp", "ms-dp", "l-dp", "p-dp", "r-dp-100"]
    assert variants.parse("p-dp,bp", published) == ["p-dp", "bp"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dp,l-pd", "unknown variant 'l-pd'. Did you mean 'l-dp'? `dualprop list variants` shows them all: bp, dp, "),
        ("dp, bp", "unknown variant ' bp'"),
        ("dp,", "unknown variant ''"),
        ("dp,bp,dp", "a variant is named twice: dp,bp,dp. Name each once."),
        ("published", "recipe digits-mlp holds no published figures. Name variants: bp, dp, "),
    ],
)
def test_variants_that_do_not_parse_are_refused_in_one_line(text, reason):
    """Guessed at, they would be another table."""
    with pytest.raises(SettingError) as error:
        variants.parse(text, recipes.from_name("digits-mlp"))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_published_figures_are_of_variants_that_there_are(name):
    """--variants published would fail on a name that is no variant, and show nothing where names
    don't meet."""
    made = recipes.from_name(name)
    assert {label for label, _ in made.published} <= set(VARIANTS)
    for each in VARIANTS.values():
        assert training.Recipe.from_plain(json.loads(json.dumps(each.apply(made).to_plain()))) == each.apply(made)


def test_states_that_are_reset_leave_the_vectors_of_the_weights(recipe):
    """Spectral damping follows the weights from batch to batch; started anew at each, it would lag
    for ever."""
    rule = DualPropagation(alpha=0.0, damping="spectral", start="previous", schedule="up_down(1)")
    made = recipe(rule=rule, reset_states=True, model=MLP(widths=(9, 8)))
    torch.manual_seed(0)
    model = made.build((12,), 4)
    network, optimizer = Network.from_module(model), torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(6, 12), torch.randint(4, (6,))
    outcomes, state = step.training_step(made, network, optimizer, x, y, None, None)
    assert state.means == ()
    assert all(a is b for a, b in zip(state.directions, outcomes[-1].state.directions, strict=True))
    fresh = rule.gradients(network, x, y, state=state)
    from_forward = rule.gradients(network, x, y)
    torch.testing.assert_close(fresh.state.means[1], from_forward.state.means[1], rtol=1e-2, atol=1e-3)
    _, after = step.training_step(made, network, optimizer, x, y, state, None)
    assert not torch.equal(after.directions[1], state.directions[1])
    assert DualPropagation(start="previous").at_new_batch(outcomes[-1].state) is None


def test_statistics_of_a_rule_with_states_take_a_full_batch_where_the_validation_part_is_smaller(recipe, train):
    """On a part of a batch the states could not be passed on, and the numbers would be another
    rule's."""
    run = train(variant("l-dp", recipe, align=True, batch_size=512, validation_fraction=0.1))
    assert all(line.inference["residual"] > 0 for line in run.metrics(0)[1:])
    assert all(len(line.alignment) == 3 for line in run.metrics(0))


def test_steps_that_did_not_settle_are_counted_for_each_epoch(recipe, train):
    """One step's message says nothing of the others."""
    rule = DualPropagation(alpha=0.0, schedule="up_down(1)", tolerance=1e-12)
    run = train(recipe(rule=rule, epochs=2))
    timing = (run.seed_folder(0) / "timing.jsonl").read_text().splitlines()
    for line, steps in zip(run.metrics(0)[1:], (json.loads(text)["steps"] for text in timing), strict=True):
        assert line.unsettled_steps == steps > 1
        assert "inference did not settle" in line.unsettled
    settled = train(recipe(rule=dataclasses.replace(rule, coupling="transposed"), epochs=1), name="settled").metrics(0)[1]
    assert settled.unsettled_steps == 0
    assert settled.unsettled == ""
