"""Trace consistency: are the claims of a generated trace true of the video?

Claims are checked against the simulator's states, not against the words of a reference trace.
"""

from collections.abc import Sequence
import dataclasses

from vr_jax import records
from vr_jax.worlds import claims as claims_lib

Pair = tuple[str, str]  # object, attribute
History = dict[Pair, list[tuple[float, str]]]  # (time, value) in order of time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency:
  """How true a trace is.

  score: in [0, 1].
  claims: number of claims; each is either supported or contradicted.
  uncovered: number of changes in the video that the trace should mention but does not.
  """

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

  - A claim gives one attribute of one object a value at one time of the grid. A time refers to the
    latest state at or before it. "From 2s to 6s" makes a claim for each state in between. A
    repeated claim counts once.
  - A claim is supported if the state agrees, else contradicted. It is also contradicted if the
    object or the time is not in the video.
  - A denial ("not red") counts only if it is false: true denials are too easy to earn anything.
  - `uncovered` counts stretches of constant value, among the pairs that are asked about, that no
    claim mentions. The first stretch counts too.
  - The pairs asked about are the (object, attribute) pairs of the `reference` trace, over the times
    that it mentions. Without a reference: the pairs of the trace's own claims, over all times.

  Accepts any strings.
  """
  history = build_history(states)
  claims, contradicted = set(), set()
  for claim in claims_lib.read_claims(steps):
    for time, actual in find_states(claim, history):
      key = (claim.object, claim.attribute, time, claim.value, claim.denied)
      is_true = actual is not None and (actual == claim.value) != claim.denied
      if claim.denied and is_true:
        continue
      claims.add(key)
      if not is_true:
        contradicted.add(key)
  covered = {(name, attribute, time) for name, attribute, time, _, denied in claims if not denied}
  asked = find_asked_pairs(reference, history) or {
    (name, attribute): (0.0, float("inf")) for name, attribute, _ in covered
  }
  uncovered = sum(
    not any((*pair, time) in covered for time in times)
    for pair, (since, until) in asked.items()
    for times in _constant_stretches(history.get(pair, []), since, until)
  )
  supported = len(claims) - len(contradicted)
  return Consistency(
    score=supported / (len(claims) + uncovered) if claims else 0.0,
    claims=len(claims),
    supported=supported,
    contradicted=len(contradicted),
    uncovered=uncovered,
  )


def concluded_value(
  steps: Sequence[str],
  states: Sequence[records.State],
  *,
  reference: Sequence[str] = (),
) -> str | None:
  """The conclusion of a trace: the value that it claims for the latest time.

  - Only claims about the pairs that are asked about count: those of the `reference` trace, in the
    times that it mentions. Without a reference: the pair of the trace's latest claim.
  - If the trace contradicts itself, the later sentence counts.
  - Several pairs (colour and size) need a claim each. Their values are joined by " and ", in the
    order of the reference.

  Returns None if a claim is missing.
  """
  claims = [claim for claim in claims_lib.read_claims(steps) if not claim.denied]
  asked = find_asked_pairs(reference, build_history(states))
  if not asked and claims:
    last = max(claims, key=lambda claim: claim.end)
    asked = {(last.object, last.attribute): (0.0, last.end)}
  latest: dict[Pair, claims_lib.Claim] = {}
  for claim in claims:
    pair = (claim.object, claim.attribute)
    since, until = asked.get(pair, (float("inf"), 0.0))
    if claim.start <= until and since <= claim.end:
      latest[pair] = max(claim, latest.get(pair, claim), key=lambda claim: claim.end)
  if not asked or any(pair not in latest for pair in asked):
    return None
  return " and ".join(latest[pair].value for pair in asked)


def implied_answer(steps: Sequence[str], example: records.Example) -> str | None:
  """The answer that follows from a trace's own conclusion, to compare with the answer it gave.

  For multiple choice this is the letter of the option with the concluded value, else the value.
  Returns None if the trace concludes nothing or no option. Also None for numerical problems, where
  the answer counts what the trace lists.
  """
  if example.problem_type == "numerical":
    return None
  reference = [step.text for step in example.steps]
  value = concluded_value(steps, example.states, reference=reference)
  if value is None or not example.options:
    return value
  letters = [option.split(".")[0] for option in example.options if option[3:] == value]
  return letters[0] if letters else None


def build_history(states: Sequence[records.State]) -> History:
  """Groups states by (object, attribute), each group in order of time."""
  history: History = {}
  for state in sorted(states, key=lambda state: state.time):
    history.setdefault((state.object, state.attribute), []).append((state.time, state.value))
  return history


def find_states(claim: claims_lib.Claim, history: History) -> list[tuple[float, str | None]]:
  """The (time, value) of each state that a claim is about; the value is None if there is none."""
  line = history.get((claim.object, claim.attribute), [])
  before = [state for state in line if state[0] <= claim.start]
  last = line[-1][0] if line else 0.0
  # The last state lasts as long as the one before it.
  end = 2 * last - line[-2][0] if len(line) > 1 else float("inf")
  if not before or claim.start >= end:
    return [(claim.start, None)]
  return [before[-1], *(state for state in line if claim.start < state[0] < claim.end)]


def find_asked_pairs(reference: Sequence[str], history: History) -> dict[Pair, tuple[float, float]]:
  """The pairs of the scene that a reference trace mentions, each with its first and last time."""
  asked: dict[Pair, tuple[float, float]] = {}
  for claim in claims_lib.read_claims(reference):
    pair = (claim.object, claim.attribute)
    if pair in history:
      first, last = asked.get(pair, (claim.start, claim.end))
      asked[pair] = (min(first, claim.start), max(last, claim.end))
  return asked


def _constant_stretches(
  line: list[tuple[float, str]], since: float, until: float
) -> list[list[float]]:
  """The times of the grid from `since` to `until`, split wherever the value changes."""
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
