"""Recipes: written to disk and read back as the same value, told apart by every field, refused
where damaged."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dualprop import recipes
from dualprop.data import Augmentation, Reading
from dualprop.errors import RunError, SettingError
from dualprop.losses import CrossEntropy, SquaredError
from dualprop.models import MLP, ConvNet
from dualprop.rules import RULES, Backprop, DualPropagation, EquilibriumPropagation, TargetPropagation
from dualprop.training import Optimizer, Recipe

ODD_RULES = {
    "one beta per layer": DualPropagation(beta=(0.1, 0.3, 1e-3)),
    "a beta that is no binary fraction": DualPropagation(beta=0.1, alpha=1 / 3),
    "damping": DualPropagation(damping=(0.5, 0.0)),
    "an order with groups": DualPropagation(schedule=[3, (1, 2), 3]),
    "an order as text": DualPropagation(schedule="3,1+2,3"),
    "a schedule with a count": DualPropagation(schedule="random_order(17)", start="previous"),
    "an exact nudge": DualPropagation(output_nudge="exact", loss=SquaredError(), beta=0.5, coupling="transposed"),
    "a linearisation point": DualPropagation(linearize_at="forward", start="zeros", schedule="synchronous(6)"),
    "the fused engine": DualPropagation(engine="fused", alpha=0.0),
    "back-propagation with a loss by name": Backprop(loss="squared_error"),
}


def there_and_back(recipe: Recipe) -> Recipe:
    return Recipe.from_plain(json.loads(json.dumps(recipe.to_plain())))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_by_every_rule_comes_back_from_json_as_the_same(name, rule):
    """A run is resumed by what its recipe.json says: a field that is lost there falls back to its
    default."""
    made = recipes.from_name(name).with_rule(rule)
    back = there_and_back(made)
    assert back == made
    assert back.digest() == made.digest()
    assert back.rule_name == rule


@pytest.mark.parametrize("case", ODD_RULES)
def test_every_setting_of_a_rule_comes_back_from_json_as_the_same(case, recipe):
    """JSON knows no tuples, schedules and losses; read back as lists or text they would compare and
    digest otherwise."""
    made = recipe(rule=ODD_RULES[case])
    back = there_and_back(made)
    assert back.rule == made.rule
    assert [type(getattr(back.rule, f.name)) for f in dataclasses.fields(back.rule)] == [
        type(getattr(made.rule, f.name)) for f in dataclasses.fields(made.rule)
    ]
    assert back.digest() == made.digest()
    assert hash(back) == hash(made)


def test_every_model_and_optimizer_comes_back_from_json_as_the_same(recipe):
    """Beside the rule these are the nested values."""
    made = recipe(
        model=ConvNet(channels=(3, 5), activation="tanh", pool="stride"),
        optimizer=Optimizer(name="sgd", nesterov=True, warmup_epochs=0.5, warmup_from=1e-4, cosine=True),
        seed_list=(4, 2),
        augmentation=Augmentation(pad=4, flip=True),
        dtype="float64",
    )
    assert there_and_back(made) == made


CHANGES = {
    "name": "other",
    "cites": "a table",
    "published": (("dp", "98.43 ± 0.03"),),
    "dataset": "mnist",
    "border": 2,
    "train_examples": 500,
    "augmentation": Augmentation(flip=True),
    "model": MLP(widths=(9,)),
    "feedback": "random",
    "rule": DualPropagation(),
    "optimizer": Optimizer(learning_rate=0.5),
    "averaging": 20.0,
    "select": "last",
    "views": "flips",
    "batch_size": 63,
    "updates_per_batch": 2,
    "reset_states": True,
    "epochs": 7,
    "budget_epochs": 3,
    "grid": ((0.5, 0.1),),
    "validation_fraction": 0.2,
    "reading": Reading(target="kind"),
    "class_weights": "balanced",
    "start_from": "runs/other",
    "seed_list": (1,),
    "align": False,
    "checkpoint_every": 5,
    "device": "cuda",
    "dtype": "float64",
    "channels_last": "on",
    "num_threads": 2,
    "flush_subnormals": False,
}
RULE_CHANGES = {
    "coupling": "transposed",
    "alpha": 0.25,
    "beta": 0.5,
    "schedule": "bottom_up(4)",
    "start": "zeros",
    "output_nudge": "exact",
    "linearize_at": "forward",
    "damping": (0.5,),
    "tolerance": 0.01,
    "engine": "fused",
    "loss": SquaredError(),
}
OPTIMIZER_CHANGES = {
    "name": "adam",
    "learning_rate": 0.5,
    "weight_decay": 0.25,
    "momentum": 0.5,
    "nesterov": False,
    "warmup_epochs": 0.5,
    "warmup_from": 0.125,
    "cosine": False,
    "cosine_epochs": 1.5,
    "final_learning_rate": 0.25,
    "layer_factors": (1.0, 0.5),
    "norm_factor": 64.0,
}


def test_the_digest_changes_with_every_field(recipe):
    """A field outside the digest could be edited in recipe.json, and the run resumed as half one
    thing and half another."""
    of_no_part = {"residency", "kernel", "capture", "stack_seeds", "chosen"}
    assert CHANGES.keys() | of_no_part == {f.name for f in dataclasses.fields(Recipe)}
    digests = {recipe().digest(), *(recipe(**{name: value}).digest() for name, value in CHANGES.items())}
    assert len(digests) == 1 + len(CHANGES)


@pytest.mark.parametrize(
    ("name", "value"),
    [("residency", "mapped"), ("kernel", "eager"), ("capture", "off"), ("stack_seeds", "on"), ("chosen", "by hand")],
)
def test_the_digest_is_the_same_however_the_run_is_computed(recipe, name, value):
    """A run goes on after a move to a machine with less memory or without a compiler."""
    made = recipe(**{name: value})
    assert there_and_back(made) == made
    assert made.digest() == recipe().digest()


def test_a_recipe_written_before_there_was_augmentation_has_none(recipe):
    """Published runs are read again by `report`."""
    plain = recipe().to_plain()
    del plain["augmentation"], plain["residency"]
    assert Recipe.from_plain(plain) == recipe()


PUBLISHED = sorted((Path(__file__).parents[2] / "results").rglob("recipe.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_the_recipe_of_every_published_run_is_read(path):
    """Written by earlier versions, they are shown again by `report`."""
    made = Recipe.from_plain(json.loads(path.read_text())["recipe"])
    assert there_and_back(made) == made


OLDER = [
    ({"relaxation": "auto", "pairs": 2, "update": "pgd"}, "error_sweeps(2, update=pgd)"),
    ({"relaxation": "auto", "energy": "hopfield", "schedule": "odd_even(3)"}, "blocks(odd_even(3))"),
    ({"relaxation": "blocks", "update": "pgd", "step_size": 0.5}, "blocks(even_odd(10), update=pgd, step_size=0.5)"),
]


@pytest.mark.parametrize(("settings", "relaxation"), OLDER)
def test_an_older_recipe_of_equilibrium_propagation_settles_as_it_did(recipe, settings, relaxation):
    """Read as the default, a run would be shown as another one."""
    plain = recipe(rule=EquilibriumPropagation()).to_plain()
    older = {"relaxation": "auto", "pairs": 1, "schedule": "even_odd(10)", "update": "auto", "step_size": 1.0}
    made = Recipe.from_plain({**plain, "rule": {**plain["rule"], **older, **settings}})
    assert str(made.rule.relaxation) == relaxation


def test_the_kernel_of_an_older_recipe_is_no_setting_of_its_rule(recipe):
    plain = recipe(rule=DualPropagation()).to_plain()
    made = Recipe.from_plain({**plain, "rule": {**plain["rule"], "kernel": "eager"}})
    assert made == recipe(rule=DualPropagation(), kernel="eager")


def test_the_digest_changes_with_every_setting_of_the_rule(recipe):
    """The settings compared in the papers are the rule's."""
    assert RULE_CHANGES.keys() == {f.name for f in dataclasses.fields(DualPropagation)}
    rules = [DualPropagation(), *(DualPropagation(**{name: value}) for name, value in RULE_CHANGES.items())]
    assert len({recipe(rule=rule).digest() for rule in rules}) == len(rules)


