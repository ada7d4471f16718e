"""For tests that compile for TPUs that are not there."""

from collections.abc import Iterator
import contextlib

import jax

from launch import topology


@contextlib.contextmanager
def compiling_only() -> Iterator[None]:
  """Within it JAX compiles without a cache, whose programs could not be loaded here."""
  names = ("jax_enable_compilation_cache", "jax_exec_time_optimization_effort")
  before = {name: getattr(jax.config, name) for name in names}
  topology.prepare()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
