"""Damage to a run folder: of its files as bytes, as JSON, as what a name stands for."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
from sandbox import Sandbox, is_root

_LARGEST = 1 << 40


def damage(folder: Path, sandbox: Sandbox, dice: random.Random) -> str:
    """Damage one file or folder below `folder`, and say what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing is left to damage"
    path = dice.choice(files)
    if path.suffix in (".json", ".jsonl") and dice.random() < 0.5:
        return f"{path.relative_to(folder)}: {_edit(path, dice)}"
    if path.suffix == ".safetensors" and dice.random() < 0.25:
        return f"{path.relative_to(folder)}: {_edit_header(path, dice)}"
    # The run folder itself may be a link: the user has named it.
    folders = sorted(each for each in folder.rglob("*") if each.is_dir() and not each.is_symlink())
    changes = _OF_FILES
    if folders and dice.random() < 0.2:
        path, changes = dice.choice(folders), _OF_FOLDERS
    change = dice.choice(changes)
    done = change(path, sandbox, dice)
    return f"{path.relative_to(folder)}: {change.__name__.strip('_')}{f' {done}' if done else ''}"


def _cut(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    length = dice.choice((0, 1, dice.randrange(1 + path.stat().st_size), max(0, path.stat().st_size - 1)))
    os.truncate(path, length)
    return f"to {length} bytes"


def _flip_bits(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [dice.randrange(len(content)) for _ in range(dice.choice((1, 1, 1, 4)))] if content else []
    for place in places:
        content[place] ^= 1 << dice.randrange(8)
    path.write_bytes(content)
    return f"at {places}"


def _replace(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    content = dice.choice((b"", b"\0" * 100, b"\xff\xfe\n", b"[]", b"null", b"{}", b"3", b'"x"', b"[" * 100_000, b"{" * 1000,
                          b"\n\n\n", b"\xef\xbb\xbf{}", b"NaN", b"1" * 5000, b'{"a":' * 50_000, dice.randbytes(300),
                          b"\x1b[31mred\x1b[0m"))  # fmt: skip
    path.write_bytes(content)
    return f"by {content[:12]!r} of {len(content)} bytes"


def _add(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    content = dice.choice((b"x", b"\n", b"{}\n", b"[1]\n", b"\xff\n", b"null\n", path.read_bytes(), dice.randbytes(50)))
    with open(path, "ab") as file:
        file.write(content)
    return repr(content[:12])


def _swap(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    others = sorted(each for each in path.parents[1].rglob("*") if each.is_file() and each != path)
    alike = [each for each in others if each.suffix == path.suffix]
    other = dice.choice(alike or others or [path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return f"with {other.name}"


def _remove(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    _take_away(path)
    return ""


def _enlarge(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    os.truncate(path, _LARGEST)
    return "to a terabyte of holes"


def _link(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    inside, name = sandbox.outside / "theirs", path.name
    victim = inside / name if (inside / name).exists() else sandbox.outside / "precious.txt"
    target = dice.choice((str(victim), str(victim), os.path.relpath(victim, path.parent), name, "absent", "..",
                         str(sandbox.outside / "new"), "recipe.json"))  # fmt: skip
    _take_away(path)
    path.symlink_to(target)
    return f"to {target}"


def _link_to_itself_moved(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    target = sandbox.outside / f"moved-{path.name}"
    shutil.move(path, target)
    path.symlink_to(target)
    return f"to {target}"


def _hard_link(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    victim = sandbox.outside / "precious.txt"
    _take_away(path)
    os.link(victim, path)
    return f"to {victim}"


def _fifo(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    _take_away(path)
    os.mkfifo(path)
    return ""


def _device(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    if not is_root():
        return _fifo(path, sandbox, dice)
    _take_away(path)
    number = dice.choice((3, 5, 7))
    os.mknod(path, 0o020666, os.makedev(1, number))
    return {3: "null", 5: "zero", 7: "full"}[number]


def _directory(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    _take_away(path)
    path.mkdir()
    if dice.random() < 0.5:
        (path / "mine.txt").write_text("mine")
    return ""


def _no_permission(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    path.chmod(mode := dice.choice((0, 0o400, 0o200) if path.is_file() else (0, 0o500, 0o600, 0o300)))
    return f"{mode:o}"


def _another_users(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    _owners[path] = mode = dice.choice((0o600, 0o644, 0o666) if path.is_file() else (0o700, 0o755, 0o777))
    return f"{mode:o}"


def _file(path: Path, sandbox: Sandbox, dice: random.Random) -> str:
    _take_away(path)
    path.write_text("mine")
    return ""


# What is another user's becomes so when all else is done: handing over would undo it.
_owners: dict[Path, int] = {}


def settle_owners() -> None:
    """Give away what `damage` has chosen to be another user's; where that is possible."""
    for path, mode in _owners.items():
        with contextlib.suppress(OSError):
            path.chmod(mode)
            if is_root():
                os.chown(path, 0, 0)
    _owners.clear()


Change = Callable[[Path, Sandbox, random.Random], str]
_OF_FILES: tuple[Change, ...] = (
    _cut, _cut, _flip_bits, _flip_bits, _replace, _replace, _add, _swap, _remove, _enlarge, _link, _link, _link_to_itself_moved,
    _hard_link, _fifo, _device, _directory, _no_permission, _another_users,
)  # fmt: skip
_OF_FOLDERS: tuple[Change, ...] = (_remove, _link, _link, _link_to_itself_moved, _fifo, _file, _no_permission, _another_users)


def _take_away(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _edit(path: Path, dice: random.Random) -> str:
    """One field of a JSON file, at any depth, of another type, absent, renamed, or one more."""
    lines = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    number = dice.randrange(max(1, len(lines) - 1))
    try:
        value = json.loads(lines[number])
    except (ValueError, RecursionError):
        return "not JSON any more"
    value, done = _edited(value, dice)
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines))
    return done


def _edit_header(path: Path, dice: random.Random) -> str:
    """The same of the JSON in a checkpoint's header, whose length is set right."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        about = json.loads(header["__metadata__"]["dualprop"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no checkpoint any more"
    if dice.random() < 0.7:
        about, done = _edited(about, dice)
        header["__metadata__"]["dualprop"] = json.dumps(about)
    else:
        header, done = _edited(header, dice)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"header: {done}"


def _edited(value: Any, dice: random.Random) -> tuple[Any, str]:
    paths = sorted(_paths(value), key=str)
    path = dice.choice(paths)
    given = hostile.plain(dice)
    shown = repr(given)[:60]
    if not path:
        return given, f"all of it {shown}"
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, name = path[-1], ".".join(map(str, path))
    way = dice.randrange(10)
    if way == 0:
        del parent[key]
        return value, f"{name} removed"
    if way == 1 and isinstance(parent, dict):
        parent[hostile.TEXTS[dice.randrange(len(hostile.TEXTS))]] = parent.pop(key)
        return value, f"{name} renamed"
    if way == 2 and isinstance(parent, dict):
        parent["extra"] = given
        return value, f"extra beside {name}: {shown}"
    if way == 3 and isinstance(parent, dict) and isinstance(parent[key], dict):
        label = dice.choice(
            ("../escaped", "../../outside/new", "/proc/absent/x", "a/b", "", ".", "..", "a\nb", "\x1b[31m", "x" * 300, ".lock")
        )
        parent[label] = parent.pop(key)
        return value, f"{name} named {label!r}"
    parent[key] = given
    return value, f"{name} = {shown}"


def _paths(value: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [so_far, *(path for key, inner in items for path in _paths(inner, (*so_far, key)))]
