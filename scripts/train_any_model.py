"""Train one model by each rule, alike in all else: loss curves together, and the angle of each
rule's gradients to back-propagation's, per layer over training.

    python scripts/train_any_model.py OUT --model resnet18|gpt [--rules bp dp-fused dp ep pc]
    [--steps N] [--batch-size B] [--minutes M] [--every K] [--beta β] [--seed S] [--threads T]
    [--data DIR]

ResNet-18 in its CIFAR form at half width learns CIFAR-10 (random crops and flips). A character GPT
learns the texts of Python's `help()`, `pydoc_data.topics`, joined in sorted order; the last tenth
is held out. Every rule starts from the same model and meets the same batches, and is used as in a
user's own loop. Every K steps the step's own gradients are held against the exact ones.

OUT/RULE.json is what came out, OUT/curves.png the picture of all that lie in OUT, OUT/settings.json
what they share. Run again, with these rules or others, it goes on from the last K steps done.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import json
import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from any_tasks import DEFAULTS, TASKS, Task
from torch import Tensor, nn
from torch.nn import functional as F

import dualprop as dp
from dualprop.alignment import angle_between
from dualprop.analysis import drawing
from dualprop.training import documents, environment, files, optimization

LABELS = {
    "bp": "back-propagation", "dp-fused": "DP, fused", "dp": "DP, explicit", "ep": "EP of a PCN, centered",
    "pc": "predictive coding",
}  # fmt: skip


def rule_of(name: str, beta: float) -> dp.AbstractRule | dict[str, float] | None:
    """A rule; the settings of `dualize`; none for back-propagation. `beta` is of DP, per term of
    the loss; centered EP compares at half of it.

    Predictive coding has a β of its own. In 9 steps its error reaches the stem of ResNet-18; larger
    steps than these do not settle there.
    """
    loss = dp.losses.from_torch(nn.CrossEntropyLoss())
    return {
        "bp": None,
        "dp-fused": {"alpha": 0.5, "beta": beta},
        "dp": dp.DualPropagation(engine="explicit", alpha=0.5, beta=beta, loss=loss),
        "ep": dp.EquilibriumPropagation(beta=beta / 2, loss=loss),
        "pc": dp.PredictiveCoding(beta=0.05, steps=12, step_size=0.2, momentum=0.5, loss=loss),
    }[name]


def loss_by(name: str, beta: float, model: nn.Module, terms: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss whose `backward` gives this rule's gradients."""
    rule = rule_of(name, beta)
    if isinstance(rule, dp.AbstractRule):
        network = dp.Network.from_module(model)
        return lambda x, y: rule(network, x, y)
    if rule is not None:
        dp.dualize(model, alpha=rule["alpha"], beta=rule["beta"], loss_reduction=terms)
    return lambda x, y: F.cross_entropy(model(x), y)


