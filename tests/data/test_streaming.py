"""Reading ahead and from files: the same items in the same order, no thread left behind, and memory
that does not grow."""

import dataclasses
import os
import pickle
import queue
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from canonical import write_imagenet32

from dualprop import training
from dualprop.data import load, mapped, pickles
from dualprop.data.mapped import MappedFiles, MappedImages, PlacedFile
from dualprop.data.prefetch import ahead
from dualprop.errors import DataError
from dualprop.losses import CrossEntropy
from dualprop.models import MLP
from dualprop.rules import DualPropagation


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_come_in_their_order_and_all_of_them():
    """One lost at the end, or two exchanged, is a batch with the labels of another."""
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter([]))) == []
    assert list(ahead(iter([None, 0]))) == [None, 0]
    assert threads() == 0


def test_items_are_made_before_they_are_asked_for_and_not_too_many(monkeypatch):
    """Else nothing is gained; or all of a set larger than memory waits in the queue."""
    made, stopped = [], threading.Semaphore(0)

    class Queue(queue.Queue):
        def put(self, *given, **options):
            if self.full():
                stopped.release()
            super().put(*given, **options)

    def numbers():
        for i in range(100):
            made.append(i)
            yield i
        stopped.release(2)

    monkeypatch.setattr(queue, "Queue", Queue)
    items = ahead(numbers(), depth=3)
    assert made == [], "the thread runs before the first item is asked for"
    assert next(items) == 0
    # Until the thread has tried twice to put an item into the full queue, or has made them all.
    stopped.acquire()
    stopped.acquire()
    assert made == [0, 1, 2, 3, 4]  # one handed out, three in the queue, one that waits for its place
    items.close()
    assert threads() == 0


def test_an_error_is_raised_at_the_turn_of_its_item():
    """Raised in the thread alone, training would wait for ever."""

    def fail():
        yield 1
        raise OSError("disk gone")

    items = ahead(fail())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert threads() == 0


def test_an_iterator_that_is_dropped_ends_its_thread():
    """One thread more for every epoch that was left early."""
    items = ahead(iter(range(100)))
    next(items)
    assert threads() == 1
    del items
    assert threads() == 0


@pytest.fixture
def images(tmp_path):
    """Two files of 30 and 20 rows of 12 bytes, each after some bytes of another content; and all
    rows."""
    rows = np.random.default_rng(0).integers(0, 256, (50, 12), dtype=np.uint8)
    (tmp_path / "one").write_bytes(b"header" + rows[:30].tobytes())
    (tmp_path / "two").write_bytes(b"h" + rows[30:].tobytes() + b"after")
    files = MappedFiles([(PlacedFile(tmp_path / "one"), 6, 30), (PlacedFile(tmp_path / "two"), 1, 20)], 12)
    return MappedImages(files, (3, 2, 2)), torch.from_numpy(rows).view(50, 3, 2, 2)


@pytest.mark.parametrize("rows", [[0], [49, 0, 30, 29, 29, 0], [*range(50)], [*range(49, -1, -1)], [31, 40], [3, 2]])
def test_mapped_images_are_indexed_as_a_tensor_is(images, rows):
    """Rows are read file by file and in ascending order: put back wrongly, labels belong to other
    images."""
    stored, tensor = images
    indices = torch.tensor(rows)
    assert stored.index_select(0, indices).equal(tensor.index_select(0, indices))
    subset = stored[np.array([5, 48, 31, 7])]
    assert subset.shape == (4, 3, 2, 2)
    assert subset.index_select(0, torch.tensor([2, 1, 2])).equal(tensor[[31, 48, 31]])
    assert subset.to("cpu").equal(tensor[[5, 48, 31, 7]])


def test_images_are_the_same_in_chunks_that_do_not_divide_their_number(images, monkeypatch):
    """The last chunk is smaller, and no image is read twice."""
    stored, tensor = images
    monkeypatch.setattr(mapped, "CHUNK", 7)
    assert stored.index_select(0, torch.arange(50)).equal(tensor)
    assert stored.to("cpu").equal(tensor)


