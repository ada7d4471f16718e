"""One reply in the report: its text with tags and segments in colour, and what each of them earned."""

import math
import re

from vr_jax.eval import report_data, report_markup
from vr_jax.eval.report_markup import Html, element

COLOURS = 4  # of segments, in the style sheet
TAG = re.compile(r"(</?(?:observation|think|retrieve|answer)>)")


def reply(sample: report_data.Sample) -> Html:
  """Rewards, then the reply; one of several segments piece by piece, each segment with its own rewards and advantage."""
  whole = {} if sample.segment_rewards else dict(sample.rewards)
  if sample.trace_consistency is not None:
    whole["trace consistency"] = sample.trace_consistency
  earned = element("div", *chips(whole), class_="chips")
  spoken = [segment.name for segment in sample.segments]
  names = list(dict.fromkeys([*sample.segment_rewards, *sample.segment_advantages, *spoken]))
  pieces, headed = [], set()
  for segment in sample.segments:
    if segment.text:
      head = None if segment.name in headed else _head(sample, segment.name)
      headed.add(segment.name)
      pieces.append(piece(names.index(segment.name), head, text(segment.text)))
  absent = element("p", "(not in the reply)", class_="missing") if sample.segments else None
  for number, name in enumerate(names):
    if name not in headed:
      pieces.append(piece(number, _head(sample, name), absent))
  if not sample.segments:
    pieces.append(text(sample.reply))
  return report_markup.joined(earned, *pieces)


def piece(number: int, *content: Html | None) -> Html:
  """A stretch of what is replied, in the colour of its number."""
  return element("div", *content, class_=f"segment segment-{number % COLOURS}")


def text(reply: str) -> Html:
  """What was said, its tags in colour."""
  return element("div", *_highlighted(reply), class_="reply", dir="auto")


def _head(sample: report_data.Sample, name: str) -> Html:
  """A segment's name, rewards and advantage."""
  rewards = sample.segment_rewards.get(name)
  earned = chips(rewards or {})
  if rewards == {}:
    earned = [element("span", "no verdict", class_="chip")]
  if name in sample.segment_advantages:
    advantage = sample.segment_advantages[name]
    tone = "good" if advantage > 0 else "bad" if advantage < 0 else ""
    number = "–" if math.isnan(advantage) else f"{advantage:+.2f}"
    value = element("b", number, class_=tone or None)
    earned.append(element("span", "advantage ", value, class_="chip"))
  return element("div", element("b", name, class_="name"), *earned, class_="chips")


def chips(values: dict[str, float]) -> list[Html]:
  """Numbers by name."""
  return [
    element(
      "span",
      name.replace("_", " "),
      " ",
      element("b", "–" if math.isnan(value) else f"{value:.2f}"),
      class_="chip",
    )
    for name, value in values.items()
  ]


def _highlighted(text: str) -> list[Html]:
  """A text with its tags set apart and what stands inside them coloured; any text is cut without loss."""
  parts, inside = [], "outside"
  for piece in TAG.split(text):
    if TAG.fullmatch(piece):
      parts.append(element("span", piece, class_="tag"))
      inside = "outside" if piece.startswith("</") else piece.strip("<>")
    elif piece:
      parts.append(element("span", piece, class_=inside))
  return parts or [element("span", "(an empty reply)", class_="missing")]
