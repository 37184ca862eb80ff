"""Whether a redesign moves a number: the rules in 1,100 settings, recorded before and after it.

    python scripts/record_numbers.py OUT.npz [--only TEXT]     # of settings whose label holds TEXT
    python scripts/record_numbers.py --compare BEFORE.npz AFTER.npz

Each setting is a tiny network and a batch of noise, drawn from seeds, on one thread. Recorded by
"setting | what" are gradients, loss, logits, inferred states, counts, residuals and statistics;
they are compared bit for bit. `recorded_settings` writes the settings in the words from before
`kernels.using` and nested relaxations; `built` says them in the words of the commit it runs on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from recorded_settings import DUALIZE, ON_RECIPES, RULES, TABLE, TRAINED, problem
from torch import Tensor, nn

import dualprop as dp
from dualprop import recipes
from dualprop.recipes import variants


def grid(settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the alternatives in lists."""
    for values in itertools.product(*(value if isinstance(value, list) else [value] for value in settings.values())):
        yield dict(zip(settings, values, strict=True))


def with_kernel(settings: dict[str, Any], known: Any) -> tuple[dict[str, Any], contextlib.AbstractContextManager[Any]]:
    """The settings, and what to call with: `kernels.using` where "kernel" is no longer `known`."""
    if "kernel" not in settings or "kernel" in known:
        return settings, contextlib.nullcontext()
    from dualprop import kernels

    return {name: value for name, value in settings.items() if name != "kernel"}, kernels.using(settings["kernel"])