@pytest.mark.parametrize("length", [0, 100, 240])
def test_a_file_that_is_cut_short_while_it_is_in_use_is_one_line(images, tmp_path, length):
    """A map's next access would end the process by SIGBUS; copies that are renewed in place, and
    network disks, do cut files."""
    stored, tensor = images
    rows = torch.arange(50)
    assert stored.index_select(0, rows).equal(tensor)
    os.truncate(tmp_path / "two", length)
    with pytest.raises(DataError, match=r"two has become shorter since it was opened\. Restore it, and continue\."):
        stored.index_select(0, rows)
    assert stored.index_select(0, torch.arange(30)).equal(tensor[:30])


@pytest.mark.parametrize("length", [1, 4000])
def test_a_file_that_is_cut_short_while_it_is_parsed_is_one_line(tmp_path, length):
    """Its labels are looked for by place, after the pixels."""
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": np.zeros((100, 3072), np.uint8), "labels": [1] * 100}, 2))
    file = PlacedFile(path)
    os.truncate(path, length)
    with pytest.raises(DataError, match="has become shorter"):
        pickles.read(file, str(path))


def test_bytes_of_a_file_are_those_of_its_content(tmp_path):
    """Single ones come from a block that is kept, longer spans from the disk: mixed up, a pickle is
    read as another."""
    content = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    (tmp_path / "file").write_bytes(content)
    file, dice = PlacedFile(tmp_path / "file"), random.Random(0)
    assert len(file) == len(content)
    for length in (1, 8, 100, 70_000, 300_000) * 40:
        start = dice.randrange(len(content))
        assert file[start] == content[start]
        assert file[start : start + length] == content[start : start + length]


def test_what_can_not_be_read_is_one_line(tmp_path):
    """Python's own message for an empty file does not name it."""
    (tmp_path / "empty").write_bytes(b"")
    for name, complaint in (("empty", "is empty; replace it"), ("absent", "can't be read"), ("", "can't be read")):
        with pytest.raises(DataError, match=complaint) as raised:
            PlacedFile(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name))


PROGRAM = """
import sys, numpy as np, torch
from pathlib import Path
from dualprop.data.examples import Examples, batches
from dualprop.data.mapped import MappedFiles, MappedImages, PlacedFile
path, number = Path(sys.argv[1]), 100_000
files = MappedFiles([(PlacedFile(path), 0, number)], 3072)
y, mean, std = torch.zeros(number, dtype=torch.int64), torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
examples = Examples(MappedImages(files, (3, 32, 32)), y, mean, std)
def resident():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(("RssAnon", "RssFile"))) // 1024
for x, _ in batches(examples, 100, generator=torch.Generator().manual_seed(0)):
    break
before, highest = resident(), 0
for i, (x, _) in enumerate(batches(examples, 500, generator=torch.Generator().manual_seed(0))):
    highest = max(highest, resident())
print(before, highest)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_reading_every_image_once_keeps_the_memory_flat(tmp_path):
    """A map counts what was read of it as the process's own: 300 MB here, and 4 GB of
    ImageNet32."""
    path = tmp_path / "pixels"
    with path.open("wb") as file:
        file.truncate(100_000 * 3072)
    result = subprocess.run([sys.executable, "-c", PROGRAM, path], capture_output=True, text=True, check=True)
    before, highest = map(int, result.stdout.split())
    assert highest - before < 60, f"{highest - before} MB more than at the start, of 293 MB in the file"


def test_a_run_on_streamed_images_is_bit_for_bit_that_on_resident_ones(tmp_path):
    """Training, validation, test and statistics, by the trainer as it is."""
    write_imagenet32(tmp_path / "data")
    made = training.Recipe(
        name="tiny",
        dataset="imagenet32",
        model=MLP(widths=(8,)),
        rule=DualPropagation(loss=CrossEntropy()),
        batch_size=32,
        epochs=2,
        num_threads=1,
        flush_subnormals=False,
    )
    results = []
    for residency in ("mapped", "device"):
        run = training.create(tmp_path / residency, dataclasses.replace(made, residency=residency), (0,))
        training.train(run, tmp_path / "data")
        folder = run.seed_folder(0)
        results.append((folder / "metrics.jsonl").read_bytes())
    assert results[0] == results[1]
    assert isinstance(load("imagenet32", root=tmp_path / "data", residency="mapped").train.x, MappedImages)
