"""The IDX format of MNIST: two zero bytes, the element type (8 is uint8), the number of dimensions, then each dimension
as a big-endian 32-bit integer, then the elements in row-major order."""

import math
import struct

import numpy as np

from dualprop.errors import DataError


def parse(content: bytes, num_dimensions: int, where: str) -> np.ndarray:
    """The array in an uncompressed IDX file of uint8, not empty and writable. DataErrors call the file `where`."""
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
    """Images (N, 1, H, W) and labels (N,) of two IDX files that belong together. `where` names them in errors."""
    x, y = parse(images, 3, where[0]), parse(labels, 1, where[1])
    if len(x) != len(y):
        raise DataError(f"{where[0]} holds {len(x)} images but {where[1]} {len(y)} labels; replace the wrong one.")
    return x[:, None], y
