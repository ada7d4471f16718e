"""The backend that a run is told to use (--backend): JAX runs on it, or the run ends with a line.

Without libtpu, or without a driver, JAX would take the CPU and say nothing; on a pod each host then
ran alone. The CPU stays available beside what is asked for.
"""

from collections.abc import Mapping
import glob
from importlib import metadata, util
import socket

import jax

from vr_jax import errors
from vr_jax.parallel import absent_tpu

_PLATFORMS: Mapping[str, str] = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
_BACKENDS: Mapping[str, str] = {"cpu": "cpu", "cuda": "gpu", "gpu": "gpu", "tpu": "tpu"}


def choose(backend: str) -> None:
  """Makes JAX use a backend; "": what it finds. Call it before JAX starts.

  Raises InputError, with the host's name, if what it takes is not on this machine.
  """
  if not backend:
    absent_tpu.leave_out()
    return
  if problem := _find_missing(backend):
    raise errors.InputError(f"{socket.gethostname()}: --backend={backend}, but {problem}")
  jax.config.update("jax_platforms", _PLATFORMS[backend])


def _find_missing(backend: str) -> str:
  """What a backend lacks on this machine, and what to do; "" if nothing."""
  if backend == "tpu":
    if util.find_spec("libtpu") is None:
      return "libtpu is not installed; install vr_jax[tpu]"
    if not any(map(glob.glob, absent_tpu.CHIPS)):
      return f"no chip is seen ({', '.join(absent_tpu.CHIPS)}); a container needs --privileged"
  plugins = [each.name for each in metadata.entry_points(group="jax_plugins")]
  if backend == "gpu" and not any("cuda" in name for name in plugins):
    return "JAX has no plugin for CUDA; install vr_jax[cuda]"
  return ""


def start() -> None:
  """Starts JAX.

  Raises Unready, with the host's name, if it can't start, or runs on something else than
  `choose`, or JAX_PLATFORMS, has chosen.
  """
  chosen = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue] JAX adds it
  try:
    found = jax.default_backend()
  except RuntimeError as error:
    raise errors.Unready(f"{socket.gethostname()}: JAX can't start: {error}") from error
  asked = _BACKENDS.get(chosen.partition(",")[0], found)
  if found != asked:
    raise errors.Unready(
      f"{socket.gethostname()}: JAX runs on {found}, not on {asked}: no device is seen, or its "
      "driver can't be used"
    )
