"""Does an observation suffice to answer? Exact, from the simulator's states; no model is asked."""

import bisect
from collections.abc import Iterable, Mapping, Sequence

from vr_jax import records
from vr_jax.worlds import claims as claims_lib
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import consistency


def sufficient(example: records.Example, observation: str) -> bool:
  """Whether the right answer follows from the text of an observation, and from nothing else.

  The reader of the observation knows the question, and that in each attribute of each object everything repeats after
  some number of cells of the simulator's grid (see config.WorldConfig): two cells or more, and no more than can be
  told from as many cells as are shown. An observation suffices if of every (object, attribute) pair that is asked
  about, which are those of the reference steps,

  - all that it claims for times in `example.shown` is true, and
  - every period that fits these claims gives, by them alone, the true value at the time that the question names; in
    every cell where that is the end of the video or where it names none (what is counted over the whole video).

  A period that leaves such a cell open, where the text speaks of no cell a whole number of periods away, makes it
  insufficient. Where nothing is masked nothing repeats: the text has to tell the true value in each cell of the relevant
  spans. Claims about later times are reasoning and don't count; neither do those about anything else, nor true
  denials ("not red"), which fix no value. For an answer that is a number the values must follow and not just their
  number, so that an answer can't be right by chance.

  A total function: any text gives a bool; False where the example has no states or no reference steps.
  """
  history = consistency.history_of(example.states)
  asked = consistency.asked_pairs([step.text for step in example.steps], history)
  claims = claims_lib.read_claims([observation])
  return bool(asked) and all(
    _follows(
      seen=_seen(pair, claims, history, example.shown),
      line=[value for _, value in history[pair]],
      cells=_asked_cells(example, [time for time, _ in history[pair]]),
      periods=_periods(example, [time for time, _ in history[pair]]),
    )
    for pair in asked
  )


def _seen(
  pair: consistency.Pair,
  claims: Sequence[claims_lib.Claim],
  history: consistency.History,
  shown: records.Span,
) -> dict[int, str] | None:
  """The values claimed of a pair by cell, within the shown span; None if one of the claims is false."""
  cell_of = {time: cell for cell, (time, _) in enumerate(history[pair])}
  seen = {}
  for claim in claims:
    if (claim.object, claim.attribute) != pair:
      continue
    for time, actual in consistency.states_of(claim, history):
      if not _within(time, shown):
        continue
      if actual is None or (actual == claim.value) == claim.denied:
        return None
      if not claim.denied:
        seen[cell_of[time]] = actual
  return seen


def _periods(example: records.Example, grid: Sequence[float]) -> Iterable[int]:
  """Numbers of cells after which things may repeat: what isn't foreseen does after all of them."""
  if example.masked is None:
    return (len(grid),)
  shown = sum(_within(time, example.shown) for time in grid)
  return range(2, config_lib.longest_period(shown) + 1)


def _asked_cells(example: records.Example, grid: Sequence[float]) -> Iterable[int]:
  """The cells that a question is about: the relevant ones, or of the future that of the last time it names, or all of them."""
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


def _follows(
  *,
  seen: Mapping[int, str] | None,
  line: Sequence[str],
  cells: Iterable[int],
  periods: Iterable[int],
) -> bool:
  """Whether every period that fits what was seen, of which there is one, gives the true values in the cells."""
  if seen is None:
    return False
  fitting = False
  for period in periods:
    script: dict[int, str] = {}
    if all(script.setdefault(cell % period, value) == value for cell, value in seen.items()):
      fitting = True
      if any(script.get(cell % period) != line[cell] for cell in cells):
        return False
  return fitting


def _within(time: float, span: records.Span) -> bool:
  return span.start <= time < span.end
