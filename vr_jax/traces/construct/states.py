"""States of objects over time: what captions say, as (object, attribute, value, caption)."""

from collections.abc import Sequence
import dataclasses
import re

from vr_jax.traces.construct import captions as captions_lib
from vr_jax.traces.construct import equivalence
from vr_jax.worlds import claims

Pair = tuple[str, str]  # object, attribute
_SENTENCE = re.compile(r"[;!?\n]|\.(?![0-9])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToldState:
  """What one caption says of an object. caption: its number in the video, from 0."""

  object: str
  attribute: str
  value: str
  caption: int


def read_by_rule(video: captions_lib.CaptionedVideo) -> tuple[ToldState, ...]:
  """Reads captions in the vocabulary of the simulator; text that it doesn't know tells nothing."""
  told = []
  for number, caption in enumerate(video.captions):
    # The parser of claims wants a time in each sentence; here all have that of their caption.
    steps = [f"At 0s, {part}" for part in _SENTENCE.split(caption.text.lower()) if part.strip()]
    told += [
      ToldState(object=claim.object, attribute=claim.attribute, value=claim.value, caption=number)
      for claim in claims.read_claims(steps)
      if not claim.denied
    ]
  return tuple(dict.fromkeys(told))


def by_pair(told: Sequence[ToldState]) -> dict[Pair, list[ToldState]]:
  """Groups states by object and attribute, each group in order of the captions."""
  groups: dict[Pair, list[ToldState]] = {}
  for state in sorted(told, key=lambda state: state.caption):
    groups.setdefault((state.object, state.attribute), []).append(state)
  return groups


def has_conflict(told: Sequence[ToldState]) -> bool:
  """Whether a caption gives a pair two values. told: of one pair, in order of the captions."""
  value_of: dict[int, str] = {}
  for state in told:
    before = value_of.setdefault(state.caption, state.value)
    if equivalence.content_words(before) != equivalence.content_words(state.value):
      return True
  return False


def by_caption(told: Sequence[ToldState]) -> dict[int, list[ToldState]]:
  """Groups states by the number of their caption, in order."""
  groups: dict[int, list[ToldState]] = {}
  for state in sorted(told, key=lambda state: state.caption):
    groups.setdefault(state.caption, []).append(state)
  return groups
