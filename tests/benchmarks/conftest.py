"""What the tests of benchmarks run under."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compiled_in_haste():
  """Programs that run once take longer to be made than to run."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
