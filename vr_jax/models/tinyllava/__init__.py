"""TinyLLaVA-Video: the network, its processor, and Hugging Face checkpoints."""

from vr_jax.models import family as family_lib
from vr_jax.models.common import checkpoint, export
from vr_jax.models.tinyllava.family import FAMILY

from_pretrained = family_lib.bound(checkpoint.from_pretrained, FAMILY)
save_adapter = family_lib.bound(export.save_adapter, FAMILY)
save_pretrained = family_lib.bound(export.save_pretrained, FAMILY)

__all__ = ["FAMILY", "from_pretrained", "save_adapter", "save_pretrained"]
