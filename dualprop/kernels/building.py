"""The library of `dyadic.c`: compiled by the machine's C compiler, kept, checked before it runs.

It is kept in the user's cache folder under a key of everything that it depends on. A file of the
cache is the library and, behind it, the SHA-256 of key and library. It is read once, and what was
read is checked and then loaded from memory. So a file that is cut short, altered, of another
machine, or cut while it is in use, is built anew and can't bring the process down.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dualprop.system import processes
from dualprop.system.processes import ProgramError

SOURCE, GELU_SOURCE = (Path(__file__).with_name(name) for name in ("dyadic.c", "gelu.h"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fPIC", "-fopenmp")
# A compiler that hangs costs these seconds; a build takes two.
VERSION_SECONDS, BUILD_SECONDS = 10, 60
# More than any build of it has.
LARGEST = 16 << 20
_BUILDING = ".build-"


class BuildError(Exception):
    """There is no library; the message says why, in one line."""


def library() -> ctypes.CDLL:
    """The library, kept or built. Raises BuildError."""
    compiler = _compiler()
    if compiler is None:
        raise BuildError("no C compiler was found; install gcc, or name one in $CC")
    try:
        key = _key(compiler)
        return _loaded(_kept(compiler, key), key)
    except (OSError, ProgramError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BuildError(f"{shlex.join(compiler)} could not build it: {reason}") from error


def described() -> str:
    """What builds the library, in words and by its key. Raises OSError or ProgramError."""
    compiler = _compiler() or []
    version = _run([*compiler, "--version"], VERSION_SECONDS, os.sep, processes.environment())
    return " ".join([version.splitlines()[0], *compiler[1:], f"({_key(compiler)[:12]})"])


def _compiler() -> list[str] | None:
    """The command of $CC, which may have arguments, else of gcc or cc. A relative path is none."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:
        named = []
    for words in (named, ["gcc"], ["cc"]):
        if words and (path := processes.find(words[0])) is not None:
            return [path, *words[1:]]
    return None


def _key(compiler: list[str]) -> str:
    """What stands for all that the library depends on."""
    sources = [path.read_text(encoding="utf-8") for path in (SOURCE, GELU_SOURCE)]
    version = _run([*compiler, "--version"], VERSION_SECONDS, os.sep, processes.environment())
    described = "\0".join((*sources, version, *compiler[1:], *FLAGS, platform.machine(), _processor_flags()))
    return hashlib.sha256(described.encode()).hexdigest()


def _kept(compiler: list[str], key: str) -> bytes:
    """The library from the first folder that holds it whole, or that it can be built in."""
    failure = OSError("no folder of one's own to build in can be written")
    for folder in _folders():
        try:
            _make(folder)
            if not _is_private(folder):
                continue
            path = folder / f"dyadic-{key[:16]}.so"
            content = _read(path, key)
            return _build(compiler, path, key) if content is None else content
        except OSError as error:
            failure = error
    raise failure


def _read(path: Path, key: str) -> bytes | None:
    """The library in a file of ours; None where there is none that is whole and of this key."""
    try:
        # A link is not followed, and a pipe not waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not _is_own(status) or status.st_size > LARGEST:
                return None
            content = file.read(LARGEST)
    except OSError:
        return None
    content, digest = content[:-32], content[-32:]
    return content if digest == _digest(content, key) else None


def _build(compiler: list[str], path: Path, key: str) -> bytes:
    """Build the library, keep it at `path`, and return it."""
    with _folder_to_build_in(path.parent) as folder:
        # Its temporary files too are removed with the folder, where it is killed.
        env = processes.environment(TMPDIR=str(folder))
        compiled, linked = folder / "dyadic.o", folder / "dyadic.so"
        # Linked without OpenMP's library. Its symbols then come from the one that PyTorch has
        # loaded: threads of two libraries would fight over the cores.
        for words in ([*FLAGS, "-c", str(SOURCE), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(linked)]):
            _run([*compiler, *words], BUILD_SECONDS, folder, env)
        content = linked.read_bytes()
        kept = folder / path.name
        with open(kept, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content + _digest(content, key))
            file.flush()
            os.fsync(file.fileno())
        kept.replace(path)
    with _opened(path.parent) as descriptor:
        os.fsync(descriptor)
    return content


def _run(command: list[str], seconds: float, folder: Path | str, env: dict[str, str]) -> str:
    """What the compiler says. Raises ProgramError where it fails."""
    finished = processes.run(command, seconds=seconds, folder=folder, env=env)
    if finished.code != 0:
        raise ProgramError(finished.reason)
    return finished.out


@contextlib.contextmanager
def _folder_to_build_in(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is removed at the end, or by the next build where this is killed.

    It is locked for as long as this process lives. The parent is locked for as long as folders are
    made and removed, so that a folder is never seen before its lock.
    """
    with _opened(parent) as lock:
        _try_to_lock(lock, waits=True)
        for path in parent.glob(f"{_BUILDING}*"):
            with contextlib.suppress(OSError), _opened(path) as descriptor:
                if _is_own(os.fstat(descriptor)) and _try_to_lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_BUILDING))
        held = os.open(folder, os.O_RDONLY)
        _try_to_lock(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_to_lock(descriptor: int, waits: bool = False) -> bool:
    """Whether the lock is held now; the system releases it when the process ends. Some file
    systems have none."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _loaded(content: bytes, key: str) -> ctypes.CDLL:
    """The library of these bytes, from memory or, where the system has no such files, from a copy
    that nobody else knows."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError), open(os.memfd_create(f"dyadic-{key[:16]}"), "wb") as file:
            file.write(content)
            file.flush()
            # By its process's number: the loader takes two libraries of one path for one.
            return ctypes.CDLL(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    with tempfile.TemporaryDirectory(prefix="dualprop-") as folder:
        path = Path(folder, f"dyadic-{key[:16]}.so")
        path.write_bytes(content)
        return ctypes.CDLL(str(path))


def _folders() -> list[Path]:
    """Where libraries are kept: the user's cache, and, where that can't be written, the second.

    That is a temporary folder which belongs to the user alone. The current folder is neither.
    """
    caches = (os.environ.get("XDG_CACHE_HOME", ""), os.path.join(os.path.expanduser("~"), ".cache"))
    cache = next((Path(folder) for folder in caches if os.path.isabs(folder)), None)
    temporary = Path(tempfile.gettempdir(), f"dualprop-{os.getuid()}")
    is_elsewhere = os.path.isabs(temporary) and not processes.is_current_folder(str(temporary.parent))
    return [*([] if cache is None else [cache / "dualprop" / "native"]), *([temporary] if is_elsewhere else [])]


def _make(folder: Path) -> None:
    """Make the folder and those above it that are missing, each the user's alone."""
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)


def _is_private(folder: Path) -> bool:
    """Whether nobody else can write there, or put another folder in its place: code in it runs."""
    status = folder.lstat()
    above = (path.stat() for path in folder.resolve().parents)
    return stat.S_ISDIR(status.st_mode) and _is_own(status) and not any(_is_open(each) for each in above)


def _is_open(status: os.stat_result) -> bool:
    """Whether everybody may rename what lies in that folder."""
    return bool(status.st_mode & stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX


def _is_own(status: os.stat_result) -> bool:
    """Whether it is the user's and nobody else can write to it."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _digest(content: bytes, key: str) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def _processor_flags() -> str:
    """The flags that -march=native stands for. They tell the machines that share a home apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
