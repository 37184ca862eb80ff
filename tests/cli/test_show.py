"""`dualprop show`: what it draws of an inference is what the rule computes."""

import math
import re

import pytest
import torch
from PIL import Image

import dualprop as dp
from dualprop import analysis
from dualprop.analysis import captions, dyad_pictures, inference
from dualprop.analysis.captions import Scale
from dualprop.analysis.inference import ShowOptions
from dualprop.cli import show


def shown(**options):
    return analysis.show(**options)


def relu(a):
    return a.clamp(min=0)


RULES = {
    "DP": dp.DualPropagation(),
    "DP, α = 0.3": dp.DualPropagation(alpha=0.3, beta=0.4),
    "DP⊤, α = 0": dp.DualPropagation(coupling="transposed", alpha=0.0, beta=0.5),
    "DP⊤, α = 0.3": dp.DualPropagation(coupling="transposed", alpha=0.3),
    "β by layer": dp.DualPropagation(beta=(0.2, 0.5, 1.0)),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_each_step_of_a_downward_sweep_is_the_papers_equation(rule):
    """Written out with matrices: s⁺ = f(a + up r Δ), s⁻ = f(a - down r Δ), the output nudged by
    softmax less target."""
    drawn = shown(rule=rule)
    weights = [dict(drawn.network.module.named_parameters())[f"{2 * k}.weight"].detach() for k in range(3)]
    x = drawn.frames[0].dyads.means[0]
    betas = rule.beta if isinstance(rule.beta, tuple) else (rule.beta,) * 3
    up, down = (rule.alpha, 1 - rule.alpha) if rule.coupling == "original" else (1 - rule.alpha, rule.alpha)
    states = [x, relu(weights[0] @ x)]
    states.append(relu(weights[1] @ states[1]))
    logits = weights[2] @ states[2]
    for drawn_mean, mean in zip(drawn.frames[0].dyads.means, [*states, logits], strict=True):
        assert torch.allclose(drawn_mean, mean, rtol=0, atol=1e-12)
    slope = torch.softmax(logits, 0) - torch.tensor([1.0, 0.0])
    plus, minus = logits - up * betas[2] * slope, logits + down * betas[2] * slope
    for number, k in ((1, 3), (2, 2), (3, 1)):
        if k < 3:
            pull = weights[k].T @ (plus - minus) * betas[k - 1] / betas[k]
            a = weights[k - 1] @ states[k - 1]
            plus, minus = relu(a + up * pull), relu(a - down * pull)
        frame = drawn.frames[number]
        assert frame.layers == (k,)
        assert torch.allclose(frame.dyads.plus[k], plus, rtol=0, atol=1e-12), f"layer {k}"
        assert torch.allclose(frame.dyads.minus[k], minus, rtol=0, atol=1e-12), f"layer {k}"


OTHERS = {
    "sweeps": {"schedule": "alternating_sweeps(2)", "alpha": 0.3},
    "passes upwards": {"schedule": "bottom_up(3)", "coupling": "transposed", "alpha": 0.0},
    "all layers together, from zeros": {"schedule": "synchronous(6)", "start": "zeros"},
    "groups": {"schedule": "1+3,2"},
    "drawn layers": {"schedule": "random_order(7)"},
    "damped": {"schedule": "bottom_up(3)", "damping": (1.0, 2.0)},
    "exact": {"output_nudge": "exact"},
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_the_last_frame_holds_the_dyads_that_the_rule_infers(settings):
    """A frame is the rule's own inference, stopped; the last is stopped where it ends anyway."""
    rule = dp.DualPropagation(**settings)
    options = ShowOptions(rule=rule, activation="tanh")
    drawn = inference.inferred(options)
    dyads = rule.infer(*inference.example(options), generator=torch.Generator().manual_seed(options.seed))
    for k in range(4):
        assert torch.equal(drawn.frames[-1].dyads.plus[k], dyads.plus[k][0])
        assert torch.equal(drawn.frames[-1].dyads.minus[k], dyads.minus[k][0])


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_a_step_changes_the_layers_that_it_names_and_no_others(settings):
    """A picture that lights one layer and moves another misleads."""
    drawn = shown(rule=dp.DualPropagation(**settings), activation="tanh")
    for before, after in zip(drawn.frames, drawn.frames[1:], strict=False):
        for k in set(range(4)) - set(after.layers):
            assert torch.equal(before.dyads.means[k], after.dyads.means[k])
            assert torch.equal(before.dyads.difference(k), after.dyads.difference(k))


def test_what_a_step_was_made_of_makes_its_states():
    """Drives and pulls of layers that are updated together are those of before the step."""
    drawn = shown(rule=dp.DualPropagation(schedule="synchronous(5)"), activation="tanh")
    for frame in drawn.frames[1:]:
        for k in (1, 2):
            a, pull = frame.drives[k], frame.pulls[k]
            expected = torch.tanh(a) if pull is None else torch.tanh(a + 0.5 * pull)
            assert torch.allclose(frame.dyads.plus[k], expected, rtol=0, atol=1e-12)


def test_the_default_is_back_propagation_since_no_unit_crosses_its_kink():
    """At α = ½ the dyad's slope is exact there. What is learned is δ s̄ᵀ."""
    drawn = shown()
    assert drawn.kink_crossing == [0.0, 0.0, 0.0]
    assert all(each.cosine == pytest.approx(1, abs=1e-12) for each in drawn.alignments)
    dyads = drawn.frames[-1].dyads
    for k in (1, 2, 3):
        learned = -torch.outer(dyads.difference(k), dyads.means[k - 1])
        assert torch.allclose(drawn.gradient(k), learned, rtol=0, atol=1e-12)


def test_the_numbers_in_the_terminal_are_the_states(dualprop):
    """Read back from the text, frame by frame, layer by layer."""
    answer = dualprop("show", "--rule.alpha", "0.3")
    assert (answer.code, answer.err) == (0, "")
    drawn = shown(rule=dp.DualPropagation(alpha=0.3))
    read = {sign: re.findall(rf"^ +{sign}  (.*)$", answer.out, re.MULTILINE) for sign in ("s⁺", "s⁻")}
    for sign, of in (("s⁺", "plus"), ("s⁻", "minus")):
        states = [getattr(frame.dyads, of)[k] for frame in drawn.frames for k in (3, 2, 1)]
        assert len(read[sign]) == len(states) == 12
        for line, state in zip(read[sign], states, strict=True):
            assert [float(word) for word in line.split()] == pytest.approx(state.tolist(), abs=5.1e-4)


def test_the_marks_stand_where_the_states_are():
    """On a strip, s⁺ is right of the mean where it is greater."""
    drawn = shown()
    scale, frame = Scale.of(drawn), drawn.frames[-1]
    for k in (1, 2, 3):
        for unit in range(drawn.options.widths[k]):
            minus, mean, plus = scale.states(frame, k, unit)
            assert mean == pytest.approx(float(frame.dyads.means[k][unit]))
            assert plus - minus == pytest.approx(float(frame.dyads.difference(k)[unit]))
    assert show._strip(Scale(1.0, 1), (-1.0, 0.0, 1.0), 11) == "-....|....+"
    assert show._strip(Scale(1.0, 1), (0.5, 0.5, 0.5), 5) == "...o."


@pytest.mark.parametrize("beta", [1e-6, 0.01, 0.1])
def test_a_small_parting_is_drawn_larger_and_said_to_be(beta, dualprop):
    """At β = 0.01 both marks would lie on one place."""
    drawn = shown(rule=dp.DualPropagation(beta=beta))
    scale = Scale.of(drawn)
    widest = max(float(d.abs().max()) for d in drawn.frames[-1].dyads.differences if d is not None)
    assert scale.magnified > 1
    assert 0.1 <= scale.magnified * widest / scale.limit <= 1
    assert f"{scale.magnified} times as wide" in dualprop("show", "--rule.beta", str(beta)).out
    minus, _, plus = scale.states(drawn.frames[1], 3, 0)
    assert plus - minus == pytest.approx(scale.magnified * float(drawn.frames[1].dyads.difference(3)[0]))


@pytest.mark.parametrize("words", [(), ("--widths", *"86648", "--rule.schedule", "up_down(2)"), ("--rule.damping", "1", "2")])
def test_a_drawing_is_plain_text_of_80_columns(words, dualprop):
    """It is read in a pipe, a log and a small window too."""
    out = dualprop("show", *words).out
    assert max(map(len, out.splitlines())) <= 80
    assert all(character == "\n" or character.isprintable() for character in out)


def test_an_equation_tells_the_shares_that_were_used():
    """Those of DP⊤ change places."""
    told = [captions.equation(shown(rule=RULES[name]), 2) for name in ("DP, α = 0.3", "DP⊤, α = 0.3")]
    assert told[0].endswith("s⁺ = f(a + 0.3 Δ)    s⁻ = f(a - 0.7 Δ)")
    assert told[1].endswith("s⁺ = f(a + 0.7 Δ)    s⁻ = f(a - 0.3 Δ)")


def test_crossed_kinks_and_zero_gradients_are_told():
    """They are what makes DP differ from back-propagation."""
    drawn = shown(seed=17)
    crossing = [round(share * units) for share, units in zip(drawn.kink_crossing, (4, 4, 2), strict=True)]
    assert crossing[1] > 0
    assert f"layer 2: {crossing[1]} of 4 units cross a kink, where δ is no derivative" in captions.learned(drawn)
    silent = shown(rule=dp.DualPropagation(schedule="3"))
    assert math.isnan(silent.alignments[0].cosine)
    assert "is zero" in captions.learned(silent)[1]


def test_an_animation_has_a_frame_for_each_step_and_one_for_what_is_learned(dualprop, folder):
    """And the last is held longer."""
    answer = dualprop("show", "--figure", "dyads.gif")
    assert answer.out.splitlines()[-1] == "wrote dyads.gif"
    with Image.open(folder / "dyads.gif") as image:
        assert image.n_frames == 5
        durations = []
        for number in range(5):
            image.seek(number)
            durations.append(image.info["duration"])
    assert durations[-1] > durations[0]


def test_a_picture_shows_the_same_numbers(dualprop, folder):
    """As text in the boxes: mean and difference of every unit."""
    assert dualprop("show", "--figure", "dyads.png").code == 0
    with Image.open(folder / "dyads.png") as image:
        assert image.format == "PNG"
    drawn = shown()
    for number, frame in enumerate(drawn.frames):
        texts = [each.get_text() for each in dyad_pictures.one_frame(drawn, number).axes[0].texts]
        for k in (1, 2, 3):
            for mean, delta in zip(frame.dyads.means[k].tolist(), frame.dyads.difference(k).tolist(), strict=True):
                assert f"s̄ {mean:+.2f}  δ {f'{delta:+.2g}' if delta else '0'}" in texts


MISTAKES = {
    "one layer": (("--widths", "3"), "widths must name 2 to 6 layers"),
    "too wide": (("--widths", "2", "9", "2"), "widths[1] must be at most 8"),
    "no such class": (("--target", "2"), "target must be a class of the output, 0 to 1"),
    "a tolerance": (("--rule.tolerance", "0.1"), "Leave out --rule.tolerance"),
    "no dyads": (("--rule.engine", "fused"), "Leave out --rule.engine"),
    "another ending": (("--figure", "dyads.svg"), "must end in .png"),
    "no folder": (("--figure", "nowhere/dyads.png"), "Make it first"),
    "too long": (("--rule.schedule", "bottom_up(100)"), "has 300 steps here"),
    "no such activation": (("--activation", "rellu"), "Did you mean 'relu'?"),
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_shown_is_refused_by_name(words, told, refused):
    """Before anything is drawn or written."""
    assert told in refused("show", *words)
