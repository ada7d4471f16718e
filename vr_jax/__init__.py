"""Reinforcement learning of video language models, in JAX."""

__version__ = "0.1.0"
