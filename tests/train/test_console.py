"""Terminal output: whole lines, heartbeats, and model text that steers nothing."""

import io
import re
import sys
import time

import pytest

from vr_jax import durations, errors
from vr_jax.train import console


class _Stream(io.StringIO):
  """A stream that records each write. terminal: whether it claims to be one."""

  def __init__(self, *, terminal=False):
    super().__init__()
    self.writes, self.terminal = [], terminal

  def write(self, text):
    self.writes.append(text)
    return super().write(text)

  def isatty(self):
    return self.terminal


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_is_written_in_one_piece_so_that_an_interrupt_never_cuts_it(monkeypatch, stream):
  pieces = _Stream()
  monkeypatch.setattr(sys, stream, pieces)
  if stream == "stdout":
    console.print_line("rl: complete")
  else:
    with console.progress("rl", 20) as tick:
      for step in (1, 2, 3, 4):
        tick(step, 20, {"accuracy": 0.25, "length": "3 (1-9)"})
  expected = {
    "stdout": ["rl: complete\n"],
    "stderr": [f"rl {n}/20  accuracy 0.25  length 3 (1-9)\n" for n in (2, 4)],
  }
  assert pieces.writes == expected[stream]


def _wait_for(stream, pattern):
  deadline = time.monotonic() + 10
  while not (found := re.findall(pattern, stream.getvalue(), re.MULTILINE)):
    assert time.monotonic() < deadline, stream.getvalue()
    time.sleep(0.01)
  return found


def _fast(monkeypatch):
  monkeypatch.setattr(console, "MINUTE", 0.05)
  monkeypatch.setattr(console, "_ANNOUNCE_AFTER", 0.02)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_without_a_terminal_a_line_says_each_minute_what_is_being_waited_for(
  monkeypatch, elsewhere
):
  """Also where only stdout is a file: a bar on the terminal is of no use to its reader."""
  _fast(monkeypatch)
  out, err = _Stream(), _Stream(terminal=elsewhere)
  monkeypatch.setattr(sys, "stdout", out)
  monkeypatch.setattr(sys, "stderr", err)
  lines = out if elsewhere else err
  with console.heartbeat():
    with console.progress("ingest", 12) as tick:
      tick(3)
      _wait_for(lines, r"^ingest 3/12: at work$")
    with console.progress("rl", 20) as tick:
      tick(1, 20, {"accuracy": 0.25})
      with console.doing("sampling replies"):
        _wait_for(lines, r"^rl 1/20: accuracy 0.25  sampling replies, \d+ s so far$")
      with console.progress("held out") as inner:
        inner(7)
        _wait_for(lines, r"^held out 7: at work$")
    with console.doing("loading weights", announce=True):
      _wait_for(lines, r"^vr-jax: loading weights$")
      _wait_for(lines, r"^vr-jax: loading weights, \d+ s so far$")
  assert lines.getvalue().count("vr-jax: loading weights\n") == 1


def test_a_terminal_shows_in_its_bar_what_is_being_waited_for_and_no_lines(monkeypatch):
  _fast(monkeypatch)
  out, err = _Stream(terminal=True), _Stream(terminal=True)
  monkeypatch.setattr(sys, "stdout", out)
  monkeypatch.setattr(sys, "stderr", err)
  monkeypatch.setenv("COLUMNS", "200")
  monkeypatch.setenv("TERM", "xterm")
  with console.heartbeat(), console.progress("rl", 20) as tick:
    tick(1, 20, {"reward": "[bold]0.5"})
    with console.doing("sampling replies"):
      _wait_for(err, r"\[bold\]0.5.*sampling replies, \d+ s")
  assert "so far" not in err.getvalue()
  assert not out.getvalue()


def test_a_minute_starts_with_the_run_and_not_with_an_earlier_one(monkeypatch, capsys):
  monkeypatch.setattr(console, "_last_line", -console.MINUTE)
  with console.heartbeat():
    time.sleep(0.7)  # the first look at the clock comes after half a second
  assert capsys.readouterr().err == ""


def test_a_run_that_prints_enough_has_no_heartbeat(monkeypatch):
  err = _Stream()
  monkeypatch.setattr(sys, "stderr", err)
  with console.heartbeat(), console.progress("ingest", 12) as tick:
    tick(3)
    time.sleep(0.6)
  assert not err.getvalue()


def test_what_would_steer_a_terminal_is_printed_as_its_escape(capsys):
  text = "a\x1b[31m\r\u202eb\ud800\tµ日本 [bold]x[/bold]"
  shown = "a\\x1b[31m\\r\\u202eb\\ud800\tµ日本 [bold]x[/bold]"
  assert errors.printable(text) == shown
  console.print_line(text)
  with console.progress(text, 1) as tick:
    tick(1, 1, {"answer": text})
  captured = capsys.readouterr()
  assert (captured.out, captured.err) == (f"{shown}\n", f"{shown} 1/1  answer {shown}\n")


@pytest.mark.parametrize(
  ("seconds", "text"), [(5.4, "5 s"), (89, "89 s"), (91, "2 min"), (3600, "1 h 0 min")]
)
def test_durations_are_said_as_people_say_them(seconds, text):
  assert durations.as_text(seconds) == text
