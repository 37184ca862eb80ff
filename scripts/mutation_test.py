"""Plants one-line defects in a copy of the package, one at a time, and runs the tests that should notice.

    python scripts/mutation_test.py            all defects, two at a time
    python scripts/mutation_test.py pool beta  those whose description holds one of the words

Exits with 1 if a defect survives, if its line is not found exactly once (the table is stale), or if the tests fail without any.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXAMPLE = "closed_form/test_two_layer_example.py"
NEURONS = "closed_form/test_neurons.py"
LOSSES = "closed_form/test_losses.py"
SCHEDULES = "closed_form/test_schedules.py"
LINEAR = "autograd/test_linear_networks.py"
ORDERS = "autograd/test_orders_of_convergence.py"
SYNAPSES = "autograd/test_synapses.py"
FUSED = "autograd/test_fused_engine.py"
DUALIZE = "autograd/test_dualize.py"
TRANSCRIPTION = "reference/test_against_transcription.py"
PIECES = "reference/test_pieces.py"
FIXED_POINT = "properties/test_fixed_point.py"
COUNTS = "properties/test_counts.py"
PURITY = "properties/test_purity.py"
REFUSALS = "properties/test_refusals.py"
EP_REFERENCE = "reference/test_equilibrium_propagation.py"
EP_ORDERS = "autograd/test_equilibrium_orders.py"
EP_SETTLING = "properties/test_equilibrium_settling.py"
SOURCES = "properties/test_several_sources.py"
EVERY_RULE = "contracts/test_every_rule.py"
PC_TESTS = "autograd/test_predictive_coding.py"
PC = "rules/predictive_coding.py"
CHL_TESTS = "autograd/test_contrastive_hebbian.py"
CHL = "rules/contrastive_hebbian.py"
CONTRAST = "autograd/test_contrast.py"
HOLOMORPHIC = "autograd/test_holomorphic_orders.py"
HOLOMORPHIC_REFERENCE = "reference/test_holomorphic_transcription.py"
HOLOMORPHIC_SETTLING = "properties/test_holomorphic_settling.py"
RUNTIME = "cli/test_bench_runtime.py"
FEEDBACK = "autograd/test_feedback_weights.py"
FEEDBACK_REFUSALS = "properties/test_feedback_refusals.py"

RULE = "rules/dual_propagation.py"
INFERENCE = "rules/dyadic_inference.py"
SOFTMAX = "closed_form/test_softmax.py"
ENERGIES = "closed_form/test_energies.py"
OBJECTIVES = "properties/test_objectives.py"
SPECTRA = "autograd/test_spectra.py"
LIFTED_OBJECTIVE = "autograd/test_lifted_gradients.py"
LIFTED_SWEEPS = "properties/test_lifted.py"
LIFTED = "rules/lifted.py"
TARGETS = "autograd/test_difference_targets.py"
TARGET_STEPS = "properties/test_target_propagation.py"
TARGET_RULE = "rules/target_propagation.py"
RECONSTRUCTION = "reconstruction.py"
DAMPING = "properties/test_spectral_damping.py"
SETTLING = "properties/test_settling.py"
VARIANTS = "training/test_variants.py"
COMPARE_VARIANTS = "cli/test_compare_variants.py"
BENCH = "cli/test_bench.py"
FLOPS = "closed_form/test_flops.py"
VERDICTS = "closed_form/test_verdicts.py"
MEMORY = "autograd/test_memory_of_a_step.py"
AUGMENTATION = "data/test_augmentation.py"
CIFAR = "data/test_cifar.py"
PICKLES = "data/test_pickles.py"
IMAGENET32 = "data/test_imagenet32.py"
STREAMING = "data/test_streaming.py"


@dataclass(frozen=True)
class Defect:
    """`old`, which must occur once in `file`, becomes `new`; the tests in `caught_by` must then fail."""

    what: str
    file: str
    old: str
    new: str
    caught_by: str


DEFECTS = [
    # Inference
    Defect(
        "alpha and 1-alpha swapped in DP",
        RULE,
        'return (self.alpha, 1 - self.alpha) if self.coupling == "original"',
        'return (1 - self.alpha, self.alpha) if self.coupling == "original"',
        EXAMPLE,
    ),
    Defect(
        "alpha and 1-alpha swapped in transposed DP",
        RULE,
        "else (1 - self.alpha, self.alpha)",
        "else (self.alpha, 1 - self.alpha)",
        EXAMPLE,
    ),
    Defect(
        "the mean weighs s- with alpha",
        "kernels.py",
        "return minus.add_(difference, alpha=alpha), difference",
        "return minus.add_(difference, alpha=1 - alpha), difference",
        EXAMPLE,
    ),
    Defect(
        "the mean weighs s- with alpha in large tensors",
        "kernels.py",
        "torch.add(minus, difference_, alpha=alpha, out=mean_)",
        "torch.add(plus, difference_, alpha=-alpha, out=mean_)",
        FUSED,
    ),
    Defect(
        "delta negated in the dyad",
        "kernels.py",
        "difference = plus.sub_(minus)",
        "difference = plus.sub_(minus).neg_()",
        EXAMPLE,
    ),
    Defect(
        "delta negated in the difference", "kernels.py", "    result = plus - minus\n", "    result = minus - plus\n", FUSED
    ),
    Defect(
        "beta ratio inverted",
        INFERENCE,
        "settings.betas[k - 1] / self.settings.betas[k], free, overwrite)",
        "settings.betas[k] / self.settings.betas[k - 1], free, overwrite)",
        EXAMPLE,
    ),
    Defect(
        "beta ratio inverted under damping",
        INFERENCE,
        "ratio = settings.betas[k - 1] / settings.betas[k]",
        "ratio = settings.betas[k] / settings.betas[k - 1]",
        TRANSCRIPTION,
    ),
    Defect(
        "output nudged uphill",
        INFERENCE,
        "return self._nudged(neuron, a, self._loss_gradient(a), -beta)",
        "return self._nudged(neuron, a, self._loss_gradient(a), beta)",
        EXAMPLE,
    ),
    Defect(
        "beta of the output dropped",
        INFERENCE,
        "return self._nudged(neuron, a, self._loss_gradient(a), -beta)",
        "return self._nudged(neuron, a, self._loss_gradient(a), -1.0)",
        EXAMPLE,
    ),
    Defect("exact nudge without beta uphill", INFERENCE, "-settings.down * beta)", "-settings.down)", EXAMPLE),
    Defect(
        "nudge always linearised at the forward pass",
        INFERENCE,
        'if self.settings.linearize_at == "current" and a is not self.forward_drive:',
        "if False:",
        TRANSCRIPTION,
    ),
    Defect(
        "default point of linearisation wrong for DP",
        RULE,
        '= "current" if self.coupling == "original"',
        '= "forward" if self.coupling == "original"',
        TRANSCRIPTION,
    ),
    Defect(
        "loss gradient at the drive of the output, not its state",
        INFERENCE,
        "loss.gradient(self.network.into(self.network.depth).neuron.f(a), self.y)",
        "loss.gradient(a + 1, self.y)",
        TRANSCRIPTION,
    ),
    Defect(
        "output nudged before the forward signal arrived",
        INFERENCE,
        'nudged = not (step.before_arrival and self.settings.start == "zeros")',
        "nudged = True",
        FIXED_POINT,
    ),
    Defect("start from zeros ignored", INFERENCE, 'if settings.start == "zeros":', 'if settings.start == "nil":', PURITY),
    Defect(
        "previous states ignored",
        INFERENCE,
        "self.activations.set(k, state.means[k], state.differences[k])",
        "self.activations.set(k, state.means[k], None)",
        TRANSCRIPTION,
    ),
    Defect(
        "a group updated one after another",
        INFERENCE,
        "new = [(k, self._dyad(k, nudged, k in final)) for k in step.layers]",
        "new = []\n        for k in step.layers:\n            self.activations.set(k, *self._dyad(k, nudged, k in final))",
        FIXED_POINT,
    ),
    Defect(
        "mean taken for f(a) in DP too",
        RULE,
        'mean_is_free=self.coupling == "transposed" and self.alpha in (0, 1)',
        "mean_is_free=self.alpha in (0, 1)",
        EXAMPLE,
    ),
    # Damping
    Defect(
        "damping constant not in the prox",
        INFERENCE,
        "plus = neuron.prox(up + constant * old_plus, constant)",
        "plus = neuron.prox(up + constant * old_plus, 0.0)",
        TRANSCRIPTION,
    ),
    Defect(
        "damping pulls s+ to the mean",
        INFERENCE,
        "plus = neuron.prox(up + constant * old_plus, constant)",
        "plus = neuron.prox(up + constant * mean, constant)",
        TRANSCRIPTION,
    ),
    Defect(
        "a damped state taken for settled",
        INFERENCE,
        "if unchanged and (damping is None or (delta is None and feedback is None)):",
        "if unchanged:",
        TRANSCRIPTION,
    ),
    Defect(
        "wrong layer's damping constant",
        INFERENCE,
        "damping = None if is_output else self.damping[k - 1]",
        "damping = None if is_output else self.damping[0]",
        TRANSCRIPTION,
    ),
    # Learning
    Defect(
        "1/beta dropped from the gradient",
        INFERENCE,
        "-1 / (beta * len(self.y)) for beta",
        "-1 / len(self.y) for beta",
        EXAMPLE,
    ),
    Defect("sum for mean over the batch", INFERENCE, "-1 / (beta * len(self.y)) for beta", "-1 / beta for beta", FUSED),
    Defect("gradient negated", INFERENCE, "-1 / (beta * len(self.y)) for beta", "1 / (beta * len(self.y)) for beta", EXAMPLE),
    Defect(
        "every layer divided by the first beta",
        "states.py",
        "self.gradient(k, scales[k - 1])",
        "self.gradient(k, scales[0])",
        EXAMPLE,
    ),
    Defect(
        "bias gradient dropped from the scale",
        "stretches.py",
        "weight.dtype).mul_(scale) if bias",
        "weight.dtype) if bias",
        EXAMPLE,
    ),
    Defect(
        "gradient at the forward state, not at the present mean",
        "states.py",
        "            self._tapes[place] = synapse.linearize(tape, below)\n",
        "            pass\n",
        EXAMPLE,
    ),
    Defect(
        "s+ for the mean where states are handed to synapses",
        "states.py",
        "self.means[k], self.differences[k] = mean, difference",
        "self.means[k], self.differences[k] = mean if difference is None else mean + difference / 2, difference",
        EXAMPLE,
    ),
    Defect(
        "backward sets instead of adding",
        "rules/base.py",
        "gradient if parameter.grad is None else parameter.grad + gradient",
        "gradient",
        PURITY,
    ),
    # Reuse
    Defect(
        "stale drive reused", "states.py", "if known is not None and known[0] is below:", "if known is not None:", TRANSCRIPTION
    ),
    Defect(
        "stale feedback reused",
        "states.py",
        "if known is not None and _same(known[0], version):",
        "if known is not None and known[1] is not None:",
        TRANSCRIPTION,
    ),
    Defect(
        "stale tape reused", "states.py", "if tape is not None and tape.below is below:", "if tape is not None:", TRANSCRIPTION
    ),
    Defect(
        "feedback not redone when the mean moved past a pool",
        "states.py",
        "version = (*signals, self.means[k]) if varies else signals",
        "version = signals",
        TRANSCRIPTION,
    ),
    Defect(
        "stale signal pulled back through the exit",
        "synapses.py",
        "if tape.signal is not signal or tape.signal_at_core is None:",
        "if tape.signal_at_core is None:",
        TRANSCRIPTION,
    ),
    Defect("drives computed anew each time", "states.py", "if known is not None and known[0] is below:", "if False:", COUNTS),
    Defect(
        "feedbacks computed anew each time",
        "states.py",
        "if known is not None and _same(known[0], version):",
        "if False:",
        COUNTS,
    ),
    Defect(
        "the forward pass is not counted",
        "states.py",
        'self.counts["drives"] += 1',
        'self.counts["drives"] += known is not None',
        COUNTS,
    ),
    # Synapses
    Defect(
        "padding ignored in the convolution's feedback",
        "stretches.py",
        "return list(conv.padding)\n",
        "return [0] * len(conv.padding)\n",
        SYNAPSES,
    ),
    Defect(
        "groups ignored in the convolution's gradient",
        "stretches.py",
        "False, [0] * len(self.padding), conv.groups, mask,",
        "False, [0] * len(self.padding), 1, mask,",
        SYNAPSES,
    ),
    Defect(
        "frozen weight gets a gradient",
        "stretches.py",
        "        if parameter.requires_grad\n",
        "        if True\n",
        SYNAPSES,
    ),
    Defect(
        "bias gradient of a Linear dropped",
        "stretches.py",
        "of_bias = signal.sum(0, dtype=self.module.weight.dtype).mul_(scale) if bias and is_biased else None",
        "of_bias = signal.new_zeros(signal.shape[1]) if bias else None",
        SYNAPSES,
    ),
    Defect(
        "hooks of the user skipped",
        "stretches.py",
        "plain = len(modules) == 1 and not any(",
        "plain = len(modules) == 1 and not all(",
        SYNAPSES,
    ),
    Defect(
        "signs of the weights lost in the feedback",
        "stretches.py",
        "return signal @ backward_weight(self.module)\n",
        "return signal @ backward_weight(self.module).abs()\n",
        LINEAR,
    ),
    # Neurons and losses
    Defect("kink on the wrong side", "neurons.py", "return (a > 0).to(a.dtype)", "return (a >= 0).to(a.dtype)", NEURONS),
    Defect("prox of ReLU without its scale", "neurons.py", "return u.relu() / (1 + scale)", "return u.relu()", NEURONS),
    Defect(
        "prox of the hard sigmoid clipped before it is scaled",
        "neurons.py",
        "return (u / (1 + scale)).clamp(self.low, self.high)",
        "return u.clamp(self.low, self.high) / (1 + scale)",
        NEURONS,
    ),
    Defect(
        "squared error without its half", "losses.py", ".square().flatten(1).sum(1) / 2", ".square().flatten(1).sum(1)", LOSSES
    ),
    Defect(
        "squared error's exact nudge without c in the prox",
        "losses.py",
        "return neuron.prox(a + c * targets(y, a), c)",
        "return neuron.prox(a + c * targets(y, a), 0.0)",
        LOSSES,
    ),
    Defect(
        "sign of the coupling in the Newton step", "losses.py", "coupling = -c * p_top * q", "coupling = c * p_top * q", LOSSES
    ),
    Defect(
        "Newton step uphill",
        "losses.py",
        "new = s - length.unsqueeze(1) * step",
        "new = s + length.unsqueeze(1) * step",
        LOSSES,
    ),
    Defect(
        "cross-entropy gradient without the target",
        "losses.py",
        "if y.dtype.is_floating_point else p - target",
        "if y.dtype.is_floating_point else p",
        LOSSES,
    ),
    Defect(
        "domain of the exact nudge not checked",
        RULE,
        "if uphill > 0 and uphill >= limit:",
        "if uphill > 2 * self.loss.concave_limit:",
        LOSSES,
    ),
    # Schedules
    Defect(
        "up sweep misses the last but one layer",
        "schedules.py",
        "_singly(range(2, depth)) if number",
        "_singly(range(2, depth - 1)) if number",
        SCHEDULES,
    ),
    Defect(
        "up_down misses the output",
        "schedules.py",
        "_singly(range(1, depth + 1)) + _singly(range(depth - 1, 0, -1))",
        "_singly(range(1, depth)) + _singly(range(depth - 1, 0, -1))",
        SCHEDULES,
    ),
    Defect(
        "random order never draws the output",
        "schedules.py",
        "torch.randint(1, depth + 1, (n,)",
        "torch.randint(1, depth, (n,)",
        SCHEDULES,
    ),
    # The fused engine
    Defect(
        "up and down swapped in the fused engine",
        "dyadic.py",
        "nudge.down * b, nudge.up * b, 1 / b",
        "nudge.up * b, nudge.down * b, 1 / b",
        FUSED,
    ),
    Defect(
        "1/b dropped in the fused engine",
        "dyadic.py",
        "nudge.up * b, 1 / b, nudge.kernel",
        "nudge.up * b, 1.0, nudge.kernel",
        FUSED,
    ),
    Defect("N dropped from the fused engine's nudge", RULE, "betas[k - 1] * len(x)", "betas[k - 1]", FUSED),
    Defect("loss_scale multiplied instead of divided", "dyadic.py", "beta * terms / scale", "beta * terms * scale", DUALIZE),
    Defect(
        "a sum taken for a mean by dualize", "dyadic.py", "            terms = 1\n", "            terms = batch_size\n", DUALIZE
    ),
    Defect(
        "half precision subtracted as it is",
        "kernels.py",
        "    if dtype in HALF:\n        a, delta = a.float()",
        "    if False:\n        a, delta = a.float()",
        FUSED,
    ),
    # Large activations, walked in pieces and written over
    Defect(
        "delta negated in pieces",
        "kernels.py",
        "torch.sub(plus, minus, out=difference_)",
        "torch.sub(minus, plus, out=difference_)",
        PIECES,
    ),
    Defect(
        "the mean of s+ alone in pieces",
        "kernels.py",
        "torch.add(minus, difference_, alpha=alpha, out=mean_)",
        "torch.add(minus, difference_, alpha=1, out=mean_)",
        PIECES,
    ),
    Defect(
        "a drive forgotten before the last update",
        INFERENCE,
        "overwrite = is_final and acts.release(k)",
        "overwrite = acts.release(k)",
        COUNTS,
    ),
    Defect(
        "a view of a state written over",
        "states.py",
        "owns_drive = len(layer.sources) > 1 or layer.synapse.owns_drive",
        "owns_drive = True",
        PIECES,
    ),
    Defect(
        "the free state taken for the nudged one",
        "kernels.py",
        "return torch.sub(*((nudged, free) if strength > 0 else (free, nudged)), out=nudged)",
        "return torch.sub(nudged, free, out=nudged)",
        TRANSCRIPTION,
    ),
    Defect(
        "settings of a functional activation dropped",
        "conversion.py",
        "Elementwise(partial(known, **settings))",
        "Elementwise(known)",
        DUALIZE,
    ),
    Defect(
        "an unknown function left to autograd unsaid",
        "conversion.py",
        "elif function not in EXACT_FUNCTIONS or _squares(node):",
        "elif _squares(node):",
        DUALIZE,
    ),
    # Feedback weights
    Defect(
        "feedback weights of a linear map not kept for the backward pass",
        "feedback_maps.py",
        "        x, weight, feedback, _ = inputs\n",
        "        x, weight, feedback = inputs[0], inputs[1], inputs[1]\n",
        FEEDBACK,
    ),
    Defect(
        "feedback weights of a convolution not kept for the backward pass",
        "feedback_maps.py",
        "        x, weight, feedback, bias, *ctx.settings = inputs\n",
        "        x, weight, feedback, bias, *ctx.settings = (*inputs[:2], inputs[1], *inputs[3:])\n",
        FEEDBACK,
    ),
    Defect(
        "explicit feedback through W in place of the feedback weights",
        "feedback.py",
        "return module.backward_weight() if isinstance(module, AbstractFeedback) else module.get_parameter",
        "return module.get_parameter",
        FEEDBACK,
    ),
    Defect(
        "the gradient of the feedback weights is the very tensor of the weight's",
        "feedback_maps.py",
        "return dw.clone() if of_weight else dw",
        "return dw",
        FEEDBACK,
    ),
    Defect(
        "the explicit gradient of the feedback weights is the very tensor of the weight's",
        "stretches.py",
        "gradient.clone() if any(gradient is other for other in found.values()) else gradient",
        "gradient",
        FEEDBACK,
    ),
    Defect(
        "feedback weights halved in their gradient",
        "feedback_maps.py",
        "return dw.clone() if of_weight else dw",
        "return dw / 2 if of_weight else dw",
        FEEDBACK,
    ),
    Defect(
        "sign-symmetric feedback keeps the magnitudes of the weights",
        "feedback_maps.py",
        "return weight.sign() * weight.abs().mean()",
        "return weight.sign() * weight.abs()",
        FEEDBACK,
    ),
    Defect(
        "random feedback weights are a parameter",
        "feedback.py",
        'if kind == "kolen_pollack" else drawn',
        "if True else drawn",
        FEEDBACK,
    ),
    Defect(
        "feedback weights learn beside a frozen weight",
        "feedback.py",
        "requires_grad=weight.requires_grad)",
        "requires_grad=True)",
        FEEDBACK,
    ),
    Defect(
        "feedback weights drawn beside the generator",
        "feedback.py",
        "a=math.sqrt(5), generator=generator)",
        "a=math.sqrt(5))",
        FEEDBACK,
    ),
    Defect(
        "feedback weights drawn too large",
        "feedback.py",
        "a=math.sqrt(5), generator=generator)",
        "generator=generator)",
        FEEDBACK,
    ),
    Defect(
        "tied weights get feedback weights of their own",
        "feedback.py",
        "_install(module, kind, drawn[id(module.weight)])",
        "_install(module, kind, _draw(module.weight, kind, generator))",
        FEEDBACK,
    ),
    Defect(
        "the odd zero of same padding on the left in front of feedback weights",
        "feedback.py",
        "for zeros in (0, span % 2)])",
        "for zeros in (span % 2, 0)])",
        FEEDBACK,
    ),
    Defect(
        "autocast not followed by feedback weights",
        "feedback.py",
        "    if not torch.is_autocast_enabled(device):\n",
        "    if True:\n",
        FEEDBACK,
    ),
    Defect(
        "alignment of feedback weights with the norms the wrong way round",
        "feedback.py",
        "float(sizes[0] / sizes[1])",
        "float(sizes[1] / sizes[0])",
        FEEDBACK,
    ),
    Defect(
        "a frozen weight stops its feedback weight from learning in the explicit engine",
        "stretches.py",
        'return bool(trainable - {"bias"}), "bias" in trainable',
        'return "weight" in trainable, "bias" in trainable',
        FEEDBACK,
    ),
    Defect(
        "feedback modules off the short formula",
        "stretches.py",
        "if plain and isinstance(module, nn.Linear) and type(module) in MAPS:",
        "if plain and isinstance(module, nn.Linear) and type(module) is nn.Linear:",
        FEEDBACK,
    ),
    Defect(
        "modules with weights of their own keep exact feedback unsaid",
        "feedback.py",
        "            named |= _left_parameters(module, name, leave)\n",
        "            named |= set()\n",
        FEEDBACK_REFUSALS,
    ),
    Defect(
        "feedback that was to be left exact inside a named module is converted",
        "feedback.py",
        "left.update(id(inner) for inner in module.modules())",
        "left.add(id(module))",
        FEEDBACK_REFUSALS,
    ),
    # Boundaries
    Defect("alpha not checked", RULE, "if not 0 <= self.alpha <= 1:", "if False:", REFUSALS),
    Defect("shared modules not refused", "network.py", "if id(shared) in self.seen:", "if False:", REFUSALS),
    Defect(
        "infinite loss reported as fine", "rules/base.py", "if not bool(torch.isfinite(self.loss)):", "if False:", EVERY_RULE
    ),
    # Softmax
    Defect(
        "softmax: quadratic left out of the equation",
        "simplex.py",
        "excess = q + quadratic - logarithmic - t",
        "excess = q - logarithmic - t",
        SOFTMAX,
    ),
    Defect(
        "softmax: pull with the wrong sign",
        "simplex.py",
        "quadratic, logarithmic = scale * q.exp(), _weighted(pull, q)",
        "quadratic, logarithmic = scale * q.exp(), -_weighted(pull, q)",
        SOFTMAX,
    ),
    Defect(
        "softmax: solver stops at half its digits",
        "simplex.py",
        "16 * kind.eps * (1 + slope * (1 + mu.abs()))",
        "kind.eps**0.25 * (1 + slope * (1 + mu.abs()))",
        SOFTMAX,
    ),
    Defect(
        "softmax: last step taken in mu and not in q",
        "simplex.py",
        "return (q - excess / (slope * rise)).softmax(dim)",
        "return q.softmax(dim)",
        SOFTMAX,
    ),
    Defect(
        "softmax: dim of the module ignored",
        "neurons.py",
        "lambda module: Softmax(module.dim)",
        "lambda module: Softmax(1 if module.dim else 0)",
        SOFTMAX,
    ),
    Defect("softmax: walked in pieces", "neurons.py", "    is_elementwise = False\n", "", SOFTMAX),
    Defect(
        "softmax: examples may be coupled",
        "neurons.py",
        "if not (0 < self.dim < a.dim() or -a.dim() < self.dim < 0):",
        "if not (0 < self.dim < a.dim() or -a.dim() <= self.dim < 0):",
        SOFTMAX,
    ),
    Defect(
        "log loss: gradient without the probability",
        "losses.py",
        "return -targets(y, s) / s.clamp_min(torch.finfo(s.dtype).tiny)",
        "return -targets(y, s)",
        SOFTMAX,
    ),
    Defect(
        "log loss: autograd sees a clamp",
        "losses.py",
        "(s.clamp_min(torch.finfo(s.dtype).tiny) - s).detach()",
        "(s.clamp_min(torch.finfo(s.dtype).tiny) - s)",
        SOFTMAX,
    ),
    Defect(
        "log loss: exact nudge refused where the uphill state is free",
        RULE,
        "if uphill > 0 and uphill >= limit:",
        "if uphill >= limit:",
        SOFTMAX,
    ),
    Defect(
        "log loss: exact nudge allowed uphill", RULE, "if uphill > 0 and uphill >= limit:", "if uphill > limit > 0:", SOFTMAX
    ),
    Defect(
        "softmax: cross-entropy of probabilities not refused",
        "losses.py",
        "if isinstance(neuron, Softmax):",
        "if False:",
        EVERY_RULE,
    ),
    # Objectives
    Defect(
        "objective: alpha and 1-alpha swapped on the losses",
        "energies.py",
        "return alpha * _loss(ell, plus, y) + (1 - alpha) * _loss(ell, minus, y) + _total(terms)",
        "return (1 - alpha) * _loss(ell, plus, y) + alpha * _loss(ell, minus, y) + _total(terms)",
        ENERGIES,
    ),
    Defect(
        "objective: the dyadic energies lose 1/beta",
        "energies.py",
        "- delta * a) / betas[k - 1])",
        "- delta * a))",
        ENERGIES,
    ),
    Defect(
        "objective: the coupling negated",
        "energies.py",
        "return _sum(network.into(k).neuron.potential(s) - s * a)",
        "return _sum(network.into(k).neuron.potential(s) + s * a)",
        ENERGIES,
    ),
    Defect(
        "objective: s+ and s- share the difference by alpha, not 1-alpha",
        "energies.py",
        "plus = _within_range(neuron, mean + (1 - alpha) * delta, reach)",
        "plus = _within_range(neuron, mean + alpha * delta, reach)",
        ENERGIES,
    ),
    Defect(
        "objective: rounding beyond an activation's range is infinite",
        "energies.py",
        "return s + back",
        "return s",
        ENERGIES,
    ),
    Defect(
        "objective: the linearized loss read at s+",
        "energies.py",
        "(dyads.mean(depth) - point)",
        "(plus - point)",
        ENERGIES,
    ),
    Defect(
        "objective: multipliers negated",
        "energies.py",
        "terms.append(_sum(d * (inverse(network.into(k).neuron, means[k]) - a)))",
        "terms.append(_sum(d * (a - inverse(network.into(k).neuron, means[k]))))",
        ENERGIES,
    ),
    Defect(
        "objective: the conjugate's derivative is autograd's f'",
        "energies.py",
        "return gradient * ctx.neuron.f(ctx.saved_tensors[0]), None",
        "return gradient * ctx.neuron.derivative(ctx.saved_tensors[0]), None",
        ENERGIES,
    ),
    Defect(
        "objective: the uphill state nudged with alpha",
        "energies.py",
        "strength = (1 - alpha) * beta",
        "strength = alpha * beta",
        OBJECTIVES,
    ),
    Defect(
        "objective: the least energy counted once in AROVR",
        "energies.py",
        "uphill = (1 - alpha) * loss(minus) - (energy(minus) - floor) / beta",
        "uphill = (1 - alpha) * loss(minus) - energy(minus) / beta",
        OBJECTIVES,
    ),
    Defect(
        "objective: a problem that is not convex is solved all the same",
        "energies.py",
        "if bool(failed.any()):",
        "if False:",
        ENERGIES,
    ),
    Defect(
        "objective: Newton's method stops early",
        "energies.py",
        "<= eps**0.6 * (1 + s.abs().amax(1)))",
        "<= eps**0.1 * (1 + s.abs().amax(1)))",
        OBJECTIVES,
    ),
    # Spectra and lifted networks
    Defect(
        "spectra: the bias of a Linear taken for weights",
        "stretches.py",
        "nn.functional.linear(s, self.module.weight))",
        "nn.functional.linear(s, self.module.weight, self.module.bias))",
        SPECTRA,
    ),
    Defect(
        "spectra: the bias of a convolution taken for weights",
        "stretches.py",
        "self.module._conv_forward(s, self.module.weight, None)",
        "self.module._conv_forward(s, self.module.weight, self.module.bias)",
        SPECTRA,
    ),
    Defect(
        "spectra: f(0) not subtracted in a taped core",
        "stretches.py",
        "output_of(record) - output_of(self.run(torch.zeros_like(s))).detach())",
        "output_of(record))",
        SPECTRA,
    ),
    Defect(
        "spectra: a core that is not affine taken for one",
        "synapses.py",
        "if kind(module) not in AFFINE:",
        "if False:",
        SPECTRA,
    ),
    Defect(
        "spectra: the vector scaled by the norm of W",
        "spectra.py",
        "torch.where(usable, w / squared_norm, v)",
        "torch.where(usable, w / squared_norm.sqrt(), v)",
        SPECTRA,
    ),
    Defect(
        "spectra: the vector lost at zero weights",
        "spectra.py",
        "torch.where(usable, w / squared_norm, v)",
        "w / squared_norm.clamp_min(1e-30)",
        SPECTRA,
    ),
    Defect(
        "spectra: the norm squared returned for the norm",
        "spectra.py",
        "return squared_norm.sqrt()",
        "return squared_norm",
        SPECTRA,
    ),
    Defect(
        "lifted: beta ratio inverted",
        LIFTED,
        "return self.betas[k - 1] / self.betas[k]",
        "return self.betas[k] / self.betas[k - 1]",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: the constant without the ratio of betas",
        LIFTED,
        "squared_norm * (self.betas[k - 1] / self.betas[j - 1])",
        "squared_norm",
        LIFTED_SWEEPS,
    ),
    Defect(
        "lifted: the constant from the norm, not its square",
        LIFTED,
        "squared_norm * (self.betas[k - 1] / self.betas[j - 1])",
        "squared_norm.sqrt() * (self.betas[k - 1] / self.betas[j - 1])",
        LIFTED_SWEEPS,
    ),
    Defect(
        "lifted: the constant a third of the curvature",
        LIFTED,
        "squared_norm * (self.betas[k - 1] / self.betas[j - 1])",
        "squared_norm * (self.betas[k - 1] / self.betas[j - 1]) / 3",
        LIFTED_SWEEPS,
    ),
    Defect(
        "lifted: the majorized step taken from the forward state",
        LIFTED,
        "neuron.prox(u + constant * self.activations.means[k], constant)",
        "neuron.prox(u + constant * self.free[k], constant)",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: epsilon left as the last sweep had it",
        LIFTED,
        "            self._set(k, self.activations.means[k])",
        "            pass",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: epsilon measured from the forward state",
        LIFTED,
        "state - self.network.into(k).neuron.f(self.activations.drive(k)))",
        "state - self.free[k])",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: beta of the output dropped",
        LIFTED,
        "return self.rule.loss.nudge(neuron, a, self.y, beta)",
        "return self.rule.loss.nudge(neuron, a, self.y, 1.0)",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: the linearized nudge uphill",
        LIFTED,
        "neuron.f(torch.add(a, self.forward_gradient, alpha=-beta))",
        "neuron.f(torch.add(a, self.forward_gradient, alpha=beta))",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: 1/beta dropped from the gradients",
        LIFTED,
        "tuple(-1 / (beta * len(self.y)) for beta in self.betas)",
        "tuple(-1 / len(self.y) for beta in self.betas)",
        LIFTED_OBJECTIVE,
    ),
    Defect(
        "lifted: settled after the first sweep",
        LIFTED,
        "if not self.residual > self.rule.tolerance:",
        "if self.residual > self.rule.tolerance:",
        LIFTED_SWEEPS,
    ),
    Defect(
        "lifted: states that did not settle unsaid",
        LIFTED,
        "if not self.residual <= self.rule.tolerance:",
        "if False:",
        LIFTED_SWEEPS,
    ),
    Defect(
        "lifted: moves measured against the states",
        LIFTED,
        "return [now - free for now, free in zip(self.activations.means[1:], self.free[1:], strict=True)]",
        "return list(self.activations.means[1:])",
        LIFTED_SWEEPS,
    ),
    # Variants, damping, settling
    Defect(
        "spectral damping: factor |1-2 alpha| dropped",
        INFERENCE,
        'factor = abs(1 - 2 * self.settings.alpha) if damping == "spectral" else 1.0',
        "factor = 1.0",
        DAMPING,
    ),
    Defect(
        "spectral damping: the -1 dropped",
        INFERENCE,
        "(squared_norm * ratio - 1).clamp(min=0)",
        "(squared_norm * ratio).clamp(min=0)",
        DAMPING,
    ),
    Defect(
        "spectral damping: ratio of the betas dropped",
        INFERENCE,
        "(squared_norm * ratio - 1).clamp(min=0)",
        "(squared_norm - 1).clamp(min=0)",
        DAMPING,
    ),
    Defect(
        "spectral damping: half dropped",
        INFERENCE,
        ".clamp(min=0) * (factor / 2)",
        ".clamp(min=0) * factor",
        DAMPING,
    ),
    Defect(
        "spectral damping: norm of the synapse below",
        INFERENCE,
        "synapse = known[k] if k < len(known) else None, self.network.into(above).synapse",
        "synapse = known[k] if k < len(known) else None, self.network.into(k).synapse",
        DAMPING,
    ),
    Defect(
        "spectral damping: vectors not warm-started",
        INFERENCE,
        "pair, synapse = known[k] if k < len(known) else None, ",
        "pair, synapse = None, ",
        DAMPING,
    ),
    Defect(
        "spectral damping: vectors not in the checkpoint",
        RULE,
        'packed = {f"direction.{k}": v for k, v in enumerate(state.directions) if v is not None}',
        "packed = {}",
        VARIANTS,
    ),
    Defect(
        "settling: tolerance compared the wrong way",
        INFERENCE,
        "if not self.residual > tolerance:",
        "if self.residual > tolerance:",
        SETTLING,
    ),
    Defect(
        "settling: residual without differences",
        INFERENCE,
        "moves.append((zero if new_delta is None else new_delta) - (zero if delta is None else delta))",
        "pass",
        SETTLING,
    ),
    Defect(
        "settling: displacement without differences",
        INFERENCE,
        "displacements += [] if delta is None else [delta]",
        "pass",
        SETTLING,
    ),
    Defect(
        "settling: unsettled states called settled",
        INFERENCE,
        "if settings.tolerance is None or self.residual is None or self.residual <= settings.tolerance:",
        "if True:",
        SETTLING,
    ),
    Defect(
        "settling: kinks crossed by the mean drive",
        INFERENCE,
        "neuron.crosses_kink(a + strength * settings.up * pull, a - strength * settings.down * pull)",
        "neuron.crosses_kink(a + strength * settings.up * pull, a)",
        SETTLING,
    ),
    Defect(
        "variants: states not reset in MS-DP",
        "training/step.py",
        "state = recipe.rule.at_new_batch(state) if recipe.reset_states else state\n    outcomes",
        "outcomes",
        VARIANTS,
    ),
    Defect(
        "variants: states handed to the next batch in MS-DP",
        "training/step.py",
        "return outcomes, recipe.rule.at_new_batch(state) if recipe.reset_states else state",
        "return outcomes, state",
        VARIANTS,
    ),
    Defect(
        "variants: an update too many",
        "training/step.py",
        "for _ in range(recipe.updates_per_batch):",
        "for _ in range(recipe.updates_per_batch + 1):",
        VARIANTS,
    ),
    Defect(
        "variants: metrics of the last update",
        "training/trainer.py",
        "outcome = outcomes[0]",
        "outcome = outcomes[-1]",
        VARIANTS,
    ),
    Defect(
        "variants: P-DP a step short",
        "recipes/variants.py",
        "schedules.synchronous(2 * recipe.model.depth - 1)",
        "schedules.synchronous(2 * recipe.model.depth - 2)",
        VARIANTS,
    ),
    Defect(
        "variants: odd-even a pass short",
        "recipes/variants.py",
        "schedules.odd_even(recipe.model.depth // 2 + 1)",
        "schedules.odd_even(max(1, recipe.model.depth // 2))",
        VARIANTS,
    ),
    Defect(
        "variants: damping of the recipe kept",
        "recipes/variants.py",
        '"damping": None, "tolerance": None',
        '"tolerance": None',
        VARIANTS,
    ),
    Defect(
        "variants: DP in the recipe's coupling",
        "recipes/variants.py",
        '"coupling": "original", "schedule"',
        '"schedule"',
        VARIANTS,
    ),
    Defect(
        "momentum from the vector before left unscaled",
        "spectra.py",
        "torch.stack([after, v]) / size",
        "torch.stack([after / size, v])",
        SPECTRA,
    ),
    Defect(
        "weights of variance 1 in place of 1/n",
        "models.py",
        "nn.init.normal_(layer.weight, std=layer.in_features**-0.5)",
        "nn.init.normal_(layer.weight)",
        "training/test_recipes.py",
    ),
    Defect(
        "the twin learns through feedback weights",
        "training/recipe.py",
        'return dataclasses.replace(other, feedback="exact", updates_per_batch=1, reset_states=False) if is_twin else other',
        "return other",
        "training/test_recipes.py",
    ),
    Defect(
        "residual of the damped update",
        INFERENCE,
        "self.damping = (None,) * len(damping)",
        "pass",
        SETTLING,
    ),
    Defect(
        "spectral damping starts from one step",
        "spectra.py",
        "for _ in range(COLD_STEPS):",
        "for _ in range(0):",
        DAMPING,
    ),
    Defect(
        "an addition with a factor left to inductor",
        "kernels.py",
        "return a + strength * delta if torch.compiler.is_compiling() else torch.add",
        "return torch.add",
        DUALIZE,
    ),
    Defect(
        "momentum left out",
        "spectra.py",
        "after = w - (MOMENTUM / 2 * squared_norm).square() * before",
        "after = w",
        SPECTRA,
    ),
    Defect(
        "feedback twin compared with itself",
        "rules/base.py",
        "predict = model = feedback.exact(network.module)",
        "predict = model = network.module",
        VARIANTS,
    ),
    Defect(
        "feedback twin with parameters of its own",
        "feedback.py",
        "twin = copy.deepcopy(model, shared)",
        "twin = copy.deepcopy(model)",
        VARIANTS,
    ),
    Defect(
        "top-5 accuracy counts six",
        "training/evaluation.py",
        "logits.topk(min(5, logits.shape[1]), 1)",
        "logits.topk(min(6, logits.shape[1]), 1)",
        VARIANTS,
    ),
    Defect(
        "published figures in the order of the rows",
        "cli/tables.py",
        'cells += [published.get(name, "–")] if is_published else []',
        "cells += [list(published.values())[0]] if is_published else []",
        COMPARE_VARIANTS,
    ),
    # Data
    Defect(
        "crop's rows and columns exchanged",
        "data/augmentation.py",
        "top, left, flipped = self.moves.to",
        "left, top, flipped = self.moves.to",
        AUGMENTATION,
    ),
    Defect(
        "the last crop never drawn",
        "data/augmentation.py",
        "torch.randint(2 * self.pad + 1,",
        "torch.randint(2 * self.pad,",
        AUGMENTATION,
    ),
    Defect(
        "no flip ever drawn",
        "data/augmentation.py",
        "torch.randint(2, (num_examples,)",
        "torch.randint(1, (num_examples,)",
        AUGMENTATION,
    ),
    Defect(
        "all flipped but those that were drawn",
        "data/augmentation.py",
        "width - 1 - across, across",
        "across, width - 1 - across",
        AUGMENTATION,
    ),
    Defect(
        "crops of the epoch's start after resuming",
        "data/examples.py",
        "draws.to(examples.device).split(batch_size)[start:num_batches]",
        "draws.to(examples.device).split(batch_size)[: num_batches - start]",
        AUGMENTATION,
    ),
    Defect(
        "augmentation left out by the trainer",
        "training/trainer.py",
        "augmentation=recipe.augmentation,",
        "augmentation=None,",
        "cli/test_augmentation_options.py",
    ),
    Defect("a file of another content accepted", "data/sources.py", "if digest != digests[file]:", "if False:", CIFAR),
    Defect(
        "files of an archive not verified",
        "data/sources.py",
        'check(found[file], name, file, f"{file} in {shown}", REPLACE)',
        "pass",
        CIFAR,
    ),
    Defect("links in an archive followed", "data/sources.py", " and member.isreg():", ":", CIFAR),
    Defect("the test batch among the training batches", "data/cifar.py", "*train, test = (", "test, *train = (", CIFAR),
    Defect(
        "constants for pixels from 0 to 1",
        "data/datasets.py",
        "(tuple(255 * value for value in constants) for constants in (source",
        "(tuple(1 * value for value in constants) for constants in (source",
        "data/test_idx_format.py",
    ),
    Defect("any global accepted in a pickle", "data/pickles.py", "if full not in KNOWN:", "if not full:", PICKLES),
    Defect(
        "an array longer than its bytes",
        "data/pickles.py",
        "if math.prod(shape) * dtype.itemsize != elements.stop - elements.start:",
        "if math.prod(shape) * dtype.itemsize < elements.stop - elements.start:",
        PICKLES,
    ),
    Defect(
        "big-endian numbers read as little-endian",
        "data/pickles.py",
        'if order not in ("<", "|")',
        'if order not in ("<", "|", ">")',
        PICKLES,
    ),
    Defect("columns read as rows", "data/pickles.py", "or by_columns not in (False, 0) or", "or", PICKLES),
    Defect(
        "ImageNet32's labels left from 1 to 1000",
        "data/imagenet32.py",
        "labels.astype(np.int64) - 1",
        "labels.astype(np.int64)",
        IMAGENET32,
    ),
    Defect(
        "batch 10 after batch 1",
        "data/imagenet32.py",
        'key=lambda path: int(path.stem.rsplit("_", 1)[1])',
        "key=lambda path: path.stem",
        IMAGENET32,
    ),
    Defect(
        "swapped files not noticed",
        "data/imagenet32.py",
        "if len(test.labels) > len(smallest.labels):",
        "if False:",
        IMAGENET32,
    ),
    Defect("a file under two names not noticed", "data/imagenet32.py", "if mark in seen:", "if False:", IMAGENET32),
    Defect(
        "a truncated zip member mapped",
        "data/npz_members.py",
        "if begin + info.file_size > os.fstat",
        "if False and os.fstat",
        IMAGENET32,
    ),
    Defect(
        "half of an array unpacked under its name",
        "data/npz_members.py",
        "and target.stat().st_size == info.file_size",
        "",
        IMAGENET32,
    ),
    Defect(
        "rows of the first file for those of all",
        "data/mapped.py",
        "local = ascending[begin:end] - start",
        "local = ascending[begin:end]",
        STREAMING,
    ),
    Defect("rows left in ascending order", "data/mapped.py", "images[order] = found", "images[:] = found", STREAMING),
    Defect(
        "pages never let go",
        "data/mapped.py",
        "if self._num_read * BYTES_PER_FAULT > KEEP_BYTES:",
        "if self._num_read < 0:",
        STREAMING,
    ),
    Defect(
        "all of the free memory taken", "data/mapped.py", "return num_bytes <= free / 2", "return num_bytes <= free", IMAGENET32
    ),
    Defect(
        "an error while reading ahead is an end",
        "data/prefetch.py",
        "            put(None, error)",
        "            put(None, end)",
        STREAMING,
    ),
    Defect(
        "drives are held after the forward pass that computes their states again",
        "recompute.py",
        "    saved.known.clear()\n",
        "",
        MEMORY,
    ),
    # The benchmark
    Defect(
        "bench: each gradient of a convolution has the FLOPs of both",
        "analysis/flops.py",
        "(*rest, mask), flops // len(kinds))",
        "(*rest, mask), flops)",
        FLOPS,
    ),
    Defect(
        "bench: operations that occur twice are timed once",
        "analysis/ceilings.py",
        "seconds[operation.kind] += number * min(",
        "seconds[operation.kind] += min(",
        FLOPS,
    ),
    Defect(
        "bench: the ceiling takes the worse memory format",
        "analysis/ceilings.py",
        "number * min(times.values())",
        "number * max(times.values())",
        FLOPS,
    ),
    Defect("bench: ratios upside down", "analysis/cost.py", "[own / base for own", "[base / own for own", BENCH),
    Defect(
        "bench: the time is over before five rounds",
        "analysis/cost.py",
        "if number >= LEAST_ROUNDS and",
        "if number and",
        BENCH,
    ),
    Defect(
        "bench: what was resident before is charged to the steps",
        "analysis/memory.py",
        "max(0.0, peak - resident) / 1e6",
        "peak / 1e6",
        BENCH,
    ),
    Defect(
        "bench: tensors that were freed count on",
        "analysis/memory.py",
        "alive += change",
        "alive += max(change, 0)",
        BENCH,
    ),
    Defect(
        "bench: a kernel that is named is not taken",
        "analysis/benchmark.py",
        "kernel=by.kernel)",
        'kernel="auto")',
        BENCH,
    ),
    Defect(
        "bench: what there is none of is not listed",
        "analysis/steps.py",
        'group["refused"] = refused | failed',
        'group["refused"] = failed',
        BENCH,
    ),
    Defect(
        "bench: settling compares a sweep with itself",
        "analysis/settling.py",
        '("passes", schedules.bottom_up(depth))',
        '("passes", schedules.alternating_sweeps(1))',
        BENCH,
    ),
    Defect(
        "bench: targets are judged without the noise",
        "analysis/verdicts.py",
        "if self.measured > self.target + self.noise:",
        "if self.measured > self.target:",
        VERDICTS,
    ),
    Defect(
        "bench: the fastest engine is the best whatever its memory",
        "analysis/verdicts.py",
        'return (row.get("memory_ratio") or 0) > BEST_MEMORY, row["ratio"]',
        'return False, row["ratio"]',
        VERDICTS,
    ),
    # Kernels, recomputed states, capture, precision, the papers' recipes
    Defect(
        "down taken for up in the native one-pass kernel",
        "dyadic.c",
        "T p = a_ + u * d_, m = a_ - v * d_;",
        "T p = a_ + v * d_, m = a_ - u * d_;",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "a state beyond the kink taken for inside in the native one-pass kernel",
        "dyadic.c",
        "return (p > 0) & (m > 0) ? span : far;                                                             ",
        "return (p > 0) ? span : far;                                                             ",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "NaN mapped to 0 in the native one-pass kernel",
        "dyadic.c",
        "T relu_##T(T x, T c0, T c1) { return x < 0 ? 0 : x; }",
        "T relu_##T(T x, T c0, T c1) { return x > 0 ? x : 0; }",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "bfloat16 cut off and not rounded in the native one-pass kernel",
        "dyadic.c",
        "(bits + 0x7fff + ((bits >> 16) & 1)) >> 16",
        "bits >> 16",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "tensors of different layouts walked together by the one-pass kernel",
        "native.py",
        "        and dense_layout(*tensors) is not None\n",
        "",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "library from a folder open to others loaded for the one-pass kernel",
        "native.py",
        "found.st_uid == os.getuid() and not found.st_mode & 0o022",
        "found.st_uid == os.getuid()",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "cancellation in what is compiled of the one-pass kernel",
        "kernels.py",
        "found = torch.where((plus > 0) & (minus > 0), span, far)",
        "found = far",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "a state that was written over computed again",
        "recompute.py",
        "state._version != known.version",
        "False",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "a state computed again without its activation",
        "recompute.py",
        "state = saved.activation.f(saved.drive.detach())",
        "state = saved.drive.detach()",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "hooks left behind by a forward pass whose states are computed again",
        "recompute.py",
        "model.register_forward_hook(_after, always_call=True)",
        "model.register_forward_hook(_after)",
        "autograd/test_one_pass_kernel.py",
    ),
    Defect(
        "the batch of the capture replayed for ever",
        "training/capture.py",
        "            own.copy_(given)\n",
        "            pass\n",
        "training/test_capture.py",
    ),
    Defect(
        "the state of the capture replayed for ever",
        "training/capture.py",
        "                self.state_in[name].copy_(tensor)\n",
        "                pass\n",
        "training/test_capture.py",
    ),
    Defect(
        "the learning rate of the capture replayed for ever",
        "training/optimization.py",
        '            group["lr"].fill_(own)\n',
        "            pass\n",
        "training/test_capture.py",
    ),
    Defect(
        "one status for all replays of a captured step",
        "training/capture.py",
        "[dataclasses.replace(outcome) for outcome in self.outcomes]",
        "self.outcomes",
        "training/test_capture.py",
    ),
    Defect(
        "a wait for the device in every step, captured or not",
        "rules/dyadic_inference.py",
        "        gradients = self.activations.gradients(scales)\n",
        "        gradients = self.activations.gradients(scales)\n        bool(self.logits.sum() > 0)\n",
        "training/test_capture.py",
    ),
    Defect(
        "fused engine chosen for DP of the original coupling",
        "rules/dual_propagation.py",
        '            self.coupling == "transposed"\n            and self.alpha in (0, 1)\n',
        "            self.alpha in (0, 1)\n",
        "autograd/test_engine_choice.py",
    ),
    Defect(
        "fused engine chosen for too few passes",
        "rules/dual_propagation.py",
        "            and self._order.brings_down(depth)\n",
        "",
        "autograd/test_engine_choice.py",
    ),
    Defect(
        "momenta restored in another memory format than their parameters'",
        "training/checkpoint.py",
        "torch.empty_like(parameter).copy_(tensor) if alike else tensor",
        "tensor",
        "training/test_resuming.py",
    ),
    Defect(
        "warm-up not compressed in the budget form",
        "training/recipe.py",
        "warmup_epochs=self.optimizer.warmup_epochs * share",
        "warmup_epochs=self.optimizer.warmup_epochs",
        "training/test_papers_recipes.py",
    ),
    Defect(
        "the rate rising again after the end of the cosine",
        "training/optimization.py",
        "progress = min(1.0, (step - warmup_steps) / max(1, last_step - warmup_steps))",
        "progress = (step - warmup_steps) / max(1, last_step - warmup_steps)",
        "training/test_papers_recipes.py",
    ),
    Defect(
        "the activation before the pool where the pool is before",
        "models.py",
        'is_before = self.pool == "before"',
        'is_before = self.pool == "after"',
        "closed_form/test_models.py",
    ),
    Defect(
        "half of the He variance",
        "models.py",
        'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
        'nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")',
        "closed_form/test_models.py",
    ),
    Defect(
        "gradients left in bfloat16 by explicit convolutions",
        "stretches.py",
        "g.to(dtype).mul_(scale)",
        "g.mul_(scale)",
        "training/test_capture.py",
    ),
    Defect(
        "losses taken in bfloat16",
        "losses.py",
        "return s.float() if s.dtype in (torch.float16, torch.bfloat16) else s",
        "return s",
        "closed_form/test_losses.py",
    ),
    Defect(
        "seeds not paired in the verdict",
        "analysis/differences.py",
        "_STUDENT[min(len(pairs) - 1, len(_STUDENT)) - 1]",
        "2.0",
        "closed_form/test_differences.py",
    ),
    # Equilibrium propagation
    Defect(
        "EP: the weight of the uphill phase with the sign of the downhill one",
        "estimators.py",
        "Term(-beta, -1 / (2 * beta))",
        "Term(-beta, 1 / (2 * beta))",
        EP_REFERENCE,
    ),
    Defect("EP: centered without the 2", "estimators.py", "Term(beta, 1 / (2 * beta))", "Term(beta, 1 / beta)", EP_REFERENCE),
    Defect(
        "EP: a sign drawn for the nudge and not for the gradient",
        "rules/equilibrium_propagation.py",
        "            phase.weigh(sign)\n",
        "            pass\n",
        EP_ORDERS,
    ),
    Defect(
        "EP: the mask left out of the signal",
        "equilibria.py",
        "return neuron.f_(a + pull), error * neuron.derivative(a)",
        "return neuron.f_(a + pull), error",
        EP_REFERENCE,
    ),
    Defect(
        "EP: the signal of smooth neurons without their slope",
        "equilibria.py",
        "return neuron.f(a) + pull, neuron.derivative(a) * pull",
        "return neuron.f(a) + pull, pull",
        EP_REFERENCE,
    ),
    Defect(
        "EP: PGD not projected",
        "equilibria.py",
        "state = (neuron.f(a) + pull).clamp(*neuron.reach)",
        "state = neuron.f(a) + pull",
        EP_REFERENCE,
    ),
    Defect(
        "EP: a stale signal reused when its drive has changed",
        "relaxation.py",
        "if known is None or known[0] is not a or known[1] is not state:",
        "if known is None or known[1] is not state:",
        EP_REFERENCE,
    ),
    Defect(
        "EP: signals not brought up to date before learning",
        "relaxation.py",
        "        for k in range(1, self.network.depth + 1):\n            self._refresh(k)\n",
        "",
        EP_REFERENCE,
    ),
    Defect(
        "EP: the clamp on the wrong side",
        "rules/equilibrium_propagation.py",
        "output + nudge.strength_like(output) *",
        "output - nudge.strength_like(output) *",
        EP_REFERENCE,
    ),
    Defect(
        "EP: the nudge uphill where it should go downhill",
        "relaxation.py",
        "return self._settle(k, a, -self.nudge.strength_like(gradient) * gradient)",
        "return self._settle(k, a, self.nudge.strength_like(gradient) * gradient)",
        EP_REFERENCE,
    ),
    Defect(
        "EP: the pass up at the old drives",
        "relaxation.py",
        "        for k in range(1, depth + 1):\n            a = acts.drive(k)\n",
        "        drives = [acts.drive(k) for k in range(1, depth + 1)]\n        for k in range(1, depth + 1):\n"
        "            a = drives[k - 1]\n",
        EP_REFERENCE,
    ),
    Defect(
        "EP: a phase that continues where the last one ended",
        "states.py",
        "        other.means, other.differences = list(self.means), list(self.differences)\n",
        "        other.means, other.differences = self.means, self.differences\n",
        EP_REFERENCE,
    ),
    Defect(
        "EP: cycling called settled",
        "relaxation.py",
        "if self.moved and not self.moved[-1] <= limit:",
        "if self.moved and self.moved[-1] > 1e9:",
        EP_SETTLING,
    ),
    Defect(
        "EP: residual against the states, not their displacement",
        "relaxation.py",
        "displacements = [new - old for new, old in zip(now, self.start, strict=True) if new is not old]",
        "displacements = list(now)",
        EP_SETTLING,
    ),
    Defect(
        "EP: held Jacobians with live pool switches",
        "states.py",
        "            change, self._tapes[place] = synapse.differential(tape, below - start)\n"
        "            drive = drive_at_start + change\n",
        "            drive, self._tapes[place] = synapse.drive(below)\n",
        EP_SETTLING,
    ),
    Defect(
        "Hopfield: angles taken to back-propagation",
        "rules/equilibrium_propagation.py",
        "        return implicit.gradients(network, free.activations.means, y, self.loss)\n",
        "        return super().exact_gradients(network, x, y)\n",
        EP_ORDERS,
    ),
    Defect(
        "Hopfield: the prediction of the forward pass",
        "rules/equilibrium_propagation.py",
        "self._free(network, part, None, False).activations.means[-1] for part",
        "network.forward(part) for part",
        EP_ORDERS,
    ),
    Defect(
        "implicit gradient: one step of the adjoint alone",
        "implicit.py",
        "        for _ in range(most_sweeps):\n",
        "        for _ in range(1):\n",
        EP_ORDERS,
    ),
    # Several sources
    Defect(
        "one reader's feedback alone",
        "states.py",
        "total = part if total is None else total + part\n        self._feedbacks",
        "total = part\n        self._feedbacks",
        SOURCES,
    ),
    Defect(
        "a drive kept when one of its sources has moved",
        "states.py",
        "        if known is not None and _same(known[0], parts):\n            return known[1]\n        total = summed",
        "        if known is not None:\n            return known[1]\n        total = summed",
        SOURCES,
    ),
    Defect(
        "every reader's feedback at the first one's beta",
        "states.py",
        "ratio = 1.0 if self.betas is None else self.betas[k] / self.betas[j - 1]",
        "ratio = 1.0",
        SOURCES,
    ),
    Defect(
        "the curvature of one reader alone majorised",
        "rules/lifted.py",
        "            total = total + squared_norm",
        "            total = squared_norm",
        SOURCES,
    ),
    Defect(
        "contrast: the change of the state left out",
        "stretches.py",
        "return {name: gradient.add_(rest[name]) if name in rest else gradient for name, gradient in found.items()}",
        "return found",
        CONTRAST,
    ),
    Defect(
        "contrast: of the first signal alone",
        "stretches.py",
        "torch.lerp(u, v, 0.5), scale, is_biased=False",
        "u, scale, is_biased=False",
        CONTRAST,
    ),
    Defect(
        "contrast: at the first state",
        "stretches.py",
        "core.gradient(Record(torch.lerp(s, t, 0.5), None), u - v, scale)",
        "core.gradient(Record(s, None), u - v, scale)",
        CONTRAST,
    ),
    Defect(
        "contrast: the bias learns from the mean signal too",
        "stretches.py",
        "scale, is_biased=False)",
        "scale)",
        CONTRAST,
    ),
    Defect(
        "contrast of Hopfield phases as a difference of sums",
        "stretches.py",
        "    found = core.gradient(Record(torch.lerp(s, t, 0.5), None), u - v, scale)\n",
        "    found, less = core.gradient(one, u, scale), core.gradient(other, v, scale)\n"
        "    return {name: gradient - less[name] for name, gradient in found.items()}\n",
        CONTRAST,
    ),
    Defect(
        "contrast of phases with its sign turned",
        "relaxation.py",
        "tuple(-scale for scale in scales)",
        "scales",
        EP_ORDERS,
    ),
    Defect(
        "fewer training examples are the first of the file",
        "data/splits.py",
        "np.sort(rest[:most] if most else rest)",
        "np.sort(rest)[:most] if most else np.sort(rest)",
        "data/test_datasets.py",
    ),
    Defect(
        "CHL: its learning rule without the powers of gamma",
        CHL,
        "self.gamma ** (k - depth) / len(y)",
        "1 / len(y)",
        CHL_TESTS,
    ),
    Defect(
        "CHL: one power of gamma too many",
        CHL,
        "self.gamma ** (k - depth) / len(y)",
        "self.gamma ** (k - depth - 1) / len(y)",
        CHL_TESTS,
    ),
    Defect(
        "CHL: not averaged over the batch", CHL, "self.gamma ** (k - depth) / len(y)", "self.gamma ** (k - depth)", CHL_TESTS
    ),
    Defect("CHL: clamped from the wrong side", CHL, "clamped=(output + pull)", "clamped=(output - pull)", CHL_TESTS),
    Defect("CHL: free less clamped", CHL, "found = clamped.contrast(free,", "found = free.contrast(clamped,", CHL_TESTS),
    Defect(
        "CHL: feedback not discounted",
        "equilibria.py",
        "torch.add(a, pull, alpha=self.gamma)",
        "torch.add(a, pull)",
        CHL_TESTS,
    ),
    Defect("CHL: skips discounted as the chain is", CHL, "tuple(self.gamma**-k for k", "tuple(1.0 for k", CHL_TESTS),
    Defect("CHL: the implicit gradient's layers all count alike", "implicit.py", "discount**k * (a * s)", "(a * s)", CHL_TESTS),
    Defect("CHL: unsettled states are not told", CHL, "report.residual <= MOST_MOVED", "report.residual <= 1e9", CHL_TESTS),
    Defect("CHL: rounding taken for a difference", "relaxation.py", "LEAST_DIGITS = 4", "LEAST_DIGITS = 0", CHL_TESTS),
    Defect("PC: errors with their sign turned", PC, "else move - predicted  # type", "else predicted - move  # type", PC_TESTS),
    Defect("PC: errors without the activation's slope", PC, "else error * neuron.derivative(a))", "else error)", PC_TESTS),
    Defect("PC: momentum left out", PC, "torch.add(push, known, alpha=rule.momentum)", "push", PC_TESTS),
    Defect(
        "PC: layers one after another",
        PC,
        "in [(k, self._force(k, acts.feedback(k))) for k in self.hidden]:",
        "in ((k, (self._refresh(), self._force(k, acts.feedback(k)))[1]) for k in self.hidden):",
        PC_TESTS,
    ),
    Defect("PC: the output's precision left out", PC, "error = -self.rule.beta * self", "error = -1.0 * self", PC_TESTS),
    Defect("PC: the gradient not by beta", PC, "self.scale = -1 / (len(y) * rule.beta)", "self.scale = -1 / len(y)", PC_TESTS),
    Defect("PC: fixed predictions that move", PC, 'self.rule.predictions == "fixed" or k ==', "k ==", PC_TESTS),
    Defect(
        "PC: every layer learns one step late",
        PC,
        "activations.gradient(depth - number,",
        "activations.gradient(depth - number + 1,",
        PC_TESTS,
    ),
    Defect(
        "PC: velocities forgotten between calls",
        PC,
        "self.states[k], self.moves[k], self.velocities[k] = h, h - self.free[k], v",
        "self.states[k], self.moves[k] = h, h - self.free[k]",
        PC_TESTS,
    ),
    Defect("PC: the states' motion not told", PC, "moved <= MOST_MOVED", "moved <= 1e9", PC_TESTS),
    # Target propagation
    Defect(
        "target propagation: the output's target lies uphill",
        TARGET_RULE,
        ".to(output.dtype) * -self.beta",
        ".to(output.dtype) * self.beta",
        TARGETS,
    ),
    Defect(
        "target propagation: the gradient is not divided by beta",
        TARGET_RULE,
        "-1 / (self.beta * len(pass_.y))",
        "-1 / len(pass_.y)",
        TARGETS,
    ),
    Defect(
        "target propagation: weights learn from the targets without the activation's slope",
        TARGET_RULE,
        "delta = back.layer.neuron.derivative(back.drive) * change",
        "delta = change",
        TARGETS,
    ),
    Defect(
        "target propagation: targets go back through the forward weights",
        TARGET_RULE,
        "back.target_difference(change, feedback.weights.get(k))",
        "back.target_difference(change, None)",
        TARGETS,
    ),
    Defect(
        "target propagation: no feedback activation",
        RECONSTRUCTION,
        "return self.back(self.activation_difference(change), weight)",
        "return self.back(change, weight)",
        TARGETS,
    ),
    Defect(
        "target propagation: the feedback activation's tangent in place of its difference",
        RECONSTRUCTION,
        "return d * (1 - s.square() - d * s - d.square() / 3)",
        "return d * (1 - s.square())",
        TARGETS,
    ),
    Defect(
        "target propagation: the feedback loss rewards in place of punishing what it reconstructs",
        RECONSTRUCTION,
        "return found.sub_(synapse.core",
        "return found.neg_().sub_(synapse.core",
        TARGETS,
    ),
    Defect(
        "target propagation: the noise of the state above in place of what F makes of that below",
        RECONSTRUCTION,
        "self.activation_difference(moved), self.activation_difference(dy)",
        "self.activation_difference(dy), self.activation_difference(dy)",
        TARGETS,
    ),
    Defect(
        "target propagation: the feedback learns without momentum",
        TARGET_RULE,
        "momenta[k].mul_(self.feedback_momentum)",
        "momenta[k].mul_(0)",
        TARGETS,
    ),
    Defect(
        "target propagation: the state that was passed in is learned into",
        TARGET_RULE,
        "weights[k], momenta[k] = weights[k].clone(), momenta[k].clone()",
        "pass",
        TARGET_STEPS,
    ),
    Defect(
        "target propagation: the feedback's learning is not counted",
        TARGET_RULE,
        "pass_.count(drives=iterations[k - 2], feedbacks=iterations[k - 2], gradients=2 * iterations[k - 2])",
        "pass",
        TARGET_STEPS,
    ),
    Defect(
        "target propagation: feedback weights are lost with the batch",
        TARGET_RULE,
        'no batch\'s own."""\n        return state',
        'no batch\'s own."""\n        return None',
        TARGET_STEPS,
    ),
    Defect(
        "target propagation: momenta are not in the checkpoint",
        TARGET_RULE,
        'return named | {f"momentum.{k}": momentum for k, momentum in state.momenta.items()}',
        'return named | {f"momentum.{k}": 0 * momentum for k, momentum in state.momenta.items()}',
        TARGET_STEPS,
    ),
    # Holomorphic EP
    Defect(
        "holomorphic: the conjugate of the transposed Jacobian on tapes",
        "holomorphic.py",
        "record.input, signal.conj(), retain_graph=True)",
        "record.input, signal, retain_graph=True)",
        HOLOMORPHIC,
    ),
    Defect(
        "holomorphic: the gradient of conjugate states",
        "holomorphic.py",
        "[change.real, -change.imag, other_signal]",
        "[change.real, change.imag, other_signal]",
        HOLOMORPHIC_REFERENCE,
    ),
    Defect(
        "holomorphic: the change of the states left out of the gradient",
        "holomorphic.py",
        "[s.real, s.imag, moved]",
        "[s.real, s.imag, 0 * moved]",
        HOLOMORPHIC_REFERENCE,
    ),
    Defect(
        "holomorphic: a drive without its bias",
        "holomorphic.py",
        "            re = re + (bias if",
        "            re = re + 0 * (bias if",
        HOLOMORPHIC_REFERENCE,
    ),
    Defect(
        "holomorphic: a bias that learns from imaginary parts",
        "holomorphic.py",
        "features = change.real.movedim",
        "features = (change.real - change.imag).movedim",
        HOLOMORPHIC_REFERENCE,
    ),
    Defect(
        "holomorphic: the bias of a tape in imaginary parts too",
        "holomorphic.py",
        "        im = im - module(torch.zeros_like(z.real[:1]))\n",
        "        pass\n",
        HOLOMORPHIC,
    ),
    Defect(
        "holomorphic: a contrast as a difference of sums",
        "holomorphic.py",
        "        found = self.real.gradient(Record(torch.cat(states), None), torch.cat(signals), 1.0, is_biased=False)\n",
        "        weighted = scale * signal\n"
        "        both = Record(_stacked(s), None), torch.cat([weighted.real, -weighted.imag])\n"
        "        found = self.real.gradient(*both, 1.0, is_biased=False)\n"
        "        less = self.real.gradient(other, other_signal, scale.real, is_biased=False)\n"
        "        found = {name: gradient - less[name] for name, gradient in found.items()}\n",
        HOLOMORPHIC,
    ),
    Defect(
        "holomorphic: conjugate phases not counted",
        "estimators.py",
        "found.append(Term(nudge, 2 / (number * nudge)))",
        "found.append(Term(nudge, 1 / (number * nudge)))",
        HOLOMORPHIC_REFERENCE,
    ),
    Defect(
        "holomorphic: nudges on half of the circle",
        "estimators.py",
        "beta * cmath.exp(2j * math.pi * m / number)",
        "beta * cmath.exp(1j * math.pi * m / number)",
        HOLOMORPHIC_REFERENCE,
    ),
    Defect(
        "holomorphic: the exact nudge of a real strength",
        "relaxation.py",
        "/ (1 + nudge.strength)",
        "/ (1 + nudge.strength.real)",
        HOLOMORPHIC,
    ),
    Defect(
        "holomorphic: residuals of real parts alone",
        "states.py",
        "(torch.view_as_real(t) if t.is_complex() else t).double()",
        "(t.real if t.is_complex() else t).double()",
        HOLOMORPHIC_SETTLING,
    ),
    Defect(
        "holomorphic: a complex evaluation counted as one",
        "relaxation.py",
        "each = 2 if phase.nudge is not None",
        "each = 1 if phase.nudge is not None",
        HOLOMORPHIC_SETTLING,
    ),
    Defect(
        "holomorphic: PyTorch's sigmoid, which overflows",
        "neurons.py",
        "return _complex_sigmoid(a) if a.is_complex() else a.sigmoid()\n",
        "return a.sigmoid()\n",
        HOLOMORPHIC_SETTLING,
    ),
    Defect(
        "holomorphic: a network that is not let through",
        "rules/equilibrium_propagation.py",
        "            holomorphic.check(network, self.loss, self.output_nudge)\n",
        "            pass\n",
        HOLOMORPHIC_SETTLING,
    ),
    Defect(
        "holomorphic: softmax pools of one temperature",
        "pooling.py",
        "simplex.softmax(windows / self.temperature, -1)",
        "simplex.softmax(windows, -1)",
        HOLOMORPHIC,
    ),
    Defect(
        "PC: moves read off the states",
        PC,
        "move = velocity if before is None else before + velocity",
        "move = self.states[k] + velocity - self.free[k]",
        PC_TESTS,
    ),
    Defect(
        "Hopfield: a nudge that is lost in rounding is not told",
        "rules/equilibrium_propagation.py",
        'lost = lost or rounded(first, phase, "nudge")',
        'lost = ""',
        EP_SETTLING,
    ),
    Defect(
        "runtime table: an epoch's seconds by the batches of another size",
        "analysis/runtime.py",
        "/ 1e3 * EXAMPLES / entry.contender.recipe.batch_size",
        "/ 1e3 * EXAMPLES / 100",
        RUNTIME,
    ),
    Defect(
        "runtime table: angles with states that have learned nothing",
        "analysis/runtime.py",
        "state = outcomes[-1].state if rule.keeps_state else None",
        "state = None",
        RUNTIME,
    ),
    Defect(
        "runtime table: the own gradient in place of back-propagation's",
        "analysis/runtime.py",
        '"angle_to_backprop": Backprop(loss=rule.loss).exact_gradients',
        '"angle_to_backprop": rule.exact_gradients',
        RUNTIME,
    ),
    Defect(
        "alignment of several updates that all start anew",
        "analysis/alignment.py",
        "state=found.state if rule.keeps_state else None",
        "state=state",
        VARIANTS,
    ),
    Defect(
        "PC made of incremental PC with one step",
        "recipes/variants.py",
        "steps = own.steps * recipe.updates_per_batch if",
        "steps = own.steps if",
        "training/test_papers_recipes.py",
    ),
]


