"""What each item needs, in a line: data sets, runs and, by counts, training steps."""

from __future__ import annotations

from dualprop.reproduction.items import ITEMS, Item


def summaries() -> dict[str, str]:
    """By the item's name."""
    return {name: f"{item.summary}; {needs(item)}" for name, item in ITEMS.items()}


def needs(item: Item) -> str:
    """ "20 runs of 130 epochs, data: cifar10", or what it waits for."""
    if item.task:
        return "measured, not trained"
    there = [figure for figure in item.figures if figure.is_there]
    missing = list(dict.fromkeys(figure.recipe for figure in item.figures if not figure.is_there))
    if missing:
        return f"waits for recipe {', '.join(missing)}"
    number = sum(len(item.seeds(figure)) for figure in there)
    made = [figure.made() for figure in there]
    epochs = " or ".join(str(each) for each in sorted({recipe.epochs for recipe in made}))
    datasets = ", ".join(dict.fromkeys(recipe.dataset for recipe in made))
    return f"{number} runs of {epochs} epoch{'' if epochs == '1' else 's'}, data: {datasets}"
