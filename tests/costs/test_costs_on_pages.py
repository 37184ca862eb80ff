"""Every cost that a page or a docstring states is counted, and what is counted stands there.

Measured times and memory are no counts: they are the runs' of which the pages tell.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from claims import CLAIMS, Formula, Number, Row
from counting import Counts, drawn_orders, of_variant

from dualprop.bench import runtime
from dualprop.recipes.variants import VARIANTS

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
MODULES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "dualprop").rglob("*.py"))]
# A quantity of evaluations or of BP steps. A word or two may stand between: "two more BP steps".
QUANTITY = r"(?:\d[\d.,/]*|\b[LKn]\b|[\dLn]\)|\b(?:one|two|three|half|twice(?: the)?|some|about|nearly)\b)"
UNIT = (
    r"(?:BP steps?|(?:back-propagation|BP)'s work|back-propagation steps?|steps? of (?:BP|back-propagation)|drives?|feedbacks?"
    r"|(?:synapse )?evaluations|gradients)\b"
)
STATED = re.compile(rf"{QUANTITY}(?:[ *`]+(?:more|real|times|of)){{0,2}}[ *`]+{UNIT}|costs? (?:about )?\d[\d.]*")
# What names the unit, and what is another's figure.
NO_CLAIMS = {
    "docs/benchmarks.md": ["floating-point operations of *one BP step*"],
    "docs/results.md": ["what one step of BP computes"],
    "docs/rules/dual_propagation.md": ["from one drive to another"],
    "docs/rules/equilibrium_propagation.md": ["K = 10 costs 12 (Kerjan", "never of two gradients"],
    "dualprop/alignment.py": ["angle between two gradients"],
    "dualprop/bench/contenders.py": ["gradients of one back-propagation step"],
    "dualprop/bench/rows.py": ["FLOPs of one back-propagation step"],
    "dualprop/fused/recompute.py": ["Keep one of drive and state"],
    "dualprop/bench/flops.py": ["FLOPs of one back-propagation step", "convolutions of one back-propagation step"],
    "dualprop/kernels/formulas.py": ["from one drive to another"],
    "dualprop/network/network.py": ["evaluations of one back-propagation step"],
}


def text_of(page: str) -> str:
    """The page, or all docstrings of a module, in one line."""
    source = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".py"):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
        source = "\n".join(filter(None, (ast.get_docstring(node) for node in nodes)))
    return " ".join(source.split())


def row_of(page: str, cell: str) -> list[str]:
    """The cells behind the first one of the row of a table that begins with it."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| {cell} |"))
    return [each.strip() for each in row.strip("|").split("|")][1:]


def evaluated(formula: str, **values: int) -> float:
    """ "2n(L-1) + 1" and the like, as written."""
    explicit = re.sub(r"(?<=[\dLn)])\s*(?=[Ln(])", "*", formula)
    return eval(explicit, {"__builtins__": {}}, values)


def fields(text: str) -> dict[str, str]:
    """The formula before each of the words drives, feedbacks and gradients."""
    return {name: formula for formula, name in re.findall(r"\{([^}]*)\} (drives|feedbacks|gradients)", text)}


@cache
def shown(claim: Number | Formula | Row) -> str:
    """What must stand on the page."""
    if isinstance(claim, Row):
        return f"| {claim.cell} | {' | '.join(row_of(claim.page, claim.cell))} |"
    return claim.text.format(*claim.count()) if isinstance(claim, Number) else re.sub(r"[{}]", "", claim.text)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{Path(claim.page).stem}: {getattr(claim, 'text', '')[:40]}")
def test_a_cost_is_what_is_counted_and_stands_on_its_page(claim):
    """A page that says thirteen where nine are counted misleads whoever chooses by it."""
    assert shown(claim) in text_of(claim.page), f"{claim.page} does not say: {shown(claim)}"
    if isinstance(claim, Number):
        return
    is_text = isinstance(claim, Formula)
    formulas = fields(claim.text) if is_text else dict(zip(Counts._fields, row_of(claim.page, claim.cell), strict=True))
    assert formulas
    for values in claim.at:
        counts = claim.count(**values)._asdict()
        assert {name: evaluated(formula, **values) for name, formula in formulas.items()} == {
            name: counts[name] for name in formulas
        }, values


@pytest.mark.parametrize("page", [*PAGES, *MODULES])
def test_no_page_states_a_cost_that_nothing_counts(page):
    """Else the next number is wrong in a year and no one sees it."""
    text = text_of(page)
    covered = [shown(claim) for claim in CLAIMS if claim.page == page] + NO_CLAIMS.get(page, [])
    for phrase in covered:
        assert phrase in text, f"{page} no longer says: {phrase}"
        text = text.replace(phrase, " … ")
    stated = [text[max(0, found.start() - 40) : found.end() + 40] for found in STATED.finditer(text)]
    assert not stated, f"{page} states what tests/costs/claims.py does not count: {stated}"


@pytest.mark.parametrize(
    "sentence",
    [
        "some 13 times BP's work",
        "L + n(L-1) drives and more",
        "is 7/3 of BP's work",
        "about 4 BP steps",
        "it costs 12",
        "two feedbacks",
        "twice the drives",
    ],
)
def test_a_stated_cost_is_noticed(sentence):
    """A pattern that finds none would let every page pass."""
    assert STATED.search(sentence)


RULES_TABLE = [line.split("|")[1].strip() for line in (ROOT / "docs/results.md").read_text().splitlines()
               if re.match(r"\| [a-z][a-z0-9-]+ \| \d\d\.\d\d ± ", line)]  # fmt: skip


@pytest.mark.parametrize("variant", RULES_TABLE)
def test_the_counts_of_every_rule_on_one_network_are_those_of_its_depth(variant):
    """Counts depend on no width, no weight and no data; but for the order that is drawn."""
    count = row_of("docs/results.md", variant)[3]
    if variant == "r-dp-100":
        assert min(drawn_orders(3)) <= float(count) <= max(drawn_orders(3))
    else:
        assert f"{of_variant('mnist-rules', variant):.3g}" == count


def test_the_table_of_every_rule_is_read():
    assert VARIANTS.keys() - set(RULES_TABLE) == {"dfa"}, "direct feedback alignment came later, and has a table of its own"


def test_the_counts_of_dual_propagations_variants_are_those_of_four_layers():
    cells = row_of("docs/results.md", "BP steps of work a step, by count")
    variants = ("bp", "dp", "ms-dp", "l-dp", "p-dp", "r-dp-100")
    assert cells == [f"{of_variant('mnist-mlp', variant):.2f}" for variant in variants]


OF_METHODS = ("dp", "dp-transposed", "ep", "ep-published", "pc", "chl", "dtp", "ep-hopfield", "hep")


@pytest.mark.parametrize("method", [name for name in OF_METHODS if name != "chl"])
def test_the_counts_beside_the_seconds_per_epoch_are_those_of_each_methods_recipe(method):
    """But CHL's, which stops by a tolerance: its count is of the weights and images of that run."""
    cells = row_of("docs/results.md", "step ÷ BP's on the same network, count")
    assert len(cells) == len(OF_METHODS)
    cell = cells[OF_METHODS.index(method)]
    half = 0.5 * 10 ** -len(cell.partition(".")[2])  # of the last printed digit
    assert abs(of_variant(runtime.METHODS[method].recipe, method) - float(cell)) <= half + 1e-9
