"""What a run ran on: versions, commit, processor, threads, device."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import numpy
import torch

import dualprop
from dualprop.system import processes
from dualprop.system.processes import ProgramError

# What no run's numbers are computed by: these rooms stand above training, as a test of imports
# holds.
_ABOVE_TRAINING = ("analysis", "bench", "cli", "loggers", "recipes", "reproduction", "sklearn", "trained")
# Environment variables that choose how libraries compute.
_STEERING = ("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_CPU_ISA_HINTS", "DNNL_DEFAULT_FPMATH_MODE",
             "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_CPU_ISA_HINTS",
             "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")  # fmt: skip


def describe(device: str = "cpu") -> dict[str, Any]:
    """Plain values, for environment.json and for published numbers."""
    environment: dict[str, Any] = {
        "dualprop": dualprop.__version__,
        "commit": commit(),
        "code": code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "instruction_sets": _instruction_sets(),
        "mkldnn": _mkldnn(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "products": torch.get_float32_matmul_precision(),
        "variables": {name: os.environ[name] for name in _STEERING if name in os.environ},
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        environment |= {"accelerator": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return environment


def commit() -> str | None:
    """The commit of the checkout that the package lies in, "-dirty" appended where it differs; None
    outside one."""
    folder = Path(dualprop.__file__).resolve().parent
    # Another project's checkout further above is not looked into: its settings may name programs.
    git = processes.find("git") if (folder.parent / ".git").exists() else None
    if git is None:
        return None
    try:
        if not _git(git, folder, "ls-files", "--error-unmatch", "__init__.py"):
            return None
        head = _git(git, folder, "rev-parse", "HEAD")
        is_dirty = _git(git, folder, "status", "--porcelain", "--ignore-submodules=all", "--", ".")
    except ProgramError:
        return None
    return f"{head}-dirty" if is_dirty else head


@functools.cache
def code() -> str:
    """The digest of the sources that compute a run: of all of the package but what stands above
    training."""
    folder = Path(dualprop.__file__).resolve().parent
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for suffix in ("py", "c", "h") for path in folder.rglob(f"*.{suffix}")):
        name = path.relative_to(folder)
        if name.parts[0] not in _ABOVE_TRAINING:
            content = path.read_text(encoding="utf-8").encode()
            digest.update(f"{name.as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _git(git: str, folder: Path, *arguments: str) -> str:
    """What git says of this folder: it runs no other program, and changes nothing."""
    env = {name: value for name, value in processes.environment().items() if not name.startswith("GIT_")}
    env["GIT_CEILING_DIRECTORIES"] = str(folder.parents[1])
    options = ("--no-optional-locks", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
    finished = processes.run([git, *options, *arguments], seconds=10, folder=folder, env=env)
    if finished.code != 0:
        raise ProgramError(finished.reason)
    return finished.out.strip()


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    """Those of vectors, matrices and short floating-point numbers, by the names of Linux; empty
    where it does not run."""
    names = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16",
             "amx_fp16", "asimd", "sve", "bf16")  # fmt: skip
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [name for name in names if name in flags]


def _mkldnn() -> str | None:
    """The version of oneDNN, PyTorch's convolutions on CPUs, where it is built with it and
    enabled."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return None
    version = re.search(r"MKL-DNN\) (v[\d.]+)", torch.__config__.show())
    return version[1] if version else "unknown version"


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key)
    except (OSError, StopIteration):
        return ""
