"""`dualprop check` as a user runs it."""

import pytest

from dualprop.cli import main
from dualprop.rules import DualPropagation


def test_check_shows_that_every_piece_of_evidence_holds(capsys):
    """A claim that fails must not hide among those that hold."""
    main(["check"])
    shown = capsys.readouterr().out
    assert "0 failed" in shown
    assert "✗" not in shown
    assert "slow transcription" in shown
    assert "fused engine = explicit engine" in shown


def test_check_matches_the_authors_cases(capsys, shared_folder):
    """The cases are found by --reference, and each is listed."""
    main(["check", "--reference", str(shared_folder / "golden")])
    shown = capsys.readouterr().out
    for path in (shared_folder / "golden").glob("*.npz"):
        assert f"✓ authors' code: {path.stem}" in shown


def test_check_fails_where_a_rule_is_wrong(capsys, monkeypatch):
    """Exit code 1 and a cross: a check that can't fail is no evidence."""
    shares = DualPropagation.shares.fget
    monkeypatch.setattr(DualPropagation, "shares", property(lambda rule: shares(rule)[::-1]))
    with pytest.raises(SystemExit) as stopped:
        main(["check"])
    assert stopped.value.code == 1
    assert "✗" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "--reference", "nowhere"], "holds no reference case"),
        (["check", "--sed", "1"], "Did you mean '--seed'"),
    ],
)
def test_mistakes_in_check_are_told_in_one_line(words, told, capsys):
    """The remedy is in the line."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(error.splitlines()) == 1
    assert told in error
