"""ImageNet at 32×32 (Chrabaszcz et al., 2017) in its official files: ten batches to train on and
the validation set, which is the test set here; all as pickles, or all as .npz. Each holds `data`
(N, 3072) uint8, a row an image as (3, 32, 32), and `labels` 1..1000, which become 0..999; the mean
image that some hold is not read.

The files have no published checksums, so that the reader itself is the guard: pixels stay in the
files, and pickles are never run. A set that fits is brought onto the device; else each batch is
read from the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dualprop.data import npz_members, pickles, sources
from dualprop.data.mapped import MappedFiles, MappedImages, PlacedFile
from dualprop.data.splits import Arrays
from dualprop.errors import DataError

DESCRIPTION = "ImageNet at 32×32 colour, 1 281 167 + 50 000, 1000 classes; your own copy, streamed if memory is short"
SHAPE = (3, 32, 32)
ROW_BYTES = 3072
TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
TEST = "val_data"
FOLDERS = ("imagenet32", "imagenet32/Imagenet32_{}", "Imagenet32_{}", "imagenet32/Imagenet32_{}_npz", "Imagenet32_{}_npz", ".")
"""Below the data folder, in the order of search; {} is train or val."""
NUM_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GET_IT = "Get 'Train' and 'Val' of ImageNet 32×32, in python or npz form, at https://image-net.org/download-images"


@dataclass(frozen=True, eq=False)
class Batch:
    """One file, where in it the images begin, and their labels (N,) int64, 0..999."""

    path: Path
    file: PlacedFile
    offset: int
    labels: np.ndarray

    def image(self, index: int) -> bytes:
        begin = self.offset + ROW_BYTES * (index % len(self.labels))
        content = self.file[begin : begin + ROW_BYTES]
        assert isinstance(content, bytes)
        return content


def read(root: Path | None) -> Arrays:
    """The set below the data folder `root`, its pixels in MappedImages. Raises DataError for what
    is missing or malformed."""
    paths = find(sources.data_folder(root))
    *train, test = _from_npz(paths) if paths[0].suffix == ".npz" else [_from_pickle(path) for path in paths]
    _check_against_each_other(train, test)
    x_train, x_test = (_images(part) for part in (train, [test]))
    y_train = np.concatenate([batch.labels for batch in train])
    mean, std = (tuple(255 * value for value in constants) for constants in (MEAN, STD))
    return Arrays(x_train, y_train, x_test, test.labels, mean=mean, std=std)


def find(root: Path | None) -> list[Path]:
    """The ten training files and the test file, all of one form."""
    if root is None:
        raise DataError(f"imagenet32 is not downloaded by itself. {GET_IT}, and name the folder with --data.")
    chosen: list[Path] = []
    for part, files in (("train", TRAIN), ("val", (TEST,))):
        folders = (root / folder.format(part) for folder in FOLDERS)
        names = (*files, *(f"{name}.npz" for name in files))
        # Unlike Path.is_file, os.path's is False where a folder may not be searched.
        there = {folder: [folder / name for name in names if os.path.isfile(folder / name)] for folder in folders}
        folder, paths = next(((f, p) for f, p in there.items() if p), (root / FOLDERS[0], []))
        if not paths:
            raise DataError(f"{folder} has no {files[0]}. {GET_IT}, and unpack them there.")
        missing = [name for name in files if not any(path.stem == name for path in paths)]
        if missing:
            raise DataError(f"{folder} lacks {', '.join(missing)}. {GET_IT}, and unpack them there.")
        chosen += paths
    if len({path.suffix for path in chosen}) > 1:
        one, other = (next(p for p in chosen if (p.suffix == ".npz") == flag) for flag in (False, True))
        raise DataError(f"imagenet32 is there in two forms, {one} and {other}; move one away.")
    return sorted(chosen[:-1], key=lambda path: int(path.stem.rsplit("_", 1)[1])) + chosen[-1:]


def _from_pickle(path: Path) -> Batch:
    file = PlacedFile(path)
    entries = pickles.read(file, str(path))
    x, labels = entries.get("data"), entries.get("labels")
    if not isinstance(x, pickles.Stored) or labels is None:
        raise DataError(f"{path} lacks 'data' or 'labels'; it holds {sorted(entries)[:6]}. Replace it.")
    _check_pixels(path, x)
    if isinstance(labels, pickles.Stored):
        labels = labels.within(file)
    elif isinstance(labels, list) and all(type(label) is int and abs(label) < 2**63 for label in labels):
        labels = np.array(labels, np.int64)
    return Batch(path, file, x.offset, _classes(path, labels, x.shape[0]))


def _from_npz(paths: list[Path]) -> list[Batch]:
    contents = [npz_members.members(path) for path in paths]
    for path, members in zip(paths, contents, strict=True):
        if not {"data", "labels"} <= members.keys():
            raise DataError(f"{path} lacks 'data' or 'labels'; it holds {sorted(members)[:6]}. Replace it.")
    folder = sources.cache_folder() / "imagenet32"
    compressed = [(path, m["data"]) for path, m in zip(paths, contents, strict=True) if not npz_members.is_mappable(m["data"])]
    waiting = [info.file_size for path, info in compressed if not npz_members.unpacked(path, info, folder).is_file()]
    if waiting:
        why = "Compressed .npz files are unpacked there once; make room, set $XDG_CACHE_HOME, or get the python form."
        npz_members.make_room(sum(waiting), folder, why)
    batches = []
    for path, members in zip(paths, contents, strict=True):
        info = members["data"]
        is_mappable = npz_members.is_mappable(info)
        x = npz_members.locate(path, info) if is_mappable else npz_members.locate_unpacked(path, info)
        _check_pixels(path, x)
        labels = _classes(path, npz_members.small(path, members["labels"], limit=8 * x.shape[0] + 10_000), x.shape[0])
        file = PlacedFile(path if is_mappable else npz_members.unpack(path, info, folder))
        batches.append(Batch(path, file, x.offset, labels))
    return batches


def _check_pixels(path: Path, x: pickles.Stored) -> None:
    if x.dtype != np.uint8 or len(x.shape) != 2 or x.shape[1] != ROW_BYTES or not x.shape[0]:
        raise DataError(f"{path} holds pixels {x.shape} {x.dtype}, not (N, 3072) uint8; replace it.")


def _classes(path: Path, labels: object, num_images: int) -> np.ndarray:
    """Classes 0..999 (N,) int64 of labels 1..1000."""
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.shape == (num_images,):
        if labels.min() >= 1 and labels.max() <= NUM_CLASSES:
            return labels.astype(np.int64) - 1
        raise DataError(f"{path} holds labels from {labels.min()} to {labels.max()}, not 1 to {NUM_CLASSES}; replace it.")
    raise DataError(f"{path} does not hold {num_images} labels, whole numbers from 1 to {NUM_CLASSES}; replace it.")


def _check_against_each_other(train: list[Batch], test: Batch) -> None:
    smallest = min(train, key=lambda batch: len(batch.labels))
    if len(test.labels) > len(smallest.labels):
        sizes = f"{len(test.labels)} images, {smallest.path} only {len(smallest.labels)}"
        raise DataError(f"{test.path} holds {sizes}: they seem to be swapped. Put each under its own name.")
    seen: dict[tuple[bytes, bytes], Path] = {}
    for batch in (*train, test):
        mark = batch.image(0) + batch.image(-1), batch.labels.tobytes()
        if mark in seen:
            raise DataError(f"{batch.path} holds the same images as {seen[mark]}; replace the wrong one.")
        seen[mark] = batch.path


def _images(batches: list[Batch]) -> MappedImages:
    return MappedImages(MappedFiles([(batch.file, batch.offset, len(batch.labels)) for batch in batches], ROW_BYTES), SHAPE)
