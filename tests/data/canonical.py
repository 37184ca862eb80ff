"""Small files in the canonical formats: what the tests of reading, finding and downloading them
share."""

import dataclasses
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dualprop.data import imagenet32, sources

FILES = tuple(sources.SOURCES["mnist"].sha256)


def idx(array: np.ndarray) -> bytes:
    """`array` of uint8 in the IDX format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def cifar(num_examples: int, labels: str = "labels", num_classes: int = 3, seed: int = 0, protocol: int = 4) -> bytes:
    """A batch in CIFAR's python form; the classes take turns."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num_examples, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, labels: [i % num_classes for i in range(num_examples)]}, protocol)


def tar_gz(members: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """An archive of regular files, after the `extra` members, which are empty."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for info in extra:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def vouch_for(name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, archive: bytes | None = None) -> None:
    """Make `files`, and `archive` where there is one, the true data set `name` for this test,
    whatever they hold."""
    source = sources.SOURCES[name]
    digests = {file: hashlib.sha256(files[file]).hexdigest() for file in source.sha256}
    changes: dict[str, object] = {"sha256": digests, "mirror": "https://127.0.0.1:1/none"}
    if source.archive and archive is not None:
        changes["archive"] = (source.archive[0], hashlib.sha256(archive).hexdigest())
    monkeypatch.setitem(sources.SOURCES, name, dataclasses.replace(source, **changes))


IMAGENET32_SIZES = {name: 40 + i for i, name in enumerate(imagenet32.TRAIN)} | {imagenet32.TEST: 25}


def imagenet32_arrays(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Each file's data and labels 1..7, which take turns; no two images are alike."""
    random = np.random.default_rng(seed)
    made = {}
    for name, size in IMAGENET32_SIZES.items():
        data = random.integers(0, 256, (size, 3072), dtype=np.uint8)
        made[name] = {"data": data, "labels": np.arange(size) % 7 + 1, "mean": data.mean(0)}
    return made


IMAGENET32_FORMS = ("pickle 3", "pickle 4", "npz", "compressed npz")


def write_imagenet32(folder: Path, form: str = "pickle 3", made: dict[str, dict[str, np.ndarray]] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in (imagenet32_arrays() if made is None else made).items():
        if form.startswith("pickle"):
            labels = {"labels": entries["labels"].tolist()} if isinstance(entries.get("labels"), np.ndarray) else {}
            (folder / name).write_bytes(pickle.dumps({**entries, **labels}, int(form[-1])))
        else:
            (np.savez if form == "npz" else np.savez_compressed)(folder / f"{name}.npz", **entries)