def with_relaxation(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of EP with one text for its relaxation, "blocks(even_odd(10), update=pgd)" say."""
    old = {"relaxation": "auto", "pairs": 1, "schedule": "even_odd(10)", "update": "auto", "step_size": 1.0}
    given = old | {name: value for name, value in settings.items() if name in old}
    kept = {name: value for name, value in settings.items() if name not in old}
    if given == old:
        return kept
    is_of_blocks = settings.get("energy") == "hopfield" or settings.get("output_nudge") == "clamped"
    kind = given["relaxation"] if given["relaxation"] != "auto" else "blocks" if is_of_blocks else "error_sweeps"
    parts = [given["schedule"] if kind == "blocks" else str(given["pairs"])]
    parts += [f"{name}={given[name]}" for name in ("update", "step_size") if given[name] != old[name]]
    return kept | {"relaxation": f"{kind}({', '.join(parts)})"}


def built(rule: str, settings: dict[str, Any]) -> tuple[dp.AbstractRule, contextlib.AbstractContextManager[Any]]:
    """The rule, and the context to call it in, in the words of this commit."""
    kind = dp.RULES[RULES[rule]]
    known = {field.name for field in dataclasses.fields(kind)}
    settings, context = with_kernel(settings, known)
    return kind(**(with_relaxation(settings) if rule == "ep" and "pairs" not in known else settings)), context


def flat(value: Any, name: str) -> dict[str, np.ndarray]:
    """The numbers in dataclasses, mappings, sequences and tensors, by the path to each."""
    if isinstance(value, Tensor):
        if value.dtype == torch.bfloat16:  # of which NumPy knows nothing
            name, value = f"{name} (bfloat16)", value.float()
        return {name: value.detach().contiguous().numpy().copy()}
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: array for k, v in value.items() for key, array in flat(v, f"{name}.{k}").items()}
    if isinstance(value, tuple | list):
        return {key: array for k, v in enumerate(value) for key, array in flat(v, f"{name}[{k}]").items()}
    return {name: np.array("None" if value is None else complex(value) if isinstance(value, complex) else float(value))}


def measured(rule: dp.AbstractRule, network: dp.Network, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """What a rule tells of a batch, and where it keeps a state of a second call from there."""
    numbers, state = flat(rule.predict(network, x), "prediction"), None
    numbers |= flat(rule.exact_gradients(network, x, y), "exact gradient")
    is_inferring = not isinstance(rule, dp.Backprop | dp.TargetPropagation) and getattr(rule, "engine", "") != "fused"
    for prefix in ("", "second ") if rule.keeps_state else ("",):
        given = {"state": state} if prefix else {}
        drawing = [torch.Generator().manual_seed(3) for _ in range(3)]
        outcome = rule.gradients(network, x, y, generator=drawing[0], **given)
        state = outcome.state
        status = (outcome.status.ok, outcome.status.is_finite)
        told = {"gradient": outcome.gradients, "loss": outcome.loss, "logits": outcome.logits, "state": state, "status": status,
                "diagnostics": {name: float(number) for name, number in outcome.diagnostics.items()},
                "statistics": rule.statistics(network, x, y, generator=drawing[1], **given)}  # fmt: skip
        if is_inferring:
            told["states"] = rule.infer(network, x, y, generator=drawing[2], **given)
        numbers |= {key: array for what, value in told.items() for key, array in flat(value, prefix + what).items()}
    return numbers


def recipe_of(name: str, variant: str) -> tuple[Any, nn.Module, Tensor, Tensor]:
    """The recipe or its variant with narrow layers, its model and a batch of noise."""
    recipe = recipes.from_name(name)
    recipe = variants.named(variant).apply(recipe) if variant else recipe
    widths = (key for key in ("widths", "channels", "dense") if hasattr(recipe.model, key))
    narrow = {key: (6,) * len(getattr(recipe.model, key)) for key in widths}
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **narrow))
    shape = {"digits": (1, 8, 8), "mnist": (1, 28 + 2 * recipe.border, 28 + 2 * recipe.border)}.get(recipe.dataset, (3, 32, 32))
    torch.manual_seed(0)
    return recipe, recipe.build(shape, 10), torch.randn(12, *shape), torch.randint(10, (12,))


def trained(variant: str) -> dict[str, np.ndarray]:
    """Losses of three batches, and the parameters after them."""
    recipe, model, x, y = recipe_of("digits-mlp", variant)
    network, generator, state, losses = dp.Network.from_module(model), torch.Generator().manual_seed(3), None, []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch, targets in zip(x.split(4), y.split(4), strict=True):
        state = None if recipe.reset_states else state
        for _ in range(recipe.updates_per_batch):
            optimizer.zero_grad()
            outcome = recipe.rule.backward(network, batch, targets, state=state, generator=generator)
            optimizer.step()
            state = outcome.state if recipe.rule.keeps_state else None
            losses.append(outcome.loss)
    return flat(losses, "loss") | flat(dict(model.state_dict()), "parameter")


def dualized(net: str, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    model, x, y = problem(net)
    settings, context = with_kernel(settings, inspect.signature(dp.dualize).parameters)
    with context:
        logits = dp.dualize(model, **settings)(x)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return flat(gradients, "gradient") | flat(loss, "loss") | flat(logits, "logits")


def of_table(rule: str, net: str, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    model, x, y = problem(net)
    made, context = built(rule, settings)
    with context, torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in net):
        return measured(made, dp.Network.from_module(model), x, y)


def of_recipe(name: str, variant: str) -> dict[str, np.ndarray]:
    recipe, model, x, y = recipe_of(name, variant)
    return measured(recipe.rule, dp.Network.from_module(model), x[:4], y[:4])


def all_settings() -> Iterator[tuple[str, Callable[[], dict[str, np.ndarray]]]]:
    """Each setting's label, and what gives its numbers."""
    for rule, nets, choices in TABLE:
        for net, settings in itertools.product(nets, grid(choices)):
            yield f"{rule}: {net}: {settings_text(settings)}", partial(of_table, rule, net, settings)
    for nets, choices in DUALIZE:
        for net, settings in itertools.product(nets, grid(choices)):
            yield f"dualize: {net}: {settings_text(settings)}", partial(dualized, net, settings)
    for name in recipes.RECIPES:
        for variant in ("", *ON_RECIPES.get(name, ())):
            yield f"recipe: {name}: {variant or 'its own'}", partial(of_recipe, name, variant)
    for variant in TRAINED:
        yield f"training: {variant}", partial(trained, variant)


def settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "defaults"


def record(path: str, only: str) -> int:
    """Write every setting's numbers; 1 where one raised an error, which is then held instead."""
    numbers: dict[str, np.ndarray] = {}
    labels, failed, began = set(), 0, time.monotonic()
    for label, run in all_settings():
        if only not in label:
            continue
        assert label not in labels, f"two settings are {label}"
        labels.add(label)
        try:
            found = run()
        except Exception as error:
            failed += 1
            found = {"error": np.array(f"{type(error).__name__}: {error}")}
            print(f"{label}\n    {found['error']}")
        numbers |= {f"{label} | {what}": array for what, array in found.items()}
    np.savez(path, **numbers)
    print(f"{len(labels)} settings, {len(numbers)} arrays, {failed} errors, {time.monotonic() - began:.0f} s: {dp.__path__[0]}")
    return int(failed > 0)


def is_same(a: np.ndarray, b: np.ndarray) -> bool:
    """Bit for bit, dtype and shape too; but one NaN is like another."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind not in "fc":
        return bool((a == b).all())
    a, b = (np.atleast_1d(array).view(f"f{array.dtype.itemsize // (1 + (array.dtype.kind == 'c'))}") for array in (a, b))
    bits = f"u{a.dtype.itemsize}"
    return bool(((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all())


def described(a: np.ndarray | None, b: np.ndarray | None) -> str:
    """How they differ; where they can be subtracted, relative to the largest number before."""
    if a is None or b is None:
        return "only after" if a is None else "only before"
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype.kind not in "fc":
        return ", then ".join(f"{x.dtype} {x.shape}" if x.dtype.kind in "fc" else str(x) for x in (a, b))
    largest = np.abs(a).max()
    return f"relative difference {np.abs(a - b).max() / (largest if largest > 0 else 1):.1e}"


def compare(before: str, after: str) -> int:
    """Print what is not identical; 1 where anything is not."""
    with np.load(before) as a, np.load(after) as b:
        names = dict.fromkeys([*a.files, *b.files])
        pairs = ((name, a.get(name), b.get(name)) for name in names)
        different = {name: described(x, y) for name, x, y in pairs if x is None or y is None or not is_same(x, y)}
    for name, how in different.items():
        print(f"{name}: {how}")
    labels, touched = ({name.split(" | ")[0] for name in group} for group in (names, different))
    counts = ((labels, touched, "settings"), (names, different, "arrays"))
    print("identical:", ", ".join(f"{len(whole) - len(part)} of {len(whole)} {what}" for whole, part, what in counts))
    return int(bool(different))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="NPZ")
    parser.add_argument("--compare", action="store_true", help="compare two files")
    parser.add_argument("--only", default="", help="record the settings whose label holds this")
    options = parser.parse_args()
    if len(options.paths) != 1 + options.compare:
        parser.error("give one file to write, or two to --compare")
    torch.set_num_threads(1)
    sys.exit(compare(*options.paths) if options.compare else record(options.paths[0], options.only))


if __name__ == "__main__":
    main()
