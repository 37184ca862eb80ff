"""What the command says of a run whose data changed, or that diverged: one line, its own exit
code."""

import json

import numpy as np
import pytest


def write(folder, seed):
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, 600)
    np.savez(folder / "m.npz", x_train=(random.normal(size=(600, 6)) + y[:, None]).astype("f4"), y_train=y)


@pytest.fixture
def begun(dualprop, folder, monkeypatch):
    """A run and a comparison of one rule on m.npz, interrupted before their first checkpoint."""
    from dualprop.training import learner

    def interrupted(*_):
        raise KeyboardInterrupt

    write(folder, 0)
    with monkeypatch.context() as patch:
        patch.setattr(learner.monitoring, "of_rule", interrupted)
        words = ("--dataset", "m.npz", "--epochs", "3", "--batch-size", "64", "--num-threads", "1", "--seeds", "1")
        for command, more in (("train", ()), ("compare", ("--rules", "backprop", "--no-costs"))):
            assert dualprop(command, *words, *more, "--out", command).code == 130


@pytest.mark.parametrize("command", ["train", "compare"])
def test_data_that_were_replaced_are_refused_in_a_line_unless_allowed(command, begun, dualprop, folder, refused, snapshot):
    """Resumed without a word, a run is half on one data set and half on another."""
    write(folder, 1)
    # Nothing was trained on the data that are gone.
    assert dualprop(command, "--resume", command).code == 0
    seed = next(folder.glob(f"{command}/**/seed-0"))
    (seed / "result.json").unlink()
    write(folder, 2)
    told = refused(command, "--resume", command)
    assert str(folder / "m.npz") in told
    assert "--allow-changed" in told
    answer = dualprop(command, "--resume", command, "--allow-changed")
    assert answer.code == 0
    assert answer.out.count("the data changed from") >= 2, "once when it resumes, once below the table"
    assert "the data changed from" in json.loads((seed / "result.json").read_text())["remarks"][0]
    assert "the data changed from" in dualprop("report", command).out


def test_allowing_what_changed_of_a_new_run_is_refused(refused):
    """It would seem to have been heard."""
    assert "allow_changed has no meaning without resume" in refused("train", "--allow-changed")


def test_a_run_that_diverged_exits_with_its_own_code_after_all_is_shown(dualprop, folder, short):
    """A script that goes on with exit code 0 publishes it."""
    words = (*short, "--seeds", "2", "--optimizer.learning-rate", "1e4")
    answer = dualprop("compare", *words, "--no-costs", "--rules", "backprop,dual_propagation", "--out", "cmp")
    assert (answer.code, answer.err) == (3, "")
    assert answer.out.count("stopped early: diverged in epoch 1") == 8, "4 while training and 4 below the table"
    assert (folder / "cmp/results.json").is_file()
    assert dualprop("compare", "--resume", "cmp").code == 3
    assert dualprop("report", "cmp").code == 0
    assert "3 trained, but a run diverged" in dualprop("--help").out
