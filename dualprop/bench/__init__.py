"""What a training step costs, against a plain PyTorch loop in the same process: one file a table.

bench.measure(table="settling", models="vgg16")      what `dualprop bench` does
bench.show(results)                                  its tables again
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualprop.bench.options import BenchOptions
    from dualprop.bench.tables import measure, run, show

__all__ = ["BenchOptions", "measure", "run", "show"]

# Where each name lives. They are fetched when first used: memory is measured in processes that
# import this package and should hold little else.
_HOMES = {"BenchOptions": "options", "measure": "tables", "run": "tables", "show": "tables"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dualprop.bench' has no attribute '{name}'")
    value: object = getattr(import_module(f"dualprop.bench.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
