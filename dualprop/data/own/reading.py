"""How the user's own data is read: what is predicted from what, which images are made of
pictures, what is done about gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from dualprop.settings import Pixels, conform


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Of own data alone: a table, a folder of images, arrays.

    Attributes:
        target: the column of a table that is predicted, or several with commas between; by default
            the one named target, label, class or y.
        task: "classification" (one class of several), "regression" (numbers) or "multilabel" (any
            of several labels, 0 or 1 each). "auto" goes by the targets: words and few whole numbers
            are classes, other numbers are numbers, several columns of 0 and 1 are labels.
        ignore: columns that are left out, with commas between.
        categories: columns whose numbers are names, such as postal codes, with commas between.
        missing: what is done about an example that lacks a value: the training part's "mean" is put
            in, the example is left out ("drop"), or it is an error ("refuse").
        size: side of the square that images are brought to; 0 keeps the size that all share.
        fit: how: cut to its middle square ("crop"), surrounded by black ("pad"), or "stretch".
        colour: "grey", "rgb", or "auto": grey where all images are.
        test_fraction: of the examples, where the data has no test part; the same for every seed.
        stratify: whether test and validation parts hold each class in its proportion.
    """

    target: str = ""
    task: Literal["auto", "classification", "regression", "multilabel"] = "auto"
    ignore: str = ""
    categories: str = ""
    missing: Literal["mean", "drop", "refuse"] = "mean"
    size: Pixels = 0
    fit: Literal["crop", "pad", "stretch"] = "crop"
    colour: Literal["auto", "grey", "rgb"] = "auto"
    test_fraction: Annotated[float, Interval(gt=0, lt=1)] = 1 / 6
    stratify: bool = True

    def __post_init__(self) -> None:
        conform(self)

    @staticmethod
    def listed(names: str) -> tuple[str, ...]:
        """The names between commas."""
        return tuple(name.strip() for name in names.split(",") if name.strip())
