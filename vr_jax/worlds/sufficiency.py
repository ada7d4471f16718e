"""Decides whether an observation suffices to answer its question.

The decision is exact: it uses the simulator's states and no model.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence

from vr_jax import records
from vr_jax.worlds import claims as claims_lib
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import consistency


def sufficient(example: records.Example, observation: str) -> bool:
  """Whether the right answer follows from the text of an observation and from nothing else.

  The reader is assumed to know the question, and that each attribute of each object repeats after
  some period. A period is at least two cells of the simulator's grid (see config.WorldConfig), and
  at most what the shown cells can prove.

  The observation must suffice for every (object, attribute) pair of the reference steps:

  - All its claims about the pair, for times in `example.shown`, are true.
  - Every period that fits these claims predicts, from them alone, the true value at the time that
    the question names. If the question names no time, or the end of the video (it counts over the
    whole video), every cell must be predicted.
  - A period predicts a cell if the text makes a claim about a cell a multiple of it away. A period
    that fits the claims but does not predict the cell makes the observation insufficient.

  If nothing is masked, nothing repeats: the text must give the true value in each cell of the
  relevant spans.

  These claims don't count: claims about masked times (they are reasoning), claims about other
  pairs, and true denials ("not red"), which determine no value. If the answer is a number, the
  counted values themselves must follow, so that a text is not right by chance.

  Accepts any text. Returns False for an example without states or without reference steps.
  """
  history = consistency.build_history(example.states)
  asked = consistency.find_asked_pairs([step.text for step in example.steps], history)
  claims = claims_lib.read_claims([observation])
  return bool(asked) and all(
    _is_determined(
      seen=_claimed_values(pair, claims, history, example.shown),
      line=[value for _, value in history[pair]],
      cells=_asked_cells(example, [time for time, _ in history[pair]]),
      periods=_possible_periods(example, [time for time, _ in history[pair]]),
    )
    for pair in asked
  )


def _claimed_values(
  pair: consistency.Pair,
  claims: Sequence[claims_lib.Claim],
  history: consistency.History,
  shown: records.Span,
) -> dict[int, str] | None:
  """The value claimed for each cell of the shown span; None if one of the claims is false."""
  cell_of = {time: cell for cell, (time, _) in enumerate(history[pair])}
  seen: dict[int, str] = {}
  for claim in claims:
    if (claim.object, claim.attribute) != pair:
      continue
    for time, actual in consistency.find_states(claim, history):
      if not _within(time, shown):
        continue
      if actual is None or (actual == claim.value) == claim.denied:
        return None
      if not claim.denied:
        seen[cell_of[time]] = actual
  return seen


def _possible_periods(example: records.Example, grid: Sequence[float]) -> Iterable[int]:
  """Periods in cells that a reader must consider.

  If nothing is masked, this is the whole video alone: nothing repeats.
  """
  if example.masked is None:
    return (len(grid),)
  shown = sum(_within(time, example.shown) for time in grid)
  return range(2, config_lib.longest_period(shown) + 1)


def _asked_cells(example: records.Example, grid: Sequence[float]) -> Iterable[int]:
  """The cells that a question is about.

  If nothing is masked: the cells of the relevant spans. Else: the cell of the last time that the
  question names, or all cells if it names no time within the video.
  """
  if example.masked is None:
    return [
      cell
      for cell, time in enumerate(grid)
      if any(_within(time, span) for span in example.relevant)
    ]
  times = claims_lib.read_times(example.question)
  end = 2 * grid[-1] - grid[-2] if len(grid) > 1 else float("inf")
  if not times or not grid[0] <= times[-1][0] < end:
    return range(len(grid))
  return (bisect.bisect(grid, times[-1][0]) - 1,)


def _is_determined(
  *,
  seen: Mapping[int, str] | None,
  line: Sequence[str],
  cells: Iterable[int],
  periods: Iterable[int],
) -> bool:
  """Whether every period that fits `seen` gives the true values `line` in the cells.

  Returns False if no period fits.
  """
  if seen is None:
    return False
  any_period_fits = False
  for period in periods:
    script: dict[int, str] = {}
    if all(script.setdefault(cell % period, value) == value for cell, value in seen.items()):
      any_period_fits = True
      if any(script.get(cell % period) != line[cell] for cell in cells):
        return False
  return any_period_fits


def _within(time: float, span: records.Span) -> bool:
  return span.start <= time < span.end
