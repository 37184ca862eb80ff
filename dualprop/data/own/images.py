"""A folder of class folders of images: PATH/cat/1.png is of the class "cat".

PATH/train and PATH/test may each hold the class folders; "val" and "valid" are taken for a test
part too. Images may differ in size where `Reading.size` says what becomes of them. Pillow decodes
them, in the formats named here alone: others are programs (EPS) or rarely tested. N images, C
channels, S the side."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dualprop import memory
from dualprop.data.own.examples import Own
from dualprop.data.own.inputs import Inputs
from dualprop.data.own.reading import Reading
from dualprop.data.tasks import Task
from dualprop.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
# A few hundred bytes can declare any number of pixels.
MAX_PIXELS = 100_000_000
MAX_SIDE = 1024
TRAIN, TEST = ("train",), ("test", "val", "valid", "validation")


def is_folder_of_images(path: Path) -> bool:
    """Whether it holds folders."""
    return any(each.is_dir() and not each.name.startswith(".") for each in path.iterdir())


def read(path: Path, reading: Reading) -> Own:
    """The images below `path`. Raises DataError, which names the file."""
    parts = _parts(path)
    listed = {part: _listed(folder) for part, folder in parts.items()}
    train, left = listed["train"]
    classes = tuple(train)
    if len(classes) < 2:
        raise DataError(f"{parts['train']} holds images in {len(classes)} folder. Put each class into a folder of its name.")
    paths = [(file, k) for k, name in enumerate(classes) for file in train[name]]
    inputs = form(path, [file for file, _ in paths], reading)
    remarks = [f"{left} files are left out, as they are no images"] if left else []
    x, y = decoded([file for file, _ in paths], inputs), np.array([k for _, k in paths], np.int64)
    test = None
    if "test" in listed:
        of_test, _ = listed["test"]
        if unknown := [name for name in of_test if name not in classes]:
            raise DataError(f"{parts['test']} holds the class '{unknown[0]}', and {parts['train']} does not. Make them agree.")
        pairs = [(file, k) for k, name in enumerate(classes) for file in of_test.get(name, [])]
        test = decoded([file for file, _ in pairs], inputs), np.array([k for _, k in pairs], np.int64)
    return Own(x, y, Task("classification", classes), inputs, test, tuple(remarks))


def _parts(path: Path) -> dict[str, Path]:
    """The folders of class folders, "train" and, where there is one, "test"."""
    names = {each.name.lower(): each for each in _folders(path)}
    train, tests = names.get(TRAIN[0]), [names[name] for name in TEST if name in names]
    if train is None or not tests or len(names) > 1 + len(tests):
        return {"train": path}
    return {"train": train, "test": tests[0]}


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error}). Check its permissions.") from None


def _listed(path: Path) -> tuple[dict[str, list[Path]], int]:
    """The images of each class folder, at any depth in it, and how many other files there are."""
    by_class: dict[str, list[Path]] = {}
    left = 0
    for folder in _folders(path):
        files: list[Path] = []
        # Links to folders are not followed: they can lead in circles.
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            files += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        left += len(files) - len(images)
        if images:
            by_class[folder.name] = images
        elif files or not folders:
            raise DataError(f"{folder} holds no image ({', '.join(SUFFIXES[:3])}, …). Put some there, or remove it.")
    return by_class, left


def form(where: Path, files: list[Path], reading: Reading) -> Inputs:
    """What all images are brought to. Raises DataError where they differ in size and nothing says
    to which."""
    first: tuple[tuple[int, int], Path] | None = None
    is_grey, looks_at_all = True, reading.colour == "auto"
    for file in files if looks_at_all or not reading.size else files[:1]:
        with _opened(file) as image:
            size, is_grey = _upright_size(image), is_grey and image.mode in ("1", "L", "I;16", "I;16B", "I;16L")
        first = first or (size, file)
        if not reading.size and size != first[0]:
            shapes = f"{file} has {size[0]}×{size[1]} pixels and {first[1].name} {first[0][0]}×{first[0][1]}"
            raise DataError(f"{shapes}. Say what size to bring them to: --reading.size 32.")
        if not reading.size and max(size) > MAX_SIDE:
            raise DataError(f"{file} has {size[0]}×{size[1]} pixels. Give a smaller size: --reading.size 128.")
    colour = ("grey" if is_grey else "rgb") if reading.colour == "auto" else reading.colour
    inputs = Inputs("images", size=reading.size, fit=reading.fit, colour=colour)
    width, height = (reading.size, reading.size) if reading.size else (first or ((0, 0), where))[0]
    num_bytes = len(files) * width * height * (1 if colour == "grey" else 3)
    memory.check(2 * num_bytes, f"{where}, {len(files)} images of {width}×{height},", "Give a smaller --reading.size.")
    return inputs


def decoded(files: list[Path], inputs: Inputs) -> np.ndarray:
    """The images as (N, C, H, W) uint8, brought to the form. Raises DataError."""

    def each() -> Iterator[tuple[Path, np.ndarray]]:
        for file in files:
            with _opened(file) as image:
                yield file, pixels_of(file, image, inputs)

    return stacked(each(), len(files))


def stacked(images: Iterable[tuple[Path, np.ndarray]], number: int) -> np.ndarray:
    """So many images (C, H, W), at least one, as (N, C, H, W) uint8. Raises DataError where one has
    another size than the first, by the place that stands beside it."""
    x: np.ndarray | None = None
    for row, (where, pixels) in enumerate(images):
        if x is None:
            x = np.empty((number, *pixels.shape), np.uint8)
        if pixels.shape != x.shape[1:]:
            shapes = f"{pixels.shape[2]}×{pixels.shape[1]} pixels, the others {x.shape[3]}×{x.shape[2]}"
            raise DataError(f"{where} has {shapes}. Say what size to bring them to: --reading.size 32.")
        x[row] = pixels
    assert x is not None
    return x


def read_one(file: Path, inputs: Inputs) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as (C, H, W) uint8, brought to the form, and its own width and height. Raises
    DataError."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        remedy = "Install it: pip install 'dualprop[images]'"
        raise DataError(f"{file} is decoded by the package Pillow, which is not installed. {remedy}.") from None
    with _opened(file) as image:
        size = _upright_size(image)
        return pixels_of(file, image, inputs), size


def pixels_of(file: Path, image: Any, inputs: Inputs) -> np.ndarray:
    """An image as (C, H, W) uint8, upright, on black where it is transparent."""
    from PIL import Image, ImageOps

    try:
        if image.mode.startswith("I;16"):
            # Pillow's own conversion cuts all above 255.
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise DataError(f"{file} has pixels of 32 bits, whose range is not known. Save it with 8 bits a channel.")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        image = image.convert("L" if inputs.colour == "grey" else "RGB")
        side = (inputs.size, inputs.size)
        if inputs.size and inputs.fit == "crop":
            image = ImageOps.fit(image, side, Image.Resampling.BICUBIC)
        elif inputs.size and inputs.fit == "pad":
            image = ImageOps.pad(image, side, Image.Resampling.BICUBIC)
        elif inputs.size:
            image = image.resize(side, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    except DataError:
        raise
    except Exception as error:  # damage makes decoders raise nearly anything
        if memory.is_lacking(error):
            raise
        raise DataError(f"{file} is truncated or damaged ({memory.first_line(error)}). Replace or remove it.") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The image in a file, its pixels not decoded yet. Raises DataError where it is none, and for
    whatever its decoder raises while it is read."""
    from PIL import Image

    # A pipe would wait for its other end.
    if not file.is_file():
        raise DataError(f"{file} is no regular file. Remove it.")
    try:
        with file.open("rb") as handle, warnings.catch_warnings():
            # Of sizes, which are checked here, and of odd metadata.
            warnings.simplefilter("ignore")
            image = Image.open(handle, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{file} declares {image.width}×{image.height} pixels, more than is read. Remove it.")
            yield image
    except DataError:
        raise
    except Exception as error:  # damage makes decoders raise nearly anything
        if memory.is_lacking(error):
            raise
        is_unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = f"no image in {', '.join(FORMATS)}" if is_unknown else memory.first_line(error)
        raise DataError(f"{file} can't be read ({reason}). Replace or remove it.") from None


def _upright_size(image: Any) -> tuple[int, int]:
    """Width and height once it is turned as its camera says."""
    is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    return (image.height, image.width) if is_turned else (image.width, image.height)
