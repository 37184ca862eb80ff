"""`dualprop show`: one inference of a small dyadic network, drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dualprop.analysis import captions, showing
from dualprop.analysis.captions import Scale
from dualprop.analysis.inference import Frame, Inference, ShowOptions
from dualprop.bench.showing import say
from dualprop.cli import arguments as args
from dualprop.cli.console import OutputConsole

COLUMNS, MARGIN = 80, 9
LEGEND = "  - s⁻    | mean s̄    + s⁺    o all three in one place    zero is in the middle"


def main(arguments: Sequence[str]) -> None:
    """Parse, infer, draw."""
    options = args.parse(ShowOptions, ShowOptions(), arguments, "show")
    console = OutputConsole()
    shown = showing.run_show(options)
    say(console, *lines(shown))
    if options.figure is not None:
        say(console, f"wrote {options.figure}")


def lines(shown: Inference) -> Iterator[str]:
    """The whole inference, at most 80 columns wide."""
    rule, scale = shown.options.rule, Scale.of(shown)
    name = "DP⊤" if rule.coupling == "transposed" else "DP"
    yield f"{name}, α = {rule.alpha:g}, {rule.schedule}, {'-'.join(map(str, shown.options.widths))}, {shown.options.activation}"
    yield LEGEND
    if scale.magnified > 1:
        yield f"  partings are drawn {scale.magnified} times as wide as they are; the numbers are as they are"
    for number, frame in enumerate(shown.frames):
        yield from ("", captions.title(shown, number), f"  {captions.equation(shown, number)}", "")
        for k in range(shown.depth, 0, -1):
            yield from _layer(shown, frame, scale, k)
        yield f"{'input':{MARGIN}}{_cells([f'{value:+.3f}' for value in frame.dyads.means[0].tolist()], _width(shown))}"
    told, *others = captions.learned(shown)
    yield from ("", told, *(f"  {line}" for line in others))


def _layer(shown: Inference, frame: Frame, scale: Scale, k: int) -> Iterator[str]:
    units, width = shown.options.widths[k], _width(shown)
    mark = ">" if k in frame.layers else " "
    strips = [_strip(scale, scale.states(frame, k, unit), width) for unit in range(units)]
    yield f"{mark}{f'layer {k}':{MARGIN - 1}}{_cells(strips, width)}"
    for name, states in (("s⁺", frame.dyads.plus[k]), ("s⁻", frame.dyads.minus[k])):
        yield f"{name:>{MARGIN - 2}}  {_cells([f'{value:+.3f}' for value in states.tolist()], width)}"


def _width(shown: Inference) -> int:
    return min(24, (COLUMNS - MARGIN) // max(shown.options.widths) - 1)


def _cells(cells: Sequence[str], width: int) -> str:
    return " ".join(f"{cell:^{width}}" for cell in cells).rstrip()


def _strip(scale: Scale, states: tuple[float, float, float], width: int) -> str:
    """The axis from -limit to limit, with the three states on it."""
    places = [round((state / scale.limit + 1) / 2 * (width - 1)) for state in states]
    axis = ["."] * width
    minus, mean, plus = places
    for place, letter in ((mean, "|"), (minus, "-"), (plus, "+")):
        axis[place] = letter
    if minus == plus:
        axis[plus] = "o"
    return "".join(axis)
