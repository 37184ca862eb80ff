"""The cases that the DP authors' own code computed: states and gradients to 1e-10, with the order
passed as the schedule."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comparison import report
from torch import nn

import dualprop as dp

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
if not CASES:
    CASES = [pytest.param("", marks=pytest.mark.skip(reason=f"the authors' cases are not at {GOLDEN}"))]

ACTIVATIONS = {"relu": nn.ReLU, "hard_sigmoid": lambda: nn.Hardtanh(0, 1), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def read(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        meta = json.loads(str(file["meta"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
    return meta, arrays


def built(meta, arrays):
    """The case's network as a plain nn.Sequential, and the name of each layer's parameterised
    module."""
    modules, names = [], []
    for k, layer in enumerate(meta["layers"], start=1):
        weight, bias = arrays[f"weight{k}"], arrays[f"bias{k}"]
        if layer["kind"] == "linear":
            if modules and weight.dim() == 2 and arrays[f"weight{k - 1}"].dim() == 4:
                modules.append(nn.Flatten())
            module = nn.Linear(weight.shape[1], weight.shape[0])
        else:
            assert layer["kind"] == "conv3x3_same"
            module = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        module.weight.data, module.bias.data = weight, bias
        names.append(str(len(modules)))
        modules.append(module)
        if layer["pool"]:
            modules.append(nn.MaxPool2d(2))
        if k < len(meta["layers"]):
            modules.append(ACTIVATIONS[meta["activation"]]())
    return nn.Sequential(*modules).double(), names


@pytest.mark.parametrize("name", CASES)
def test_states_and_gradients_are_the_authors_own(name):
    """An implementation that agrees only with itself could carry the same misreading in code and
    tests."""
    meta, arrays = read(name)
    model, names = built(meta, arrays)
    damping = tuple(arrays["damping"].tolist()) if "damping" in arrays else None
    rule = dp.DualPropagation(
        engine="explicit",
        # Their damped class nudges as DP does, and damps with the given constants.
        coupling="transposed" if meta["rule"] == "transposed" else "original",
        alpha=meta["alpha"],
        beta=meta["beta"],
        schedule=meta["order"],
        damping=damping,
        loss=meta["loss"],
    )
    assert (meta["rule"] == "damped") == (damping is not None)
    out = rule.gradients(dp.Network.from_module(model), arrays["x"], arrays["labels"])
    depth = len(names)
    found, expected = {}, {}
    for k in range(1, depth + 1):
        for sign, states in (("plus", out.state.plus), ("minus", out.state.minus)):
            wanted = arrays[f"s_{sign}{k}"]
            found[f"s_{sign}{k}"], expected[f"s_{sign}{k}"] = states[k].reshape(wanted.shape), wanted
        for leaf in ("weight", "bias"):
            key = f"grad_{leaf}{k}"
            found[key], expected[key] = out.gradients[f"{names[k - 1]}.{leaf}"], arrays[key]
    far = [key for key in expected if not float((found[key] - expected[key]).abs().max()) <= 1e-10]
    assert not far, f"{far} beyond 1e-10\n{report(found, expected)}"


@pytest.mark.parametrize("name", CASES)
def test_the_named_schedule_is_the_order_that_the_authors_code_ran(name):
    """`alternating_sweeps` and `bottom_up` are our names for their fwbwK and fwK: a shifted index
    would go unseen."""
    meta, _ = read(name)
    schedule = dp.schedules.parse(f"{meta['schedule']}({meta['count']})")
    assert [k for step in schedule.steps(len(meta["layers"])) for k in step.layers] == meta["order"]
