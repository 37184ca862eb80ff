"""What `dualprop show` does: one inference, and its picture where one is named."""

from __future__ import annotations

from dualprop.analysis import inference
from dualprop.analysis.inference import Inference, ShowOptions
from dualprop.analysis.keywords import by_keyword


@by_keyword(ShowOptions)
def show(options: ShowOptions) -> Inference:
    """Infer, and draw `figure` where one is named. The arguments are the fields of `ShowOptions`.

    Raises SettingError for what can't be shown, and RunError where the figure can't be written.
    """
    return run_show(options)


def run_show(options: ShowOptions) -> Inference:
    """What `show` does by options that are there already."""
    shown = inference.inferred(options)
    if options.figure is not None:
        from dualprop.analysis import dyad_pictures

        dyad_pictures.draw(shown, options.figure)
    return shown
