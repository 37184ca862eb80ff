"""Named data sets as tensors that live on the training device: `load` one, then draw `batches` from
its parts."""

from dualprop.data.augmentation import Augmentation
from dualprop.data.datasets import load, names
from dualprop.data.description import Description, title
from dualprop.data.examples import Examples, batches
from dualprop.data.own import Reading
from dualprop.data.splits import Splits
from dualprop.data.tasks import Task

__all__ = ["Augmentation", "Description", "Examples", "Reading", "Splits", "Task", "batches", "load", "names", "title"]
