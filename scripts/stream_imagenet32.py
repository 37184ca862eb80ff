"""Streams a synthetic set in ImageNet32's format that need not fit into memory, and tells rate and
memory as it goes.

    python scripts/stream_imagenet32.py --gigabytes 10 --folder /tmp

Every image carries its own number, and its label follows from that, so that each batch is checked.
The files are removed at the end. `--seconds` ends earlier; `--form pickle` writes the other form;
`--step 0.05` sleeps that long a batch, as a training step would take, and tells how much of it the
loader added.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

from dualprop.data import Augmentation, batches, load
from dualprop.data.imagenet32 import ROW_BYTES, TEST, TRAIN

BLOCK = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    parser.add_argument("--form", choices=("npz", "pickle"), default="npz")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--step", type=float, default=0.0, help="seconds that a training step takes")
    parser.add_argument("--out", type=Path, help="write the measurements there as JSON")
    arguments = parser.parse_args()
    folder = arguments.folder / f"stream-imagenet32-{os.getpid()}"
    number = int(arguments.gigabytes * 1e9 / ROW_BYTES / len(TRAIN))
    if arguments.gigabytes * 1e9 > 0.9 * shutil.disk_usage(arguments.folder).free:
        parser.error(f"{arguments.folder} has too little space for {arguments.gigabytes:g} GB.")
    try:
        folder.mkdir()
        for i, name in enumerate(TRAIN):
            write(folder, name, arguments.form, i * number, number)
        write(folder, TEST, arguments.form, len(TRAIN) * number, 1000)
        measured = stream(folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(measured, indent=1) + "\n")
    return 0


def write(folder: Path, name: str, form: str, first: int, number: int) -> None:
    """One file of `number` images from image `first` on; not left in the system's cache: reading is
    to come from the disk."""
    path = folder / (f"{name}.npz" if form == "npz" else name)
    labels = np.arange(first, first + number) % 1000 + 1
    rows = np.random.default_rng(0).integers(0, 256, (BLOCK, ROW_BYTES), dtype=np.uint8)
    parts = [slice(first + i, first + min(i + BLOCK, number)) for i in range(0, number, BLOCK)]
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (number, ROW_BYTES))
    for part in parts:
        index = np.arange(part.start, part.stop)
        rows[: len(index), :8] = index[:, None].view(np.uint8)
        pixels[part.start - first : part.stop - first] = rows[: len(index)]
    if form == "npz":
        np.savez(path, data=pixels, labels=labels)
    else:
        with path.open("wb") as file:
            pickle.dump({"data": pixels.view(np.ndarray), "labels": labels.tolist()}, file, 4)
    (folder / "pixels.npy").unlink()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def memory() -> dict[str, int]:
    """This process's resident megabytes, its own and those of mapped files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][3:-1].lower(): int(words[1]) // 1024 for words in lines if words[0] in ("RssAnon:", "RssFile:")}


def stream(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    began = time.perf_counter()
    splits = load("imagenet32", root=folder, residency="mapped", validation_fraction=0.05)
    told: dict[str, object] = {
        "images": len(splits.train),
        "gigabytes": round(len(splits.train) * ROW_BYTES / 1e9, 2),
        "memory of the machine, GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "seconds to load": round(time.perf_counter() - began, 2),
        "torch": torch.__version__,
    }
    print(told, flush=True)
    mean, std = splits.train.mean.cpu(), splits.train.std.cpu()
    rows = []
    began = last = time.perf_counter()
    done = waited = 0
    order = torch.Generator().manual_seed(0)
    before = time.perf_counter()
    # Crops without flips and padding leave the first pixels of some images; so the check is on
    # batches without augmentation.
    for is_varied, seconds in ((False, arguments.seconds / 2), (True, arguments.seconds / 2)):
        augmentation = Augmentation(pad=4, flip=True) if is_varied else None
        until = time.perf_counter() + seconds
        for x, y in batches(splits.train, arguments.batch_size, generator=order, augmentation=augmentation, drop_last=True):
            waited += time.perf_counter() - before
            if not is_varied:
                check(x, y, mean, std)
            time.sleep(arguments.step)
            done += len(y)
            now = time.perf_counter()
            if now - last > 5 or now > until:
                rows.append({"seconds": round(now - began, 1), "augmented": is_varied, "examples": done, **memory()})
                rows[-1]["examples/s"] = round((done - (rows[-2]["examples"] if len(rows) > 1 else 0)) / (now - last))
                print(rows[-1], flush=True)
                last = now
            if now > until:
                break
            before = time.perf_counter()
    return {**told, "seconds waited for batches": round(waited, 2), "batches": done // arguments.batch_size, "rows": rows}


def check(x: torch.Tensor, y: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Each image's number, in the first 8 bytes of its red channel, gives its label."""
    raw = (x.cpu() * std + mean)[:, 0, 0, :8].round().to(torch.int64)
    numbers = (raw << torch.arange(0, 64, 8)).sum(1)
    assert (numbers % 1000).equal(y.cpu()), "a label of another image"


if __name__ == "__main__":
    sys.exit(main())
