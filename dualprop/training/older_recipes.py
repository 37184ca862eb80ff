"""Recipes as earlier versions wrote them, in today's words: published runs are shown again by
`report`."""

from __future__ import annotations

from typing import Any

_OF_RELAXATIONS = ("pairs", "schedule", "update", "step_size")


def renewed(plain: dict[str, Any]) -> dict[str, Any]:
    """The plain recipe with settings that have moved since where they are now; a new one is
    returned as it is."""
    if not isinstance(plain.get("rule"), dict):
        return plain
    rule = dict(plain["rule"])
    moved = {"kernel": rule.pop("kernel")} if "kernel" in rule else {}
    if rule.get("name") == "equilibrium_propagation" and rule.keys() >= {*_OF_RELAXATIONS}:
        # Until November 2026 the settings of either relaxation stood beside its name.
        pairs, schedule, update, step_size = (rule.pop(name) for name in _OF_RELAXATIONS)
        is_hopfield, is_clamped = rule.get("energy") == "hopfield", rule.get("output_nudge") == "clamped"
        if rule.get("relaxation") == "blocks" or is_hopfield or is_clamped:
            parts = [str(schedule), *([f"step_size={step_size}"] if step_size != 1 else [])]
            rule["relaxation"] = "blocks"
        else:
            parts = [str(pairs)]
            rule["relaxation"] = "error_sweeps"
        parts[1:1] = [f"update={update}"] if update != "auto" else []
        rule["relaxation"] += f"({', '.join(parts)})"
    return {**plain, "rule": rule, **moved}
