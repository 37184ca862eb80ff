"""The papers' named variants, as settings of the orthogonal parts of a recipe: coupling, order of
updates, start, …

A variant changes of a recipe what defines it, and keeps the rest (α, β, loss, optimizer, data).
Names and algorithms: Høier et al. (2023), §4 and the MNIST table; their code's slips are not copied
(its parallel variant steps the optimizer twice).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dualprop import neurons, schedules
from dualprop.equilibrium.estimators import AbstractEstimator, Holomorphic
from dualprop.equilibrium.relaxations import Blocks
from dualprop.errors import SettingError, closest
from dualprop.losses import SquaredError
from dualprop.models import MLP, FastConvNet, OwnModel
from dualprop.rules import (
    AbstractRule,
    Backprop,
    ContrastiveHebbian,
    DirectFeedbackAlignment,
    DualPropagation,
    EquilibriumPropagation,
    Lifted,
    PredictiveCoding,
    TargetPropagation,
)
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class Variant:
    """`summary` in a line, and the function that makes a recipe into this variant of it."""

    summary: str
    apply: Callable[[Recipe], Recipe]


def _by(rule: AbstractRule, recipe: Recipe, **changes: Any) -> Recipe:
    plain: dict[str, Any] = {"feedback": "exact", "updates_per_batch": 1, "reset_states": False}
    return dataclasses.replace(recipe, rule=rule, **{**plain, **changes})


def _dp(recipe: Recipe, **settings: Any) -> DualPropagation:
    """Dual propagation with the recipe's own settings where it has any, one downward sweep, and
    these changes."""
    own = recipe.rule if isinstance(recipe.rule, DualPropagation) else DualPropagation(loss=recipe.rule.loss)
    # One downward sweep is what the fused engine makes, another order is not.
    engine = "auto" if {"schedule", "start", "damping"} & set(settings) else own.engine
    plain: dict[str, Any] = {"coupling": "original", "schedule": schedules.alternating_sweeps(1), "start": "forward",
                             "engine": engine, "damping": None, "tolerance": None}  # fmt: skip
    return dataclasses.replace(own, **{**plain, **settings})


def _backprop(recipe: Recipe) -> Recipe:
    return _by(Backprop(loss=recipe.rule.loss), recipe)


def _dual_propagation(recipe: Recipe) -> Recipe:
    return _by(_dp(recipe), recipe)


def _multi_step(recipe: Recipe) -> Recipe:
    rule = _dp(recipe, schedule=schedules.up_down(1), start="previous")
    return _by(rule, recipe, updates_per_batch=2, reset_states=True)


def _lazy(recipe: Recipe) -> Recipe:
    return _by(_dp(recipe, schedule=schedules.up_down(1), start="previous"), recipe)


def _parallel(recipe: Recipe) -> Recipe:
    # L steps up to the output, L-1 down to the first layer.
    return _by(_dp(recipe, schedule=schedules.synchronous(2 * recipe.known_depth - 1), start="zeros"), recipe)


def _random_order(recipe: Recipe) -> Recipe:
    return _by(_dp(recipe, schedule=schedules.random_order(100), start="zeros"), recipe)


def _odd_even(recipe: Recipe) -> Recipe:
    # The error descends two layers a pass, and one in the first or the last.
    return _by(_dp(recipe, schedule=schedules.odd_even(recipe.known_depth // 2 + 1)), recipe)


def _bottom_up(recipe: Recipe) -> Recipe:
    # The error descends one layer a pass.
    return _by(_dp(recipe, schedule=schedules.bottom_up(recipe.known_depth)), recipe)


def _transposed(recipe: Recipe) -> Recipe:
    return _by(_dp(recipe, coupling="transposed", alpha=0.0), recipe)


def _with_feedback(kind: str) -> Callable[[Recipe], Recipe]:
    return lambda recipe: _by(_dp(recipe), recipe, feedback=kind)


def _lifted(recipe: Recipe) -> Recipe:
    return _by(Lifted(loss=recipe.rule.loss), recipe)


def _contrastive(recipe: Recipe) -> Recipe:
    own = recipe.rule if isinstance(recipe.rule, ContrastiveHebbian) else ContrastiveHebbian(loss=recipe.rule.loss)
    return _by(own, recipe)


def _predictive_coding(**settings: Any) -> Callable[[Recipe], Recipe]:
    """Predictive coding with the recipe's own settings where it has any, and these changes."""

    def apply(recipe: Recipe) -> Recipe:
        own = recipe.rule if isinstance(recipe.rule, PredictiveCoding) else PredictiveCoding(beta=1.0, loss=recipe.rule.loss)
        # Incremental PC makes its steps one update each.
        steps = own.steps * recipe.updates_per_batch if own.start == "previous" else own.steps
        plain = {"start": "forward", "predictions": "current", "learn": "end", "steps": steps}
        return _by(dataclasses.replace(own, **{**plain, **settings}), recipe)

    return apply


