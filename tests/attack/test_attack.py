"""A minute of the attack that `make attack` makes for an hour, of a fixed seed; and whether it
notices what must not be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from attempts import Answer
from moments import Moment, Watch
from sandbox import NOVEL, Sandbox, changes
from verdicts import CODES_AFTER, PLAIN_CODES, judge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, signals, devices and /proc are as Linux has them")
PATHS = os.pathsep.join((str(Path(__file__).parents[2]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
TRACEBACK = 'Traceback (most recent call last):\n  File "/dualprop/a.py", line 3, in f'
LINE = "dualprop: error: the file is no run. Give another.\n"


def attack(*counts: str) -> dict:
    """The summary of so many trials of each kind, "kill=20" say, made in a fresh process."""
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("campaign.py")), "0", *counts],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": PATHS},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def told(summary: dict) -> str:
    """What failed, each with a command that repeats it."""
    return "\n".join(
        f"{group['count']} × {group['kind']}: {group['detail']}\n  {group['examples'][0]['repeat']}\n  "
        + "\n  ".join(group["examples"][0]["commands"])
        for group in summary["failures"]
    )


def test_hostile_words_end_in_a_line_and_touch_nothing():
    """A traceback tells a user nothing, and a path that is a link or a device is somebody's."""
    summary = attack("invocation=60")
    assert not summary["failures"], told(summary)
    # Some must go through, or nothing behind the parsing of options is attacked.
    assert min(summary["counts"]["exit code 0"], summary["counts"]["exit code 2"]) > 10


def test_damaged_run_folders_are_refused_or_continued_and_nobody_elses_file_is_touched():
    """A run folder comes from a colleague, a disk that was full, or an editor."""
    summary = attack("folder=25")
    assert not summary["failures"], told(summary)
    assert min(summary["counts"]["exit code 0"], summary["counts"]["exit code 2"]) > 5


@pytest.mark.slow
def test_commands_of_every_rule_end_by_any_signal_and_continue_bit_for_bit():
    """What is missing from a checkpoint shows in no curve."""
    from dualprop.rules import RULES

    summary = attack(f"kill={2 * len(RULES)}")
    assert not summary["failures"], told(summary)
    counts = summary["counts"]
    for name in RULES:
        assert counts[f"kills of {name}"] >= 1
    assert {"kills by SIGKILL", "kills by SIGTERM", "kills by SIGINT"} <= counts.keys()
    # A lifted network hands its states out, and begins each batch anew.
    keeping = {name for name, kind in RULES.items() if kind.state_type is not None} - {"lifted"}
    assert keeping <= summary["rules_keeping_state"].keys()


def test_a_seed_makes_the_same_trials_in_every_process():
    """A failure that can't be repeated can't be mended; sets have another order in each process."""
    program = (
        "import random, hostile, invocations, kills\nprint(kills.cases())\n"
        "for i in range(99): dice = random.Random(i); print(ascii([invocations.words(dice), hostile.plain(dice)]))"
    )
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": PATHS, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    )  # fmt: skip
    assert first == second != ""


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("traceback", Answer(1, "", f"{TRACEBACK}\nKeyError: 'x'\n", {})),
        ("traceback", Answer(0, "", "Exception ignored in: <_io.TextIOWrapper>\nBrokenPipeError\n", {})),
        ("exit code", Answer(1, "", LINE, {})),
        ("exit code", Answer(-signal.SIGSEGV, "", "", {})),
        ("exit code", Answer(-signal.SIGKILL, "", "", {})),
        ("not one line", Answer(2, "", LINE + "and more\n", {})),
        ("not one line", Answer(2, "", "", {})),
        ("not one line", Answer(2, "", "usage: dualprop\n", {})),
        ("something on stderr", Answer(0, "", "UserWarning: odd\n", {})),
        ("terminal escape", Answer(2, "", "dualprop: error: no '\x1b[31mred'.\n", {})),
        ("hang", Answer(-signal.SIGALRM, "", "", {})),
    ],
)  # fmt: skip
def test_unseemly_ends_are_noticed(kind, answer):
    """An oracle that sees nothing would let all of them pass."""
    assert [failure.kind for failure in judge(answer)] == [kind]


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (Answer(0, "fine\n", "", {}), PLAIN_CODES),
        (Answer(2, "", LINE, {}), PLAIN_CODES),
        (Answer(3, "", "dualprop: diverged\n", {}), PLAIN_CODES),
        (Answer(130, "", "\ndualprop: stopped.\n", {}), CODES_AFTER[signal.SIGINT]),
        (Answer(-signal.SIGTERM, "", "", {}), CODES_AFTER[signal.SIGTERM]),
        (Answer(143, "", "dualprop: stopped.\n", {}), CODES_AFTER[signal.SIGTERM]),
    ],
)
def test_seemly_ends_pass(answer, codes):
    """Each is an end that the documentation promises."""
    assert judge(answer, codes) == []


@pytest.mark.parametrize(
    ("what", "spoil"),
    [
        ("changed: outside/precious.txt", lambda box: (box.outside / "precious.txt").write_text("precious\nlast lin3")),
        ("changed: outside/precious.txt", lambda box: (box.outside / "precious.txt").chmod(0o600)),
        ("changed: outside/precious.txt", lambda box: os.utime(box.outside / "precious.txt", (1, 1))),
        ("lost: outside/theirs/novel.writing", lambda box: (box.outside / "theirs" / NOVEL).unlink()),
        ("new: work/x", lambda box: (box.work / "x").mkdir()),
        ("changed: work/link", lambda box: ((box.work / "link").unlink(), (box.work / "link").symlink_to("folder"))),
        ("changed: work/fifo", lambda box: ((box.work / "fifo").unlink(), (box.work / "fifo").write_text(""))),
    ],
)
def test_whatever_is_touched_is_noticed(what, spoil, tmp_path):
    """By content, mode, time, target and type: a file replaced by its like is touched too."""
    box = Sandbox(tmp_path / "box", user=None)
    box.plant_paths()
    before = box.look()
    assert changes(before, box.look(), lambda path: False) == []
    spoil(box)
    assert changes(before, box.look(), lambda path: False) == [what]
    assert changes(before, box.look(), lambda path: True) == []
    box.remove()


def test_a_moment_comes_at_its_number_and_tears_what_is_being_written(tmp_path):
    """Kills that all came between two writes would find none that is half done."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"first\n")
    child = os.fork()
    if child == 0:
        Watch(Moment("metrics", 2, signal.SIGKILL, torn=0.5)).install(has_torch=False)
        for line in (b"second\n", b"thirdly\n", b"fourth\n"):
            with open(path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_bytes() == b"first\nsecond\nthir"
