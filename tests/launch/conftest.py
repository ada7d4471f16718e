"""Programs are compiled for slices that are not here, and not kept: what is kept can't be loaded without a device."""

import jax
import pytest

from launch import topology


@pytest.fixture(autouse=True, scope="module")
def compiling_only():
  cached = jax.config.jax_enable_compilation_cache
  topology.prepare()
  yield
  jax.config.update("jax_enable_compilation_cache", cached)
