"""Reading a model by running it: which calls are activations, and what is left in between."""

from dualprop.reading import activations
from dualprop.reading.description import describe
from dualprop.reading.mode import Reading
from dualprop.reading.report import Event, Report

__all__ = ["Event", "Reading", "Report", "activations", "describe"]
