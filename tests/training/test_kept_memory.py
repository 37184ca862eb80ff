"""Memory of freed tensors: kept for the next step, where glibc would give it back."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
import dualprop as dp

torch.set_num_threads(1)
if {keeps}:
    assert dp.keep_freed_memory()

def step():
    tensors = [torch.ones(1 << 21) for _ in range(6)]

for number in range(6):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's thresholds")
def test_kept_memory_is_not_faulted_in_again():
    """Each of the 12,288 pages of a step's tensors, at every step: a fifth of the time of conv
    nets."""
    faults = {}
    for keeps in (False, True):
        run = subprocess.run([sys.executable, "-c", PROGRAM.format(keeps=keeps)], capture_output=True, text=True, check=True)
        faults[keeps] = int(run.stdout)
    assert faults[False] > 4 * 6000, "nothing is given back here, so that nothing is shown"
    assert faults[True] < faults[False] / 5
