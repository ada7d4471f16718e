"""Qwen2.5-VL: the network, its processor, and its checkpoints as Hugging Face keeps them."""

from vr_jax.models.qwen2_5_vl.checkpoint import from_pretrained
from vr_jax.models.qwen2_5_vl.export import save_adapter, save_pretrained

__all__ = ["from_pretrained", "save_adapter", "save_pretrained"]
