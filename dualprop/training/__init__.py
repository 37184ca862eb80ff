"""Training by any rule: recipes, run folders, checkpoints."""

from dualprop.training.recipe import Optimizer, Recipe
from dualprop.training.runs import Run, create, load, train
from dualprop.training.trainer import Reporter

__all__ = ["Optimizer", "Recipe", "Reporter", "Run", "create", "load", "train"]
