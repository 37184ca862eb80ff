"""Training by any rule: recipes, run folders, checkpoints."""

from dualprop.training.recipe import Optimizer, Recipe
from dualprop.training.reporting import Reporter
from dualprop.training.runs import Run, create, load, train

__all__ = ["Optimizer", "Recipe", "Reporter", "Run", "create", "load", "train"]
