"""Two processes, each with half of the batch, have the gradients that one has with the whole."""

import pytest
import torch
from processes import CASES, SIZE, work


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of the two processes measured."""
    folder = str(tmp_path_factory.mktemp("processes"))
    torch.multiprocessing.spawn(work, (folder,), SIZE)
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(SIZE)]


@pytest.mark.parametrize(("name", "way"), CASES)
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(results, name, way):
    """A reducer that no one has prepared leaves each process with its own gradients, silently."""
    for rows, _ in results:
        row = rows[name, way]
        assert row["apart"] > 1e-6, "the halves' own gradients are the whole's: nothing is tested"
        for step in ("first", "second", "backward", "accumulated"):
            assert row[step] < 1e-12, (step, row)
        assert row["hooks"] == 1


@pytest.mark.parametrize(
    "form", ["a part is unread", "called in the wrapper's forward", "wrapped after the first call", "wrapped anew"]
)
def test_a_network_finds_the_wrapper_that_holds_it(results, form):
    for _, rows in results:
        assert rows[form] < 1e-12


def test_without_a_wrapper_each_process_keeps_its_own_gradients(results):
    for _, rows in results:
        assert rows["no wrapper"] == 0


def test_a_part_that_one_process_reads_learns_from_it_alone_and_one_that_none_reads_not_at_all(results):
    for _, rows in results:
        largest, unread_has_gradient = rows["a head is unread"]
        assert largest < 1e-12
        assert not unread_has_gradient


def test_buffers_are_broadcast_as_in_any_forward_pass(results):
    """BatchNorm's statistics, of which a rule's inference has none for a wrapper to see."""
    for _, rows in results:
        assert rows["buffers"] < 1e-12


def test_a_model_in_two_wrappers_is_refused(results):
    for _, rows in results:
        assert "from_module(wrapper)" in rows["wrapped twice"]


def test_sharded_parameters_are_refused_by_name(results):
    for _, rows in results:
        assert "'0.weight' is sharded" in rows["sharded"]
        assert "dp.dualize(model)" in rows["sharded"]
