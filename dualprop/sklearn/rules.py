"""The parameter `rule` of an estimator: a name, or a rule with its own settings.

scikit-learn reaches a part's parameters by two underscores: `rule__beta` is β of the rule. So a
grid search runs over a rule's settings, and `set_params(rule__beta=0.1)` replaces the name by the
rule that it stands for, with that β.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dualprop import rules
from dualprop.errors import SettingError, closest
from dualprop.losses import CrossEntropy
from dualprop.recipes import variants
from dualprop.rules import AbstractRule
from dualprop.training.recipe import Recipe

PREFIX = "rule__"


def applied(rule: object, recipe: Recipe) -> Recipe:
    """The recipe by this rule: a rule's name, a variant's, or the rule itself. Its loss is the
    recipe's, which a rule at the default loss takes.

    Raises SettingError for what is none of these, and for a variant that is more than a rule.
    """
    if isinstance(rule, AbstractRule):
        loss = recipe.rule.loss
        if isinstance(rule.loss, CrossEntropy) and isinstance(loss, CrossEntropy):
            loss = dataclasses.replace(rule.loss, class_weights=loss.class_weights)
        elif rule.loss != CrossEntropy():
            raise SettingError(f"these targets are learned by {loss.name}, and the rule is of {rule.loss}. Leave out its loss.")
        return dataclasses.replace(recipe, rule=dataclasses.replace(rule, loss=loss))
    if not isinstance(rule, str):
        raise SettingError(f"rule must be a name or a rule, such as dp.DualPropagation(beta=0.1), got {rule!r}.")
    if rule in rules.RULES:
        return dataclasses.replace(recipe, rule=rules.RULES[rule](loss=recipe.rule.loss))
    if rule not in variants.VARIANTS:
        known = [*rules.RULES, *variants.VARIANTS]
        raise SettingError(f"unknown rule '{rule}'.{closest(rule, known)} Known: {', '.join(known)}.")
    changed = variants.named(rule).apply(recipe)
    others = [
        each.name
        for each in dataclasses.fields(Recipe)
        if each.name != "rule" and getattr(changed, each.name) != getattr(recipe, each.name)
    ]
    if others or type(changed.rule.loss) is not type(recipe.rule.loss):
        what = ", ".join(others or ["loss"])
        raise SettingError(f"the variant '{rule}' is more than a rule: it sets {what} too. Train it by `dualprop train`.")
    return changed


def settings(rule: AbstractRule) -> dict[str, Any]:
    """A rule's settings as an estimator names them. The loss is of the task, and none of these."""
    return {f"{PREFIX}{name}": getattr(rule, name) for name in _names(rule)}


def changed(rule: AbstractRule, values: dict[str, Any]) -> AbstractRule:
    """The rule with these settings. Raises SettingError for one that it does not have, or a value
    out of its range."""
    for name in values:
        known = _names(rule)
        if name not in known:
            raise SettingError(
                f"{type(rule).__name__} has no setting '{name}'.{closest(name, known)} It has: {', '.join(known)}."
            )
    return dataclasses.replace(rule, **values)


def _names(rule: AbstractRule) -> list[str]:
    return [each.name for each in dataclasses.fields(rule) if each.init and each.name != "loss"]
