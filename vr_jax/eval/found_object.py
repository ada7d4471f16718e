"""What a policy found of the object that a query means."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundObject:
  """What an episode found.

  frame: the key frame's index in the video; None if none was read.
  box: (left, top, right, bottom) in pixels of the video; None if none was read.
  problem: why there is no box; "" if there is one.
  """

  query: str
  replies: tuple[str, ...]
  frame: int | None
  description: str
  box: tuple[float, float, float, float] | None
  problem: str
