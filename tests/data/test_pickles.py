"""The reader of pickles: what Python's own reads of plain data, and of everything else nothing,
least of all by running it."""

import argparse
import functools
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dualprop
from dualprop.data import pickles
from dualprop.errors import DataError

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 6)


def failure(content: bytes) -> str:
    """The message with which `content` is refused, proved to be one line about the file."""
    with pytest.raises(DataError) as raised:
        pickles.read(content, "some/file")
    message = str(raised.value)
    assert message.startswith("some/file ")
    assert message.endswith("; replace it.")
    assert "\n" not in message
    assert message.isprintable()
    return message


def plain(value: Any, content: bytes) -> Any:
    """What was read, with Spans and arrays looked up in the file."""
    if isinstance(value, pickles.Span):
        return content[value.start : value.stop]
    if isinstance(value, pickles.Stored):
        return value.read(content).tolist()
    return [plain(v, content) for v in value] if isinstance(value, list) else value


def by_python2(entries: dict[str, Any]) -> bytes:
    """The pickle that Python 2 and its numpy wrote, as CIFAR's files are: protocol 2, strings of
    bytes, everything memoised."""
    out, number = bytearray(b"\x80\x02}q\x00("), 0

    def put() -> None:
        nonlocal number
        number += 1
        out.extend(b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number))

    def string(text: bytes) -> None:
        out.extend(b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text)
        put()

    for key, value in entries.items():
        string(key.encode())
        if isinstance(value, list):
            out.extend(b"]")
            put()
            out.extend(b"(")
            for item in value:
                if isinstance(item, bytes):
                    string(item)
                else:
                    out.extend(b"K" + bytes([item]) if item < 256 else b"M" + struct.pack("<H", item))
            out.extend(b"e")
        else:
            out.extend(b"cnumpy.core.multiarray\n_reconstruct\n")
            put()
            out.extend(b"cnumpy\nndarray\n")
            put()
            out.extend(b"K\x00\x85U\x01b\x87R(K\x01")
            out.extend(b"M" + struct.pack("<H", value.shape[0]) + b"M" + struct.pack("<H", value.shape[1]) + b"\x86")
            out.extend(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
            string(value.tobytes())
            out.extend(b"tb")
    return bytes(out + b"u.")


ENTRIES = {"data": PIXELS, "labels": [3, 300], "filenames": [b"a.png", b"b.png"]}


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_file_by_python_3_is_read_as_python_reads_it(protocol):
    """ImageNet32's files are of this kind."""
    entries = {**ENTRIES, "mean": np.linspace(0, 1, 3), "count": -70_000, "none": None, "yes": True, "empty": [], "big": 2**70}
    content = pickle.dumps(entries, protocol)
    found = {key: plain(value, content) for key, value in pickles.read(content, "file").items()}
    assert found == {**entries, "data": PIXELS.tolist(), "mean": [0, 0.5, 1]}


def test_a_file_by_python_2_is_read_as_python_reads_it():
    """CIFAR's files are of this kind."""
    content = by_python2(ENTRIES)
    held = pickle.loads(content, encoding="bytes")
    assert np.array_equal(held[b"data"], PIXELS), "the file is not a pickle: the comparison shows nothing"
    found = {key: plain(value, content) for key, value in pickles.read(content, "file").items()}
    assert found == {**ENTRIES, "data": PIXELS.tolist()}


VALUES = st.one_of(
    st.integers(-(2**80), 2**80),
    st.booleans(),
    st.none(),
    st.lists(st.integers(-(2**31), 2**31 - 1) | st.text(max_size=300), max_size=30),
    st.binary(max_size=400),
)


@given(st.dictionaries(st.text("abcdefgh_", max_size=20), VALUES, max_size=6), st.integers(3, 4))
def test_any_plain_dictionary_is_read_as_python_reads_it(entries, protocol):
    """An opcode that is read wrongly shifts everything after it."""
    content = pickle.dumps(entries, protocol)
    found = {key: plain(value, content) for key, value in pickles.read(content, "file").items()}
    expected = {
        key: [item.encode() if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
        for key, value in entries.items()
    }
    assert found == expected


@given(
    st.sampled_from(pickles.DTYPES), st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(3, 4), st.integers(0, 9)
)
def test_any_array_of_plain_numbers_is_read_as_python_reads_it(code, shape, protocol, seed):
    """And it is found at its place in the file, for there it is mapped."""
    array = np.random.default_rng(seed).integers(0, 100, shape).astype(code)
    content = pickle.dumps({"before": "x" * seed, "array": array}, protocol)
    stored = pickles.read(content, "file")["array"]
    assert (stored.dtype, stored.shape) == (array.dtype, array.shape)
    assert np.array_equal(stored.read(content), array)
    assert content[stored.offset :].startswith(array.tobytes())


class Call:
    """Pickles as a call of a function."""

    def __init__(self, *called: Any) -> None:
        self.called = called

    def __reduce__(self) -> Any:
        return self.called[0], self.called[1:]


def malicious(command: str) -> dict[str, bytes]:
    """Pickles that run `command`, each in another way."""
    text, call = command.encode(), Call(os.system, command)
    short = b"U" + bytes([len(text)]) + text
    return {
        "reduce": pickle.dumps(call, 2),
        "reduce, protocol 4": pickle.dumps(call, 4),
        "eval": pickle.dumps({"labels": Call(eval, f"__import__('os').system({command!r})")}, 3),
        "Popen": pickle.dumps(Call(subprocess.getoutput, command), 3),
        "in a list beside good data": pickle.dumps({"data": PIXELS, "labels": [0, call]}, 4),
        "as a key": b"\x80\x02}" + pickle.dumps(call, 2)[2:-1] + b"K\x01s.",
        "in an array of objects": pickle.dumps({"data": np.array([call, 0])}, 4),
        "as the shape of an array": pickle.dumps({"data": PIXELS}, 3).replace(b"K\x02K\x06\x86", pickle.dumps(call, 2)[2:-1]),
        "build": b"\x80\x02cargparse\nNamespace\n)\x81}U\x0c__setstate__cos\nsystem\nsb" + short + b"b.",
        "inst": b"\x80\x02(" + short + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + short + b"o.",
        "newobj": b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85\x81" + short + b"\x85R.",
        "newobj with names": b"\x80\x04cfunctools\npartial\ncos\nsystem\n\x85}\x92" + short + b"\x85R.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + short + b"\x85R.",
        "after popping": b"\x80\x02cos\nsystem\n" + short + b"\x85R0}.",
        "before the dictionary": b"\x80\x02cos\nsystem\n" + short + b"\x85R0" + by_python2(ENTRIES)[2:],
    }


@pytest.mark.parametrize("way", malicious(""))
def test_a_pickle_that_would_run_a_command_is_refused_and_does_not(way, tmp_path):
    """Data sets are passed on by strangers; Python's own reader runs each of these."""
    marker = tmp_path / "marker"
    content = malicious(f"touch {marker}")[way]
    told = failure(content)
    assert "was not run" in told or "damaged" in told
    assert not marker.exists()
    try:
        pickle.loads(content)
    except Exception:
        assert way == "as the shape of an array", "the command was not reached: nothing is shown"
    assert marker.exists(), "the pickle is harmless to Python's own reader: nothing is shown"


def test_nothing_is_imported_while_a_pickle_is_read(monkeypatch):
    """Importing a module runs it."""
    contents = [*malicious("true").values(), by_python2(ENTRIES), pickle.dumps(ENTRIES, 4)]

    def refuse(*names: Any, **_: Any) -> Any:
        raise AssertionError(f"{names[0]} was imported")

    outcomes = []
    with monkeypatch.context() as patched:
        patched.setattr("builtins.__import__", refuse)
        for content in contents:
            try:
                outcomes.append(type(pickles.read(content, "file")))
            except DataError:
                outcomes.append(None)
    assert outcomes[-2:] == [dict, dict]
    assert set(outcomes[:-2]) == {None}


def test_the_package_never_uses_pythons_own_reader():
    """One `allow_pickle=True` or `torch.load` would undo all of this."""
    for path in Path(dualprop.__file__).parent.rglob("*.py"):
        source = path.read_text()
        for word in ("import pickle\n", "from pickle ", "allow_pickle=True", "torch.load(", "cloudpickle", "joblib"):
            assert word not in source, f"{path}: {word}"


def reads_or_refuses(content: bytes) -> bool:
    """Whether it was read. Any error but a DataError in one line escapes, and fails the test."""
    told = ""
    try:
        found = pickles.read(content, "some/file")
    except DataError as error:
        told = str(error)
    if told:
        assert told.isprintable()
        return False
    assert type(found) is dict
    for value in found.values():
        if isinstance(value, pickles.Stored):
            value.read(content)
    return True


@pytest.mark.parametrize("content", [by_python2(ENTRIES), pickle.dumps(ENTRIES, 3), pickle.dumps(ENTRIES, 4)])
def test_every_changed_byte_is_refused_in_one_line_or_stays_plain_data(content):
    """Bit rot; any other error would be a traceback, and a wrong length memory that is not ours."""
    refused = 0
    for position in range(len(content)):
        for change in (0x01, 0x80, 0xFF, content[position]):
            refused += not reads_or_refuses(content[:position] + bytes([content[position] ^ change]) + content[position + 1 :])
    assert refused > len(content)


@pytest.mark.parametrize("content", [by_python2(ENTRIES), pickle.dumps(ENTRIES, 3), pickle.dumps(ENTRIES, 4)])
def test_every_truncation_and_every_addition_is_refused(content):
    """A download that broke off."""
    for length in range(len(content)):
        failure(content[:length])
    assert "goes on for 1 bytes after its end" in failure(content + b".")


FORBIDDEN = (b"0", b"1", b"2", b"o", b"i", b"P", b"Q", b"\x81", b"\x92", b"\x8b", b"\x82")
OPCODES = st.sampled_from([bytes([code]) for code in pickles.STEPS] + [b".", *FORBIDDEN])
NAMES = (b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n")
WORDS = st.sampled_from([*NAMES, b"U\x02u1", b"K\x00", b"]q\x00"])


@given(st.lists(st.one_of(OPCODES, WORDS, st.binary(max_size=3)), max_size=40))
def test_a_random_program_is_refused_in_one_line_or_is_plain_data(parts):
    """What nobody thought of."""
    reads_or_refuses(b"\x80\x02" + b"".join(parts) + b".")


@given(st.data())
def test_several_changes_at_once_are_refused_or_stay_plain_data(data):
    """As above, with parts of the file moved, repeated and lost."""
    content = by_python2(ENTRIES)
    for _ in range(data.draw(st.integers(1, 5))):
        start, stop, to = (data.draw(st.integers(0, len(content))) for _ in range(3))
        content = (
            content[:to] + content[min(start, stop) : max(start, stop)] + content[data.draw(st.integers(to, len(content))) :]
        )
    reads_or_refuses(content)


DEEP = 50_000
SIZES = b"M\x02\x00M\x06\x00"  # of PIXELS, in by_python2
BOMBS = {
    "a memo index of two thousand million": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytes of which there are not so many": b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
    "text of which there is not so much": b"\x80\x04\x8d" + struct.pack("<Q", 2**62),
    "a negative length": b"\x80\x02T\xff\xff\xff\xff.",
    "a frame of 2⁶³ bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b"}.",
    "an integer of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "nothing but marks": b"\x80\x02" + b"(" * DEEP,
    "lists within lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "tuples within tuples": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "dictionaries within dictionaries": b"\x80\x02}" + b"U\x01a}" * DEEP + b"s" * DEEP + b"\x85.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a tuple as a key": b"\x80\x02})" + b"\x85" * DEEP + b"K\x01s.",
    "an array of 2⁶⁰ bytes": by_python2({"data": PIXELS}).replace(SIZES, b"\x8a\x08" + struct.pack("<q", 2**60) + b"K\x01"),
    "an array of more bytes than atoms": by_python2({"data": PIXELS}).replace(SIZES, (b"\x8a\xff" + b"\x7f" * 255) * 2),
    "an array of a negative size": by_python2({"data": PIXELS}).replace(SIZES, b"J\xff\xff\xff\xffJ\xf4\xff\xff\xff"),
    "one step too many": b"\x80\x02" + b"N" * pickles.MAX_STEPS + b".",
}