EP_CHANGES = {
    "energy": "hopfield",
    "estimator": "forward",
    "beta": 0.5,
    "relaxation": "blocks(odd_even(3))",
    "free_schedule": "odd_even(3)",
    "start": "forward",
    "tolerance": 0.1,
    "jacobians": "free",
    "output_nudge": "exact",
    "loss": "squared_error",
}


def test_the_digest_changes_with_every_setting_of_equilibrium_propagation(recipe):
    """And each is read again as it was written: energies and estimators are text there."""
    assert EP_CHANGES.keys() == {f.name for f in dataclasses.fields(EquilibriumPropagation)}
    of_hopfield = {"energy": "hopfield"}
    besides = {"tolerance": {"relaxation": "blocks"}, "free_schedule": of_hopfield, "start": of_hopfield}
    rules = [EquilibriumPropagation()]
    rules += [EquilibriumPropagation(**{**besides.get(name, {}), name: value}) for name, value in EP_CHANGES.items()]
    rules += [EquilibriumPropagation(energy="hopfield", estimator=f"{name}(held)") for name in ("forward", "random_sign")]
    assert len({recipe(rule=rule).digest() for rule in rules}) == len(rules)
    for rule in rules:
        assert there_and_back(recipe(rule=rule)).rule == rule


DTP_CHANGES = {
    "beta": 0.5,
    "iterations": (3, 2),
    "noise": (0.1, 0.2),
    "feedback_rate": (1e-3, 2e-3),
    "feedback_momentum": 0.5,
    "feedback_decay": 1e-4,
    "start": "random",
    "unpool": "noisy",
    "loss": "squared_error",
}


