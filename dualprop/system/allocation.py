"""What a process does with the memory of freed tensors."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def keep_freed_memory() -> bool:
    """Have this process keep the memory of freed tensors for the next step; whether it will.

    glibc returns large blocks to the system and faults them in again page by page, at every step.
    Rules that hold two states a unit allocate more than back-propagation, and gain more: a step of
    the benchmark's conv nets is a fifth faster for it by every rule, and an MLP's in a plain loop
    comes from 1.1 of back-propagation's time to what it costs in the trainer, which calls this. It
    is the whole process's setting and lasts; memory is given back when the process ends. Other C
    libraries are left as they are.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        # The most that glibc takes as its threshold. Each call returns 1 where it was heard.
        return bool(libc.mallopt(m_mmap_threshold, 32 << 20) and libc.mallopt(m_trim_threshold, 2**31 - 1))
    return False
