"""Tests wait for events, not for the clock, read from their source: a busy machine must fail none
of them."""

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parents[1]
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "thread_time"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}
# How many arguments they have before the one that is a time limit.
LIMITED = {"wait": 0, "join": 0, "communicate": 1, "select": 3}


def limits(source: str) -> list[str]:
    """What in the source may fail on a slow machine, each by its line: time limits, and looks at a
    clock."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(keywords=keywords) if any(keyword.arg == "timeout" for keyword in keywords):
                found.append((node.lineno, "has a time limit"))
            case ast.Call(func=ast.Attribute(attr=name), args=given) if len(given) > LIMITED.get(name, 99):
                # Strings and paths have a join of their own.
                if name != "join" or (isinstance(given[0], ast.Constant) and isinstance(given[0].value, (int, float))):
                    found.append((node.lineno, f"gives {name} a time limit"))
            case ast.Attribute(value=ast.Attribute(attr="mark"), attr="timeout"):
                found.append((node.lineno, "is marked with a time limit"))
            case ast.keyword(arg="deadline", value=value) if not (isinstance(value, ast.Constant) and value.value is None):
                found.append((value.lineno, "has a deadline"))
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name in CLOCKS:
                found.append((node.lineno, f"looks at time.{name}"))
            case ast.ImportFrom(module="time", names=names) if any(name.name in CLOCKS for name in names):
                found.append((node.lineno, "imports a clock"))
            case ast.Import(names=names) | ast.ImportFrom(names=names) if any(name.name == "timeit" for name in names):
                found.append((node.lineno, "imports a clock"))
            case ast.Attribute(value=ast.Name(id="datetime") | ast.Attribute(attr="datetime"), attr="now" | "utcnow"):
                found.append((node.lineno, "looks at the clock"))
    return [f"line {line} {what}" for line, what in sorted(found)]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_test_watches_the_clock(path):
    """Wait for a line, a file, a thread's event or a process's end. pyproject.toml holds the one
    limit against hangs."""
    assert limits(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(command, check=True, timeout=3600)",
        "process.wait(timeout=3600)",
        "process.wait(5)",
        "process.communicate(None, 5)",
        "thread.join(5)",
        "select.select([pipe], [], [], left)",
        "assert time.monotonic() < deadline",
        "began = time.perf_counter()",
        "times.append(time.thread_time() - began)",
        "from time import monotonic",
        "import timeit",
        "datetime.datetime.now()",
        "@pytest.mark.timeout(60)\ndef test_it(): ...",
        "@settings(deadline=200)\ndef test_it(): ...",
    ],
)
def test_limits_are_noticed(source):
    """A check that sees none would let all of them pass."""
    assert len(limits(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "process.wait()",
        "thread.join()",
        "', '.join(names)",
        "os.path.join(folder, name)",
        "process.communicate(text)",
        "time.sleep(0.01)",
        "monkeypatch.setattr(cost.time, 'perf_counter', clock)",
        "@settings(deadline=None)\ndef test_it(): ...",
    ],
)
def test_what_waits_for_an_event_is_left_alone(source):
    """A pause between two looks at a file is no limit."""
    assert limits(source) == []


def test_examples_may_take_their_time():
    """Hypothesis itself fails a test whose examples come slowly, unless it is told not to."""
    assert settings.default.deadline is None
    assert HealthCheck.too_slow in settings.default.suppress_health_check