def test_the_digest_changes_with_every_setting_of_target_propagation(recipe):
    """And each is read again as it was written: one for each layer is a list there."""
    assert DTP_CHANGES.keys() == {f.name for f in dataclasses.fields(TargetPropagation)}
    rules = [TargetPropagation(), *(TargetPropagation(**{name: value}) for name, value in DTP_CHANGES.items())]
    assert len({recipe(rule=rule).digest() for rule in rules}) == len(rules)
    for rule in rules:
        assert there_and_back(recipe(rule=rule)).rule == rule


def test_the_digest_changes_with_every_setting_of_the_optimizer(recipe):
    """Here too, one field at a time from a setting in which each has a meaning."""
    base = Optimizer(
        name="sgd", nesterov=True, warmup_epochs=0.25, warmup_from=0.01, cosine=True, final_learning_rate=1e-4
    )  # fmt: skip
    assert OPTIMIZER_CHANGES.keys() == {f.name for f in dataclasses.fields(Optimizer)}
    changed = []
    for name, value in OPTIMIZER_CHANGES.items():
        besides = {"name": {"nesterov": False}, "cosine": {"final_learning_rate": 0.0, "cosine_epochs": 0.0}}.get(name, {})
        changed.append(dataclasses.replace(base, **{name: value}, **besides))
    digests = {recipe(optimizer=optimizer).digest() for optimizer in [base, *changed]}
    assert len(digests) == 1 + len(changed)


def test_another_rule_keeps_the_loss_and_everything_else(recipe):
    """A twin with another loss would be compared as if it were one."""
    made = recipe(rule=DualPropagation(loss=SquaredError(), beta=0.1))
    twin = made.with_rule("backprop")
    assert twin.rule == Backprop(loss=SquaredError())
    assert dataclasses.replace(twin, rule=made.rule) == made
    assert made.with_rule("dual_propagation") is made


