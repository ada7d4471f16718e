"""Picks two of a step's replies, and shows them: on a terminal, in TensorBoard, in W&B."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from vr_jax import errors

_LINES, _CHARACTERS = 12, 1200  # most of a reply on the terminal
_FRAMES, _SIDE, _GAP = 16, 112, 2  # of a strip: most frames in a row, longer side and gap in pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledPair:
  """The best and the worst reply of a group.

  row: of the group in the batch.
  line: the group, as a line of the rollouts file.
  best, worst: index of the reply in the group.
  """

  row: int
  line: Mapping[str, Any]
  best: int
  worst: int

  def replies(self) -> dict[str, Mapping[str, Any]]:
    """The two replies by name, or one if the group has no other."""
    replies = self.line["replies"]
    named = {"best": replies[self.best], "worst": replies[self.worst]}
    return named if self.best != self.worst else {"only": replies[self.best]}


def choose(lines: Sequence[Mapping[str, Any]]) -> SampledPair:
  """Picks the group whose total rewards differ most, and its best and worst reply.

  Of equal ones, the first; where all replies of a group are alike, the first two.
  """
  totals = [[_total(reply) for reply in line["replies"]] for line in lines]
  row = max(range(len(lines)), key=lambda row: max(totals[row]) - min(totals[row]))
  best = max(range(len(totals[row])), key=totals[row].__getitem__)
  worst = min(range(len(totals[row])), key=totals[row].__getitem__)
  if totals[row][best] == totals[row][worst]:
    best, worst = 0, min(1, len(totals[row]) - 1)
  return SampledPair(row=row, line=lines[row], best=best, worst=worst)


def _total(reply: Mapping[str, Any]) -> float:
  """The total reward, summed over segments; those that are not scored don't count."""
  values = [v for n, v in reply["rewards"].items() if n.split("/")[-1] == "total"]
  return sum(value for value in values if value is not None)


def terminal_text(pair: SampledPair, where: str) -> str:
  """The two replies as lines for a terminal, with nothing in them that could steer it.

  where: the file that has all of them.
  """
  line = pair.line
  head = (
    f"step {line['step']}: {len(pair.replies())} of {len(line['replies'])} replies to "
    f"{line['example']} ({line['video']}, {line['shown'][0]:g} to {line['shown'][1]:g} s); "
    f"the answer is {line['answer']}"
  )
  lines = [_one_line(head), *_quoted(line["question"])]
  for name, reply in pair.replies().items():
    lines.append(f"  {name}: {_one_line(_scores(reply))}")
    lines += _quoted(reply_text(reply), where=where)
  return "\n".join(lines)


def _quoted(text: str, *, where: str = "") -> list[str]:
  """Lines of a text behind a bar, so that none of them looks like one of our own."""
  text = errors.printable(text)
  kept = text[:_CHARACTERS].split("\n")[:_LINES]
  more = len(text) - len("\n".join(kept))
  lines = [f"  │ {line}" for line in kept]
  return [*lines, f"  │ … {more} more characters: {where}"] if more > 0 and where else lines


def _one_line(text: str) -> str:
  return errors.printable(" ".join(text.split()))


def reply_text(reply: Mapping[str, Any]) -> str:
  """The text of a reply; of several turns all, each behind a line with the times of its frames."""
  if "turns" not in reply:
    return reply["text"]
  return "\n".join(
    f"[turn {number}, shown at {', '.join(f'{time:g} s' for time in turn['times']) or 'no time'}]\n"
    f"{turn['text']}"
    for number, turn in enumerate(reply["turns"], start=1)
  )


def _scores(reply: Mapping[str, Any]) -> str:
  rewards = "  ".join(f"{name} {_number(value)}" for name, value in reply["rewards"].items())
  advantages = ", ".join(_number(value) for value in reply["advantages"].values())
  return f"{rewards}  advantage {advantages}"


def _number(value: float | None) -> str:
  return "–" if value is None else f"{value:.3g}"


def markdown(line: Mapping[str, Any], reply: Mapping[str, Any]) -> str:
  """A reply as Markdown. Its text is an indented block, in which no markup counts."""
  about = f"{line['example']}, {line['video']}, answer {line['answer']}, {_scores(reply)}"
  text = f"{_one_line(about)}\n\n{line['prompt']}\n\n→\n\n{reply_text(reply)}"
  return "\n".join(f"    {each}" for each in errors.printable(text).split("\n"))


def strip(rows: Sequence[np.ndarray]) -> UInt8[np.ndarray, "height width 3"] | None:
  """One picture of the frames: a row for each turn, from left to right in the order shown.

  Frames are scaled down to 112 pixels; of more than 16 in a row, 16 are shown, evenly chosen. None
  without frames.

  rows: RGB frames [frames, height, width, 3] of each turn.
  """
  drawn = [_row(frames) for frames in rows if len(frames)]
  if not drawn:
    return None
  width = max(row.shape[1] for row in drawn)
  padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0))) for row in drawn]
  return np.concatenate(padded)[:-_GAP]


def _row(
  frames: UInt8[np.ndarray, "frames height width 3"],
) -> UInt8[np.ndarray, "strip_height strip_width 3"]:
  chosen = np.linspace(0, len(frames) - 1, min(len(frames), _FRAMES)).round().astype(int)
  scale = min(1.0, _SIDE / max(frames.shape[1:3]))
  size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
  small = [np.asarray(Image.fromarray(frames[index]).resize(size)) for index in chosen]
  gap = np.zeros((size[1], _GAP, 3), np.uint8)
  return np.concatenate([part for frame in small for part in (frame, gap)][:-1], axis=1)
