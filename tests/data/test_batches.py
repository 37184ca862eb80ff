"""Batches: normalised exactly, in an order that a generator's state and a number bring back, at no
cost per example."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dualprop.data import Examples, batches
from dualprop.errors import SettingError


def numbered(num_examples: int = 23) -> Examples:
    """Examples whose x and y are their index, not normalised: what comes out tells which examples
    they are."""
    index = torch.arange(num_examples)
    return Examples(index.float()[:, None], index, torch.zeros(1), torch.ones(1))


def bytes_in_colour(num_examples: int = 50) -> Examples:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (num_examples, 3, 4, 5), dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor([120.0, 30.0, 200.0])[:, None, None], torch.tensor([60.0, 2.5, 90.0])[:, None, None]
    return Examples(x, torch.arange(num_examples) % 10, mean, std)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_of_bytes_is_x_minus_mean_over_std_to_the_precision_of_its_type(dtype):
    """Arithmetic in bfloat16 would lose the difference of pixels near the mean, where most
    information is."""
    examples = bytes_in_colour()
    indices = torch.tensor([3, 3, 0, 49])
    x, y = examples.batch(indices, dtype)
    expected = (examples.x[indices].double() - examples.mean.double()) / examples.std.double()
    assert x.dtype == dtype
    assert y.tolist() == [3, 3, 0, 9]
    scale = expected.abs().max().item()
    assert (x.double() - expected).abs().max() <= 2 * torch.finfo(dtype).eps * scale
    assert x.std() > 0.5, "the data do not vary: the comparison shows nothing"


def test_floats_far_from_zero_keep_their_differences():
    """x/std - mean/std in float32 would leave a timestamp or a temperature in Kelvin with no digits
    at all."""
    x = torch.tensor([[1e6 - 1], [1e6], [1e6 + 1]])
    examples = Examples(x, torch.zeros(3, dtype=torch.int64), torch.tensor([1e6]), torch.tensor([0.7]))
    batch, _ = examples.batch(torch.arange(3))
    assert torch.allclose(batch.flatten(), torch.tensor([-1 / 0.7, 0.0, 1 / 0.7]))


@pytest.mark.parametrize("examples", [numbered(), bytes_in_colour()])
def test_taking_a_batch_changes_nothing_in_the_examples(examples):
    """An in-place step on a view would normalise the data once per epoch."""
    before = examples.x.clone()
    first, _ = examples.batch(torch.arange(5))
    second, _ = examples.batch(torch.arange(5))
    assert first.equal(second)
    assert examples.x.equal(before)


def test_without_a_generator_the_order_is_that_of_the_examples():
    """Evaluation that shuffled could not be matched with the examples."""
    parts = list(batches(numbered(), 10))
    assert [y.tolist() for _, y in parts] == [[*range(10)], [*range(10, 20)], [20, 21, 22]]
    assert all(x.flatten().long().equal(y) for x, y in parts)


def test_drop_last_leaves_out_only_the_smaller_batch():
    """With a static graph or batch-wise statistics a smaller last batch is an error; a full one
    must stay."""
    assert [len(y) for _, y in batches(numbered(), 10, drop_last=True)] == [10, 10]
    assert [len(y) for _, y in batches(numbered(20), 10, drop_last=True)] == [10, 10]


def test_an_epoch_shows_every_example_once_in_an_order_of_its_own():
    """Drawing with replacement would pass unnoticed, and so would the same order in each epoch."""
    generator = seeded()
    epochs = [torch.cat([y for _, y in batches(numbered(), 4, generator=generator)]).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(range(23)) not in epochs


def test_a_run_resumes_in_mid_epoch_from_the_generators_state_and_the_batch_number():
    """Bit-exact resumption after kill -9 rests on this: the same remainder, and the same state for
    the next epoch."""
    generator = seeded(5)
    next(batches(numbered(), 4, generator=generator))
    state = generator.get_state()
    whole = [y.tolist() for _, y in batches(numbered(), 4, generator=generator)]
    following = generator.get_state()
    for start in range(7):
        resumed = torch.Generator()
        resumed.set_state(state)
        assert [y.tolist() for _, y in batches(numbered(), 4, generator=resumed, start=start)] == whole[start:]
        assert resumed.get_state().equal(following)


def test_the_order_is_drawn_at_the_call_and_not_at_the_first_batch():
    """Drawn late, whatever else uses the generator in between would change the order."""
    generator = seeded()
    drawn_before = batches(numbered(), 4, generator=generator)
    torch.rand(100, generator=generator)
    assert torch.cat([y for _, y in drawn_before]).equal(torch.randperm(23, generator=seeded()))


def test_the_global_generator_is_never_used():
    """A global draw would make results depend on what else the process did."""
    state = torch.get_rng_state()
    list(batches(numbered(), 4, generator=seeded()))
    list(batches(numbered(), 4))
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 24, "drop_last": True}, "batch_size 24 exceeds the 23 examples"),
        ({"batch_size": 4, "start": -1}, r"start must be in \[0, 6\]"),
        ({"batch_size": 4, "start": 7}, r"start must be in \[0, 6\]"),
        ({"batch_size": 4, "dtype": torch.int64}, "dtype must be a floating-point type"),
    ],
)
def test_an_impossible_setting_is_an_error_at_the_call(arguments, complaint):
    """Raised at the first batch, or never, an epoch would pass without a step."""
    with pytest.raises(SettingError, match=complaint):
        batches(numbered(), **arguments)


def test_to_moves_all_four_tensors():
    """One left behind is an error on the first batch; 'meta' stands for a device that this machine
    may lack."""
    moved = bytes_in_colour().to("meta")
    assert {tensor.device.type for tensor in (moved.x, moved.y, moved.mean, moved.std)} == {"meta"}
    x, y = moved.batch(torch.arange(7))
    assert (x.shape, x.dtype, x.device.type, y.shape) == ((7, 3, 4, 5), torch.float32, "meta", (7,))


class Operations(TorchDispatchMode):
    """Counts PyTorch's operations."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch_size", [100, 1000])
def test_a_batch_takes_a_few_operations_however_many_its_examples(batch_size):
    """The loader must never be what limits a small network, as operations for each example
    would."""
    x = torch.zeros(10000, 1, 28, 28, dtype=torch.uint8)
    examples = Examples(x, torch.zeros(10000, dtype=torch.int64), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    made = batches(examples, batch_size, generator=seeded())
    with Operations() as operations:
        num_batches = sum(1 for _ in made)
    assert 0 < operations.num < 10 * num_batches
