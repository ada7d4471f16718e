"""One reply in the report: its text with tags and segments in colour, and what each of them earned."""

import math
import re

from vr_jax.eval import report_data, report_markup
from vr_jax.eval.report_markup import Html, element

COLOURS = 4  # of segments, in the style sheet
TAG = re.compile(r"(</?(?:observation|think|answer)>)")


def reply(sample: report_data.Sample) -> Html:
  """Rewards, then the reply; one of several segments piece by piece, each segment with its own rewards and advantage."""
  whole = {} if sample.segment_rewards else dict(sample.rewards)
  if sample.trace_consistency is not None:
    whole["trace consistency"] = sample.trace_consistency
  chips = element("div", *_chips(whole), class_="chips")
  spoken = [segment.name for segment in sample.segments]
  names = list(dict.fromkeys([*sample.segment_rewards, *sample.segment_advantages, *spoken]))
  pieces, headed = [], set()
  for segment in sample.segments:
    if segment.text:
      head = None if segment.name in headed else _head(sample, segment.name)
      headed.add(segment.name)
      pieces.append(_piece(names.index(segment.name), head, _text(segment.text)))
  absent = element("p", "(not in the reply)", class_="missing") if sample.segments else None
  for number, name in enumerate(names):
    if name not in headed:
      pieces.append(_piece(number, _head(sample, name), absent))
  if not sample.segments:
    pieces.append(_text(sample.reply))
  return report_markup.joined(chips, *pieces)


def _piece(number: int, head: Html | None, text: Html | None) -> Html:
  return element("div", head, text, class_=f"segment segment-{number % COLOURS}")


def _text(text: str) -> Html:
  return element("div", *_highlighted(text), class_="reply", dir="auto")


def _head(sample: report_data.Sample, name: str) -> Html:
  """A segment's name, rewards and advantage."""
  rewards = sample.segment_rewards.get(name)
  chips = _chips(rewards or {})
  if rewards == {}:
    chips = [element("span", "no verdict", class_="chip")]
  if name in sample.segment_advantages:
    advantage = sample.segment_advantages[name]
    tone = "good" if advantage > 0 else "bad" if advantage < 0 else ""
    number = "–" if math.isnan(advantage) else f"{advantage:+.2f}"
    value = element("b", number, class_=tone or None)
    chips.append(element("span", "advantage ", value, class_="chip"))
  return element("div", element("b", name, class_="name"), *chips, class_="chips")


def _chips(values: dict[str, float]) -> list[Html]:
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
