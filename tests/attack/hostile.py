"""Values that nobody sane gives, and some that are sane, so that not all is refused at once."""

from __future__ import annotations

import functools
import random
import typing
from typing import Any

NUMBERS = ("0", "-1", "1", "2", "3", "0.5", "-0.0", "1e-45", "1e-300", "1e30", "1e308", "1e400", "-1e400", "nan", "inf", "-inf",
           "999999999999", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" * 400, "1_000", "0x10",
           "٣", "½", "1,2", "1,,2", "1e", "+1", " 1")  # fmt: skip
TEXTS = ("", " ", ",", "a", "True", "none", "None", "null", "[]", "{}", "()", "a,a", "α", "\u202eabc", "💥", "e\u0301",
         "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x07\b\r", "[bold]", "[/x]", "[red]x[/red]", "[link=file:///]x", "%s%n",
         "{0}", "{x!r:>99}", "$(id)", "`id`", ";id", "\n", "a\nb", "a\r\nb", "\t", "--", "-", "-h", "@file", "'", '"', "\\",
         "x" * 5000, "x" * 255, "\udcff", "\ufeff", "\u2028", "--epochs", "--out", "*", "?", "(", "((((", ")",
         "f(", "f()")  # fmt: skip
PARTS = ("up_down(2)", "up_down(0)", "up_down(-1)", "up_down(9999999999)", "up_down(1e9)", "up_down(nan)", "up_down()",
         "up_down", "up_down(1,2)", "up_down(2", "alternating_sweeps(1)", "synchronous(3)", "random_order(5)", "odd_even(2)",
         "bottom_up(2)", "1,2,1", "1,2,99", "0", "up_down(" * 500, "holomorphic(4)", "holomorphic(0)",
         "holomorphic(1000000000)", "holomorphic(nan)", "blocks(even_odd(3))", "blocks(blocks(1))", "error_sweeps(2)",
         "error_sweeps(1000000000000)", "gradient(3)", "centered", "hopfield", "predictive_coding")  # fmt: skip
# What `Sandbox.plant_paths` has planted, and what it has not.
PATHS = ("file", "folder", "empty", "foreign", "link", "link.json", "link-to-folder", "link-outside", "link-to-precious",
         "dangling", "loop", "fifo", "socket", "null", "zero", "full", "unreadable", "no-access", "no-access/x", "read-only",
         "read-only/x", "file/x", "loop/x", "link-outside/new", "run [/x]", "absent", "absent/deep/er", "real.json",
         "nested.json", "results.json", ".", "..", "../outside", "../outside/theirs", "../outside/precious.txt", "~", "a b",
         "α", "new [bold]", "\x1b[31m", "new\nline", "\udcff", "x" * 256, "/".join(["d" * 100] * 50), "", " ", "-", "link/",
         "file/", "//", "empty/.", "empty/../new", "none", "null-bytes.npz", "empty.npz", "absent.npz", "fifo.npz",
         "zero.npz", "link.npz", ".npz", "folder.npz", "run", "comparison", "run/seed-0", "run/recipe.json", "link-to-run",
         "good.npz", "unpaired.npz", "not-finite.npz", "immense.npz", "one-class.npz", "labels.npz", "objects.npz",
         "scalar.npz", "cut.npz", "text.npz")  # fmt: skip
# A compiler for minutes, and downloads and networks for hours.
TOO_SLOW = ("compiled",)


@functools.cache
def names() -> tuple[str, ...]:
    """Every name that a field may hold: of rules, recipes, variants, models, neurons, losses, and
    the choices in the settings of all of them."""
    from dualprop import data, losses, models, neurons, recipes, rules
    from dualprop.recipes.variants import VARIANTS
    from dualprop.training.recipe import Optimizer, Recipe

    found = {*rules.RULES, *VARIANTS, *models.MODELS, *neurons.names(), *losses.LOSSES, *recipes.RECIPES, *data.names()}
    for kind in (Recipe, Optimizer, *rules.RULES.values(), *models.MODELS.values()):
        for hint in typing.get_type_hints(kind).values():
            found |= {word for word in _choices(hint) if isinstance(word, str)}
    return tuple(sorted(found - set(TOO_SLOW)))


def _choices(hint: Any) -> list[object]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for inner in typing.get_args(hint) for choice in _choices(inner)]


def value(dice: random.Random, is_path: bool = False) -> str:
    """A value of an option."""
    if is_path and dice.random() < 0.85:
        return dice.choice(PATHS)
    pool = dice.choices((NUMBERS, TEXTS, PARTS, names(), PATHS), (5, 3, 2, 4, 1))[0]
    return dice.choice(pool)


def plain(dice: random.Random, depth: int = 0) -> Any:
    """A value of JSON, of any type."""
    kind = dice.randrange(14)
    if kind == 0 and depth < 3:
        return [plain(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind == 1 and depth < 3:
        return {dice.choice(TEXTS): plain(dice, depth + 1) for _ in range(dice.randrange(4))}
    if kind == 2:
        nested: Any = 0
        for _ in range(dice.choice((10, 900))):
            nested = [nested]
        return nested
    choices = (None, True, False, 0, 1, -1, 2.5, 10**6 + 0.5, 10**18, 10**400, -(10**30), 1e308, float("nan"), float("inf"),
               "", "x", "\x1b[31mred", "[/x]", "\ud800", [], {}, [[]], [{}], "../escaped", "/proc/absent/absolute",
               "a" * 3000)  # fmt: skip
    return dice.choice(choices)
