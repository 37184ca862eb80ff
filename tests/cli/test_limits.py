"""Limits: memory that can't be had, counts that would fill it, numbers that float32 does not hold.
Each is told in one line, and nothing is lost."""

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from torch import nn

import dualprop as dp
from dualprop import memory, recipes, settings
from dualprop.bench.experiments import CompareOptions, TrainOptions
from dualprop.bench.options import BenchOptions
from dualprop.data import Augmentation
from dualprop.equilibrium.estimators import Holomorphic
from dualprop.equilibrium.relaxations import Blocks, ErrorSweeps
from dualprop.errors import DualpropError, OutOfMemoryError, SettingError
from dualprop.models import MODELS
from dualprop.rules import RULES
from dualprop.schedules import Schedule
from dualprop.trained.evaluating import EvaluateOptions
from dualprop.trained.exporting import ExportOptions
from dualprop.trained.predicting import PredictOptions
from dualprop.training import Optimizer, Recipe

TOO_MUCH = {
    "a model": (("--model.widths", "1000000000"), "75,000,000,010 parameters by adamw, needs 1,200.0 GB of memory"),
    "a model beyond counting": (("--model.widths", *["1000000000"] * 3), "Lower the widths"),
    "a width": (("--model.widths", "10000000000"), "widths[0] must be at most 1000000000, got 10000000000."),
    "a border": (("--border", "1000000"), "border must be at most 1024, got 1000000."),
    "seeds": (("--seeds", "100000000000"), "seeds must be at most 10000, got 100000000000."),
    "seeds beyond the last": (("--seed-list", "4294967295", "--seeds", "2"), "counts on from 4294967295, beyond 2³²-1"),
    "a seed": (("--seed-list", "99999999999999999999"), "seed_list[0] must be at most 4294967295"),
    "passes": (("--rule.schedule", "up_down(9999999999)"), "must be at most 1000000, got 9999999999."),
    "drawn layers": (("--rule.schedule", "random_order(9999999999)"), "must be at most 1000000"),
    "epochs": (("--epochs", "1000000000000"), "epochs must be at most 1000000, got 1000000000000."),
    "a batch": (("--batch-size", "99999999999999999999"), "batch_size must be at most 1000000"),
    "updates": (("--updates-per-batch", "9999999999"), "updates_per_batch must be at most 1000000"),
    "threads": (("--num-threads", "2000"), "num_threads must be at most 1024, got 2000."),
    "examples": (("--train-examples", "99999999999999999999"), "train_examples must be at most 1000000000"),
    "padding": (("--augmentation.pad", "99999999"), "pad must be at most 1024"),
    "steps": (("--rule", "predictive_coding", "--rule.steps", "9999999999"), "steps must be at most 1000000"),
    "sweeps": (("--rule", "lifted", "--rule.max-sweeps", "9999999999"), "max_sweeps must be at most 1000000"),
    "iterations": (("--rule", "target_propagation", "--rule.iterations", "9999999999"), "iterations must be at most 1000000"),
    "pairs": (("--rule", "equilibrium_propagation", "--rule.relaxation", "error_sweeps(9999999999)"), "pairs must be at most"),
    "blocks": (("--rule", "equilibrium_propagation", "--rule.relaxation", "blocks(odd_even(9999999999))"), "at most 1000000"),
    "nudges": (
        ("--rule", "equilibrium_propagation", "--rule.estimator", "holomorphic(99999999)"),
        "points must be at most 1000",
    ),
    "digits": (("--epochs", "1" + "0" * 5000), "epochs"),
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_would_fill_the_memory_or_never_end_is_refused_before(what, refused):
    """Counts were written out, and the machine's memory was full before the first step."""
    arguments, reason = TOO_MUCH[what]
    assert reason in refused("train", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rounds", "9999999999"), ("--batch-size", "9999999999"), ("--threads", "99999"),
        ("--seconds", "inf"), ("--seconds", "nan"), ("--seconds", "1e30"), ("--seconds", "-1"),
    ],
)  # fmt: skip
def test_a_bench_without_an_end_is_refused(arguments, refused):
    assert f"{arguments[0].strip('-').replace('-', '_')} must be " in refused("bench", *arguments)


