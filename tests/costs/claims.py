"""What the pages and docstrings say that a step costs, beside what is counted.

A claim's text is looked for on its page, line breaks aside. Of a `Formula` the parts in braces are
evaluated as they stand, of a `Number` the fields are filled with what is counted, of a `Row` the
cells of a table are evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import counting
from counting import Counts, each, of, of_variant, on, steps
from networks import batch, images, mlp
from torch import nn

import dualprop as dp

RULES = "docs/rules/"
WORDS = ("no", "one", "two", "three", "four")
DOWN = dp.DualPropagation(engine="explicit")
LAYERS = tuple({"L": layers} for layers in (3, 4, 8))


@dataclass(frozen=True, eq=False)
class Number:
    page: str
    text: str
    count: Callable[[], Sequence[Any]]


@dataclass(frozen=True, eq=False)
class Formula:
    page: str
    text: str
    count: Callable[..., Counts]
    at: Sequence[dict[str, int]] = LAYERS


@dataclass(frozen=True, eq=False)
class Row:
    page: str
    cell: str
    count: Callable[..., Counts]
    at: Sequence[dict[str, int]] = LAYERS


def chl(L: int, n: int = 10) -> Counts:
    return on(dp.ContrastiveHebbian(schedule=f"alternating_sweeps({n})", gamma=0.5), L)


def pc(L: int, n: int = 20, **settings: Any) -> Counts:
    return on(dp.PredictiveCoding(steps=n, **settings), L)


def exact_pc(L: int, **settings: Any) -> Counts:
    return pc(L, L - 1, step_size=1.0, momentum=0.0, **settings)


def ep(relaxation: str = "error_sweeps(1)", **settings: Any) -> Callable[[int], dp.AbstractRule]:
    return lambda _: dp.EquilibriumPropagation(relaxation=relaxation, **settings)


def by_layers(count: Callable[[int], Counts], *layers: int) -> list[float]:
    return [steps(count(n), n) for n in layers]


def damped(L: int) -> dp.AbstractRule:
    return dp.DualPropagation(alpha=0.0, damping="spectral", schedule=f"up_down({2 * L})")


def settled(L: int) -> Counts:
    return on(dp.DualPropagation(engine="explicit", coupling="transposed", alpha=1.0, schedule="bottom_up(16)"), L)


def phases(pairs: int, L: int) -> Counts:
    """What the phases count beyond the forward pass and the gradients, each."""
    both, none = on(ep(f"error_sweeps({pairs})")(L), L), on(dp.Backprop(), L)
    return Counts((both.drives - none.drives) // 2, both.feedbacks // 2, both.gradients // 2)


def shared(L: int) -> Counts:
    """What two phases count less than one does twice."""
    one, two = on(ep(estimator="random_sign")(L), L), on(ep()(L), L)
    return Counts(*(2 * a - b for a, b in zip(one, two, strict=True)))


def iteration(unpool: str) -> Counts:
    """Of the feedback of one layer, on a network whose one layer with a map back has a max-pool."""
    convolutions = (nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3, padding=1))
    model = nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten()).double()
    many, none = (of(dp.TargetPropagation(iterations=n, unpool=unpool), model, *images()) for n in (1, 0))  # type: ignore[arg-type]
    return Counts(*(a - b for a, b in zip(many, none, strict=True)))


def dtp_rows(layers: int) -> list[Any]:
    counted = [counting.dtp(n, layers) for n in (0, 1, 10)]
    return [*counted, *(float(f"{steps(c, layers):.3g}") for c in counted)]


def bp_row(L: int) -> list[Any]:
    counted = on(dp.Backprop(), L)
    return [counted, steps(counted, L)]


def lifted(L: int, n: int) -> float:
    return steps(on(dp.Lifted(max_sweeps=n, tolerance=0), L), L)


def one_more_by_a_pool() -> str:
    """The drives that a pool before an activation adds, max or average."""
    found = {counting.pool_counts(lambda pool=pool: pool(2)) for pool in (nn.MaxPool2d, nn.AvgPool2d)}  # type: ignore[misc]
    (counts,) = found
    assert counts[1:] == (3, 4)
    return WORDS[counts.drives - 4]


def prediction_from(L: int) -> str:
    """What a start from zeros adds to the drives of a pass up, but for the first, as a letter."""
    drives = on(dp.DualPropagation(start="zeros", schedule="bottom_up(1)"), L).drives
    return "L" if drives == L + L - 1 else str(drives)


def complex_phase() -> list[str]:
    """What a complex evaluation counts as, and how many gradients its phase and the first take."""
    model, (x, y) = mlp("tanh", (5, 6, 6, 4)), batch()

    def counts(estimator: str, passes: int) -> Counts:
        relaxation, free = f"blocks(odd_even({passes}))", "odd_even(3)"
        rule = dp.EquilibriumPropagation(energy="hopfield", estimator=estimator, relaxation=relaxation, free_schedule=free)
        return of(rule, model, x, y)

    # What three passes more count: of two real phases, and of a complex one beside them.
    real, both = (counts(name, 6).drives - counts(name, 3).drives for name in ("holomorphic(2)", "holomorphic(4)"))
    gradients = counts("holomorphic(4)", 3).gradients - counts("holomorphic(2)", 3).gradients
    assert gradients % 3 == 0
    return [WORDS[2 * (both - real) // real], WORDS[gradients // 3 - 1], WORDS[1]]


def without_reuse(L: int) -> float:
    """A prediction; in each of L passes L drives and L-1 feedbacks; learning."""
    return (L + L * (L + L - 1) + L) / (3 * L - 1)


CLAIMS: list[Number | Formula | Row] = [
    Formula(RULES + "backprop.md", "{L} drives, {L-1} feedbacks, {L} gradients for L layers", lambda L: on(dp.Backprop(), L)),
    Formula("dualprop/rules/backprop.py", "{L} drives, {L} gradients and {L-1} feedbacks", lambda L: on(dp.Backprop(), L)),
    # Dual propagation.
    Row(RULES + "dual_propagation.md", "DP⊤, α ∈ {0, 1}: one downward sweep, or any number of passes from the forward states",
        settled),
    Row(RULES + "dual_propagation.md",
        "any α, one downward sweep, synapses that are one Linear or convolution (a pool may precede it)",
        lambda L: on(DOWN, L)),
    Number(RULES + "dual_propagation.md",
           "max-pool or average pool between convolution and activation | + {} per such synapse | L-1 | L |",
           lambda: [one_more_by_a_pool()]),
    Number(RULES + "dual_propagation.md", "| + {} for the forward prediction (the first drive is shared)",
           lambda: [prediction_from(4)]),
    Number(RULES + "dual_propagation.md", "gradients of a BP step ({}, {}-1, {})",
           lambda: ["L" if n in on(dp.Backprop(), n) else "?" for n in (3, 4, 8)]),
    Formula(RULES + "transposed_dual_propagation.md", "counts the {L} drives and {L-1} feedbacks of one sweep", settled),
    Formula(RULES + "transposed_dual_propagation.md", "One BP step by counts, {L} drives, {L-1} feedbacks, {L} gradients",
            settled),
    Formula(RULES + "feedback_weights.md", "One BP step: {L} drives, {L-1} feedbacks, {L} gradients", counting.with_feedback),
    Number(RULES + "damped_dual_propagation.md",
           "{:.1f} BP steps on a network of three layers, {:.1f} on four, {:.1f} on eight", lambda: each(damped, 3, 4, 8)),
    Number(RULES + "variants.md", "| {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} | about {:.0f} |",
           lambda: [*(of_variant("mnist-mlp", v) for v in ("dp", "odd-even", "l-dp", "bottom-up", "p-dp", "ms-dp")),
                    sum(counting.drawn_orders(4)) / 20]),
    Number(RULES + "damped_dual_propagation.md", "{} steps in a call without a state, {} in a call with one",
           lambda: [{31: "thirty-one"}[counting.spectral_steps(damped(3))], WORDS[counting.spectral_steps(damped(3), 2)]]),
    Number(RULES + "lifted.md", "adds {} pairs of maps of a *single* example for each layer above the first",
           lambda: [counting.spectral_steps(dp.Lifted())]),
    # The relatives.
    Formula(RULES + "contrastive_hebbian.md", "{2n(L-1) + 1} drives, {2n(L-1) - n + 1} feedbacks and {2L} gradients", chl,
            [{"L": 3, "n": 10}, {"L": 4, "n": 3}, {"L": 8, "n": 5}]),
    Number(RULES + "contrastive_hebbian.md", "{:.1f} BP steps for L = 3, {:.1f} for 4, {:.1f} for 8 and {:.1f} for 16",
           lambda: by_layers(chl, 3, 4, 8, 16)),
    Formula(RULES + "predictive_coding.md",
            "{L + (L-1)(n + 1 - L/2)} drives, {(L-1)(n + 1 - L/2)} feedbacks and {L} gradients", pc,
            [{"L": 3, "n": 2}, {"L": 3, "n": 20}, {"L": 4, "n": 7}, {"L": 8, "n": 9}, {"L": 16, "n": 20}]),
    Number(RULES + "predictive_coding.md",
           "{:.1f} to {:.1f} BP steps for L = 3 to 16: {:.1f} for L = 3, {:.1f} for 4, {:.1f} for 8, {:.1f} for 16",
           lambda: [min(by_layers(pc, 3, 16)), max(by_layers(pc, 5, 6)), *by_layers(pc, 3, 4, 8, 16)]),
    Formula(RULES + "predictive_coding.md",
            "`pc-arrival` counts {L + (L-1) L/2} drives, {(L-1) L/2} feedbacks and {L} gradients",
            lambda L: exact_pc(L, learn="arrival")),
    Formula(RULES + "predictive_coding.md", "`pc-fixed` {L} drives, {(L-1) L/2 - L + 2} feedbacks and {L} gradients",
            lambda L: exact_pc(L, predictions="fixed")),
    Number(RULES + "predictive_coding.md", "20 updates are {:.1f} BP steps for L = 3, and {:.1f} with `learn=\"alongside\"`",
           lambda: [counting.incremental("end"), counting.incremental("alongside")]),
    Formula(RULES + "equilibrium_propagation.md", "A phase costs {L-1} feedbacks, {L-1} drives and {L} gradients",
            lambda L: phases(1, L)),
    Formula(RULES + "equilibrium_propagation.md", "share the forward pass, its {L} drives and its tapes", shared),
    Formula(RULES + "equilibrium_propagation.md", "centered EP counts {3L-2} drives, {2(L-1)} feedbacks and {2L} gradients",
            lambda L: on(ep()(L), L)),
    Number(RULES + "equilibrium_propagation.md", "{:.1f} BP steps for L = 3, {:.1f} for 16. One phase is {:.1f} and {:.1f}",
           lambda: each(ep(), 3, 16) + each(ep(estimator="random_sign"), 3, 16)),
    Number(RULES + "equilibrium_propagation.md", "counts {:.1f}, {:.1f} and {:.1f} BP steps here for L = 3, 6 and 16",
           lambda: each(ep("blocks(even_odd(10))"), 3, 6, 16)),
    Number(RULES + "equilibrium_propagation.md",
           "a complex drive, feedback or gradient counts as the {} real ones that it is. A complex phase contrasted with the "
           "first takes {} gradients of its own and {} of the first's", complex_phase),
    Number(RULES + "equilibrium_propagation.md", "{:.1f} BP steps for L = 3, {:.1f} for 16. *How good",
           lambda: each(ep("error_sweeps(2)"), 3, 16)),
    Number("docs/rules.md", "centered EP costs {:.1f} to {:.1f} BP steps, random sign {:.1f} to {:.1f}, for 3 to 16 layers",
           lambda: each(ep(), 3, 16) + each(ep(estimator="random_sign"), 3, 16)),
    Number("docs/rules.md", "The published K = 10 costs {:.1f} to {:.1f},",
           lambda: each(ep("blocks(even_odd(10))"), 16, 6)),
    Number("dualprop/equilibrium/relaxations.py", "for {}(L-1) synapse evaluations",
           lambda: [sum(b - a for a, b in zip(phases(1, 4), phases(2, 4), strict=True)) // 3]),
    Formula(RULES + "lifted.md", "{L + n(L-1)} drives, {n(L-1)} feedbacks and {L} gradients for n sweeps",
            lambda L, n: on(dp.Lifted(max_sweeps=n, tolerance=0), L), [{"L": 3, "n": 4}, {"L": 4, "n": 6}, {"L": 8, "n": 3}]),
    Number(RULES + "lifted.md", "nearly {}(n + 1) BP steps",
           lambda: ["⅔" if abs(lifted(24, 5) / 6 - 2 / 3) < 0.02 else lifted(24, 5) / 6]),
    Number(RULES + "lifted.md", "All 20 sweeps are {:.1f} on three layers, {:.1f} on eight",
           lambda: [lifted(3, 20), lifted(8, 20)]),
    Formula(RULES + "target_propagation.md", "A forward pass, {L-1} feedbacks and {L} gradients, as in back-propagation",
            lambda L: counting.dtp(0, L)),
    Number(RULES + "target_propagation.md", "n·({} drive, {} feedback, {} gradients) for n iterations",
           lambda: iteration("clean")),
    Number(RULES + "target_propagation.md", "({2} gradients by noisy switches", lambda: iteration("noisy")),
    Number(RULES + "target_propagation.md", "| DTP, 0 / 1 / 10 iterations | {} / {} / {} | {:g} / {:g} / {:g} | 0.9",
           lambda: dtp_rows(3)),
    Number(RULES + "target_propagation.md", "| DTP, 0 / 1 / 10 iterations | {} / {} / {} | {:g} / {:.1f} / {:g} | 1.1",
           lambda: dtp_rows(4)),
    Number(RULES + "target_propagation.md", "costs about {} more BP step:",
           lambda: [WORDS[round(steps(counting.dtp(1, 3), 3) - steps(counting.dtp(0, 3), 3))]]),
    Number(RULES + "target_propagation.md", "batch 100: BP | {} | {:g} |", lambda: bp_row(3)),
    Number(RULES + "target_propagation.md", "batch 64: BP | {} | {:g} |", lambda: bp_row(4)),
    Number("dualprop/rules/learned_feedback.py", "It takes {} drive, {} feedback and {} gradients of the synapse",
           lambda: [WORDS[n] for n in iteration("clean")]),
    Number("dualprop/rules/learned_feedback.py", "less that at x, and takes {} gradients of its own",
           lambda: [WORDS[iteration("noisy").gradients - iteration("clean").gradients + 1]]),
    Formula(RULES + "direct_feedback_alignment.md", "*Cost:* {L} drives, {L} gradients, and a product with B_k",
            lambda L: on(dp.DirectFeedbackAlignment(), L)),
    # Other pages.
    Number("docs/choosing-a-rule.md", "`dp.dualize(model)`, or `dp.DualPropagation()` | {:g} BP step, any model",
           lambda: [steps(on(dp.DualPropagation(), 4), 4)]),
    Number("docs/benchmarks.md", "{:.1f} BP steps for VGG16", lambda: [without_reuse(16)]),
    Number("docs/results.md", "Either is {:.2f} BP steps of work ({:.1f} without reuse)",
           lambda: [of_variant("cifar10-vgg16-transposed", "dp-transposed"), without_reuse(16)]),
    Number("docs/your-own-model.md", "DP⊤ at α = 0 costs {}, DP at α = ½ costs {}, centered EP {}.",
           lambda: [counting.passes_of(rule)[0] for rule in (
               dp.DualPropagation(engine="explicit", coupling="transposed", alpha=0.0), DOWN, dp.EquilibriumPropagation())]),
    Number("docs/reproduce.md", "{:.0f} (BP, DP), {:.1f} (L-DP), {:.1f} (P-DP), {:.1f} (MS-DP), {:.1f} (R-DP-100)",
           lambda: [of_variant("mnist-mlp", v) for v in ("dp", "l-dp", "p-dp", "ms-dp", "r-dp-100")]),
    Number("docs/reproduce.md", "| {:.0f} (BP), {:.1f} (EP) |",
           lambda: [of_variant("cifar10-vgg5-ep", v) for v in ("bp", "ep")]),
]  # fmt: skip
