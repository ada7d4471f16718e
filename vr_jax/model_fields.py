"""The fields of config.model; otherwise as config_fields.py."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from vr_jax.schema import field

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSection:
  """Low-rank adapters (docs/checkpoints.md)."""

  rank: int = field(
    0, "Rank of the adapters, which alone are trained; 0: no adapters, all weights are trained."
  )
  alpha: float = field(
    32.0, "The output of an adapter is multiplied by alpha / rank.", only_with="rank"
  )
  text: tuple[str, ...] = field(
    ("all",),
    "Projections of the language model that get an adapter: of query, key, value, out, up, down, "
    'and gate if there is one; "all": all of them.',
    only_with="rank",
  )
  vision: tuple[str, ...] = field(
    (),
    "Projections of the vision tower that get an adapter: of qkv (or query, key, value), out, up, "
    'down, and gate if there is one; "all": all of them.',
    only_with="rank",
  )
  base_dtype: Dtype = field(
    "bfloat16", "Dtype of all weights that are not trained.", only_with="rank"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSection:
  """The network, its tokenizer, and its inputs."""

  pretrained: str = field(
    "", "Hugging Face directory of weights; empty: random weights of model.architecture."
  )
  architecture: Mapping[str, Any] = field({}, "Sizes, as in a config.json of Hugging Face.")
  tokenizer: str = field(
    "",
    'Path of a tokenizer.json; "trained": one is trained on the training split; empty: that of '
    "model.pretrained.",
  )
  min_pixels: int = field(4 * 28 * 28, "Fewest pixels of a frame.", "[1, inf)")
  max_pixels: int = field(
    128 * 28 * 28, "Most pixels of a frame; the default is Video-R1's.", "[1, inf)"
  )
  min_video_pixels: int = field(
    0,
    "Fewest pixels of all frames of a video together, for models that limit whole videos; 0: as "
    "they were released.",
    "[0, inf)",
  )
  max_video_pixels: int = field(
    0, "Most pixels of all frames of a video together; 0: as min_video_pixels.", "[0, inf)"
  )
  resize_backend: Literal["torchvision", "pillow"] = field(
    "pillow", "Library whose bicubic filter frames are resized with (docs/design.md)."
  )
  system: str = field(
    "You are a helpful assistant.", "Text of the system turn; empty: there is no system turn."
  )
  question_first: bool = field(False, "Whether the question precedes the video in the prompt.")
  rope_after_video: Literal["", "sides", "largest"] = field(
    "",
    "Position of the text after a video: behind its longer side, or behind its largest position "
    "(docs/checkpoints.md); empty: as the model's config.json says, or else largest.",
  )
  dtype: Dtype = field("bfloat16", "Dtype of activations; trained parameters stay float32.")
  remat: Literal["none", "full", "attention", "dots"] = field(
    "full",
    "What the backward pass computes again: none: nothing; full: each layer; attention: each layer "
    "but its attention kernel; dots: all but attention kernels and matrix products.",
    change="rounding",
  )
  attention: Literal["", "xla", "splash", "splash_fused", "cudnn"] = field(
    "",
    "Attention kernel; splash and splash_fused (fewer products backwards, more memory) are for "
    "TPUs, cudnn for GPUs; empty: the platform's own choice.",
    change="rounding",
  )
  decode_attention: Literal["xla", "pallas"] = field(
    "xla",
    "Attention of decoding: xla: plain products; pallas: a kernel for TPUs that reads prompts and "
    "replies only as far as they go.",
    change="rounding",
  )
  logit_chunk: int = field(
    8192,
    "Vocabulary entries whose logits an update has in memory at once.",
    "[1, inf)",
    change="rounding",
  )
  vision_chunk: int = field(
    65536,
    "Patches that the vision tower reads at once on a device, whole frames of all its prompts. A "
    "longer video is read in chunks, which a backward pass computes again.",
    "[1, inf)",
    change="rounding",
  )
  freeze_vision: bool = field(
    True, "Whether the vision tower stays as it is. Our choice: papers leave it open."
  )
  train_connector: bool = field(
    False,
    "Whether the connector between vision tower and language model is trained, though the tower is "
    "not; features of clips are then not cached.",
    only_with="freeze_vision",
  )
  # A clip of 16 frames takes 4 MiB with 3b, 7 MiB with 7b, and 16 MiB with 72b.
  feature_cache_gib: float = field(
    64.0,
    "Most GiB of disk for cached features of a frozen vision tower; 0: no cache, as recipes "
    "whose turns choose frames need.",
    "[0, inf)",
    change="any time",
  )
  lora: LoraSection = LoraSection()
  prefix_buckets: tuple[int, ...] = field(
    (640, 768, 1024, 1152, 1280, 1408, 1536, 2048, 3072, 4096),
    "Prompt lengths in tokens that programs are compiled for; a batch is padded to the smallest "
    "that fits its longest prompt.",
    "[1, inf)",
    length=1,
  )
  frame_buckets: tuple[int, ...] = field(
    (8, 32),
    "Numbers of temporal patches in a prompt that programs are compiled for.",
    "[1, inf)",
    length=1,
  )
  patch_buckets: tuple[int, ...] = field(
    (256, 512),
    "Numbers of patches in a frame that programs are compiled for.",
    "[1, inf)",
    length=1,
  )
