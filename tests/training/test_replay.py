"""Steps replayed on the CPU are those taken as they are, bit for bit; what can't be replayed is
refused, and leaves no trace."""

import dataclasses

import pytest
import torch
from torch import nn

from dualprop.errors import SettingError
from dualprop.models import MLP
from dualprop.network import Network
from dualprop.recipes.variants import VARIANTS
from dualprop.rules import DualPropagation, Outcome
from dualprop.training import execution, optimization, replay, step
from dualprop.training.capture import CapturedStep
from dualprop.training.recipe import Optimizer, Recipe


def recipe(**changes):
    base = Recipe(
        name="replayed", dataset="none", model=MLP(widths=(8, 7)), rule=DualPropagation(), batch_size=6, align=False,
        capture="on", optimizer=Optimizer(name="adamw", learning_rate=0.1, weight_decay=1e-3),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def train(made, is_replayed, steps=7):
    """Losses, logits and weights of a few steps on different batches, at rates no float32 has."""
    torch.manual_seed(0)
    model = execution.resolve(made).place(made.build((5,), 4))
    network, optimizer = Network.from_module(model), optimization.build(made.optimizer, model, capturable=is_replayed)
    generator, how = torch.Generator().manual_seed(1), execution.resolve(made)

    def take(x, y, state):
        with how.computing():
            return step.training_step(made, network, optimizer, x, y, state, generator)

    taken, state, told = CapturedStep(take, made, replay.CpuGraph()) if is_replayed else take, None, []
    draw = torch.Generator().manual_seed(2)
    for number in range(steps):
        x, y = torch.randn(6, 5, generator=draw).to(how.inputs), torch.randint(4, (6,), generator=draw)
        optimization.set_learning_rate(optimizer, 0.1 / (3 + number))
        outcomes, state = taken(x, y, state)
        told += [t.clone() for outcome in outcomes for t in (outcome.loss, outcome.logits, *outcome.gradients.values())]
    return [*told, *(p.detach() for p in model.parameters())], taken


CAPTURABLE = [name for name in VARIANTS if not VARIANTS[name].apply(recipe()).rule.capture_obstacle]


@pytest.mark.parametrize("name", CAPTURABLE)
def test_replayed_steps_are_those_taken_as_they_are_bit_for_bit(name):
    """An operation that is left out, or one that reads memory that another has taken over, would
    train another network in silence."""
    made = VARIANTS[name].apply(recipe())
    told, _ = train(made, is_replayed=False)
    replayed, taken = train(made, is_replayed=True)
    assert taken.obstacle == ""
    assert taken.graph.calls
    assert all(torch.equal(a, b) for a, b in zip(replayed, told, strict=True))


@pytest.mark.parametrize("changes", [{"dtype": "float64"}, {"dtype": "bfloat16"}, {"kernel": "eager"}, {"optimizer": "sgd"}])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "hard_tanh", "tanh", "softmax"])
def test_whatever_the_precision_kernel_optimizer_and_activation(changes, activation):
    changes = {"optimizer": Optimizer(name="sgd", momentum=0.9, nesterov=True)} if "optimizer" in changes else changes
    made = recipe(model=MLP(widths=(8, 7), activation=activation), **changes)
    told, _ = train(made, is_replayed=False)
    replayed, taken = train(made, is_replayed=True)
    assert taken.obstacle == ""
    assert all(torch.equal(a, b) for a, b in zip(replayed, told, strict=True))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda w: nn.functional.dropout(w, 0.5), "draws random numbers"),
        (lambda w: w * float(w.sum()), "waits for a number"),
        (lambda w: w[w > 0], "waits for a number"),
        (lambda w: torch.tensor(1.0).add_(w.sum()), "writes to a number in its code"),
    ],
)
def test_what_differs_from_batch_to_batch_is_refused_and_undone(function, why):
    """Replayed, the first batch's number would be every batch's. A step that was half taken would
    be taken again."""
    w = torch.arange(4.0)

    def take():
        w.add_(1)
        return function(w)

    with pytest.raises(RuntimeError, match=why):
        replay.CpuGraph().capture(take)
    assert w.equal(torch.arange(4.0))


def test_a_capture_itself_takes_no_step():
    w, graph = torch.arange(4.0), replay.CpuGraph()
    result = graph.capture(lambda: w.mul_(2).sum())
    assert w.equal(torch.arange(4.0))
    graph.replay()
    graph.replay()
    assert w.equal(4 * torch.arange(4.0))
    assert float(result) == 24


