"""The line that stands on a terminal while the command says nothing."""

import os
import sys

import pytest
from rich.console import Console

import dualprop.cli.heartbeat as heartbeats
from dualprop.cli.heartbeat import ERASE, SILENCE, Heartbeat
from dualprop.cli.outlets import Outlet
from dualprop.cli.progress import ConsoleReporter


@pytest.fixture
def terminal():
    """An outlet with a heartbeat, into a pipe; and shown(): what was written since."""
    readable, writable = os.pipe()
    outlet = Outlet(writable)
    outlet.heartbeat = Heartbeat(writable)
    os.set_blocking(readable, False)

    def shown():
        try:
            return os.read(readable, 65536)
        except BlockingIOError:
            return b""

    yield outlet, shown
    os.close(readable)
    os.close(writable)


def test_silence_is_filled_and_the_line_goes_before_anything_else(terminal):
    outlet, shown = terminal
    beat = outlet.heartbeat
    beat.beat(beat.last + SILENCE / 2)
    assert shown() == b"", "not at once"
    beat.beat(beat.last + 3)
    assert shown() == ERASE + b"dualprop: starting, 3 s"
    outlet.write(b"a line\n")
    assert shown() == ERASE + b"a line\n"
    beat.beat(beat.last + 7)
    assert shown() == ERASE + b"dualprop: at work, 7 s"
    beat.end()
    assert shown() == ERASE
    beat.beat(beat.last + 9)
    assert shown() == b""


def test_a_bar_and_half_a_line_are_not_written_over(terminal):
    outlet, shown = terminal
    outlet.write(b"\r50 %")
    shown()
    outlet.heartbeat.beat(outlet.heartbeat.last + 5)
    assert shown() == b""


def test_a_line_of_the_error_stream_takes_it_away_too(terminal):
    """Both are one terminal."""
    outlet, shown = terminal
    error = Outlet(outlet.descriptor)
    error.heartbeat = outlet.heartbeat
    outlet.heartbeat.beat(outlet.heartbeat.last + 2)
    shown()
    error.write(b"dualprop: error: no.\n")
    assert shown() == ERASE + b"dualprop: error: no.\n"


def test_a_terminal_that_goes_away_is_no_error():
    readable, writable = os.pipe()
    os.close(readable)
    beat = Heartbeat(writable)
    beat.beat(beat.last + 2)
    assert beat.is_over
    os.close(writable)


@pytest.mark.skipif(sys.platform == "win32", reason="has no fork")
def test_a_forked_process_writes_without_waiting_for_the_lock_of_another(terminal):
    """The thread that holds the lock is not in the child, which would wait for ever."""
    outlet, shown = terminal
    outlet.heartbeat.lock.acquire()
    outlet.heartbeat._leave()
    outlet.write(b"child\n")
    assert shown() == b"child\n"


@pytest.mark.parametrize("term", ["dumb", ""])
def test_where_no_line_can_be_taken_away_there_is_none(term, monkeypatch):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(heartbeats.os, "isatty", lambda _: True)
    assert heartbeats.on_terminal(1) is None
    monkeypatch.setenv("TERM", "xterm")
    assert heartbeats.on_terminal(1) is not None
    monkeypatch.setattr(heartbeats.os, "isatty", lambda _: False)
    assert heartbeats.on_terminal(1) is None


@pytest.mark.parametrize(("width", "shows_rate"), [(80, False), (200, True)])
@pytest.mark.parametrize("label", ["dual_propagation", "equilibrium_propagation of a long name"])
def test_epoch_loss_validation_and_time_left_stand_on_one_line(label, width, shows_rate):
    """At 80 columns there was the loss, but neither of how many epochs nor the validation score."""
    import io

    from torch import tensor

    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=width, color_system=None)
    reporter = ConsoleReporter(console, label, batch_size=32, num_epochs=130)
    reporter.seed_started(10, num_steps=13_000, done=0)
    reporter.epoch_done({"epoch": 0, "validation_accuracy": 0.1234})
    reporter.step_done(9_950, 100, tensor(12.3), tensor(77))
    reporter.bar.refresh()
    line = console.file.getvalue().split("\x1b[2K")[-1].splitlines()[0]
    reporter.close()
    assert len(line) <= width
    assert all(part in line for part in ("seed 10", "epoch 100/130", "loss 0.123", "val 0.123", "left"))
    assert ("examples/s" in line) == shows_rate
