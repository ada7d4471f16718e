"""Compiles for slices that are not attached, without a cache: it can't load programs for them."""

import jax
import pytest

from launch import topology


@pytest.fixture(autouse=True, scope="module")
def compiling_only():
  cached = jax.config.jax_enable_compilation_cache
  topology.prepare()
  yield
  jax.config.update("jax_enable_compilation_cache", cached)


@pytest.fixture(scope="module")
def little_effort():
  """The compiler spends less time on making programs fast. They still need the same memory."""
  effort = jax.config.jax_exec_time_optimization_effort
  jax.config.update("jax_exec_time_optimization_effort", -1.0)
  yield
  jax.config.update("jax_exec_time_optimization_effort", effort)
