import io
import sys

import pytest

from vr_jax.train import console


class _Pieces(io.StringIO):
  """A stream that records each write."""

  def __init__(self):
    super().__init__()
    self.segment_spans = []

  def write(self, text):
    self.segment_spans.append(text)
    return super().write(text)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_is_written_in_one_piece_so_that_an_interrupt_never_cuts_it(monkeypatch, stream):
  pieces = _Pieces()
  monkeypatch.setattr(sys, stream, pieces)
  if stream == "stdout":
    console.print_line("rl: complete")
  else:
    with console.progress("rl", 20) as tick:
      for step in (1, 2, 3, 4):
        tick(step, 20, {"accuracy": 0.25})
  expected = {
    "stdout": ["rl: complete\n"],
    "stderr": [f"rl {n}/20  accuracy 0.25\n" for n in (2, 4)],
  }
  assert pieces.segment_spans == expected[stream]
