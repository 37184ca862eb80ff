"""Two threads at once, and a process forked after the import, compute what one thread does."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import dualprop as dp
from dualprop.rules import RULES

X, Y = torch.linspace(-1, 1, 40).view(8, 5), torch.arange(8) % 3


def network(seed):
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return dp.Network.from_module(model)


def numbers(rule, seed):
    """The gradients of six calls, states handed on where the rule keeps them."""
    net, generator, state, told = network(seed), torch.Generator().manual_seed(seed), None, []
    for _ in range(6):
        outcome = rule.gradients(net, X, Y, state=state, generator=generator)
        state = outcome.state if rule.keeps_state else None
        told += [outcome.loss, *outcome.gradients.values()]
    return [tensor.tolist() for tensor in told]


@pytest.mark.parametrize("name", RULES)
def test_two_threads_on_two_networks_compute_what_one_does(name):
    """A rule that kept something of a call in a place of its module's would mix the two."""
    rule = RULES[name]()
    expected = [numbers(rule, seed) for seed in (1, 2)]
    assert expected[0] != expected[1]
    answers = [None, None]
    both_are_there = threading.Barrier(2)

    def work(i):
        both_are_there.wait()
        answers[i] = [numbers(rule, i + 1) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert answers == [[expected[0]] * 3, [expected[1]] * 3]


PROGRAM = """
import os, sys, json
sys.path.insert(0, {here!r})
import torch
import dualprop
from test_threads_and_forks import numbers
from dualprop.rules import RULES
torch.set_num_threads(1)
def told():
    return json.dumps({{name: numbers(RULES[name](), 1) for name in RULES}})
readable, writable = os.pipe()
if os.fork() == 0:
    with open(writable, "w") as pipe:
        pipe.write(told())
    os._exit(0)
os.close(writable)
with open(readable) as pipe:
    child = pipe.read()
os.wait()
print(json.dumps([child, told()]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_after_the_import_computes_what_its_parent_does():
    """As data loaders and job servers make them: what the import has opened or begun would not be
    there in the child, or wait for a thread that is not."""
    program = PROGRAM.format(here=str(Path(__file__).parent))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    child, parent = map(json.loads, json.loads(result.stdout))
    assert set(child) == set(RULES)
    assert child == parent
    assert child == {name: numbers(RULES[name](), 1) for name in RULES}
