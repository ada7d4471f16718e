"""What a rule makes of one reply."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
  """The answer that a rule read in a reply, and its score.

  parsed: such as a letter, "yes" or a number as text; None: the reply states none that the rule
    can read.
  score: in [0, 1], as the rule's own program gives it. Whether it counts where `parsed` is None is
    the protocol's choice: `scored_reply.final_score`.
  """

  parsed: str | None
  score: float


UNPARSED = ScoredAnswer(parsed=None, score=0.0)


def match(parsed: str | None, right: str) -> ScoredAnswer:
  """Scores 1 if an answer was read and is the right one, else 0."""
  return ScoredAnswer(parsed=parsed, score=float(parsed is not None and parsed == right))
