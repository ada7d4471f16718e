"""The report's time line: the frames that an episode looked at, and the true evidence."""

from collections.abc import Sequence
from typing import Any

from vr_jax.eval import report_data, report_facts

NARROWEST = 0.6  # of a bar, in percent of the line


def timeline(episode: report_data.ReportEpisode, colours: int) -> dict[str, Any]:
  """What the template of the time line shows.

  Rows: the evidence, the frames of the first turn, then for each turn the span that it asks for and
  the frames that it got. Positions are percent of the line. Rows use `colours` colours in rotation.
  """
  end = max([episode.times[-1], *(end for _, end in episode.relevant)]) or 1.0
  evidence = [f"{seconds(start)} to {seconds(stop)}" for start, stop in episode.relevant]
  bands = [_bar(start, stop, end) for start, stop in episode.relevant]
  opening = episode.turns[0].shown
  first = report_facts.counted(len(opening), "frame")
  rows = [_row(f"shown first: {first}", 0, [], _ticks(opening, episode.times, end))]
  if bands:
    bars = [
      band | {"kind": "truth", "tip": f"evidence\n{span}"}
      for band, span in zip(bands, evidence, strict=True)
    ]
    rows.insert(0, _row("evidence", None, bars, []))
  for number, turn in enumerate(episode.turns):
    if turn.kind == "retrieve" and turn.first is not None and turn.last is not None:
      after = episode.turns[number + 1].shown if number + 1 < len(episode.turns) else ()
      what = action(turn, episode.times)
      bar = _bar(episode.times[turn.first], episode.times[turn.last], end)
      tip = f"turn {number + 1}\n{what}\n{len(after)} of them were shown"
      rows.append(
        _row(
          f"turn {number + 1} {what}",
          number % colours,
          [bar | {"kind": "look", "tip": tip}],
          _ticks(after, episode.times, end),
        )
      )
  return {
    "frames": len(episode.times),
    "evidence": ", ".join(evidence),
    "bands": bands,
    "rows": rows,
    "axis": (seconds(0.0), seconds(end / 2), seconds(end)),
  }


def action(turn: report_data.ReportTurn, times: Sequence[float]) -> str:
  """Describes in words what a reply asks for."""
  if turn.kind == "retrieve" and turn.first is not None and turn.last is not None:
    start, end = (seconds(times[frame]) for frame in (turn.first, turn.last))
    return f"asks for frames {turn.first} to {turn.last}, {start} to {end}"
  return "answers" if turn.kind == "answer" else f"can't be used: {turn.problem or turn.kind}"


def seconds(time: float) -> str:
  """Formats a time, to a tenth of a second."""
  return f"{round(time, 1):g} s"


def _row(label: str, colour: int | None, bars: list, ticks: list) -> dict[str, Any]:
  named = None if colour is None else f"segment-{colour}"
  return {"label": label, "colour": named, "bars": bars, "ticks": ticks}


def _bar(start: float, stop: float, end: float) -> dict[str, str]:
  width = max(100 * (stop - start) / end, NARROWEST)
  return {"left": f"{min(100 * start / end, 100 - width):.2f}", "width": f"{width:.2f}"}


def _ticks(frames: Sequence[int], times: Sequence[float], end: float) -> list[dict[str, str]]:
  """Makes a tick for each frame that was shown."""
  return [
    {"x": f"{100 * times[frame] / end:.2f}", "tip": f"frame {frame}, {seconds(times[frame])}"}
    for frame in frames
  ]
