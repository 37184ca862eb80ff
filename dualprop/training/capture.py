"""A training step captured once and replayed: launching kernels costs nothing.

It is captured as a CUDA graph, or on the CPU as a list of operations (`replay`). Capturing records
what the step launches, whatever Python did to launch it, so every rule can be captured whose Python
does the same for each batch. A replay reads and writes the memory of the
capture: batches and states are copied in, the learning rate is a tensor. Where a rule keeps states,
the last replay's are the next one's. The first steps run as they are, on the capture's stream,
until lazily made buffers (momenta, workspaces, the rule's first states) exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dualprop import captures, memory
from dualprop.errors import SettingError
from dualprop.rules import Outcome
from dualprop.training.recipe import Recipe
from dualprop.training.replay import CpuGraph

TrainingStep = Callable[[Tensor, Tensor, Any], tuple[list[Outcome], Any]]
# Steps before the capture: the first makes momenta and states, the second is like all that follow.
WARMUP = 3


class Graph(Protocol):
    """What records a function's launches and repeats them: `CudaGraph`, `CpuGraph`, a stand-in."""

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run the function where its memory and workspaces will be usable by the capture."""

    def capture(self, function: Callable[[], Any]) -> Any:
        """Record the function and return what it returns; nothing is computed yet."""

    def replay(self) -> None:
        """Compute what was recorded."""


def graph_on(device: torch.device) -> Graph:
    """What captures steps on this device."""
    return CudaGraph(device) if device.type == "cuda" else CpuGraph()


class CudaGraph:
    """PyTorch's CUDA graph, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], Any]) -> Any:
        with torch.cuda.graph(self.graph, stream=self.stream):
            return function()

    def replay(self) -> None:
        self.graph.replay()


class CapturedStep:
    """`step(x, y, state)` as a function of the same arguments, replayed from the fourth call on.

    The results of a replay lie in the graph's memory: the next one writes over them. Batches must
    keep their shapes. A step that turns out to wait for the device can't be captured: where the
    recipe leaves the choice it then runs as it is, and `obstacle` says why; else a SettingError
    does. On the CPU the same holds for a step whose replay is not the step itself bit for bit, and,
    where the recipe leaves the choice, for one whose inference is measured: a replay's is not.
    """

    def __init__(self, step: TrainingStep, recipe: Recipe, graph: Graph) -> None:
        self.step, self.rule, self.graph, self.must = step, recipe.rule, graph, recipe.capture == "on"
        self.obstacle = ""
        self.calls = 0
        self.inputs: tuple[Tensor, Tensor] | None = None
        self.outcomes: list[Outcome] = []
        self.state_in: dict[str, Tensor] = {}
        self.state_out: Any = None

    def __call__(self, x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        self.calls += 1
        if self.calls <= WARMUP:
            return self._warm_up(x, y, state)
        is_new = self.inputs is None and not self.obstacle
        if is_new:
            self._try_to_capture(x, y, state)
        # On the CPU no replay counts before one on another batch is verified.
        if self.obstacle or (is_new and isinstance(self.graph, CpuGraph)):
            return self.step(x, y, state)
        assert self.inputs is not None
        for held, given in zip(self.inputs, (x, y), strict=True):
            held.copy_(given)
        for name, tensor in self.rule.pack_state(state).items():
            if self.state_in[name] is not tensor:
                self.state_in[name].copy_(tensor)
        if self.calls == WARMUP + 2 and isinstance(self.graph, CpuGraph):
            return self._verified(self.graph, x, y, state)
        self.graph.replay()
        # New ones: an outcome remembers its status once it has been asked for.
        return [dataclasses.replace(outcome) for outcome in self.outcomes], self.state_out

    def _warm_up(self, x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        before = captures.num_measurements()
        result: tuple[list[Outcome], Any] = self.graph.warm_up(lambda: self.step(x, y, state))
        if isinstance(self.graph, CpuGraph) and captures.num_measurements() > before:
            self._can_not("its inference is measured", is_choice=True)
        return result

    def _verified(self, graph: CpuGraph, x: Tensor, y: Tensor, state: Any) -> tuple[list[Outcome], Any]:
        results = self._tensors(self.outcomes, self.state_out)
        # The last replay's states, which this one writes over.
        state = self.rule.unpack_state({name: tensor.clone() for name, tensor in self.rule.pack_state(state).items()})
        given, is_equal = graph.verify(lambda: self.step(x, y, state), lambda given: self._tensors(*given), results)
        if not is_equal:
            self._can_not("replayed on another batch it computes something else")
        return given

    def _tensors(self, outcomes: list[Outcome], state: Any) -> list[Tensor]:
        of_outcomes = [t for outcome in outcomes for t in (outcome.loss, outcome.logits, *outcome.gradients.values())]
        return [*of_outcomes, *self.rule.pack_state(state).values()]

    def _try_to_capture(self, x: Tensor, y: Tensor, state: Any) -> None:
        try:
            self._capture(x, y, state)
        except RuntimeError as error:
            if memory.is_lacking(error):
                raise
            self._can_not(memory.first_line(error), error)

    def _can_not(self, why: str, error: Exception | None = None, is_choice: bool = False) -> None:
        """Take steps as they are from now on, or refuse to where they must be captured."""
        if self.must and is_choice:
            return
        self.inputs, self.obstacle = None, why
        if self.must:
            raise SettingError(f"the step can't be captured: {why}. Use capture='off'.") from error

    def _capture(self, x: Tensor, y: Tensor, state: Any) -> None:
        self.inputs = x.clone(), y.clone()
        # Copies that keep their strides; the state that the step reads is made of them.
        self.state_in = {name: tensor.clone() for name, tensor in self.rule.pack_state(state).items()}
        state_held = self.rule.unpack_state(self.state_in)
        x_held, y_held = self.inputs
        self.outcomes, self.state_out = self.graph.capture(lambda: self.step(x_held, y_held, state_held))
