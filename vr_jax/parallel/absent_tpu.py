"""Keeps JAX away from a TPU that is not there."""

import glob
from importlib import metadata, util
import os

import jax

# libtpu opens a chip through one of these.
CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def has_chips() -> bool:
  """Whether this machine has TPU chips, and libtpu to use them."""
  return util.find_spec("libtpu") is not None and any(map(glob.glob, CHIPS))


def leave_out() -> None:
  """Makes JAX use the CPU alone where libtpu is installed, but neither a TPU nor a GPU can be.

  libtpu is also a compiler for chips that a machine need not have (launch/plan.py). Without a chip,
  JAX would load it first, and libtpu prints errors that look like a broken installation.

  No effect if the platform is chosen (JAX_PLATFORMS), a plugin for other accelerators is installed,
  or JAX has started.
  """
  chosen = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue] JAX adds it
  if chosen or "JAX_FORCE_TPU_INIT" in os.environ or util.find_spec("libtpu") is None:
    return
  if has_chips() or metadata.entry_points(group="jax_plugins"):
    return
  jax.config.update("jax_platforms", "cpu")
