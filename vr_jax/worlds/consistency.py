"""True trace consistency: are the claims of a generated trace true of the video? No text overlap is involved."""

from collections.abc import Sequence
import dataclasses

from vr_jax import records
from vr_jax.worlds import claims as claims_lib

Pair = tuple[str, str]  # object, attribute
History = dict[Pair, list[tuple[float, str]]]  # (time, value) of each, by time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency:
  """How true a trace is, in [0, 1], and of how many claims; `uncovered` counts the changes that it leaves out."""

  score: float
  claims: int
  supported: int
  contradicted: int
  uncovered: int


def trace_consistency(
  steps: Sequence[str],
  states: Sequence[records.State],
  *,
  reference: Sequence[str] = (),
) -> Consistency:
  """Checks what a trace says against the simulator's states.

      score = supported / (claims + uncovered)        0 for a trace without a claim

  - A claim says of one object that one attribute has one value at one time of the grid (a time counts for the latest
    state at or before it; "from 2s to 6s" makes a claim for each state in between). Said twice, it counts once. It is
    supported if the state is so, else contradicted: also where the object or the time isn't in the video at all.
  - That something is *not* so counts only where it is false: true denials are too cheap to earn anything.
  - `uncovered` counts the changes of what is asked, its first state being one, that no claim speaks of while they last.
    What is asked: the (object, attribute) pairs of the `reference` trace, over the times that it speaks of. Without a
    reference: the pairs that the trace itself makes claims about, over all times.

  A total function: any strings give a number.
  """
  history = history_of(states)
  made, false = set(), set()
  for claim in claims_lib.read_claims(steps):
    for time, actual in states_of(claim, history):
      key = (claim.object, claim.attribute, time, claim.value, claim.denied)
      true = actual is not None and (actual == claim.value) != claim.denied
      if claim.denied and true:
        continue
      made.add(key)
      if not true:
        false.add(key)
  spoken = {(name, attribute, time) for name, attribute, time, _, denied in made if not denied}
  horizon = asked_pairs(reference, history) or {
    (name, attribute): (0.0, float("inf")) for name, attribute, _ in spoken
  }
  uncovered = sum(
    not any((*pair, time) in spoken for time in times)
    for pair, (since, until) in horizon.items()
    for times in _stretches(history.get(pair, []), since, until)
  )
  supported = len(made) - len(false)
  return Consistency(
    score=supported / (len(made) + uncovered) if made else 0.0,
    claims=len(made),
    supported=supported,
    contradicted=len(false),
    uncovered=uncovered,
  )


def concluded_value(
  steps: Sequence[str],
  states: Sequence[records.State],
  *,
  reference: Sequence[str] = (),
) -> str | None:
  """What a trace itself concludes: the value that it claims for the latest time; None if it claims nothing.

  Only claims about what is asked count, the pairs of the `reference` in the times that it speaks of; without one, the object
  and attribute of the claim for the latest time. The last word counts where the trace contradicts itself. Several pairs asked (colour and
  size) are joined by " and ", in the order of the reference, and need a claim each.
  """
  made = [claim for claim in claims_lib.read_claims(steps) if not claim.denied]
  asked = asked_pairs(reference, history_of(states))
  if not asked and made:
    last = max(made, key=lambda claim: claim.end)
    asked = {(last.object, last.attribute): (0.0, last.end)}
  latest: dict[Pair, claims_lib.Claim] = {}
  for claim in made:
    pair = (claim.object, claim.attribute)
    since, until = asked.get(pair, (float("inf"), 0.0))
    if claim.start <= until and since <= claim.end:
      latest[pair] = max(claim, latest.get(pair, claim), key=lambda claim: claim.end)
  if not asked or any(pair not in latest for pair in asked):
    return None
  return " and ".join(latest[pair].value for pair in asked)


def implied_answer(steps: Sequence[str], example: records.Example) -> str | None:
  """The answer that a trace's own conclusion leads to, to compare with the answer given.

  For multiple choice the letter of the option that is the concluded value, else the value. None where the trace
  concludes nothing, or no option, or the answer is a count of what the trace lists one by one (numerical).
  """
  if example.problem_type == "numerical":
    return None
  reference = [step.text for step in example.steps]
  value = concluded_value(steps, example.states, reference=reference)
  if value is None or not example.options:
    return value
  letters = [option.split(".")[0] for option in example.options if option[3:] == value]
  return letters[0] if letters else None


def history_of(states: Sequence[records.State]) -> History:
  """The states of each object's attribute, by time in seconds."""
  history: History = {}
  for state in sorted(states, key=lambda state: state.time):
    history.setdefault((state.object, state.attribute), []).append((state.time, state.value))
  return history


def states_of(claim: claims_lib.Claim, history: History) -> list[tuple[float, str | None]]:
  """The (time, value) of the states that a claim is about; the value is None where there is no such state."""
  line = history.get((claim.object, claim.attribute), [])
  before = [state for state in line if state[0] <= claim.start]
  last = line[-1][0] if line else 0.0
  # The last state lasts as long as the one before it.
  end = 2 * last - line[-2][0] if len(line) > 1 else float("inf")
  if not before or claim.start >= end:
    return [(claim.start, None)]
  return [before[-1], *(state for state in line if claim.start < state[0] < claim.end)]


def asked_pairs(reference: Sequence[str], history: History) -> dict[Pair, tuple[float, float]]:
  """The pairs that a reference trace speaks of and the scene has, each with the first and last time it speaks of it."""
  asked: dict[Pair, tuple[float, float]] = {}
  for claim in claims_lib.read_claims(reference):
    pair = (claim.object, claim.attribute)
    if pair in history:
      first, last = asked.get(pair, (claim.start, claim.end))
      asked[pair] = (min(first, claim.start), max(last, claim.end))
  return asked


def _stretches(line: list[tuple[float, str]], since: float, until: float) -> list[list[float]]:
  """The times of the grid from `since` up to `until`, cut where the value changes."""
  stretches: list[list[float]] = []
  value = None
  for time, state in line:
    if not since <= time <= until:
      continue
    if state == value:
      stretches[-1].append(time)
    else:
      stretches.append([time])
    value = state
  return stretches
