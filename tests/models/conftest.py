"""What several tests of models share."""

import jax
import pytest

from vr_jax.models.common import layers


@pytest.fixture(params=["unrolled", "scanned"], scope="module")
def decoding_layers(request):
  """Networks decode as those of few layers do, then as those of many."""
  if request.param == "unrolled":
    yield
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(layers, "UNROLLED", 0)
    jax.clear_caches()  # programs hold the rule that they were made with
    yield
  jax.clear_caches()
