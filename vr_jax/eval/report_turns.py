"""An episode of several turns in the report: what it looked at against what it should have, then turn by turn what was said."""

from collections.abc import Iterator, Sequence

from vr_jax.eval import report_data, report_frames, report_markup, report_reply
from vr_jax.eval.report_markup import Html, element

LANE = 40  # pixels from one row of the time line to the next
LABEL, BAR = 13, 12  # baseline of a row's label below its top, and height of its bar
NARROWEST = 0.6  # of a bar, in percent of the line


def episode(sample: report_data.Sample, played: report_data.Episode) -> Html:
  """Rewards of the whole, the time line, then the turns."""
  whole = dict(sample.rewards)
  if sample.trace_consistency is not None:
    whole["trace consistency"] = sample.trace_consistency
  return report_markup.joined(
    element("div", *report_reply.chips(whole), class_="chips"),
    _looked(played),
    *[_turn(number, turn, played.times) for number, turn in enumerate(played.turns)],
  )


def _turn(number: int, turn: report_data.Turn, times: Sequence[float]) -> Html:
  """What a turn showed, what was replied, and what that earned."""
  names = [f"{frame} · {seconds(times[frame])}" for frame in turn.shown]
  strip = report_frames.strip(turn.frames, names)
  chips = element("div", *report_reply.chips(turn.rewards), class_="chips")
  return report_reply.piece(
    number,
    element(
      "p",
      element("b", f"turn {number + 1}", class_="name"),
      element("span", _does(turn, times)),
      class_="turn-head",
    ),
    chips,
    strip,
    report_reply.text(turn.reply),
  )


def _does(turn: report_data.Turn, times: Sequence[float]) -> str:
  """What a reply came to, in words."""
  if turn.kind == "retrieve":
    start, end = (seconds(times[frame]) for frame in (turn.first, turn.last))
    return f"asks for frames {turn.first} to {turn.last}, {start} to {end}"
  return "answers" if turn.kind == "answer" else f"can't be used: {turn.problem or turn.kind}"


def _looked(played: report_data.Episode) -> Html:
  """The time line with its caption."""
  spans = ", ".join(f"{seconds(start)} to {seconds(end)}" for start, end in played.relevant)
  about = f" · pool of {len(played.times)} frames · evidence: {spans or 'not known'}"
  caption = element("figcaption", element("b", "Time line"), about)
  return element("figure", caption, _line(played), class_="looked")


def _line(played: report_data.Episode) -> Html:
  """Rows one below the other: the evidence, the first turn's frames, then what each turn asks for with what it was shown of it.

  Places are percent of the width, so that labels keep their size on any screen. The evidence shades all rows.
  """
  end = max([played.times[-1], *(end for _, end in played.relevant)]) or 1.0
  rows = list(_rows(played, end))
  height = LANE * len(rows)
  band = [
    _bar(start, stop, end, y=0, height=height, class_="band") for start, stop in played.relevant
  ]
  axis = [
    element("text", seconds(0.0), x=0, y=height + LABEL),
    element("text", seconds(end / 2), x="50%", y=height + LABEL, style="text-anchor: middle"),
    element("text", seconds(end), x="100%", y=height + LABEL, class_="end"),
  ]
  drawn = [
    element("g", *marks, transform=f"translate(0 {LANE * number})", class_=kind)
    for number, (kind, marks) in enumerate(rows)
  ]
  return element(
    "svg",
    *band,
    *drawn,
    *axis,
    height=height + LABEL + 6,
    role="img",
    aria_label="where the evidence is, and where the turns looked",
    class_="timeline",
  )


def _rows(played: report_data.Episode, end: float) -> Iterator[tuple[str | None, list[Html]]]:
  """(class, marks) of each row, from its top."""
  if played.relevant:
    bars = [
      _bar(
        start, stop, end, class_="truth", data_tip=f"evidence\n{seconds(start)} to {seconds(stop)}"
      )
      for start, stop in played.relevant
    ]
    yield None, [*_ground("evidence"), *bars]
  opening = f"shown first: {len(played.turns[0].shown)} frames"
  yield "segment-0", [*_ground(opening), *_ticks(played.turns[0].shown, played.times, end)]
  for number, turn in enumerate(played.turns):
    if turn.kind != "retrieve":
      continue
    after = played.turns[number + 1].shown if number + 1 < len(played.turns) else ()
    what = _does(turn, played.times)
    bar = _bar(
      played.times[turn.first],
      played.times[turn.last],
      end,
      class_="look",
      data_tip=f"turn {number + 1}\n{what}\n{len(after)} of them were shown",
    )
    label = f"turn {number + 1} {what}"
    colour = f"segment-{number % report_reply.COLOURS}"
    yield colour, [*_ground(label), bar, *_ticks(after, played.times, end)]


def _ground(label: str) -> tuple[Html, Html]:
  """A row's label, and the whole pool as a bar behind its marks."""
  bar = element("rect", x=0, y=LABEL + 5, width="100%", height=BAR, rx=3, class_="lane")
  return element("text", label, x=0, y=LABEL), bar


def _bar(
  start: float, stop: float, end: float, *, y: int = LABEL + 5, height: int = BAR, **more: str
) -> Html:
  width = max(100 * (stop - start) / end, NARROWEST)
  left = min(100 * start / end, 100 - width)
  return element("rect", x=f"{left:.2f}%", y=y, width=f"{width:.2f}%", height=height, rx=2, **more)


def _ticks(frames: Sequence[int], times: Sequence[float], end: float) -> list[Html]:
  """A line at each frame that was shown."""
  return [
    element(
      "line",
      x1=f"{100 * times[frame] / end:.2f}%",
      x2=f"{100 * times[frame] / end:.2f}%",
      y1=LABEL + 3,
      y2=LABEL + 5 + BAR + 2,
      class_="tick",
      data_tip=f"frame {frame}, {seconds(times[frame])}",
    )
    for frame in frames
  ]


def seconds(time: float) -> str:
  """A time, to a tenth of a second."""
  return f"{round(time, 1):g} s"