def _incremental(recipe: Recipe) -> Recipe:
    # As many updates as the rule otherwise makes steps, each after one of them.
    applied = _predictive_coding()(recipe)
    assert isinstance(applied.rule, PredictiveCoding)
    own = recipe.rule
    is_alongside = isinstance(own, PredictiveCoding) and own.learn == "alongside"
    learn: Literal["alongside", "end"] = "alongside" if is_alongside else "end"
    rule = dataclasses.replace(applied.rule, steps=1, start="previous", learn=learn)
    return _by(rule, recipe, updates_per_batch=applied.rule.steps, reset_states=True)


def _at_arrival(recipe: Recipe) -> Recipe:
    steps = max(1, recipe.known_depth - 1)
    return _predictive_coding(learn="arrival", steps=steps, step_size=1.0, momentum=0.0)(recipe)


def _fixed(recipe: Recipe) -> Recipe:
    steps = max(1, recipe.known_depth - 1)
    return _predictive_coding(predictions="fixed", steps=steps, step_size=1.0, momentum=0.0)(recipe)


def _damped(recipe: Recipe) -> Recipe:
    # Twice the passes that the error needs: damped states follow with a lag.
    schedule = schedules.up_down(2 * recipe.known_depth)
    return _by(_dp(recipe, alpha=0.0, damping="spectral", schedule=schedule), recipe)


def _ep(**settings: Any) -> Callable[[Recipe], Recipe]:
    """Equilibrium propagation with the recipe's own settings where it has any, and these changes;
    centered where neither says otherwise."""

    def apply(recipe: Recipe) -> Recipe:
        rule = recipe.rule
        own = rule if isinstance(rule, EquilibriumPropagation) else EquilibriumPropagation(loss=rule.loss)
        # Of holomorphic EP there is a variant of its own. Predictive coding has no state to hold.
        estimator = AbstractEstimator.as_part(own.estimator)
        is_coding = settings.get("energy") == "predictive_coding"
        plain = {"estimator": "centered" if _points(own) else estimator.name if is_coding else estimator}
        return _by(dataclasses.replace(own, **{**plain, **settings}), recipe)

    return apply


def _blocks(recipe: Recipe) -> Blocks:
    """The recipe's own block updates, or as many as are published: VGG5, of six layers, was settled
    by five iterations, deeper networks by ten."""
    if not isinstance(recipe.rule, EquilibriumPropagation):
        return Blocks()
    own = recipe.rule.relaxation
    published = Blocks("even_odd(5)" if recipe.known_depth == 6 else "even_odd(10)")
    return dataclasses.replace(own, update="auto") if isinstance(own, Blocks) else published


def _ep_coding(**settings: Any) -> Callable[[Recipe], Recipe]:
    """The same on a predictive coding network, whose free phase is the forward pass."""
    plain = EquilibriumPropagation()
    return _ep(energy="predictive_coding", free_schedule=plain.free_schedule, start=plain.start, **settings)


def _ep_clamped(recipe: Recipe) -> Recipe:
    return _ep_coding(relaxation=_blocks(recipe), output_nudge="clamped", loss=SquaredError())(recipe)


def _ep_published(recipe: Recipe) -> Recipe:
    return _ep(relaxation=_blocks(recipe))(recipe)


def _ep_hopfield(recipe: Recipe) -> Recipe:
    own = recipe.rule
    is_own = isinstance(own, EquilibriumPropagation) and str(own.energy) == "hopfield"
    # What is of predictive coding networks goes back to its default.
    plain = {"relaxation": _blocks(recipe), "jacobians": "current", "output_nudge": "linearized"}
    return _ep(energy="hopfield", **({} if is_own else plain))(recipe)


