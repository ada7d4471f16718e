"""Compiles for slices that are not attached, without a cache: it can't load programs for them."""

import pytest

from tests import tpu_compiler


@pytest.fixture(autouse=True, scope="module")
def compiling_only():
  with tpu_compiler.compiling_only():
    yield
