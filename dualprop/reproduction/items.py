"""The items: each a table or a figure of the papers, as the recipes and variants that make it.

Settings, seeds and published figures are the recipes' own. `worth` is a judgement: how much hangs
on the item, by which a plan with little time chooses. A figure whose recipe is not there yet waits
for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualprop import recipes
from dualprop.errors import SettingError, closest
from dualprop.recipes import cifar, variants
from dualprop.training.recipe import Recipe


@dataclass(frozen=True)
class Figure:
    """A figure of a table: a recipe by a variant, trained from several seeds.

    Attributes:
        recipe: its name.
        variant: its name, see `recipes.variants.named`.
        twin_recipe: the one whose variant "bp" it is compared with; by default its own recipe.
    """

    recipe: str
    variant: str
    twin_recipe: str = ""

    @property
    def label(self) -> str:
        """Of its runs, wherever it stands: items that share a figure share its runs."""
        return f"{self.recipe}.{self.variant}"

    @property
    def twin(self) -> Figure | None:
        """Back-propagation on the same network; None where it is that."""
        twin = Figure(self.twin_recipe or self.recipe, "bp")
        return None if twin == self else twin

    @property
    def is_there(self) -> bool:
        """Whether there is such a recipe already."""
        return self.recipe in recipes.RECIPES

    def made(self) -> Recipe:
        """The recipe of its runs. Raises SettingError for an unknown recipe or variant."""
        return variants.named(self.variant).apply(recipes.from_name(self.recipe))

    @property
    def published(self) -> str:
        """The published test accuracy in per cent, "98.43 ± 0.03"; empty where there is none."""
        return dict(recipes.from_name(self.recipe).published).get(self.variant, "")


@dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        summary: what it is, in a line.
        figures: what is trained for it.
        worth: see the file's head.
        num_seeds: how many each figure needs; 0 for all of its recipe's, those of the published
            runs.
        task: for what is measured and not trained: "self-test" or "runtime".
    """

    summary: str
    figures: tuple[Figure, ...] = ()
    worth: float = 1.0
    num_seeds: int = 0
    task: str = ""

    def seeds(self, figure: Figure) -> tuple[int, ...]:
        """Of this figure's runs."""
        return recipes.from_name(figure.recipe).seeds(self.num_seeds or None)

    @property
    def sources(self) -> list[str]:
        """Where the published figures are from."""
        cited = [recipes.from_name(figure.recipe).cites for figure in self.figures if figure.is_there]
        return [source for source in dict.fromkeys(cited) if source]


def _figures(recipe: str, *names: str) -> tuple[Figure, ...]:
    return tuple(Figure(recipe, name) for name in names)


def _vgg16(dataset: str) -> tuple[Figure, ...]:
    recipe = f"{dataset}-vgg16"
    return (*_figures(recipe, "bp", "dp", "dp-transposed"), Figure(f"{recipe}-kp", "kp-dp", twin_recipe=recipe))


def _grid(recipe: str) -> tuple[Figure, ...]:
    return _figures(recipe, "bp", *(variants.transposed_at(alpha, beta) for alpha, beta in cifar.GRID_2024))


# Of Kerjan, Høier & Scellier (2026): flat for K ≥ 4 and 2e-4 ≤ β ≤ 0.1.
ITERATIONS, BETAS = (2, 4, 5, 10, 20), (2e-5, 2e-4, 2e-3, 0.02, 0.1, 0.5)
_FAST = ("bp", "dp", "dp-transposed", "kp-dp", "ep", "pc")

ITEMS: dict[str, Item] = {
    "self-test": Item(
        "every rule by every engine, in float64 and beside the CPU; ratios to back-propagation", task="self-test"
    ),
    "cifar10-fast": Item("CIFAR-10 by a modern recipe: BP, DP, DP⊤, KP-DP, EP, PC", _figures("cifar10-fast", *_FAST), 10, 3),
    "cifar10-fast-group": Item(
        "the same network with GroupNorm: BP, DP, DP⊤, KP-DP, EP, PC", _figures("cifar10-fast-group", *_FAST), 4, 3
    ),
    "cifar10-vgg16": Item("CIFAR-10 by VGG16: BP, DP, DP⊤, KP-DP", _vgg16("cifar10"), 10),
    "vgg5": Item(
        "EP of a predictive coding network, VGG5: MNIST, CIFAR-10, CIFAR-100, by two losses, beside BP",
        tuple(
            figure
            for dataset in ("cifar10", "mnist", "cifar100")
            for loss in ("", "-mse")
            for figure in _figures(f"{dataset}-vgg5-ep{loss}", "bp", "ep")
        ),
        8,
    ),
    "mnist": Item(
        "MNIST by an MLP, six methods: BP, DP, MS-DP, L-DP, P-DP, R-DP",
        _figures("mnist-mlp", "bp", "dp", "ms-dp", "l-dp", "p-dp", "r-dp-100"),
        6,
    ),
    "cifar100-vgg16": Item("CIFAR-100 by VGG16: BP, DP, DP⊤, KP-DP", _vgg16("cifar100"), 6),
    "cifar100-fast": Item("CIFAR-100 by a modern recipe: BP, DP, DP⊤, KP-DP, EP, PC", _figures("cifar100-fast", *_FAST), 6, 3),
    "runtime": Item("seconds per epoch of CIFAR-10 by each method", worth=3, task="runtime"),
    "cifar10-nudging": Item("DP⊤ on CIFAR-10 by VGG16 over α and β", _grid("cifar10-vgg16-transposed"), 4),
    "cifar100-nudging": Item("DP⊤ on CIFAR-100 by VGG16 over α and β, angles by epoch", _grid("cifar100-vgg16-transposed"), 2),
    "mnist-angles": Item(
        "angles of DP⊤'s updates to BP's on MNIST, α = 0, ½, 1",
        _figures("mnist-nudging", "bp", *(variants.transposed_at(alpha, 0.5) for alpha in (0.0, 0.5, 1.0))),
        2,
        5,
    ),
    "vgg5-iterations": Item(
        "EP of a predictive coding network on CIFAR-100 by VGG5 over iterations K and β",
        _figures("cifar100-vgg5-ep", "bp", *(variants.ep_at(k, beta) for k in ITERATIONS for beta in BETAS)),
        2,
        1,
    ),
}
"""By name. The self-test, where it is asked for, is first; the others in the order of their worth
for what they cost."""


def named(names: tuple[str, ...]) -> dict[str, Item]:
    """The items of these names, all where there are none. Raises SettingError for an unknown or
    repeated one."""
    for name in names:
        if name not in ITEMS:
            raise SettingError(
                f"unknown item '{name}'.{closest(name, list(ITEMS))} `dualprop list items` shows them all: {', '.join(ITEMS)}."
            )
    if len(set(names)) != len(names):
        raise SettingError(f"an item is named twice: {', '.join(names)}. Name each once.")
    return {name: item for name, item in ITEMS.items() if not names or name in names}
