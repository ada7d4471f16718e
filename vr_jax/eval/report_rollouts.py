"""The report's rollouts: a question with its frames, and what the model replied at each evaluation."""

from collections.abc import Sequence
import math
import re

from vr_jax.eval import report_data, report_frames, report_markup, report_reply, report_turns
from vr_jax.eval.report_markup import Html, element

OPEN = 3  # the first ones are unfolded
CELL = 34  # of the alignment matrix, in pixels
GAP = 2
LETTER = 6.6  # pixels that a letter takes, on average, in a wide font
LETTERS = 32  # of a step's label, before it is cut
SMALLEST = 0.8  # a narrow screen shrinks the matrix so far, then scrolls
SLANT = 52  # degrees by which column labels lean


def rollouts(evaluations: Sequence[report_data.Evaluation]) -> Html:
  """One card a question; the same question's replies stand next to each other, in the evaluations' order."""
  questions: dict[str, list[tuple[report_data.Evaluation, report_data.Sample]]] = {}
  for evaluation in evaluations:
    for sample in evaluation.samples:
      questions.setdefault(sample.id, []).append((evaluation, sample))
  if not questions:
    return element("p", "No rollouts yet: an evaluation writes them.", class_="missing")
  cards = [_card(replies, index < OPEN) for index, replies in enumerate(questions.values())]
  return report_markup.joined(*cards)


def _card(replies: list[tuple[report_data.Evaluation, report_data.Sample]], unfolded: bool) -> Html:
  _, sample = replies[0]
  marks = [_mark(evaluation, reply) for evaluation, reply in replies]
  summary = element(
    "summary",
    element("span", sample.question, class_="question"),
    element("span", *marks, class_="marks"),
  )
  columns = [_reply(evaluation, reply) for evaluation, reply in replies]
  return element(
    "details",
    summary,
    element("p", f"{sample.problem_type} · {sample.video} · {sample.id}", class_="source"),
    None
    if sample.episode
    else report_frames.strip(sample.frames, [f"{time:g} s" for time in sample.times]),
    _answers(sample),
    _reference(sample.reference),
    element("div", *columns, class_="replies"),
    open=unfolded,
    class_="rollout",
    data_id=sample.id,
  )


def _mark(evaluation: report_data.Evaluation, sample: report_data.Sample) -> Html | None:
  accuracy = sample.rewards.get("accuracy")
  if accuracy is None:
    return None
  tone = "good" if accuracy >= 0.5 else "bad"
  return element("span", f"{evaluation.title} {accuracy:.2g}", class_=f"mark {tone}")


def _answers(sample: report_data.Sample) -> Html:
  """Options with the right one marked, or the right answer in words."""
  if not sample.options:
    return element("p", "Answer: ", element("strong", sample.answer), class_="options")
  right = [
    option.strip() == sample.answer.strip()
    or re.match(rf"{re.escape(sample.answer.strip())}\b", option) is not None
    for option in sample.options
  ]
  items = [
    element("li", option, class_="right" if mark else None)
    for option, mark in zip(sample.options, right, strict=True)
  ]
  return element("ul", *items, class_="options")


def _reference(steps: Sequence[report_data.ReferenceStep]) -> Html:
  if not steps:
    return element("p", "No reference steps.", class_="missing")
  items = [
    element("li", step.text, " ", element("span", f"{step.start:g}–{step.end:g} s", class_="span"))
    for step in steps
  ]
  return element("div", element("h4", "Reference steps"), element("ol", *items), class_="steps")


def _reply(evaluation: report_data.Evaluation, sample: report_data.Sample) -> Html:
  return element(
    "section",
    element(
      "h4", evaluation.title, element("small", f" {evaluation.stage} step {evaluation.step:,}")
    ),
    *_said(sample),
    data_evaluation=evaluation.name,
  )


def _said(sample: report_data.Sample) -> tuple[Html | None, ...]:
  """The reply with what it was scored by, or an episode turn by turn."""
  if sample.episode:
    return (report_turns.episode(sample, sample.episode),)
  aligned = _alignment(sample) if sample.alignment or not sample.segments else None
  return report_reply.reply(sample), aligned


def _alignment(sample: report_data.Sample) -> Html:
  """The matrix of step costs with the path of the alignment, or why there is none."""
  alignment = sample.alignment
  if alignment is None or not sample.reference or not sample.steps:
    return element("p", "No alignment: a trace or a reference without steps.", class_="missing")
  if alignment.distance is None:
    outcome = f"none exists with {len(sample.steps)} steps for {len(sample.reference)}; reward 0"
  else:
    outcome = f"mean cost {alignment.distance:.3f}"
  return element(
    "figure",
    element("figcaption", element("b", "Alignment"), f" · {outcome}"),
    element("div", _matrix(alignment, sample), class_="scroll"),
    element(
      "p", "Full colour: same wording. Rows: reference steps; columns: the reply's.", class_="note"
    ),
    class_="alignment",
  )


def _matrix(alignment: report_data.Alignment, sample: report_data.Sample) -> Html:
  row_labels = [f"{row + 1}  {_cut(step.text)}" for row, step in enumerate(sample.reference)]
  column_labels = [f"{column + 1}  {_cut(step)}" for column, step in enumerate(sample.steps)]
  slant = math.radians(SLANT)
  reach = LETTER * max(map(len, column_labels))  # of the longest column label, along its slant
  left, top = 12 + round(LETTER * max(map(len, row_labels))), 16 + round(reach * math.sin(slant))
  rows, columns = len(row_labels), len(column_labels)
  width = left + columns * CELL + round(reach * math.cos(slant))
  height = top + rows * CELL
  middle = (CELL - GAP) / 2
  points = [
    (left + column * CELL + middle, top + row * CELL + middle) for row, column in alignment.path
  ]
  line = " ".join(f"{x:g},{y:g}" for x, y in points)
  return element(
    "svg",
    *[
      element("text", label, x=left - 8, y=top + row * CELL + middle, dy="0.34em", class_="row")
      for row, label in enumerate(row_labels)
    ],
    *[
      element(
        "text",
        label,
        transform=f"translate({left + (column + 0.5) * CELL:g} {top - 8}) rotate(-{SLANT})",
      )
      for column, label in enumerate(column_labels)
    ],
    *_cells(alignment, sample, left, top),
    element("polyline", points=line, class_="path") if points else None,
    *[element("circle", cx=f"{x:g}", cy=f"{y:g}", r=5, class_="node") for x, y in points],
    viewBox=f"0 0 {width} {height}",
    width=width,
    height=height,
    role="img",
    aria_label=f"alignment of {rows} reference steps with {columns} steps of the reply",
    style=f"min-width: {SMALLEST * width:.0f}px",
    class_="matrix",
  )


def _cells(
  alignment: report_data.Alignment, sample: report_data.Sample, left: int, top: int
) -> list[Html]:
  """A square a pair of steps, the more opaque the cheaper."""
  return [
    element(
      "rect",
      x=left + column * CELL,
      y=top + row * CELL,
      width=CELL - GAP,
      height=CELL - GAP,
      rx=3,
      fill_opacity=f"{1 - 0.94 * min(max(cost, 0.0), 1.0):.3f}",
      class_="cell",
      data_tip=f"cost {cost:.2f}\n{sample.reference[row].text}\n{_cut(sample.steps[column], 200)}",
    )
    for row, costs in enumerate(alignment.cost)
    for column, cost in enumerate(costs)
  ]


def _cut(text: str, letters: int = LETTERS) -> str:
  return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
