"""Coordination between the processes of a run: work for the first one alone, and reductions."""

from collections.abc import Callable

import jax
from jax.experimental import multihost_utils
from jaxtyping import Float, Num
import numpy as np


def is_first() -> bool:
  """Whether this process writes what a run has once: config, data, metrics, report."""
  return jax.process_index() == 0


def first_alone(name: str, work: Callable[[], None]) -> None:
  """Runs `work` in process 0, while the others wait.

  name: identifies this barrier; the same in all processes, and used nowhere else.

  If `work` fails, the others wait until their launcher ends them (launch/local.py).
  """
  if is_first():
    work()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def all_min(number: int) -> int:
  """Minimum over processes. Every process must call this."""
  return int(all_gather(np.array([number])).min())


def all_sum(
  numbers: Float[np.ndarray, "numbers"], *, copies: int = 1
) -> Float[np.ndarray, "numbers"]:
  """Sum over processes. Every process must call this.

  copies: how many processes hold each value.
  """
  return all_gather(numbers).sum(axis=0) / copies


def all_gather(numbers: Num[np.ndarray, "numbers"]) -> Num[np.ndarray, "processes numbers"]:
  """Stacks the numbers of all processes, in order. Every process must call this."""
  if jax.process_count() == 1:
    return numbers[None]
  return np.asarray(multihost_utils.process_allgather(numbers))