def test_memory_is_shared_by_what_is_never_needed_at_the_same_time():
    """A step of twenty passes would else need twenty times its memory, and run out of the cache."""
    x, graph = torch.randn(64, 64), replay.CpuGraph()

    def chain():
        state = x
        for _ in range(20):
            state = state.tanh() + 1
        return state.sum()

    result = graph.capture(chain)
    assert graph.num_bytes <= 3 * x.nbytes
    x.copy_(torch.ones(64, 64))
    graph.replay()
    assert result.equal(chain())


def test_a_view_of_what_is_written_later_shows_it():
    x, graph = torch.ones(3), replay.CpuGraph()

    def take():
        buffer = torch.zeros(2, 3)
        row = buffer[1]
        buffer.add_(x)
        return row * 2

    result = graph.capture(take)
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert result.equal(torch.full((3,), 2 * value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_many_rows_read_is_turned_once_for_each_of_its_values(dtype, monkeypatch):
    """One that is turned and then learns would else be read as it was."""
    x, w, bias = torch.randn(200, 24, dtype=dtype), torch.randn(16, 24, dtype=dtype), torch.randn(16, dtype=dtype)
    turned, turn = [], replay._turn
    monkeypatch.setattr(replay, "_turn", lambda *given: turned.append(given) or turn(*given))

    def take():
        before = nn.functional.linear(x, w, bias) + x @ w.t()
        w.mul_(1.5)
        return before + nn.functional.linear(x, w, bias)

    graph, twin = replay.CpuGraph(), w.clone()
    result = graph.capture(take)
    assert len(turned) == 2
    for _ in range(2):
        graph.replay()
        before = nn.functional.linear(x, twin, bias) + x @ twin.t()
        twin.mul_(1.5)
        assert result.equal(before + nn.functional.linear(x, twin, bias))
        assert w.equal(twin)


def taken_by(step_of, capture="auto"):
    """Calls of a captured step, whose loss is step_of()(x), and of the same step as it is."""
    made = recipe(capture=capture)

    def outcomes(step):
        def take(x, y, state):
            with torch.no_grad():
                loss = step(x)
            return [Outcome({}, loss, x * 1)], None

        return take

    captured, plain = CapturedStep(outcomes(step_of()), made, replay.CpuGraph()), outcomes(step_of())
    y = torch.zeros(2, dtype=torch.int64)
    for number in range(7):
        x = torch.full((2, 3), float(number))
        assert captured(x, y, None)[0][0].loss.equal(plain(x, y, None)[0][0].loss), number
    return captured


def through_numpy():
    return lambda x: x.sum() + torch.from_numpy(x.numpy() * 2.0).sum()


def test_a_step_whose_replay_is_another_is_taken_as_it_is():
    """What no operation of PyTorch's computes is seen by none, and would stay the first batch's."""
    assert taken_by(through_numpy).obstacle == "replayed on another batch it computes something else"


def test_a_step_whose_replay_is_itself_is_replayed():
    captured = taken_by(lambda: lambda x: (x * 2).sum())
    assert captured.obstacle == ""
    assert captured.graph.calls


def test_a_capture_that_must_be_had_and_is_another_step_is_refused():
    with pytest.raises(SettingError, match=r"computes something else. Use capture='off'"):
        taken_by(through_numpy, capture="on")


@pytest.mark.parametrize("rows", [1, 2, 200])
def test_a_weight_that_is_turned_is_so_for_products_of_as_many_rows(rows):
    """A product of one row sums in another order than one of many, by a turned weight or not."""
    x, few, w = torch.randn(200, 12), torch.randn(rows, 12), torch.randn(10, 12)
    graph = replay.CpuGraph()
    made = graph.capture(lambda: ((x @ w.t()).sum(), few @ w.t()))
    graph.replay()
    assert made[1].equal(few @ w.t())


def test_no_replay_counts_before_one_is_verified():
    """The step that is captured is taken as it is."""
    replays = []

    class Graph(replay.CpuGraph):
        def replay(self):
            replays.append(captured.calls)
            super().replay()

    captured = CapturedStep(lambda x, y, state: ([Outcome({}, x.sum(), x * 1)], None), recipe(), Graph())
    for number in range(7):
        captured(torch.full((2, 3), float(number)), torch.zeros(2, dtype=torch.int64), None)
    assert replays == [5, 6, 7]


@pytest.mark.parametrize("name", ["pc", "ep", "chl"])
def test_an_inference_that_is_measured_is_replayed_only_where_that_is_asked_for(name):
    """A replay measures nothing: that states did not settle would no longer be told."""
    _, taken = train(VARIANTS[name].apply(recipe(capture="auto")), is_replayed=True)
    assert taken.obstacle == "its inference is measured"
    _, taken = train(VARIANTS[name].apply(recipe(capture="on")), is_replayed=True)
    assert taken.obstacle == ""
