"""Reads the pickles of image data sets (CIFAR, ImageNet32) without running them.

A pickle is a program for a stack machine, and Python's own would call whatever the program names.
This one knows only the steps that write dictionaries, lists, whole numbers, strings and numpy
arrays: anything else is refused by name, and nothing is ever called. Strings and pixels are noted
by their place in the file and not copied, so that a caller can map them. Every length is held
against the bytes that are there before it is used, and the number of steps is limited: a small file
can't ask for much memory. Protocols 2 to 4, from Python 2 or 3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dualprop.errors import DataError

# CIFAR-100's training file takes 300 000 steps, a batch of ImageNet32 130 000; a step costs up to
# two hundred bytes of memory.
MAX_STEPS = 1_000_000
DTYPES = ("u1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", "f4", "f8")
RECONSTRUCT, NDARRAY, DTYPE = "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"
KNOWN = {RECONSTRUCT: RECONSTRUCT, "numpy._core.multiarray _reconstruct": RECONSTRUCT, NDARRAY: NDARRAY, DTYPE: DTYPE}


class Content(Protocol):
    """A file's bytes, in memory or read where they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Span:
    """A string of bytes or text: where it begins and ends in the file."""

    start: int
    stop: int


@dataclass(frozen=True)
class Stored:
    """An array in row-major order whose elements begin at byte `offset` of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def read(self, content: bytes | memoryview) -> np.ndarray:
        """The array over the bytes of `content`, the file; read-only where they are."""
        flat = np.frombuffer(content, self.dtype, math.prod(self.shape), self.offset)
        return flat.reshape(self.shape)

    def within(self, file: Content) -> np.ndarray:
        """The array, read from the file."""
        content = file[self.offset : self.offset + math.prod(self.shape) * self.dtype.itemsize]
        return np.frombuffer(content, self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class _Name:
    """A global that the file names, one of KNOWN; only ever compared."""

    name: str


@dataclass(slots=True)
class _Made:
    """The result of a call that was not made: an array or a dtype, to be completed by BUILD."""

    kind: str
    code: str = ""
    value: Any = None


class _Refusal(Exception):
    """Why the file is refused, without its name."""


def read(content: Content, where: str) -> dict[str, Any]:
    """The dictionary in a pickle: ints, lists, Spans of text, Stored arrays; its keys as str.

    Raises DataError, which calls the file `where`, for anything but such a dictionary.
    """
    try:
        return _Machine(content).run()
    except _Refusal as refusal:
        raise DataError(f"{where} {refusal}; replace it.") from None


class _Machine:
    def __init__(self, content: Content) -> None:
        self.content, self.position = content, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> dict[str, Any]:
        if len(self.content) < 2 or self.content[0] != 0x80 or self.content[1] not in (2, 3, 4):
            raise _Refusal("is not a pickle of protocol 2, 3 or 4")
        self.position = 2
        content, size, steps = self.content, len(self.content), STEPS
        for _ in range(MAX_STEPS):
            if self.position >= size:
                raise _Refusal(f"is truncated: it ends after {size} bytes without a STOP")
            opcode = content[self.position]
            self.position += 1
            if opcode == 0x2E:
                return self._result()
            step = steps.get(opcode)
            if step is None:
                raise _Refusal(f"holds more than plain data (pickle opcode 0x{opcode:02x}), and was not run")
            step(self)
        raise _Refusal(f"takes more than {MAX_STEPS} steps to read")

    def _result(self) -> dict[str, Any]:
        if len(self.content) != self.position:
            raise _Refusal(f"goes on for {len(self.content) - self.position} bytes after its end")
        if len(self.stack) != 1 or self.marks or type(self.stack[0]) is not dict:
            raise _Refusal("does not hold a dictionary")
        return {key: value.value if type(value) is _Made else value for key, value in self.stack[0].items()}

    # What the file holds is reached only through these: each checks that there is as much as is
    # asked for.

    def take(self, count: int) -> Span:
        start, stop = self.position, self.position + count
        if stop > len(self.content):
            raise _Refusal(f"is truncated: it declares {count} bytes at {start}, and ends after {len(self.content)}")
        self.position = stop
        return Span(start, stop)

    def number(self, count: int, signed: bool = False) -> int:
        start, stop = self.position, self.position + count
        if stop > len(self.content):
            raise _Refusal(f"is truncated: it ends within a number, after {len(self.content)} bytes")
        self.position = stop
        return int.from_bytes(self.content[start:stop], "little", signed=signed)

    def text(self, span: Any) -> str:
        if type(span) is not Span or span.stop - span.start > 100:
            raise _Refusal("has something else where a name belongs")
        return bytes(self.content[span.start : span.stop]).decode("latin-1")

    def line(self) -> str:
        for length in range(100):
            if self.position + length < len(self.content) and self.content[self.position + length] == 0x0A:
                span = self.take(length)
                self.position += 1
                return self.text(span)
        raise _Refusal("has something else where a name belongs")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refusal("is damaged: a value is missing")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refusal("is damaged: a mark is missing")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def top(self, kind: type) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or type(self.stack[-1]) is not kind:
            raise _Refusal("is damaged: it adds to a value of another kind")
        return self.stack[-1]

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            raise _Refusal("is damaged: a value is missing")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.text(key)] = value

    # Globals

    def name(self, module: str, attribute: str) -> None:
        full = f"{module} {attribute}"
        if full not in KNOWN:
            shown = full.replace(" ", ".").encode("ascii", "replace").decode()
            raise _Refusal(f"asks for {shown!r}, which is not data, and was not run")
        self.stack.append(_Name(KNOWN[full]))

    def stack_name(self) -> None:
        attribute, module = self.pop(), self.pop()
        self.name(self.text(module), self.text(attribute))

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if type(called) is _Name and type(arguments) is tuple and len(arguments) == 3:
            first, second, third = arguments
            if called.name == RECONSTRUCT and first == _Name(NDARRAY) and second == (0,) and type(third) is Span:
                self.stack.append(_Made(NDARRAY))
                return
            if called.name == DTYPE and type(first) is Span and second in (False, 0) and third in (True, 1):
                code = self.text(first)
                if code in DTYPES:
                    self.stack.append(_Made(DTYPE, code))
                    return
        raise _Refusal("asks for a call that makes no plain array, and was not run")

    def build(self) -> None:
        state, made = self.pop(), self.top(_Made)
        if made.value is not None or type(state) is not tuple:
            raise _Refusal("is damaged: an array is described twice or not at all")
        made.value = self.dtype(made.code, state) if made.kind == DTYPE else self.array(state)

    def dtype(self, code: str, state: tuple[Any, ...]) -> np.dtype[Any]:
        # (version, byte order, subarray, names, fields, size, alignment, flags)
        order = self.text(state[1]) if len(state) == 8 else ""
        if order not in ("<", "|") or state[2:5] != (None, None, None):
            raise _Refusal("holds an array that is not of plain little-endian numbers")
        return np.dtype(order + code)

    def array(self, state: tuple[Any, ...]) -> Stored:
        # (version, shape, dtype, whether column-major, elements)
        if len(state) != 5 or type(state[2]) is not _Made or state[2].kind != DTYPE or state[2].value is None:
            raise _Refusal("holds an array without a type")
        shape, dtype, by_columns, elements = state[1], state[2].value, state[3], state[4]
        is_shape = type(shape) is tuple and 1 <= len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**48 for n in shape)
        if not is_shape or by_columns not in (False, 0) or type(elements) is not Span:
            raise _Refusal("holds an array that is not stored row by row")
        if math.prod(shape) * dtype.itemsize != elements.stop - elements.start:
            size = " × ".join(map(str, shape))
            raise _Refusal(f"declares an array of {size} {dtype} but holds {elements.stop - elements.start} bytes of it")
        return Stored(dtype, shape, elements.start)


def _steps() -> dict[int, Callable[[_Machine], None]]:
    """What each opcode does; those that are not here are refused."""

    def push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
        return lambda machine: machine.stack.append(value(machine))

    def sized(width: int) -> Callable[[_Machine], None]:
        return push(lambda machine: machine.take(machine.number(width)))

    def put(width: int) -> Callable[[_Machine], None]:
        def store(machine: _Machine) -> None:
            value = machine.pop()
            machine.stack.append(value)
            machine.memo[machine.number(width)] = value

        return store

    def get(width: int) -> Callable[[_Machine], None]:
        def fetch(machine: _Machine) -> None:
            index = machine.number(width)
            if index not in machine.memo:
                raise _Refusal("is damaged: it refers to what it does not hold")
            machine.stack.append(machine.memo[index])

        return fetch

    def memoize(machine: _Machine) -> None:
        value = machine.pop()
        machine.stack.append(value)
        machine.memo[len(machine.memo)] = value

    def tuple_of(count: int) -> Callable[[_Machine], None]:
        return push(lambda machine: tuple([machine.pop() for _ in range(count)][::-1]))

    def append(machine: _Machine) -> None:
        value = machine.pop()
        machine.top(list).append(value)

    def appends(machine: _Machine) -> None:
        items = machine.pop_to_mark()
        machine.top(list).extend(items)

    def set_item(machine: _Machine) -> None:
        value, key = machine.pop(), machine.pop()
        machine.set_items([key, value])

    def frame(machine: _Machine) -> None:
        machine.number(8)  # how much could be read ahead

    return {
        ord("}"): push(lambda machine: {}),
        ord("]"): push(lambda machine: []),
        ord(")"): push(lambda machine: ()),
        ord("N"): push(lambda machine: None),
        0x88: push(lambda machine: True),
        0x89: push(lambda machine: False),
        ord("K"): push(lambda machine: machine.number(1)),
        ord("M"): push(lambda machine: machine.number(2)),
        ord("J"): push(lambda machine: machine.number(4, signed=True)),
        0x8A: push(lambda machine: machine.number(machine.number(1), signed=True)),
        # Strings, bytes and text: of Python 2, then 3; those with an 8-byte length are of protocol
        # 4.
        ord("U"): sized(1),
        ord("T"): sized(4),
        ord("C"): sized(1),
        ord("B"): sized(4),
        0x8C: sized(1),
        ord("X"): sized(4),
        0x8E: sized(8),
        0x8D: sized(8),
        ord("("): lambda machine: machine.marks.append(len(machine.stack)),
        ord("t"): push(lambda machine: tuple(machine.pop_to_mark())),
        0x85: tuple_of(1),
        0x86: tuple_of(2),
        0x87: tuple_of(3),
        ord("a"): append,
        ord("e"): appends,
        ord("s"): set_item,
        ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
        ord("q"): put(1),
        ord("r"): put(4),
        0x94: memoize,
        ord("h"): get(1),
        ord("j"): get(4),
        0x95: frame,
        ord("c"): lambda machine: machine.name(machine.line(), machine.line()),
        0x93: _Machine.stack_name,
        ord("R"): _Machine.reduce,
        ord("b"): _Machine.build,
    }


STEPS = _steps()