FLOATS = ("--rule.beta", "--rule.alpha", "--optimizer.learning-rate", "--optimizer.weight-decay", "--validation-fraction")


@pytest.mark.parametrize("value", ["1e-45", "1e-320", "1e-39", "1e39", "1e300", "inf", "-inf", "nan"])
@pytest.mark.parametrize("option", FLOATS)
def test_a_number_that_float32_does_not_hold_is_refused_by_name(option, value, refused):
    """β = 1e-45 became 0 or a number of one digit on its way into a tensor, and its gradients
    noise."""
    name = option.rpartition(".")[2].strip("-").replace("-", "_")
    assert name in refused("train", option, value)


def test_the_smallest_and_largest_numbers_of_float32_are_taken():
    """A bound one power off would refuse what is possible, or take what is not."""
    info = torch.finfo(torch.float32)
    assert info.smallest_normal == settings.SMALLEST
    assert info.max == settings.LARGEST
    for beta in (info.smallest_normal, info.max):
        assert dp.DualPropagation(beta=beta).beta == beta
    for beta in (info.smallest_normal * (1 - 1e-9), info.max * (1 + 1e-9)):
        with pytest.raises(SettingError, match=r"beta is .*, and float32 holds numbers of 1\.2e-38 to 3\.4e\+38 and 0"):
            dp.DualPropagation(beta=beta)
    assert dp.DualPropagation(damping=0.0).damping == 0


SETTINGS = (
    Recipe, Optimizer, Augmentation, TrainOptions, CompareOptions, BenchOptions, Schedule, ErrorSweeps, Blocks, Holomorphic,
    EvaluateOptions, PredictOptions, ExportOptions, *MODELS.values(), *RULES.values(),
)  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_count_that_is_an_option_has_a_most(kind):
    """One that is added without it would be written out, whatever it is."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        kind_of = settings.Kind.of(hints[field.name])
        for about in (kind_of, *kind_of.items):
            # Pairs of layers are held against the layers that there are.
            if about.number is int:
                assert about.bounds.le is not None or about.bounds.lt is not None, field.name


@pytest.mark.parametrize("count", [10**40, 10**5000, -(10**5000)], ids=["long", "very long", "below"])
def test_a_number_of_any_length_is_refused_in_python_too(count):
    """Python itself refuses to write one of thousands of digits into the message."""
    for make in (
        lambda: dp.schedules.up_down(count),
        lambda: dp.DualPropagation(beta=count),
        lambda: dp.DualPropagation(alpha=count),
    ):
        with pytest.raises(SettingError):
            make()


LACKING = {
    "PyTorch on CPUs": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "256000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "PyTorch on GPUs": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 2 GiB is free."
    ),
    "CUDA": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "sizes": RuntimeError("Storage size calculation overflowed with sizes=[1000000000000, 1000000000000]"),
    "numpy": MemoryError("Unable to allocate 7.11 PiB for an array with shape (1000000000000000,) and data type float64"),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "the system": OSError(12, "Cannot allocate memory"),
    "a thread": RuntimeError("can't start new thread"),
}


@pytest.mark.parametrize("whose", LACKING)
def test_memory_that_is_lacking_is_told_whoever_says_it(whose):
    """Each library has an error of its own."""
    with pytest.raises(OutOfMemoryError) as raised, memory.asking("this test", "Lower it."):
        raise LACKING[whose]
    said = str(raised.value)
    assert said.startswith("memory is full: this test asked for more than there is (")
    assert said.endswith(" Lower it.")
    assert "\n" not in said
    # What tools look for that then try a smaller batch.
    assert isinstance(raised.value, RuntimeError)
    for words in ("CUDA out of memory.", "DefaultCPUAllocator: can't allocate memory"):
        assert (words in said) == (words in str(LACKING[whose]))


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), OSError(2, "no")]
)
def test_other_errors_are_left_as_they_are(error):
    """Told as memory they would send the user the wrong way."""
    with pytest.raises(type(error)) as raised, memory.asking("this test", "Lower it."):
        raise error
    assert raised.value is error


class Large(nn.Module):
    """Asks for more memory than an address space has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.empty(2**50, dtype=torch.uint8).sum()


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule not in ("lifted", "contrastive_hebbian", "target_propagation")]
)
@pytest.mark.parametrize("call", ["gradients", "backward", "__call__"])
def test_a_rule_does_not_take_lacking_memory_for_a_wrong_shape(rule, call):
    """The remedy was to check the shape of x."""
    network = dp.Network.from_module(nn.Sequential(nn.Linear(4, 4), Large(), nn.ReLU(), nn.Linear(4, 3)))
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    with pytest.raises(DualpropError, match=f"{RULES[rule].__name__} on a batch of 5 asked for more") as raised:
        getattr(RULES[rule](), call)(network, x, y, generator=torch.Generator().manual_seed(0))
    assert isinstance(raised.value, OutOfMemoryError)
    assert "Lower the batch size" in str(raised.value)


