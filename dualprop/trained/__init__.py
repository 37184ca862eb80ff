"""After training: a run's model, ready for new examples (`load`); its predictions of files
(`predict`), what it gets wrong (`evaluate`), and the model in others' formats (`export`)."""

from typing import TYPE_CHECKING

from dualprop.lazy import lazy

if TYPE_CHECKING:
    from dualprop.trained.evaluating import evaluate
    from dualprop.trained.exporting import Exported, export
    from dualprop.trained.loading import load
    from dualprop.trained.model import Standardisation, Trained
    from dualprop.trained.predicting import Prediction, predict
    from dualprop.trained.scores import Evaluation

__all__ = [
    "Evaluation", "Exported", "Prediction", "Standardisation", "Trained", "evaluate", "export", "load", "predict",
]  # fmt: skip

# Where each name lives. They are fetched when first used.
_HOMES = {
    "Evaluation": "scores",
    "evaluate": "evaluating",
    **dict.fromkeys(("Exported", "export"), "exporting"),
    "load": "loading",
    **dict.fromkeys(("Standardisation", "Trained"), "model"),
    **dict.fromkeys(("Prediction", "predict"), "predicting"),
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
