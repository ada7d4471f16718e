"""Rewards as functions of replies and examples: this project's own, and those of a user.

    def brevity(replies, examples):
      return [1 / (1 + len(reply) / 100) for reply in replies]

A reward function gets the texts of replies and the example of each, and returns a number for each.
In a config it is called `my_rewards.py:brevity`, with a weight `my_rewards.py:brevity*0.5`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import cast

from jaxtyping import Float
import numpy as np

from vr_jax import errors, records, user_code

Function = Callable[[Sequence[str], Sequence[records.Example]], Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
  """A reward function with its name, its weight in the total, and what it is called in errors."""

  name: str
  weight: float
  function: Function
  title: str

  def __call__(
    self, replies: Sequence[str], examples: Sequence[records.Example]
  ) -> Float[np.ndarray, "replies"]:
    """The rewards, float32.

    Raises:
      InputError: the function raises, or returns anything but a finite number for each reply; names
        the function and an example.
    """
    try:
      given = self.function(list(replies), list(examples))
    except errors.InputError:
      raise
    except Exception as error:
      example, error = self._culprit(replies, examples, error)
      raise errors.InputError(
        f"{self.title}: example {example.id}: {user_code.describe(error)}"
      ) from error
    return self._checked(given, examples)

  def _culprit(
    self,
    replies: Sequence[str],
    examples: Sequence[records.Example],
    error: Exception,
  ) -> tuple[records.Example, Exception]:
    """The first example that raises by itself, and what it raises; else the first of the batch."""
    for reply, example in zip(replies, examples, strict=True):
      try:
        self.function([reply], [example])
      except Exception as alone:
        return example, alone
    return examples[0], error

  def _checked(
    self, given: object, examples: Sequence[records.Example]
  ) -> Float[np.ndarray, "replies"]:
    try:
      scores = np.asarray(given, np.float32)
    except (TypeError, ValueError) as error:
      raise errors.InputError(
        f"{self.title}: example {_first_bad(given, examples).id}: returned {given!r:.60}; needs a "
        "number for each reply"
      ) from error
    if scores.shape != (len(examples),):
      raise errors.InputError(
        f"{self.title}: example {examples[0].id}: returned an array of shape {scores.shape} for "
        f"{len(examples)} replies; needs one number for each"
      )
    for example, score in zip(examples, scores, strict=True):
      if not math.isfinite(score):
        raise errors.InputError(
          f"{self.title}: example {example.id}: returned {score}; needs a finite number"
        )
    return scores


def resolve(
  names: Sequence[str], own: Mapping[str, Function], weights: Mapping[str, float]
) -> tuple[Reward, ...]:
  """The rewards that a config lists.

  Args:
    names: of `own`, or `file.py:function`; *0.5 behind one is its weight.
    own: the rewards of the environment.
    weights: by name, for those that say none themselves; 1 where this has none either.

  Raises:
    InputError: a name stands for nothing or is there twice, or a weight is no finite number.
  """
  rewards: dict[str, Reward] = {}
  for entry in names:
    title, _, factor = entry.partition("*")
    title = title.strip()
    if user_code.is_reference(title):
      function = user_code.load(title, "config.env.rewards")
      if not callable(function):
        raise errors.InputError(f"config.env.rewards={title}: is not a function")
      path, _, name = title.rpartition(":")
      title = f"{path.rpartition('/')[2]}:{name}"
    elif title in own:
      function, name = own[title], title
    else:
      raise errors.InputError(
        f"config.env.rewards={entry}: no such reward; one of {', '.join(own)}, or file.py:function"
      )
    if name == "total":
      raise errors.InputError(
        f"config.env.rewards={entry}: total is the name of the sum; call the function otherwise"
      )
    if name in rewards:
      raise errors.InputError(f"config.env.rewards={entry}: there is a reward {name} already")
    weight = _weight(entry, factor, weights.get(name, 1.0))
    rewards[name] = Reward(name=name, weight=weight, function=cast(Function, function), title=title)
  return tuple(rewards.values())


def _weight(entry: str, factor: str, default: float) -> float:
  try:
    weight = float(factor) if factor else float(default)
  except ValueError:
    weight = math.nan
  if not math.isfinite(weight):
    raise errors.InputError(f"config.env.rewards={entry}: behind the * stands no number")
  return weight


def _first_bad(given: object, examples: Sequence[records.Example]) -> records.Example:
  """The example of the first entry that is no number."""
  if isinstance(given, Sequence) and not isinstance(given, str):
    for entry, example in zip(given, examples, strict=False):
      try:
        float(entry)
      except (TypeError, ValueError):
        return example
  return examples[0]