def test_a_loss_that_lacks_memory_is_not_taken_for_one_that_can_not_read_its_targets():
    def loss(s, y):
        return (s.square() + torch.empty(2**50, dtype=torch.uint8).sum()).mean()

    network = dp.Network.from_module(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))
    with pytest.raises(OutOfMemoryError):
        dp.DualPropagation(loss=dp.losses.from_function(loss)).gradients(network, torch.randn(5, 4), torch.randn(5, 3))


def test_memory_that_ends_in_the_middle_of_a_run_leaves_its_checkpoint_whole(dualprop, folder, monkeypatch):
    """Two weeks of work; and the resumed run ends as if nothing had been."""
    options = ("--epochs", "3", "--batch-size", "64", "--num-threads", "1", "--seeds", "1", "--no-align", "--model.widths", "8")
    assert dualprop("train", *options, "--out", "straight").code == 0
    from dualprop.training import learner

    evaluate, epochs = learner.evaluate, []

    def lacking(*arguments, **given):
        epochs.append(1)
        if len(epochs) == 3:  # after the second epoch
            torch.empty(2**50, dtype=torch.uint8)
        return evaluate(*arguments, **given)

    with monkeypatch.context() as patched:
        patched.setattr(learner, "evaluate", lacking)
        answer = dualprop("train", *options, "--out", "stopped")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "training digits-mlp in batches of 64 asked for more than there is" in answer.err
    assert "Take a smaller batch or model." in answer.err
    assert "continue with --resume stopped" in answer.err
    assert dualprop("train", "--resume", "stopped").code == 0
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl", "result.json"):
        assert (folder / "stopped/seed-0" / name).read_bytes() == (folder / "straight/seed-0" / name).read_bytes(), name


LIMITED = """
import resource, sys
from dualprop import memory, recipes, training
{before}
used = memory._entry(memory.Path("/proc/self/status"), "VmSize:") * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, resource.RLIM_INFINITY))
from dualprop.cli import main
main(["train", "--epochs", "1", "--seeds", "1", "--no-align", "--out", "x", *sys.argv[1:]])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ulimit -v is enforced on Linux alone")
def test_a_limit_of_the_process_counts_as_its_memory(folder):
    """`ulimit -v`, as clusters set it: what the machine has free says nothing."""
    program = LIMITED.format(before="import sklearn.datasets, dualprop.cli.train", room=400 << 20)
    command = [sys.executable, "-c", program, "--model.widths", "6000", "6000"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(dp.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    # 16 bytes for each of 64·6000 + 6000² + 6000·10 weights and their biases.
    assert "needs 0.6 GB of memory" in result.stderr
    assert not (folder / "x").exists()


def test_the_estimate_of_a_model_is_what_it_holds():
    """Too large, it would refuse what fits."""
    for name in ("digits-mlp", "cifar10-vgg16"):
        recipe = recipes.from_name(name)
        with dp.models.Unmade():
            estimated = recipe.model.build((3, 32, 32), 10)
        assert all(parameter.is_meta for parameter in estimated.parameters())
        made = recipe.model.build((3, 32, 32), 10)
        assert [p.shape for p in estimated.parameters()] == [p.shape for p in made.parameters()]


def test_an_estimate_draws_no_random_number():
    """The first weights of every seed would be others than those that are published."""
    recipe = dataclasses.replace(recipes.from_name("digits-mlp"))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with dp.models.Unmade():
        recipe.model.build((1, 8, 8), 10)
    assert torch.rand(3).equal(expected)
