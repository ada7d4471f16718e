"""Several processes of one run: what one of them does alone, and where the others wait for it."""

from collections.abc import Callable

import jax
from jax.experimental import multihost_utils
from jaxtyping import Float, Num
import numpy as np


def is_first() -> bool:
  """Whether this process is the one that writes what a run has once: config, data, metrics, report."""
  return jax.process_index() == 0


def first_alone(name: str, work: Callable[[], None]) -> None:
  """Process 0 does `work`; the others wait until it is done. `name` is the same in all, and that of this place only.

  Where `work` fails the others wait in vain: whoever started the processes ends them (launch/local.py).
  """
  if is_first():
    work()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def least(number: int) -> int:
  """The smallest of the processes' numbers; all of them must ask."""
  return int(gathered(np.array([number])).min())


def summed(
  numbers: Float[np.ndarray, "numbers"], *, copies: int = 1
) -> Float[np.ndarray, "numbers"]:
  """Over the processes, of which so many have the same ones; all of them must ask."""
  return gathered(numbers).sum(axis=0) / copies


def gathered(numbers: Num[np.ndarray, "numbers"]) -> Num[np.ndarray, "processes numbers"]:
  """Those of all processes, in their order; all of them must ask."""
  if jax.process_count() == 1:
    return numbers[None]
  return np.asarray(multihost_utils.process_allgather(numbers))
