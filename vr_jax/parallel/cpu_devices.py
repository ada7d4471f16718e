"""How many devices a CPU counts as."""

import contextlib
import os

import jax

from vr_jax.parallel import absent_tpu


def set_number(devices: int) -> None:
  """Sets how many devices a CPU counts as. 0 leaves JAX's default.

  No effect if XLA_FLAGS or jax_num_cpu_devices already set the number of devices, or JAX has
  started.
  """
  absent_tpu.leave_out()
  set_by_flags = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  number = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue] JAX adds it
  if not devices or set_by_flags or number >= 0:
    return
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", devices)
