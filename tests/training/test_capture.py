"""Captured steps, by a stand-in graph that runs what it captured again on the same memory; and
steps that wait for no device.

A CUDA graph repeats launches and not Python: whatever a replay needs must be in the memory of the
capture. The stand-in computes nothing while it captures, as a graph, but repeats the Python: a
batch, a state or a learning rate that is not copied in shows as a difference from steps that are
taken as they are.
"""

import copy
import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dualprop.data import Augmentation
from dualprop.errors import SettingError
from dualprop.models import MLP, VGG
from dualprop.network import Network
from dualprop.recipes.variants import VARIANTS
from dualprop.rules import DualPropagation, EquilibriumPropagation, packing
from dualprop.training import capture, execution, optimization, step
from dualprop.training.recipe import Optimizer, Recipe


class StandIn:
    """Replays by running the function again; capturing leaves parameters and optimizer as they
    were."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer, self.replays = model, optimizer, 0

    def warm_up(self, function):
        return function()

    def capture(self, function):
        kept = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
        self.function, self.results = function, function()
        self.model.load_state_dict(kept[0])
        self.optimizer.load_state_dict(kept[1])
        return self.results

    def replay(self):
        self.replays += 1
        for own, new in zip(tensors(self.results), tensors(self.function()), strict=True):
            own.copy_(new)


def tensors(results):
    """The tensors of a step's results, in one order."""
    outcomes, state = results
    found = [t for outcome in outcomes for t in (outcome.loss, outcome.logits, outcome.losses) if t is not None]
    if state is not None:
        found += packing.pack(state).values()
    return found


def recipe(**changes):
    base = Recipe(
        name="captured", dataset="none", model=MLP(widths=(8, 7)), rule=DualPropagation(), batch_size=6, dtype="float64",
        optimizer=Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=1e-3), align=False,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def train(made, captured, steps=8):
    """Weights and losses of a few steps on different batches, with a learning rate that falls."""
    torch.manual_seed(0)
    model = execution.resolve(made).place(made.build((5,), 4))
    network = Network.from_module(model)
    optimizer = optimization.build(made.optimizer, model, capturable=captured and made.optimizer.name == "sgd")
    generator = torch.Generator().manual_seed(1)

    def take(x, y, state):
        return step.training_step(made, network, optimizer, x, y, state, generator)

    graph = StandIn(model, optimizer)
    taken, state, losses = capture.CapturedStep(take, made, graph) if captured else take, None, []
    draw = torch.Generator().manual_seed(2)
    for number in range(steps):
        x, y = torch.randn(6, 5, generator=draw, dtype=torch.float64), torch.randint(4, (6,), generator=draw)
        optimization.set_learning_rate(optimizer, 2.0 ** (-3 - number))  # exact in the float32 of a captured rate
        outcomes, state = taken(x, y, state)
        losses.append(float(outcomes[0].loss))
    return losses, {name: p.detach().clone() for name, p in model.named_parameters()}, graph, taken


CAPTURABLE = [name for name in VARIANTS if not VARIANTS[name].apply(recipe()).rule.capture_obstacle]


@pytest.mark.parametrize("name", CAPTURABLE)
def test_captured_steps_are_those_taken_as_they_are(name):
    """A batch, a state (L-DP, MS-DP, damping's vectors) or a learning rate left in the memory of
    another step is found here."""
    made = VARIANTS[name].apply(recipe())
    losses, weights, _, _ = train(made, captured=False)
    found, found_weights, graph, _ = train(made, captured=True)
    assert graph.replays == 8 - capture.WARMUP
    assert found == losses
    assert all(torch.equal(found_weights[name], weight) for name, weight in weights.items())


def test_only_what_iterates_or_draws_is_not_captured():
    """Silently leaving out a rule would cost it its speed."""
    assert set(VARIANTS) - set(CAPTURABLE) == {"r-dp-100", "lpom", "ep-random", "dtp"}
    assert "drawn anew" in VARIANTS["r-dp-100"].apply(recipe()).rule.capture_obstacle
    assert "drawn anew" in VARIANTS["ep-random"].apply(recipe()).rule.capture_obstacle
    assert "tolerance" in EquilibriumPropagation(tolerance=0.1, relaxation="error_sweeps(2)").capture_obstacle
    assert "iteration" in EquilibriumPropagation(output_nudge="exact").capture_obstacle
    assert "tolerance" in DualPropagation(tolerance=0.1, schedule="bottom_up(9)").capture_obstacle
    assert "iteration" in DualPropagation(output_nudge="exact").capture_obstacle
    assert not DualPropagation(output_nudge="exact", beta=0.5, loss="squared_error").capture_obstacle


def test_each_replay_has_a_status_of_its_own():
    """A status that the first replay was asked for would hide a later divergence."""
    made = recipe()
    _, _, _, taken = train(made, captured=True)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.zeros(6).long()
    first, _ = taken(x, y, None)
    assert first[0].status.ok
    second, _ = taken(x * torch.nan, y, None)
    assert not second[0].status.ok


