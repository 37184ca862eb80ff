"""What is said of a frame of an inference: its title, its equation, the scale of its drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dualprop.analysis.inference import Frame, Inference

# A parting below this share of the scale is drawn larger than it is, and the caption says so.
LEAST_PARTING = 0.2


@dataclass(frozen=True)
class Scale:
    """Where a state is drawn: on [-`limit`, `limit`], partings `magnified` times."""

    limit: float
    magnified: int

    @classmethod
    def of(cls, inference: Inference) -> Scale:
        """One scale for all frames: it holds every state that they draw."""
        partings = [float(d.abs().max()) for f in inference.frames for d in f.dyads.differences if d is not None]
        values = [float(m.abs().max()) for f in inference.frames for m in f.dyads.means]
        widest, limit = max(partings, default=0.0), max(values, default=1.0) or 1.0
        is_hidden = 0 < widest < LEAST_PARTING * limit
        magnified = _round_number_from(LEAST_PARTING * limit / widest) if is_hidden else 1
        return cls(limit + magnified * widest, magnified)

    def states(self, frame: Frame, k: int, unit: int) -> tuple[float, float, float]:
        """s⁻, s̄ and s⁺ of a unit, where they are drawn."""
        mean, share = float(frame.dyads.means[k][unit]), frame.dyads.alpha
        delta = self.magnified * float(frame.dyads.difference(k)[unit])
        return mean - share * delta, mean, mean + (1 - share) * delta


def title(inference: Inference, number: int) -> str:
    """What the step does, in one line."""
    frame, count = inference.frames[number], len(inference.frames) - 1
    if number == 0:
        if inference.options.rule.start == "zeros":
            return "start: every state is zero"
        return "free pass: the mean goes up. Nothing parts yet: s⁺ = s⁻ = f(a)"
    step = f"step {number} of {count}"
    if frame.layers == (inference.depth,):
        return f"{step}: the loss nudges the output. s⁺ goes downhill, s⁻ uphill"
    layers = f"layer{'s' if len(frame.layers) > 1 else ''} {', '.join(map(str, frame.layers))}"
    if all(frame.pulls[k] is None for k in frame.layers):
        return f"{step}: no difference has come down to {layers} yet"
    return f"{step}: the difference above comes down to {layers}"


def equation(inference: Inference, number: int) -> str:
    """How the dyads of the step's first layer are made, with the rule's own shares."""
    frame, rule = inference.frames[number], inference.options.rule
    if not frame.layers:
        return "a = W s̄ + b, layer by layer from the input" if rule.start != "zeros" else ""
    k = frame.layers[0]
    up, down = rule.shares
    betas = rule.betas(inference.depth)
    if frame.pulls[k] is None:
        return f"s⁺ = s⁻ = f(a{_subscript(k)})"
    if k == inference.depth:
        if rule.output_nudge == "exact":
            return f"s⁺ = argmin ½‖s - a‖² + {up * betas[-1]:g} ℓ(s)    s⁻ = argmin ½‖s - a‖² - {down * betas[-1]:g} ℓ(s)"
        return f"s⁺ = a - {up * betas[-1]:g} ∇ℓ    s⁻ = a + {down * betas[-1]:g} ∇ℓ    (β = {betas[-1]:g}, α = {rule.alpha:g})"
    ratio = betas[k - 1] / betas[k]
    above = f"Δ{_subscript(k)} = W{_subscript(k + 1)}ᵀ δ{_subscript(k + 1)}"
    if rule.damping is not None:
        return f"{above}  s⁺ = prox(a + {ratio * up:g} Δ + L s⁺, L)  s⁻ = prox(a - {ratio * down:g} Δ + L s⁻, L)"
    return f"{above}    s⁺ = f(a + {ratio * up:g} Δ)    s⁻ = f(a - {ratio * down:g} Δ)"


def learned(inference: Inference) -> list[str]:
    """What every layer learns, and how near that is to back-propagation's gradient."""
    lines = ["every weight learns from its two ends: ∂Wₖ = -(1/β) δₖ s̄ₖ₋₁ᵀ"]
    nothing = "its gradient or back-propagation's is zero"
    for k, each in enumerate(inference.alignments, start=1):
        compared = f"cosine to back-propagation {each.cosine:.4f}, norm ratio {each.norm_ratio:.3f}"
        lines.append(f"layer {k}: {nothing if math.isnan(each.cosine) else compared}")
    for k, crossing in enumerate(inference.kink_crossing, start=1):
        units = inference.options.widths[k]
        if crossing:
            lines.append(f"layer {k}: {round(crossing * units)} of {units} units cross a kink, where δ is no derivative")
    return lines


def _round_number_from(number: float) -> int:
    """The least of 1, 2, 5, 10, 20, … that is at least `number`."""
    power = 10 ** math.floor(math.log10(number))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number))


def _subscript(k: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(digit)] for digit in str(k))
