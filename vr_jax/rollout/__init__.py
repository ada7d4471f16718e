"""Samples episodes from prompts. `Session` can be imported from here; only then is JAX imported."""

from typing import Any


def __getattr__(name: str) -> Any:
  if name == "Session":
    from vr_jax.rollout import session

    return session.Session
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