def _target_propagation(recipe: Recipe) -> Recipe:
    own = recipe.rule if isinstance(recipe.rule, TargetPropagation) else TargetPropagation(loss=recipe.rule.loss)
    return _by(own, recipe)


def _direct_feedback(recipe: Recipe) -> Recipe:
    return _by(DirectFeedbackAlignment(loss=recipe.rule.loss), recipe)


def _points(rule: AbstractRule) -> int:
    """N of a rule whose estimator is holomorphic(N); 0 of any other."""
    estimator = rule.estimator if isinstance(rule, EquilibriumPropagation) else None
    return estimator.points if isinstance(estimator, Holomorphic) else 0


def _hep(recipe: Recipe) -> Recipe:
    """Holomorphic EP. Rectifiers and max-pools have no complex states: sigmoids and softmax pools
    take their places."""
    model = recipe.model
    # A fast_conv_net has maxima elsewhere too, one's own may. The rule refuses them by name.
    if not isinstance(model, FastConvNet | OwnModel):
        if not neurons.from_name(model.activation).is_holomorphic:
            model = dataclasses.replace(model, activation="sigmoid")
        if not isinstance(model, MLP) and model.pooling == "max":
            model = dataclasses.replace(model, pooling="softmax")
    # What may be of other networks and estimators goes back to its default.
    made = _ep(energy="hopfield", estimator=Holomorphic(_points(recipe.rule) or 4), relaxation=_blocks(recipe),
               jacobians="current", output_nudge="linearized")(recipe)  # fmt: skip
    return dataclasses.replace(made, model=model)


VARIANTS: dict[str, Variant] = {
    "bp": Variant("back-propagation, the twin", _backprop),
    "dp": Variant("dual propagation: one downward sweep from the forward pass", _dual_propagation),
    "ms-dp": Variant("multi-step: two inferences and updates a batch, the second from the first one's states", _multi_step),
    "l-dp": Variant("lazy: states persist from batch to batch, one sweep up and down", _lazy),
    "p-dp": Variant("parallel: all layers together from zeros, 2L-1 steps", _parallel),
    "r-dp-100": Variant("random order: 100 updates of single layers drawn at random, from zeros", _random_order),
    "odd-even": Variant("odd layers, then even ones, until the error has reached the first layer", _odd_even),
    "bottom-up": Variant("upward passes, L of them, in which the error descends a layer a pass", _bottom_up),
    "dp-transposed": Variant("DP⊤ at α = 0: the mean is the forward pass; one downward sweep is its fixed point", _transposed),
    "damped-dp": Variant("DP at α = 0, damped by the synapses' spectral norms, 2L sweeps up and down", _damped),
    "lpom": Variant("lifted network: block sweeps down the penalised objective until they settle, at most 20", _lifted),
    "chl": Variant("contrastive Hebbian learning: free and clamped phase with discounted feedback", _contrastive),
    "ep": Variant("equilibrium propagation: centered, one pair of error sweeps on a predictive coding network", _ep()),
    "ep-random": Variant("EP with the nudge's sign drawn for each example", _ep(estimator="random_sign")),
    "ep-forward": Variant("EP with a downhill nudge alone", _ep(estimator="forward")),
    "ep-backward": Variant("EP with an uphill nudge alone", _ep(estimator="backward")),
    "ep-clamped": Variant(
        "EP with the output clamped towards the targets, on a predictive coding network, by block updates; a pull of squared "
        "error, whatever the recipe's loss",
        _ep_clamped,
    ),
    "ep-two-pairs": Variant(
        "EP by two pairs of error sweeps on a predictive coding network",
        _ep_coding(relaxation="error_sweeps(2)"),
    ),
    "ep-published": Variant("EP as published: K even/odd iterations of block updates, 10 or the recipe's", _ep_published),
    "ep-hopfield": Variant("EP on a Hopfield network: a free phase, and two nudged from it, by block updates", _ep_hopfield),
    "hep": Variant(
        "holomorphic EP on a Hopfield network: four nudges on a circle, or as many as the recipe's; sigmoids and softmax pools "
        "where the network is not holomorphic",
        _hep,
    ),
    "pc": Variant(
        "predictive coding: 20 gradient steps of the states, the output held at the targets (β = 1)", _predictive_coding()
    ),
    "ipc": Variant("incremental PC: the weights learn at every step of inference", _incremental),
    "pc-fixed": Variant("PC with predictions fixed at the forward pass, L-1 steps of 1: numerically BP", _fixed),
    "pc-arrival": Variant("PC that learns as errors arrive, L-1 steps of 1: numerically BP", _at_arrival),
    "dtp": Variant("difference target propagation: feedback maps of its own, trained on every batch", _target_propagation),
    "kp-dp": Variant("DP with Kolen-Pollack feedback: weights of its own that learn alike", _with_feedback("kolen_pollack")),
    "fa-dp": Variant("DP with fixed random feedback weights (feedback alignment)", _with_feedback("random")),
    "dfa": Variant("direct feedback alignment: errors straight from the output by fixed random matrices", _direct_feedback),
    "sign-dp": Variant("DP with sign-symmetric feedback: the signs of the forward weights", _with_feedback("sign_symmetric")),
}


