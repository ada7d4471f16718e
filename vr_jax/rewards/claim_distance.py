"""The distance of reasoning steps by what they claim, whatever their words are.

A claim says that an attribute of an object has a value, or does not have it, at some time. The
parser is given: this file knows no grammar.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
import numpy as np

from vr_jax.rewards import ragged_batches, step_distance, words

_PAIRS = (4096,)  # compared at once
_CLAIMS = 2  # claims of a step are padded to this number, 4 times it, …


@runtime_checkable
class TimedClaim(Protocol):
  """The claim that `attribute` of `object` is `value`, or with `denied` is not.

  start, end: seconds; equal for a single instant.
  """

  @property
  def object(self) -> str: ...  # noqa: D102
  @property
  def attribute(self) -> str: ...  # noqa: D102
  @property
  def value(self) -> str: ...  # noqa: D102
  @property
  def start(self) -> float: ...  # noqa: D102
  @property
  def end(self) -> float: ...  # noqa: D102
  @property
  def denied(self) -> bool: ...  # noqa: D102


# What is claimed, without the time; start and end in seconds.
_Content = tuple[str, str, str, bool]
_Timed = tuple[_Content, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepKey:
  """What a step is compared by: its different claims, or, if it has none, its words."""

  claims: tuple[_Timed, ...]
  words: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimDistance:
  """1 - soft F1 over the claims of two steps.

      gap(a, b)   = max(|start of a - start of b|, |end of a - end of b|)
      match(a, b) = max(0, 1 - gap / seconds)   for claims of the same content, else 0
      recall      = mean over the reference's claims of their best match
      precision   = mean over the generated step's claims of their best match

  The gap is the Hausdorff distance of the two times. So a claim for the whole video doesn't match
  those for instants in it: else "from 0s to 10s" would make any value right that ever occurs. A
  claim that a step repeats counts once. A wrong value, object or attribute matches nothing, so a
  step with one wrong claim alone has the distance 1, where ROUGE sees most of its words.

  A step without a claim (the parser does not understand it, or it names no time) is as far as can
  be, 1, from every step but one of the same words.

  read: from the steps of a trace to the claims of each.
  seconds: the gap from which on claims don't match; above 0.
  """

  read: Callable[[Sequence[str]], Sequence[Sequence[TimedClaim]]]
  seconds: float

  def keys(self, steps: Sequence[str]) -> Sequence[StepKey]:
    """The claims of each step. What "it" means may depend on earlier steps."""
    return [
      StepKey(claims=claims, words=() if claims else tuple(words.split_words(step)))
      for step, read in zip(steps, self.read(steps), strict=True)
      for claims in [tuple(sorted({_timed(claim) for claim in read}))]
    ]

  def prepare(self, keys: Sequence[StepKey]) -> step_distance.PairDistances:
    """Numbers the contents of claims and lays out all claims, key after key."""
    flat = [claim for key in keys for claim in key.claims]
    numbers: dict[_Content, int] = {}
    content = np.array([numbers.setdefault(what, len(numbers)) for what, _, _ in flat] + [-1])
    start = np.array([start for _, start, _ in flat] + [0.0])
    end = np.array([end for _, _, end in flat] + [0.0])
    counts = np.array([len(key.claims) for key in keys], np.int64)
    first = np.cumsum(counts) - counts
    rows = ragged_batches.RaggedRows(
      [np.arange(n, n + count) for n, count in zip(first, counts, strict=True)]
    )

    def match(
      ref: Int[np.ndarray, "pairs ref"], gen: Int[np.ndarray, "pairs gen"]
    ) -> Float[np.ndarray, "pairs ref gen"]:
      ref, gen = ref[:, :, None], gen[:, None]
      valid = (ref != ragged_batches.PAD) & (gen != ragged_batches.PAD)
      gap = np.maximum(np.abs(start[ref] - start[gen]), np.abs(end[ref] - end[gen]))
      same = valid & (content[ref] == content[gen])
      return np.where(same, np.maximum(0, 1 - gap / self.seconds), 0)

    def distances(
      reference: Int[np.ndarray, "pairs"], generated: Int[np.ndarray, "pairs"]
    ) -> Float[np.ndarray, "pairs"]:
      lengths = np.stack([counts[reference], counts[generated]], axis=1)
      f1 = np.zeros(len(reference))
      for chosen, _, shape in ragged_batches.group_by_shape(
        ragged_batches.bucket_size(lengths, _CLAIMS), _PAIRS
      ):
        ref = rows.pad(reference[chosen], shape[0], len(chosen))
        gen = rows.pad(generated[chosen], shape[1], len(chosen))
        f1[chosen] = _soft_f1(match(ref, gen), lengths[chosen])
      return np.where(reference == generated, 0, 1 - f1).astype(np.float32)

    return distances


def _timed(claim: TimedClaim) -> _Timed:
  return (claim.object, claim.attribute, claim.value, claim.denied), claim.start, claim.end


def _soft_f1(
  match: Float[np.ndarray, "pairs ref gen"], lengths: Int[np.ndarray, "pairs 2"]
) -> Float[np.ndarray, "pairs"]:
  """Harmonic mean of precision and recall; 0 where nothing matches, or a step has no claim."""
  count = np.maximum(lengths, 1)
  recall = match.max(axis=2).sum(axis=1) / count[:, 0]
  precision = match.max(axis=1).sum(axis=1) / count[:, 1]
  total = recall + precision
  return np.where(total > 0, 2 * recall * precision / np.where(total > 0, total, 1), 0)
