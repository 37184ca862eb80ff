"""What a training step costs, against a plain PyTorch loop, one file a table; and experiments.

What the command line does, in as many words (docs/python.md):

    bench.measure(table="settling", models="vgg16")   `dualprop bench`, and bench.show(results)
    bench.train("mnist-mlp", seeds=1)                 `dualprop train`
    bench.compare("mnist-mlp", variants="all")        `dualprop compare`
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dualprop.bench.experiments import CompareOptions, TrainOptions, compare, resume, train
    from dualprop.bench.options import BenchOptions
    from dualprop.bench.tables import measure, show

__all__ = ["BenchOptions", "CompareOptions", "TrainOptions", "compare", "measure", "resume", "show", "train"]

# Where each name lives. They are fetched when first used: memory is measured in processes that
# import this package and should hold little else.
_HOMES = {
    "BenchOptions": "options",
    **dict.fromkeys(("measure", "show"), "tables"),
    **dict.fromkeys(("CompareOptions", "TrainOptions", "compare", "resume", "train"), "experiments"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dualprop.bench' has no attribute '{name}'")
    value: object = getattr(import_module(f"dualprop.bench.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
