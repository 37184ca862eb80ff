"""The starts of a run: what each ran on and where it began, in environment.json.

Each checkpoint holds the conditions that it was computed under. A resume compares them with today's
before it writes anything. A seed that has no checkpoint yet is compared with the last start of its
run, and the first of a run with that of the runs beside it, whose results it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dualprop.data import Splits
from dualprop.errors import RunError
from dualprop.training import conditions, documents, files
from dualprop.training.recipe import Recipe

FILE = "environment.json"
# Runs that are compared may be computed by different engines and kernels.
MAY_DIFFER_BESIDE = ("execution", "kernel")


def read(folder: Path) -> list[dict[str, Any]]:
    """The starts that a run's folder knows of, none where it was never begun. Earlier versions kept
    one, without where it began. Raises RunError where the file is damaged."""
    path = folder / FILE
    return documents.read(path, _of_plain, "Restore it, or remove it and give --allow-changed.") if files.exists(path) else []


def _of_plain(plain: Any) -> list[dict[str, Any]]:
    environment = documents.convert(plain, dict[str, Any])
    if "starts" not in environment:
        return [environment]
    return documents.convert(environment["starts"], list[dict[str, Any]], "starts")


class Starts:
    """Those of one run, and the one of this process.

    Args:
        folder: the run's.
        num_seeds: of the run.
        advisor: the seed that tells of the rule's nudge, the first.
        is_begun: whether any of its seeds was trained before.
        allow_changed: take conditions that numbers follow from as they are now.
        beside: folders of runs whose results are compared with this one's.
        epochs_before: see `runs.Run`.
        tell: is called with each change, in words.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        num_seeds: int = 1,
        advisor: int | None = None,
        is_begun: bool,
        allow_changed: bool = False,
        beside: Sequence[Path] = (),
        epochs_before: Sequence[int] = (),
        tell: Callable[[str], None],
    ) -> None:
        self.folder, self.recipe, self.num_seeds, self.is_begun = folder, recipe, num_seeds, is_begun
        self.advisor = advisor
        self.allow_changed, self.epochs_before, self.tell = allow_changed, epochs_before, tell
        self.past = read(folder)
        self.beside = [start for other in beside for start in read(other)[-1:]]
        self.described: dict[str, Any] = {}
        self.is_noted = False

    def compare(self, splits: Splits, checkpointed: dict[str, Any] | None) -> tuple[dict[str, Any], list[str]]:
        """Today's environment, and what of it changed, in words; `checkpointed` are the conditions
        of the checkpoint that training goes on from. Raises RunError where that is refused."""
        self.described = self.described or conditions.now(self.recipe, self.num_seeds)
        described = {**self.described, "data": splits.digest}
        before, but = checkpointed, tuple[str, ...]()
        if before is None and self.is_begun:
            before = self.past[-1] if self.past else {}
        elif before is None and self.beside:
            before, but = self.beside[-1], MAY_DIFFER_BESIDE
        changes = [] if before is None else conditions.changes(before, described, but)
        binding = self._in_words([change for change in changes if change.is_binding])
        if binding and not self.allow_changed:
            raise RunError(
                f"{self.folder} would not end as it was begun: {'; '.join(binding)}. Restore that, train anew, or give "
                "--allow-changed to continue all the same, which its result will say."
            )
        for told in (*binding, *self._in_words([change for change in changes if not change.is_binding])):
            self.tell(told)
        return described, binding

    def note(self, described: dict[str, Any], seed: int, epoch: int, step: int, changed: list[str]) -> None:
        """Write down that this process begins there; once, and again where something changed."""
        if self.is_noted and not changed:
            return
        self.past.append({**described, "seed": seed, "epoch": epoch, "step": step, "changed": changed})
        files.write_json(self.folder / FILE, {"starts": self.past})
        self.is_noted = self.is_begun = True

    def _in_words(self, changes: list[conditions.Change]) -> list[str]:
        """One for each change, and one for all that was not recorded; data by its name or path."""
        told = [
            f"{self.recipe.dataset}: {change}" if change.name == "data" else str(change)
            for change in changes
            if change.before is not None
        ]
        unknown = [conditions.TABLE[change.name].words for change in changes if change.before is None]
        if unknown and not self.past:
            return [*told, f"what it was begun under is not known, as {FILE} is missing"]
        return told + ([f"not recorded when it was begun: {', '.join(unknown)}"] if unknown else [])