@pytest.mark.parametrize("must", [False, True])
def test_a_step_that_can_not_be_captured_is_taken_as_it_is_or_refused(must):
    """CUDA refuses a step that waits for the device only while it is being captured."""
    made = recipe(capture="on" if must else "auto")

    class Refusing(StandIn):
        def capture(self, function):
            raise RuntimeError("operation not permitted when stream is capturing\nsecond line")

    calls = []
    taken = capture.CapturedStep(lambda x, y, state: (calls.append(1) or [], None), made, Refusing(None, None))
    x = torch.zeros(6, 5)
    for _ in range(capture.WARMUP):
        taken(x, x, None)
    if must:
        with pytest.raises(SettingError, match=r"not permitted when stream is capturing. Use capture='off'"):
            taken(x, x, None)
        return
    taken(x, x, None)
    taken(x, x, None)
    assert len(calls) == capture.WARMUP + 2
    assert taken.obstacle == "operation not permitted when stream is capturing"


WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}


class Watch(TorchDispatchMode):
    """Records the operations that would make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name().split(".")[0] in WAITING:
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["mlp", "before", "after"])
@pytest.mark.parametrize("name", CAPTURABLE)
def test_no_step_waits_for_the_device(name, architecture, monkeypatch):
    """One wait a step costs a GPU its queue, and forbids capturing."""
    model = MLP(widths=(8, 7)) if architecture == "mlp" else VGG((4, 5), (1, 2), (6,), pool=architecture)
    made = VARIANTS[name].apply(recipe(model=model, dtype="float32"))
    shape = (5,) if architecture == "mlp" else (2, 8, 8)
    built = execution.resolve(made).place(made.build(shape, 4))
    network, optimizer = Network.from_module(built), optimization.build(made.optimizer, built)
    x, y = torch.randn(6, *shape), torch.zeros(6).long()
    # On the CPU the range of labels is checked, which is free there.
    monkeypatch.setattr("dualprop.losses.AbstractLoss.check_targets", lambda loss, y, outputs: None)
    # While a graph is captured nothing is measured.
    for module in ("settling", "rules.problem"):
        monkeypatch.setattr(f"dualprop.{module}.can_sync", lambda x: False)
    # What is drawn once, at the first call, waits for nothing later.
    draws = torch.Generator().manual_seed(0) if made.rule.needs_generator else None
    _, state = step.training_step(made, network, optimizer, x, y, None, draws)
    with Watch() as watch:
        step.training_step(made, network, optimizer, x, y, state, None)
    assert not watch.seen


def test_the_watch_sees_a_wait():
    with Watch() as watch:
        bool(torch.ones(2).sum() > 1)
    assert watch.seen


def test_what_this_machine_can_not_do_is_refused_in_one_line():
    with pytest.raises(SettingError, match=r"'meta' has no graphs. Use capture='auto'"):
        execution.resolve(recipe(capture="on", device="meta"))
    with pytest.raises(SettingError, match=r"dtype='tf32' is of NVIDIA GPUs"):
        execution.resolve(recipe(dtype="tf32"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "explicit engine, native kernel, float64, contiguous, captured"),
        ({"model": MLP(widths=(8, 600))}, "explicit engine, native kernel, float64, contiguous"),
        (
            {"rule": DualPropagation(coupling="transposed", alpha=0.0)},
            "fused engine, native kernel, float64, contiguous, captured",
        ),
        (
            {"model": VGG((4,), (1,), ()), "rule": DualPropagation(), "kernel": "eager"},
            "explicit engine, eager kernel, float64, channels last",
        ),
        ({"channels_last": "off", "model": VGG((4,), (1,), ())}, "explicit engine, native kernel, float64, contiguous"),
    ],
)
def test_the_choices_are_made_and_told(changes, told):
    """What ran decides what a time means."""
    assert str(execution.resolve(recipe(**changes))) == told


def test_bfloat16_computes_in_it_and_keeps_parameters_in_float32():
    made = recipe(dtype="bfloat16", model=VGG((4, 5), (1, 2), (6,)), augmentation=Augmentation(flip=True))
    how = execution.resolve(made)
    assert (how.inputs, how.parameters) == (torch.bfloat16, torch.float32)
    model = how.place(made.build((2, 8, 8), 4))
    x, y = torch.randn(6, 2, 8, 8).to(how.inputs), torch.zeros(6).long()
    for rule in (DualPropagation(), DualPropagation(engine="fused")):
        with how.computing():
            out = rule.gradients(Network.from_module(model), x, y)
        assert out.logits.dtype == torch.bfloat16
        assert out.loss.dtype == torch.float32
        assert all(gradient.dtype == torch.float32 for gradient in out.gradients.values())
    if not execution.has_bfloat16("cpu"):
        assert "no hardware for bfloat16 here" in str(how)
