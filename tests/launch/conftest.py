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
