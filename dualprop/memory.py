"""Memory that can't be had: recognised in one place, and told in one line that says what asked for
it and what to lower.

PyTorch, numpy, Python and C++ each raise an error of their own. `asking` turns them all into
OutOfMemoryError; `told_as`, which makes other errors of PyTorch's readable, lets them through.
`check` refuses what surely does not fit before it is allocated.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dualprop.errors import OutOfMemoryError

if TYPE_CHECKING:
    import torch

# What the RuntimeErrors of PyTorch and its libraries say where memory is lacking; a thread is
# refused for want of its stack.
_WORDS = (
    "can't allocate memory",
    "out of memory",
    "Storage size calculation overflowed",
    "bad_alloc",
    "Cannot allocate memory",
    "ALLOC_FAILED",
    "could not create a memory object",
    "can't start new thread",
)


def is_lacking(error: BaseException) -> bool:
    """Whether the error says that memory can't be had."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS))


def first_line(error: BaseException) -> str:
    """What an error says, in its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")


@contextlib.contextmanager
def asking(what: str | Callable[[], str], lower: str, then: str = "") -> Iterator[None]:
    """Turn an error that says that memory is lacking into an OutOfMemoryError: `what` asked for it,
    and `lower` is the remedy. One from further inside keeps its own; `then` is added to either."""
    try:
        yield
    except Exception as error:
        if not is_lacking(error):
            raise
        if isinstance(error, OutOfMemoryError):
            if not then:
                raise
            raise OutOfMemoryError(f"{error} {then}") from error
        raise told(error, what if isinstance(what, str) else what(), f"{lower} {then}".rstrip()) from error


def told(error: BaseException, what: str, lower: str) -> OutOfMemoryError:
    """The error in one line. PyTorch's words stay in it, as tools that then halve a batch look for
    them."""
    said = re.sub(r"^\[enforce fail.*?\] .*?\. ", "", first_line(error))
    said = re.split(r"\.? (?:Error code|GPU \d+ has)", said)[0]
    size = re.search(r"allocate (\d{7,}) bytes", said)
    gigabytes = f", {_gigabytes(int(size[1]))}" if size else ""
    return OutOfMemoryError(f"memory is full: {what} asked for more than there is ({said}{gigabytes}). {lower}")


@contextlib.contextmanager
def told_as(tell: Callable[[str], Exception], *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into what `tell` makes of their first line; but not those that say
    that memory is lacking, which has other remedies."""
    try:
        yield
    except kinds as error:
        if is_lacking(error):
            raise
        raise tell(first_line(error)) from error


def check(num_bytes: int, what: str, lower: str, device: torch.device | str = "cpu") -> None:
    """Raise OutOfMemoryError where `what` needs this many bytes and the device has fewer."""
    most = free(device, with_swap=True)
    if num_bytes > most:
        raise OutOfMemoryError(f"{what} needs {_gigabytes(num_bytes)} of memory, and {_gigabytes(most)} are free. {lower}")


def free(device: torch.device | str = "cpu", with_swap: bool = False) -> int:
    """Bytes of the device's memory that are free or can be freed at once; of main memory, within
    the limits of the container and the process."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = list(_of_the_process())
    with contextlib.suppress(OSError):
        names = ("MemAvailable:", "SwapFree:") if with_swap else ("MemAvailable:",)
        limits.append(1024 * sum(_entry(Path("/proc/meminfo"), name) for name in names))
    groups = (
        ("", "memory.max", "memory.current", "file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "cache"),
    )
    for folder, limit, used, cached in groups:
        group = Path("/sys/fs/cgroup") / folder
        # There is no such group, or its limit is the word "max".
        with contextlib.suppress(OSError, ValueError):
            in_use = int((group / used).read_text()) - _entry(group / "memory.stat", cached)
            limits.append(int((group / limit).read_text()) - in_use)
    # Where nothing is known, what ImageNet32 fits into twice.
    return max(0, min(limits)) if limits else 8 * 10**9


def _of_the_process() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave to this process, where they are set."""
    if sys.platform != "linux":
        return
    import resource

    for kind, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            with contextlib.suppress(OSError):
                yield limit - 1024 * _entry(Path("/proc/self/status"), used)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"


def _entry(path: Path, name: str) -> int:
    """The number after `name` in a file of such lines, 0 without one."""
    words = (line.split() for line in path.read_text().splitlines())
    return next((int(word[1]) for word in words if word[:1] == [name]), 0)
