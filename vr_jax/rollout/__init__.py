"""Prompts -> sampled episodes. `Session` is here by name; it imports JAX when it is asked for."""

from typing import Any


def __getattr__(name: str) -> Any:
  if name == "Session":
    from vr_jax.rollout import session

    return session.Session
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
