"""Memory stays flat over 20,000 steps of every variant: `make test-memory`. A short form runs with
the other tests."""

import ctypes
import gc
import sys
from pathlib import Path

import numpy as np
import pytest

from dualprop import training
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.recipes.variants import VARIANTS, named
from dualprop.rules import DualPropagation
from dualprop.training import Recipe, Reporter

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc and glibc")


class EnoughError(Exception):
    """The last of the steps is done."""


class Watch(Reporter):
    """Calls `measure` after each of these steps, by the trainer as it is, and ends the run after
    the last."""

    def __init__(self, measure, steps):
        self.measure, self.steps, self.told = measure, steps, []

    def step_done(self, done, *_):
        if done in self.steps:
            gc.collect()
            self.told.append(self.measure())
            if done == max(self.steps):
                raise EnoughError


def told_at(steps, variant, measure, tmp_path):
    """What `measure` says at these steps of a training run of `variant` on a tiny network."""
    dice = np.random.default_rng(0)
    number = 4000
    path = tmp_path / "tiny.npz"
    np.savez(path, x_train=dice.normal(size=(number, 6)).astype(np.float32), y_train=np.arange(number) % 3)
    made = Recipe(
        name="tiny", dataset=str(path), model=MLP(widths=(6, 6)), rule=DualPropagation(loss=CrossEntropy()),
        batch_size=2, epochs=-(-steps[-1] // 1400), num_threads=1, validation_fraction=0.15, align=False,
    )  # fmt: skip
    watch = Watch(measure, set(steps))
    with pytest.raises(EnoughError):
        training.train(training.create(tmp_path / "run", named(variant).apply(made), (0,)), reporter=watch)
    assert len(watch.told) == len(steps), "the run ended before its steps were over"
    return watch.told


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Mallinfo(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def in_use():
    """Bytes that C and C++ hold of glibc, and blocks that Python holds of its own."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = Mallinfo
    about = libc.mallinfo2()
    return about.uordblks + about.hblkhd + 32 * sys.getallocatedblocks()


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_memory_of_20000_steps_is_flat(variant, tmp_path):
    """Two weeks of training would otherwise end in a full memory. 4 MB are 200 bytes a step."""
    first, last = told_at((2_000, 20_000), variant, resident, tmp_path)
    assert last - first < 4e6, f"{(last - first) / 1e6:.1f} MB more after 18,000 steps"


@pytest.mark.parametrize("variant", ["dp", "l-dp", "ep", "pc", "dtp", "kp-dp"])
def test_the_memory_in_use_does_not_grow_with_the_steps(variant, tmp_path):
    """The short form, one variant of each kind of state: what is held, not what is resident, so
    that a hundred steps suffice."""
    if not hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2"):
        pytest.skip("another C library, or an older one")
    first, last = told_at((60, 160), variant, in_use, tmp_path)
    assert last - first < 200 * 100, f"{(last - first) / 100:.0f} bytes more a step"
