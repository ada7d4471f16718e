"""Compiles for slices that are not attached, without a cache: it can't load programs for them."""

import jax
import pytest

from launch import topology


@pytest.fixture(autouse=True, scope="module")
def compiling_only():
  names = ("jax_enable_compilation_cache", "jax_exec_time_optimization_effort")
  before = {name: getattr(jax.config, name) for name in names}
  topology.prepare()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
