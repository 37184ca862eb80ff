"""What a training step costs, against a plain PyTorch loop, one file a table; and experiments.

What the command line does, in as many words (docs/python.md):

    bench.measure(table="settling", models="vgg16")   `dualprop bench`, and bench.show(results)
    bench.train("mnist-mlp", seeds=1)                 `dualprop train`
    bench.compare("mnist-mlp", variants="all")        `dualprop compare`
"""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.bench.experiments import CompareOptions, TrainOptions, compare, resume, started_from, train
    from dualprop.bench.options import BenchOptions
    from dualprop.bench.tables import measure, show

__all__ = ["BenchOptions", "CompareOptions", "TrainOptions", "compare", "measure", "resume", "show", "started_from", "train"]

# Where each name lives. They are fetched when first used: memory is measured in processes that
# import this package and should hold little else.
_HOMES = {
    "BenchOptions": "options",
    **dict.fromkeys(("measure", "show"), "tables"),
    **dict.fromkeys(("CompareOptions", "TrainOptions", "compare", "resume", "started_from", "train"), "experiments"),
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
