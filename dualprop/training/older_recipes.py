"""Recipes as earlier versions wrote them, in today's words: published runs are shown again by
`report`."""

from __future__ import annotations

from typing import Any


def renewed(plain: dict[str, Any]) -> dict[str, Any]:
    """The plain recipe with settings that have moved since where they are now; a new one is
    returned as it is."""
    rule = dict(plain["rule"])
    moved = {"kernel": rule.pop("kernel")} if "kernel" in rule else {}
    if rule.get("name") == "equilibrium_propagation" and "pairs" in rule:
        # Until November 2026 the settings of either relaxation stood beside its name.
        pairs, schedule, update, step_size = (rule.pop(name) for name in ("pairs", "schedule", "update", "step_size"))
        is_hopfield, is_clamped = rule["energy"] == "hopfield", rule["output_nudge"] == "clamped"
        if rule["relaxation"] == "blocks" or is_hopfield or is_clamped:
            parts = [schedule, *([f"step_size={step_size}"] if step_size != 1 else [])]
            rule["relaxation"] = "blocks"
        else:
            parts = [str(pairs)]
            rule["relaxation"] = "error_sweeps"
        parts[1:1] = [f"update={update}"] if update != "auto" else []
        rule["relaxation"] += f"({', '.join(parts)})"
    return {**plain, "rule": rule, **moved}
