"""Facebook's names of the parameters, for files made of its own checkpoints."""

from collections.abc import Mapping
import re

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import parameters

POINT_EMBEDDINGS = "prompt_encoder.point_embed.weight"

# Replacements in a name of transformers, in this order.
_RENAMED = tuple(
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r"^vision_encoder\.backbone\.patch_embed\.projection", "image_encoder.trunk.patch_embed.proj"),
    (r"^vision_encoder\.backbone", "image_encoder.trunk"),
    (r"^vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
     "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.mask_embed\.conv1", "sam_prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder\.mask_embed\.layer_norm1", "sam_prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder\.mask_embed\.conv2", "sam_prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder\.mask_embed\.layer_norm2", "sam_prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder\.mask_embed\.conv3", "sam_prompt_encoder.mask_downscaling.6"),
    (r"^mask_decoder\.upscale_conv1", "sam_mask_decoder.output_upscaling.0"),
    (r"^mask_decoder\.upscale_layer_norm", "sam_mask_decoder.output_upscaling.1"),
    (r"^mask_decoder\.upscale_conv2", "sam_mask_decoder.output_upscaling.3"),
    (r"^(prompt_encoder|mask_decoder)", r"sam_\1"),
    (r"^memory_encoder\.feature_projection", "memory_encoder.pix_feat_proj"),
    (r"^memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"^memory_encoder\.memory_fuser", "memory_encoder.fuser"),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"(fuser\.layers\.\d)\.scale$", r"\1.gamma"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^object_pointer_proj", "obj_ptr_proj"),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"layer_norm", "norm"),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    # Perceptrons of three layers; those above have two.
    (r"\.layers\.0\.(weight|bias)$", r".layers.1.\1") ,
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
  )
)  # fmt: skip
_DOWNSAMPLER = re.compile(
  r"^memory_encoder\.mask_downsampler\.(?:layers\.(\d)\.(conv|layer_norm)|final_conv)"
)
_TWO_LAYERS = re.compile(r"\.mlp\.proj_(in|out)\.")


def tensors_of(name: str) -> tuple[str, ...]:
  """Facebook's tensors of a parameter, to be joined along their first axis if there are several."""
  if name == POINT_EMBEDDINGS:
    return tuple(f"sam_prompt_encoder.point_embeddings.{kind}.weight" for kind in range(4))
  if found := _DOWNSAMPLER.match(name):
    number, kind = found.groups()
    place = 12 if number is None else 3 * int(number) + (kind == "layer_norm")
    end = name.rpartition(".")[2]
    return (f"memory_encoder.mask_downsampler.encoder.{place}.{end}",)
  two_layers = _TWO_LAYERS.search(name)
  for pattern, replacement in _RENAMED:
    if two_layers and pattern.pattern.startswith(r"\.layers\.0"):
      continue
    name = pattern.sub(replacement, name)
  return (name,)


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> config_lib.Sam2Config | None:
  """The released model that has tensors of these names and shapes, or None."""
  for version in ("2.1", "2.0"):
    for size in config_lib.SIZES:
      config = config_lib.released(size, version)
      if expected_shapes(config) == dict(shapes):
        return config
  return None


def expected_shapes(config: config_lib.Sam2Config) -> dict[str, tuple[int, ...]]:
  """Names and shapes of all tensors of a file of Facebook's."""
  found = {}
  for name, parameter in parameters.parameters(config).items():
    tensors = tensors_of(name)
    shape = parameter.shape
    if len(tensors) > 1:
      shape = (shape[0] // len(tensors), *shape[1:])
    found |= dict.fromkeys(tensors, shape)
  return found