def named(name: str) -> Variant:
    """The variant of that name, DP⊤ at an α and β of its own, "dp-transposed-a0.5-b0.01", or EP by
    K even/odd iterations at a β, "ep-k5-b0.02". Raises SettingError."""
    if name in VARIANTS:
        return VARIANTS[name]
    number = r"(\d+(?:\.\d+)?(?:e-?\d+)?)"
    pair = re.fullmatch(f"dp-transposed-a{number}-b{number}", name)
    if pair and name == transposed_at(float(pair[1]), float(pair[2])):
        alpha, beta = float(pair[1]), float(pair[2])
        return Variant(f"DP⊤ at α = {alpha:g}, β = {beta:g}", lambda recipe: _transposed_at(recipe, alpha, beta))
    pair = re.fullmatch(f"ep-k([1-9]\\d{{0,3}})-b{number}", name)
    if pair and name == ep_at(int(pair[1]), float(pair[2])):
        iterations, beta = int(pair[1]), float(pair[2])
        relaxation = Blocks(schedules.even_odd(iterations))
        return Variant(f"EP by {iterations} even/odd iterations, β = {beta:g}", _ep(relaxation=relaxation, beta=beta))
    raise SettingError(
        f"unknown variant '{name}'.{closest(name, list(VARIANTS))} `dualprop list variants` shows them all: "
        f"{', '.join(VARIANTS)}."
    )


def transposed_at(alpha: float, beta: float) -> str:
    """The one name of DP⊤ at these."""
    return f"dp-transposed-a{alpha:g}-b{beta:g}"


def ep_at(iterations: int, beta: float) -> str:
    """The one name of EP by these."""
    return f"ep-k{iterations}-b{beta:g}"


def _transposed_at(recipe: Recipe, alpha: float, beta: float) -> Recipe:
    own = recipe.rule.schedule if isinstance(recipe.rule, DualPropagation) else schedules.alternating_sweeps(1)
    return _by(_dp(recipe, coupling="transposed", alpha=alpha, beta=beta, schedule=own, engine="auto"), recipe)


def parse(text: str, recipe: Recipe | None = None) -> list[str]:
    """The variants that `text` names with commas between; "all" of them, those that the recipe
    holds "published" figures of, or back-propagation and DP⊤ over the recipe's "grid" of α and β.

    Raises SettingError for an unknown name, one named twice, or "published" or "grid" where the
    recipe has none.
    """
    if text == "all":
        return list(VARIANTS)
    if text == "published" and recipe is not None:
        if not recipe.published:
            raise SettingError(f"recipe {recipe.name} holds no published figures. Name variants: {', '.join(VARIANTS)}.")
        return [name for name, _ in recipe.published]
    if text == "grid" and recipe is not None:
        if not recipe.grid:
            raise SettingError(f"recipe {recipe.name} holds no grid of α and β. Name variants: {', '.join(VARIANTS)}.")
        return ["bp", *(transposed_at(alpha, beta) for alpha, beta in recipe.grid)]
    names = text.split(",")
    for name in names:
        named(name)
    if len(set(names)) != len(names):
        raise SettingError(f"a variant is named twice: {text}. Name each once.")
    return names