HARMLESS = ("a memo index of two thousand million", "a frame of 2⁶³ bytes")


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_can_not_ask_for_much_memory(bomb):
    """Python's own reader asks for 34 GB at the first of these, nine bytes long."""
    tracemalloc.start()
    try:
        was_read = reads_or_refuses(BOMBS[bomb])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20, f"{peak / 2**20:.0f} MB"
    assert was_read == (bomb in HARMLESS)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"data": np.array(["a", "b"], object)}, "asks for a call that makes no plain array"),
        ({"data": np.array(["a", "b"])}, "asks for a call that makes no plain array"),
        ({"data": np.zeros(2, [("x", "u1"), ("y", "u1")])}, "asks for a call that makes no plain array"),
        ({"data": np.zeros(2, ">i8")}, "is not of plain little-endian numbers"),
        ({"data": np.zeros(2, complex)}, "asks for a call that makes no plain array"),
        ({"data": np.asfortranarray(PIXELS)}, "is not stored row by row"),
        ({"data": np.float64(3)}, "asks for 'numpy._core.multiarray.scalar', which is not data"),
        ({"data": np.ma.array(PIXELS)}, "asks for 'numpy.ma"),
        ({"data": np.datetime64("2026-01-01")}, "numpy"),
        ({"data": argparse.Namespace()}, "asks for 'argparse.Namespace', which is not data"),
        ({"data": functools.partial(print)}, "asks for 'functools.partial', which is not data"),
        ({"data": {1, 2}}, "holds more than plain data (pickle opcode 0x8f)"),
        ({"data": 0.5}, "holds more than plain data (pickle opcode 0x47)"),
        ({1: 2}, "something else where a name belongs"),
        ({"x" * 101: 2}, "something else where a name belongs"),
        ([1, 2], "does not hold a dictionary"),
        (3, "does not hold a dictionary"),
    ],
)
def test_what_is_not_plain_data_is_named(entries, complaint):
    """A refusal that does not say why sends the user to the wrong remedy."""
    assert complaint in failure(pickle.dumps(entries, 4))


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"text", b"\x80\x05}.", b"\x80\x01}.", pickle.dumps({}, 0), pickle.dumps({}, 5)]
)
def test_other_protocols_and_other_files_are_told_apart(content):
    """A .npz or a text file under a batch's name."""
    assert "is not a pickle of protocol 2, 3 or 4" in failure(content)
