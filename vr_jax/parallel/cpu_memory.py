"""Keeps XLA's compiler for CPUs from widening the weights of all layers at once."""

from importlib import metadata, util
import os

import jax

from vr_jax.parallel import absent_tpu

_FLAG = "--xla_disable_hlo_passes="
# Moves what does not change in a loop out of it: for a loop over layers all weights as float32.
_PASS = "while-loop-invariant-code-motion"


def keep_narrow_weights() -> None:
  """Lets a layer's bfloat16 weights be widened when the layer runs, and not before the loop.

  A CPU multiplies float32, so XLA converts narrow weights. It moves that out of the loop over
  layers, which takes twice the memory of the weights again (12.7 GB for 3 B parameters).

  Nothing is changed if JAX has started, may use anything but the CPU, or XLA_FLAGS already name
  passes to leave out.
  """
  absent_tpu.leave_out()
  flags = os.environ.get("XLA_FLAGS", "")
  if _only_cpu() and _FLAG not in flags and not _started():
    os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}{_PASS}".strip()


def _only_cpu() -> bool:
  """Whether a CPU is all that JAX can use."""
  chosen = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue] JAX adds it
  if chosen:
    return chosen == "cpu"
  return util.find_spec("libtpu") is None and not metadata.entry_points(group="jax_plugins")


def _started() -> bool:
  """Whether JAX has started: then it refuses another number of devices."""
  number = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue] JAX adds it
  try:
    jax.config.update("jax_num_cpu_devices", number + 2)
  except RuntimeError:
    return True
  jax.config.update("jax_num_cpu_devices", number)
  return False
