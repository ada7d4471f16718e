"""What several tests of models share."""

import jax
import pytest

from vr_jax.models.common import layers


@pytest.fixture(params=["unrolled", "scanned"])
def decoding_layers(request, monkeypatch):
  """Networks decode as those of few layers do, then as those of many."""
  if request.param == "scanned":
    monkeypatch.setattr(layers, "UNROLLED", 0)
    jax.clear_caches()
  yield
  jax.clear_caches()
