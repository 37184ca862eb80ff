"""The IDX format of MNIST: two zero bytes, the element type (8 is uint8), the number of dimensions,
then each dimension as a big-endian 32-bit integer, then the elements in row-major order."""

import math
import struct

import numpy as np

from dualprop.errors import DataError


def parse(content: bytes, num_dimensions: int, where: str) -> np.ndarray:
    """The array in an uncompressed IDX file of uint8, not empty and writable. DataErrors call the
    file `where`."""
    magic = bytes([0, 0, 8, num_dimensions])
    if content[:4] != magic:
        begins = f"it begins {content[:4].hex() or 'with nothing'}, not {magic.hex()}"
        raise DataError(f"{where} is not an IDX file of {num_dimensions}-dimensional bytes: {begins}; replace it.")
    header = 4 + 4 * num_dimensions
    if len(content) < header:
        raise DataError(f"{where} ends within its IDX header, after {len(content)} bytes; replace it.")
    shape = struct.unpack(f">{num_dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        size = " × ".join(map(str, shape))
        raise DataError(f"{where} declares {size} bytes of data but holds {len(content) - header}; replace it.")
    if not math.prod(shape):
        raise DataError(f"{where} holds no examples; replace it.")
    # A copy: an array over immutable bytes is read-only, and torch warns of those.
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def pair(images: bytes, labels: bytes, where: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, H, W) and labels (N,) of two IDX files that belong together. `where` names them
    in errors."""
    x, y = parse(images, 3, where[0]), parse(labels, 1, where[1])
    if len(x) != len(y):
        raise DataError(f"{where[0]} holds {len(x)} images but {where[1]} {len(y)} labels; replace the wrong one.")
    return x[:, None], y


def parts(name: str, contents: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test of data set `name` in MNIST's four files, whose names
    DataErrors give."""
    train_images, train_labels, test_images, test_labels = ((content, f"{name}'s {file}") for file, content in contents.items())
    x_train, y_train = pair(train_images[0], train_labels[0], (train_images[1], train_labels[1]))
    x_test, y_test = pair(test_images[0], test_labels[0], (test_images[1], test_labels[1]))
    if x_test.shape[1:] != x_train.shape[1:]:
        sizes = f"images of {x_test.shape[2:]} pixels, {train_images[1]} of {x_train.shape[2:]}"
        raise DataError(f"{test_images[1]} holds {sizes}; replace the wrong one.")
    return x_train, y_train, x_test, y_test