def copied(folder: Path) -> Path:
    """A copy of package, tests and settings; the shared reference cases lie beside it as they do beside the original."""
    copy = folder / "main"
    for name in ("dualprop", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (folder / "shared").symlink_to(shared)
    return copy


def run_tests(copy: Path, files: list[str], stop_at_first: bool = True) -> subprocess.CompletedProcess[str]:
    """Run these test files on the package in the copy, which comes before any installed one."""
    # No bytecode: a defect may keep a file's size and second, by which Python would take the old bytecode for the new.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", "--tb=line"]
    command += ["-x"] if stop_at_first else []
    command += [f"tests/{file}" for file in files]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=280)


def first_failure(output: str) -> str:
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    return failed[0].split("::")[-1].split(" - ")[0] if failed else ""


def verdict(defect: Defect, copy: Path) -> tuple[str, str]:
    """("caught", by which test) or what is wrong."""
    path = copy / "dualprop" / defect.file
    text = path.read_text()
    if text.count(defect.old) != 1:
        return "STALE", f"the line is found {text.count(defect.old)} times"
    path.write_text(text.replace(defect.old, defect.new))
    try:
        run = run_tests(copy, [defect.caught_by])
    except subprocess.TimeoutExpired:
        return "caught", "by running into the time limit"
    finally:
        path.write_text(text)
    if run.returncode == 0:
        return "SURVIVED", defect.caught_by
    if run.returncode != 1 or not first_failure(run.stdout):
        return "BROKEN", (run.stdout + run.stderr).strip().splitlines()[-1]
    return "caught", first_failure(run.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only the defects whose description holds one of these")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [d for d in DEFECTS if not arguments.words or any(word in d.what for word in arguments.words)]
    if not chosen:
        parser.error("no defect holds any of these words")
    began, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.workers) as pool:
        free: queue.Queue[Path] = queue.Queue()
        for number in range(arguments.workers):
            free.put(copied(Path(folder) / str(number)))

        def judged(defect: Defect | None) -> tuple[str, str]:
            copy = free.get()
            try:
                if defect is not None:
                    return verdict(defect, copy)
                run = run_tests(copy, sorted({d.caught_by for d in chosen}), stop_at_first=False)
                return ("passes", "") if run.returncode == 0 else ("FAILS", first_failure(run.stdout) or run.stdout[-300:])
            finally:
                free.put(copy)

        jobs = [(None, pool.submit(judged, None)), *((d, pool.submit(judged, d)) for d in chosen)]
        for defect, job in jobs:
            result, by = job.result()
            bad += result not in ("caught", "passes")
            print(f"{result:9} {defect.what if defect else '(no defect)':62} {by[:90]}", flush=True)
    print(f"{len(chosen)} defects, {bad} not as they should be, {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
