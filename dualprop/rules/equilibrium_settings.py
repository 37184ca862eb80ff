"""Which settings of equilibrium propagation go together, and which to change where nudged states have not settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dualprop import schedules
from dualprop.errors import SettingError
from dualprop.losses import SquaredError

if TYPE_CHECKING:
    from dualprop.rules.equilibrium_propagation import EquilibriumPropagation


def check_combination(rule: EquilibriumPropagation) -> None:
    """Raise SettingError, with the remedy, where settings don't go together."""
    energy = rule._energy
    if rule.update not in energy.updates:
        raise SettingError(f"update={rule.update!r} is of predictive coding. With energy='{energy}' leave it at 'auto'.")
    if rule.relaxation == "error_sweeps" and not energy.free_is_forward:
        raise SettingError(f"error sweeps are of predictive coding. With energy='{energy}' use relaxation='blocks'.")
    if rule.relaxation == "error_sweeps" and rule.output_nudge == "clamped":
        raise SettingError(
            "error sweeps don't settle behind a clamped output, which does not follow what moves below it. Use "
            "relaxation='blocks', or output_nudge='linearized'."
        )
    if rule.jacobians == "free" and not energy.free_is_forward:
        raise SettingError(f"jacobians='free' is of predictive coding. With energy='{energy}' leave it at 'current'.")
    if rule.jacobians == "free" and rule.update == "pgd":
        raise SettingError("update='pgd' clamps, so that jacobians='free' would hold less than it says. Use update='auto'.")
    if rule.tolerance is not None:
        for order in rule._orders:
            if order.is_random or isinstance(order, schedules.ExplicitOrder):
                raise SettingError(f"tolerance needs schedules of passes over all layers, got {order}. Use even_odd(100), say.")
    if rule.uses_error_sweeps and rule.step_size != 1:
        raise SettingError("step_size is of block updates. Use relaxation='blocks', or step_size=1.")
    if rule.uses_error_sweeps and rule.tolerance is not None and rule.pairs == 1:
        raise SettingError("a tolerance stops between pairs of error sweeps, and there is one. Raise pairs, or tolerance=None.")
    if not rule.uses_error_sweeps and rule.pairs != 1:
        raise SettingError("pairs are of error sweeps. Use relaxation='error_sweeps', or pairs=1.")
    if not energy.free_is_forward and rule._orders[-1].is_random:
        raise SettingError(f"a prediction needs a fixed order, got free_schedule={rule.free_schedule}. Use 'even_odd(60)'.")
    if rule.output_nudge == "clamped" and not (energy.free_is_forward and isinstance(rule.loss, SquaredError)):
        raise SettingError(
            "output_nudge='clamped' pulls the output of a predictive coding network to its targets. Use "
            "energy='predictive_coding' and loss='squared_error', or output_nudge='linearized'."
        )
    if rule._estimator.is_holomorphic and energy.free_is_forward:
        raise SettingError(
            f"estimator='{rule.estimator}' is of Hopfield networks, not of '{energy}'. Use energy='hopfield', or "
            "estimator='centered'."
        )
    if rule._is_complex and rule.output_nudge == "exact" and not isinstance(rule.loss, SquaredError):
        raise SettingError(
            f"an exact {rule.loss.name} nudge is found by real iteration. With estimator='{rule.estimator}' use "
            "output_nudge='linearized'."
        )
    # On a circle of nudges whatever is inside counts: there the states must be a function of β.
    uphill = rule.beta if rule._is_complex else max(0.0, *(term.uphill for term in rule._terms))
    if rule.output_nudge == "exact" and uphill > 0 and uphill >= rule.loss.concave_limit:
        limit = rule.loss.concave_limit
        remedy = f"a beta < {limit:g}, got {uphill:g}. Lower beta," if limit > 0 else "no such nudge. Use estimator='forward',"
        raise SettingError(f"an exact {rule.loss.name} nudge uphill needs {remedy} or use output_nudge='linearized'.")


def remedy(rule: EquilibriumPropagation) -> str:
    """What to do where a nudged phase has not settled; settings that `check_combination` lets through."""
    if rule.uses_error_sweeps:
        return "Lower beta, use pairs=1, average pooling, or jacobians='free'."
    if rule.output_nudge == "clamped":
        return "Raise the number of schedule to L or more, lower beta, or use average pooling."
    if rule._energy.free_is_forward:
        return "Use relaxation='error_sweeps', or schedule 'even_odd(n)' with n ≥ L, or average pooling."
    if rule._is_complex:
        return "Lower beta, raise the number of schedule, or use estimator='centered'."
    return "Raise the number of schedule, lower beta, or use average pooling."
