"""Where a run's metrics are logged, beside its folder: TensorBoard, Weights & Biases, MLflow, CSV,
or a logger of one's own (`AbstractLogger`)."""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.loggers.base import AbstractLogger, LoggedSeed
    from dualprop.loggers.comma_separated import CSV
    from dualprop.loggers.experiments import MLflow
    from dualprop.loggers.names import LOGGERS, parse
    from dualprop.loggers.scalars import TensorBoard
    from dualprop.loggers.weights_and_biases import WandB

__all__ = ["CSV", "LOGGERS", "AbstractLogger", "LoggedSeed", "MLflow", "TensorBoard", "WandB", "parse"]

# Where each name lives. They are fetched when first used.
_HOMES = {
    **dict.fromkeys(("AbstractLogger", "LoggedSeed"), "base"),
    **dict.fromkeys(("LOGGERS", "parse"), "names"),
    "CSV": "comma_separated",
    "MLflow": "experiments",
    "TensorBoard": "scalars",
    "WandB": "weights_and_biases",
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
