"""A training step of predictive coding by pcx 0.6.3 and by FabricPC 0.6.0, for `small_networks`.

Each is one compiled program, made in its library's own words: layers of ReLU and a linear output
that is held at one-hot targets, squared errors, states that begin at the forward pass and take T
plain gradient steps together, Adam for the weights. It runs in an environment that has the library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

RATE = 1e-4


def batch(widths: Sequence[int], size: int) -> tuple[Any, Any]:
    """Inputs and one-hot targets of noise."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((size, widths[0]), dtype=np.float32)
    return x, np.eye(widths[-1], dtype=np.float32)[draw.integers(widths[-1], size=size)]


def pcx_step(widths: Sequence[int], size: int, step_size: float, steps: int) -> Callable[[], object]:
    """By pcx: energies are summed over the batch, the weights' gradients divided by its size."""
    import jax
    import optax
    import pcx
    import pcx.functional as pxf
    import pcx.nn as pxnn
    import pcx.predictive_coding as pxc
    import pcx.utils as pxu

    pcx.RKG.seed(0)

    class Net(pxc.EnergyModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = [pxnn.Linear(a, b) for a, b in pairwise(widths)]
            self.vodes = [pxc.Vode() for _ in self.layers]
            self.vodes[-1].h.frozen = True

        def __call__(self, x: Any, y: Any) -> Any:
            for vode, layer in zip(self.vodes[:-1], self.layers[:-1], strict=True):
                x = vode(jax.nn.relu(layer(x)))
            self.vodes[-1](self.layers[-1](x))
            if y is not None:
                self.vodes[-1].set("h", y)
            return self.vodes[-1].get("u")

    per_example = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))

    @pxf.vmap(per_example, in_axes=(0, 0), out_axes=0)
    def forward(x: Any, y: Any, *, model: Any) -> Any:
        return model(x, y)

    @pxf.vmap(per_example, in_axes=(0,), out_axes=(None, 0), axis_name="batch")
    def energy(x: Any, *, model: Any) -> Any:
        y = model(x, None)
        return jax.lax.psum(model.energy().sum(), "batch"), y

    @pxf.jit(static_argnums=0)
    def train(steps: int, x: Any, y: Any, *, model: Any, of_weights: Any, of_states: Any) -> None:
        model.train()
        with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
            forward(x, y, model=model)
        of_states.init(pxu.M_hasnot(pxc.VodeParam, frozen=True)(model))
        for _ in range(steps):
            with pxu.step(model, clear_params=pxc.VodeParam.Cache):
                mask = pxu.M_hasnot(pxc.VodeParam, frozen=True).to([False, True])
                _, gradients = pxf.value_and_grad(mask, has_aux=True)(energy)(x, model=model)
            of_states.step(model, gradients["model"])
        of_states.clear()
        with pxu.step(model, clear_params=pxc.VodeParam.Cache):
            mask = pxu.M(pxnn.LayerParam).to([False, True])
            _, gradients = pxf.value_and_grad(mask, has_aux=True)(energy)(x, model=model)
        of_weights.step(model, gradients["model"], scale_by=1.0 / x.shape[0])

    model = Net()
    x, y = (jax.numpy.asarray(each) for each in batch(widths, size))
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        forward(x, y, model=model)
    of_weights = pxu.Optim(lambda: optax.adam(RATE), pxu.M(pxnn.LayerParam)(model))
    of_states = pxu.Optim(lambda: optax.sgd(step_size))

    def step() -> None:
        train(steps, x, y, model=model, of_weights=of_weights, of_states=of_states)
        jax.block_until_ready(model.layers[0].nn.weight.get())

    return step


def fabricpc_step(widths: Sequence[int], size: int, step_size: float, steps: int) -> Callable[[], object]:
    """By FabricPC, with its own training step."""
    import jax
    import optax
    from fabricpc.core.activations import IdentityActivation, ReLUActivation
    from fabricpc.core.inference import InferenceSGD
    from fabricpc.core.topology import Edge
    from fabricpc.graph_assembly import TaskMap, graph
    from fabricpc.graph_initialization import initialize_params
    from fabricpc.graph_initialization.state_initializer import FeedforwardStateInit
    from fabricpc.nodes import Linear
    from fabricpc.training.trainer import make_train_step

    last = len(widths) - 1
    nodes = [
        Linear(shape=(width,), name=f"layer{k}", activation=ReLUActivation() if 0 < k < last else IdentityActivation())
        for k, width in enumerate(widths)
    ]
    structure = graph(
        nodes=nodes,
        edges=[Edge(source=below, target=above.slot("in")) for below, above in pairwise(nodes)],
        task_map=TaskMap(x=nodes[0], y=nodes[-1]),
        inference=InferenceSGD(eta_infer=step_size, infer_steps=steps),
        graph_state_initializer=FeedforwardStateInit(),
    )
    key = jax.random.PRNGKey(0)
    optimizer = optax.adam(RATE)
    params = initialize_params(structure, key)
    train, state = make_train_step(structure, optimizer), optimizer.init(params)
    x, y = (jax.numpy.asarray(each) for each in batch(widths, size))

    def step() -> None:
        nonlocal params, state
        params, state, *_ = train(params, state, {"x": x, "y": y}, key)
        jax.block_until_ready(params)

    return step


STEPS = {"pcx": pcx_step, "FabricPC": fabricpc_step}