def test_the_twin_is_true_back_propagation_whatever_the_recipes_feedback_and_updates():
    """Through feedback weights, or with twice the updates, it would be no yardstick; other rules
    keep both."""
    made = dataclasses.replace(recipes.from_name("mnist-feedback"), updates_per_batch=2, reset_states=True)
    twin = made.with_rule("backprop")
    assert (twin.feedback, twin.updates_per_batch, twin.reset_states) == ("exact", 1, False)
    lifted = made.with_rule("lifted")
    assert (lifted.feedback, lifted.updates_per_batch, lifted.reset_states) == ("kolen_pollack", 2, True)


def test_seeds_are_the_published_ones_and_then_count_on():
    """The published runs come first; a seed must never be used twice."""
    made = recipes.from_name("mnist-mlp")
    assert made.seeds(None) == (139, 946, 992, 640, 731)
    assert made.seeds(2) == (139, 946)
    assert made.seeds(7) == (139, 946, 992, 640, 731, 993, 994)
    with pytest.raises(SettingError, match="seeds must be at least 1, got 0"):
        made.seeds(0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 0"),
        ({"validation_fraction": 0.0}, "validation_fraction must be in (0, 1)"),
        ({"validation_fraction": 1.0}, "validation_fraction must be in (0, 1)"),
        ({"seed_list": ()}, "seed_list must hold different seeds"),
        ({"seed_list": (1, 1)}, "seed_list must hold different seeds"),
        ({"seed_list": (-1,)}, "seed_list[0] must be at least 0"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'float64', 'bfloat16', 'tf32'"),
        ({"residency": "disk"}, "residency must be one of 'auto', 'device', 'mapped', got 'disk'"),
        ({"optimizer": {"warmup_epochs": 2.0}}, "warmup_epochs must be fewer than the 2 epochs"),
    ],
)
def test_a_recipe_that_can_not_be_trained_is_refused_when_it_is_made(changes, reason, recipe):
    """Found only after an epoch, it would have cost the epoch."""
    with pytest.raises(SettingError) as caught:
        recipe(**changes)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"epochs": "ten"},
        {"optimizer": {"name": "adam", "learning_rte": 0.1}},
        {"rule": {"name": "dual_propagatoin"}},
        {"rule": {"beta": 1.0}},
        {"rule": "backprop"},
        {"model": {"name": "transformer"}},
        {"model": {"name": "mlp", "widths": "wide"}},
        {"unknown_field": 1},
        {"rule": {"name": "dual_propagation", "alpha": 3.0}},
    ],
)
def test_a_damaged_description_is_refused_in_one_line(damage, recipe):
    """Edited by hand, or written by a later version."""
    plain = recipe().to_plain() | damage
    with pytest.raises(RunError, match="does not fit this version of dualprop") as caught:
        Recipe.from_plain(plain)
    assert "\n" not in str(caught.value)


def test_the_first_recipe_is_small_and_the_published_one_is_as_published():
    """These settings stand in the tables of results: changed unnoticed, the figures beside it are
    another experiment's."""
    mnist = recipes.from_name("mnist-mlp")
    assert (mnist.model, mnist.rule.loss) == (MLP(widths=(1000, 1000, 1000)), SquaredError())
    assert (mnist.optimizer, mnist.batch_size) == (Optimizer(name="adam", learning_rate=3e-5), 100)
    assert (mnist.epochs, mnist.validation_fraction) == (100, 0.1)
    digits = recipes.from_name("digits-mlp")
    assert (digits.dataset, digits.rule.loss) == ("digits", CrossEntropy())


def test_normal_weights_have_the_variance_of_the_reciprocal_fan_in_and_no_biases():
    """Their spectral norm, near 2, is what the study of asymmetric nudging is about; PyTorch's own
    are near 1.15."""
    torch.manual_seed(0)
    model = MLP(widths=(400, 400), init="normal").build((300,), 10)
    for layer in (module for module in model if isinstance(module, torch.nn.Linear)):
        assert float(layer.weight.detach().var()) * layer.in_features == pytest.approx(1, abs=0.1)
        assert not layer.bias.detach().any()
    assert float(torch.linalg.matrix_norm(model[2].weight.detach(), 2)) == pytest.approx(2, abs=0.1)
