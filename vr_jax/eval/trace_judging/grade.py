"""What a judge says about a trace: two integer scales, and the verdict on one prompt."""

from collections.abc import Mapping
import dataclasses

SCALES = ("consistency", "stability")
LOWEST, HIGHEST = 1, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceGrade:
  """A trace's integers from 1 (worst) to 5, one for each scale, and why, in the judge's words."""

  consistency: int
  stability: int
  reason: str = ""

  def __post_init__(self) -> None:
    for scale in SCALES:
      value = getattr(self, scale)
      if type(value) is not int or not LOWEST <= value <= HIGHEST:
        raise ValueError(f"{scale} should be a whole number from 1 to 5, is {value!r:.60}")

  @property
  def scores(self) -> tuple[int, int]:
    """Both integers, in the order of `SCALES`."""
    return self.consistency, self.stability


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceVerdict:
  """What one judge said to one prompt about the traces of one question.

  judge: its name in judged.json.
  id, video: of the question.
  run: number of the repetition, from 0.
  order: the evaluations whose traces the prompt showed, in that order.
  grades: of these, by evaluation; None if there is no verdict.
  problem: why there is none; else "".
  """

  judge: str
  id: str
  video: str
  run: int
  order: tuple[str, ...]
  grades: Mapping[str, TraceGrade] | None
  problem: str = ""
