"""A model of the user's own: a function in a file, `path.py:build`, that makes the module."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dualprop.errors import DualpropError, RunError, SettingError


@dataclass(frozen=True)
class OwnModel:
    """Your own: a function (input_shape, num_classes) of a file, which returns the module.

    Attributes:
        source: the file and the function, "path.py:build".
        digest: SHA-256 of the file. By default it is taken now; a run keeps it, and is not gone on
            with by another file. What the file itself imports is not looked at.
    """

    source: str
    digest: str = ""

    def __post_init__(self) -> None:
        path, colon, function = self.source.rpartition(":")
        if not (colon and path.endswith(".py") and function.isidentifier()):
            raise SettingError(f"a model of your own is given as path.py:build, its file and function, got '{self.source}'.")
        if not self.digest:
            whole = Path(path).expanduser().resolve()
            object.__setattr__(self, "source", f"{whole}:{function}")
            object.__setattr__(self, "digest", hashlib.sha256(_read(whole)).hexdigest())

    is_convolutional = False
    # Of neurons: its layers are those that are found when it runs.
    depth = None

    @property
    def path(self) -> Path:
        return Path(self.source.rpartition(":")[0])

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """The model for inputs (N, *input_shape), outputs (N, K).

        Raises RunError where the file is another than it was, SettingError where it makes no model.
        """
        content, name = _read(self.path), self.source.rpartition(":")[2]
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise RunError(f"{self.path}, which makes the run's model, was edited since. Restore it, or train anew.")
        function = getattr(self._module(), name, None)
        if not callable(function):
            raise SettingError(f"{self.path} has no function '{name}'. Write def {name}(input_shape, num_classes).")
        try:
            model = function(input_shape, num_classes)
        except DualpropError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise SettingError(f"{self.source} can't make the model of {input_shape} and {num_classes}: {told}") from error
        if not isinstance(model, nn.Module):
            raise SettingError(f"{self.source} returns a {type(model).__name__}. Return a torch.nn.Module.")
        return model

    def _module(self) -> object:
        """The file's module, run once for each of its contents."""
        name = f"dualprop_own_{self.digest[:16]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, self.path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            # So that its classes can be pickled, and it can import what stands beside it.
            sys.modules[name] = module
            sys.path.insert(0, str(self.path.parent))
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                del sys.modules[name]
                raise SettingError(f"{self.path} can't be run: {type(error).__name__}: {error}") from error
            finally:
                sys.path.remove(str(self.path.parent))
        return sys.modules[name]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path}, which is to make the model, can't be read: {error.strerror}. Give its path.") from error