def exact_gradients(name: str, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Back-propagation's, of a copy: the model's buffers stay, and so do the random numbers."""
    plain = copy.deepcopy(model)
    if name == "dp-fused":
        dp.undualize(plain)
    plain.zero_grad()
    with torch.random.fork_rng(devices=[]):
        F.cross_entropy(plain(x), y).backward()
    return gradients(plain)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def angles(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Degrees per module that has parameters; nan where a gradient is zero."""
    modules: dict[str, list[str]] = defaultdict(list)
    for name in exact:
        modules[name.rpartition(".")[0]].append(name)
    return {module: angle_between([found[n] for n in names], [exact[n] for n in names]) for module, names in modules.items()}


def _read(path: Path) -> dict[str, Any]:
    return documents.read(path, lambda plain: documents.convert(plain, dict[str, Any]), "Restore it, or train anew.")


def held_out(task: Task, model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        value = task.held_out(model)
    model.train()
    return value


def train(task: Task, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one rule, from where its checkpoint stands to the end or for `minutes`. It is
    written every `every` steps."""
    torch.manual_seed(options.seed)
    model, began = task.model(), time.monotonic()
    optimizer = optimization.build(task.optimizer, model)
    record: dict[str, Any] = {
        "rule": str(rule_of(name, options.beta)), "step": 0, "seconds": 0.0, "losses": [], "angles": [], "held_out": [],
        "unsettled": 0, "message": "", "runs": [],
    }  # fmt: skip
    checkpoint = options.out / f"{name}.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        before = json.loads(saved["record"])
        if before["rule"] != record["rule"]:
            raise SystemExit(f"{checkpoint} is of {before['rule']}, not {record['rule']}. Choose another folder.")
        record = before
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    if record["step"] < options.steps:
        record["runs"].append({"from_step": record["step"], **environment.describe()})
    loss_of, losses = loss_by(name, options.beta, model, task.terms), []
    for step in range(record["step"], options.steps):
        if step % options.every == 0 and time.monotonic() - began > 60 * options.minutes:
            break
        x, y = task.batch(step)
        is_measured = name != "bp" and step % options.every == 0
        exact = exact_gradients(name, model, x, y) if is_measured else {}
        started = time.perf_counter()
        rate = optimization.learning_rate(task.optimizer, step, options.steps, 1)
        optimization.set_learning_rate(optimizer, rate)
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        record["seconds"] += time.perf_counter() - started
        if is_measured:
            record["angles"].append({"step": step, **angles(gradients(model), exact)})
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            # The checkpoint stays at the last good one.
            record["message"] = f"the loss is {losses[-1]} at step {step}. Lower the learning rate."
            files.write_json(checkpoint.with_suffix(".json"), record)
            break
        status = getattr(getattr(loss, "outcome", None), "status", None)
        if status is not None and not status.ok:
            record["unsettled"] += 1
            record["message"] = status.message
        is_last = step + 1 == options.steps
        if is_last or (step + 1) % task.steps_per_epoch == 0:
            record["held_out"].append({"step": step + 1, task.measure: held_out(task, model)})
        if is_last or (step + 1) % options.every == 0:
            record["step"] = step + 1
            record["losses"].append({"step": step + 1, "loss": sum(losses) / len(losses)})
            losses = []
            save(record, model, optimizer, checkpoint)
            print(f"{name}: step {step + 1}, loss {record['losses'][-1]['loss']:.4f}, {record['seconds']:.0f} s", flush=True)
    return record


def save(record: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """The checkpoint holds the record too, so that both are of one step."""
    content = io.BytesIO()
    torch.save({"record": files.to_json(record), "model": model.state_dict(), "optimizer": optimizer.state_dict()}, content)
    files.write(checkpoint, content.getbuffer())
    files.write_json(checkpoint.with_suffix(".json"), record)


def draw(records: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """The losses of all rules; beside them a map of modules × steps for each, in one scale of
    degrees."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    maps = {name: record["angles"] for name, record in records.items() if record["angles"]}
    figure = Figure(figsize=(13, max(4.5, 3.4 * len(maps))), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    scale = LogNorm(0.01, 90)
    grid = figure.add_gridspec(max(1, len(maps)), 2, width_ratios=(1, 1.1))
    axes = figure.add_subplot(grid[:, 0])
    for number, (name, record) in enumerate(records.items()):
        steps, losses = zip(*((each["step"], each["loss"]) for each in record["losses"]), strict=True)
        end = "".join(f", {key} {value:.4g}" for key, value in (record["held_out"] or [{}])[-1].items() if key != "step")
        axes.plot(steps, losses, label=LABELS[name] + end, color=drawing.COLOURS[number], ls=drawing.DASHES[number % 4], lw=1.8)
    axes.set(xlabel="step", ylabel="training loss, mean since the point before")
    axes.legend(frameon=False, fontsize=9)
    for row, (name, measured) in enumerate(maps.items()):
        modules = [key for key in measured[0] if key != "step"]
        values = np.array([[np.nan if each[key] is None else each[key] for each in measured] for key in modules], float)
        axes = figure.add_subplot(grid[row, 1])
        edges = [each["step"] for each in measured] + [records[name]["step"]]
        image = axes.pcolormesh(edges, np.arange(len(modules) + 1), np.maximum(values, 0.01), norm=scale, cmap="Blues")
        axes.set_yticks(np.arange(len(modules)) + 0.5, modules, fontsize=4.5)
        axes.invert_yaxis()
        axes.set_title(f"{LABELS[name]}: angle to back-propagation", loc="left", fontsize=10)
        axes.set_xlim(0, max(record["step"] for record in records.values()))
        figure.colorbar(image, ax=axes, label="degrees")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    drawing.save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True, choices=list(TASKS))
    parser.add_argument("--rules", nargs="*", default=list(LABELS), choices=list(LABELS))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--minutes", type=float, default=math.inf, help="for each rule, in this run")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--beta", type=float, default=1.0, help="of DP, per term of the loss; EP takes half of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args(arguments)
    steps, batch_size = DEFAULTS[options.model]
    options.steps, options.batch_size = options.steps or steps, options.batch_size or batch_size
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    task = TASKS[options.model](options)
    shared = {name: getattr(options, name) for name in ("model", "steps", "batch_size", "every", "seed")}
    shared |= {"optimizer": dataclasses.asdict(task.optimizer), "text": platform.python_version() * (options.model == "gpt")}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "settings.json"
    if path.exists() and (before := _read(path)["settings"]) != json.loads(files.to_json(shared)):
        raise SystemExit(f"{path} holds other settings, {before}. Choose another folder.")
    if not path.exists():
        files.write_json(path, {"settings": shared, "environment": environment.describe()})
    for rule in options.rules:
        train(task, rule, options)
        found = {name: options.out / f"{name}.json" for name in LABELS}
        records = {name: _read(file) for name, file in found.items() if file.exists()}
        draw(records, f"{options.model}, batch {options.batch_size}, seed {options.seed}", options.out / "curves.png")
    print(options.out / "curves.png")


if __name__ == "__main__":
    main()
