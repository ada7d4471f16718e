"""Grades traces of simulated videos exactly, from the true states: no model, no network.

Both scales come from counts of claims (worlds/claims.py reads them), by these tables:

    consistency   5: share = 1   4: share >= 0.8    3: >= 0.6     2: >= 0.3    1: less, or no claim
    stability     5: share = 0   4: share <= 0.1    3: <= 0.25    2: <= 0.5    1: more, or no claim

`TraceCounts` says what the shares are of.
"""

import bisect
from collections.abc import Sequence
import dataclasses

from vr_jax import records
from vr_jax.eval.trace_judging import grade
from vr_jax.worlds import claims as claims_lib
from vr_jax.worlds import consistency

_CONSISTENCY = ((5, 1.0), (4, 0.8), (3, 0.6), (2, 0.3))  # grade, least share
_STABILITY = ((5, 0.0), (4, 0.1), (3, 0.25), (2, 0.5))  # grade, largest share

_Place = tuple[consistency.Pair, float]  # an object's attribute at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceCounts:
  """Counts of a trace's claims, each about one attribute of one object at one time.

  right, wrong: claims that the true states support and contradict, as in worlds.consistency.
  in_order: the most right claims that can be kept such that, for each attribute of an object,
    times never go back.
  missing: stretches of constant value that the reference tells and the trace does not.
  places: number of different (object, attribute, time) that anything is said about.
  contradicting: places with two values, or with a value that is also denied.
  drifting: places before the conclusion where the trace wrongly sees the value that it concludes.
    Only of what the question is about; the conclusion is the claim for the latest time.
  unsteady: places that are contradicting or drifting or both.
  """

  right: int
  wrong: int
  in_order: int
  missing: int
  places: int
  contradicting: int
  drifting: int
  unsteady: int

  @property
  def agreeing_share(self) -> float:
    """in_order / (right + wrong + missing); 0 for a trace without a claim."""
    claims = self.right + self.wrong
    return self.in_order / (claims + self.missing) if claims else 0.0

  @property
  def unsteady_share(self) -> float:
    """unsteady / places; 1 for a trace that says nothing."""
    return self.unsteady / self.places if self.places else 1.0

  def grades(self) -> grade.TraceGrade:
    """Both grades, by the tables above, and the counts as the reason."""
    places, agreeing, unsteady = self.places, self.agreeing_share, self.unsteady_share
    return grade.TraceGrade(
      consistency=next((g for g, least in _CONSISTENCY if agreeing >= least), grade.LOWEST),
      stability=next((g for g, most in _STABILITY if places and unsteady <= most), grade.LOWEST),
      reason=(
        f"{self.right} right claims ({self.in_order} in order), {self.wrong} wrong, "
        f"{self.missing} states left out, {self.contradicting} contradictions, "
        f"{self.drifting} drift to the conclusion"
      ),
    )


def count_claims(
  trace: Sequence[str], states: Sequence[records.State], reference: Sequence[str]
) -> TraceCounts:
  """Counts what a trace claims, against the true states of the video.

  trace, reference: reasoning steps. Accepts any text.
  """
  history = consistency.build_history(states)
  values: dict[_Place, set[str]] = {}
  denied: dict[_Place, set[str]] = {}
  right: dict[tuple[_Place, str, bool], None] = {}  # in the order of the text, each once
  wrong: set[tuple[_Place, str, bool]] = set()
  ends: dict[consistency.Pair, tuple[float, str]] = {}  # the latest time, and the value then
  for claim in claims_lib.read_claims(trace):
    pair = (claim.object, claim.attribute)
    for time, actual in consistency.find_states(claim, history):
      place = (pair, time)
      (denied if claim.denied else values).setdefault(place, set()).add(claim.value)
      is_true = actual is not None and (actual == claim.value) != claim.denied
      if not is_true:
        wrong.add((place, claim.value, claim.denied))
      elif not claim.denied:  # true denials are too easy to count
        right.setdefault((place, claim.value, claim.denied))
      if not claim.denied and time >= ends.get(pair, (time, ""))[0]:
        ends[pair] = (time, claim.value)
  asked = consistency.find_asked_pairs(reference, history) or ends
  contradicting = {
    place for place, said in values.items() if len(said) > 1 or said & denied.get(place, set())
  }
  drifting = {
    (pair, time)
    for (pair, time), value, is_denied in wrong
    if not is_denied and pair in asked and time < ends[pair][0] and value == ends[pair][1]
  }
  exact = consistency.trace_consistency(trace, states, reference=reference)
  return TraceCounts(
    right=len(right),
    wrong=len(wrong),
    in_order=_count_in_order([place for place, _, _ in right]),
    missing=exact.uncovered,
    places=len(values.keys() | denied.keys()),
    contradicting=len(contradicting),
    drifting=len(drifting),
    unsteady=len(contradicting | drifting),
  )


def grade_question(example: records.Example, trace: Sequence[str]) -> grade.TraceGrade:
  """Grades a trace about an example whose true states are known."""
  return count_claims(trace, example.states, [step.text for step in example.steps]).grades()


def _count_in_order(places: Sequence[_Place]) -> int:
  """For each pair the longest selection of its places whose times never fall, summed."""
  times: dict[consistency.Pair, list[float]] = {}
  for pair, time in places:
    times.setdefault(pair, []).append(time)
  return sum(map(_longest_rise, times.values()))


def _longest_rise(times: Sequence[float]) -> int:
  """Length of the longest non-decreasing subsequence, in n log n."""
  ends: list[float] = []  # the least last time of a selection of each length
  for time in times:
    at = bisect.bisect_right(ends, time)
    ends[at : at + 1] = [time]
  return len(ends)
