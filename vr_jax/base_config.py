"""Configs that recipes start from: every field with its default, and what sizes share.

A recipe (configs/<recipe>.py) calls `base`, then sets what is its own: its environment, its data,
its training numbers. What a paper sets stands there. Shared by all recipes, and therefore here, are
the simulated world and the network of the size `tiny`, and what the released weights need.

A field is assigned at most twice on the way to a size: its default, then one value. A recipe that
wants another value than a shared one passes it to the function that sets it.

Defaults, choices, bounds and meanings of the fields: config_fields.py and
optional_sections.py, or docs/config.md.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from vr_jax import config_fields, optional_sections, schema

# The released networks by size, named as on Hugging Face.
QWEN3_VL = {f"qwen3vl_{n}": f"Qwen3-VL-{n.upper()}-Instruct" for n in ("2b", "4b", "8b", "32b")}
RELEASES = {size: f"Qwen2.5-VL-{size.upper()}-Instruct" for size in ("3b", "7b", "72b")} | QWEN3_VL

PHI2 = "TinyLLaVA-Video-Phi2-Naive-16-512"


def base(recipe: str) -> ml_collections.ConfigDict:
  """Returns every field with its default; config.env is empty.

  recipe: a registered name, module:Class or file.py:Class. A relative file is searched for in the
    directory of the config.
  """
  config = schema.defaults(config_fields.RunConfig)
  config.recipe = recipe
  config.env = ml_collections.ConfigDict()
  return config


def judge(config: ml_collections.ConfigDict) -> None:
  """Adds config.judge, for recipes whose replies a judge scores (docs/judges.md)."""
  config.judge = schema.defaults(optional_sections.JudgeSection)


def traces(config: ml_collections.ConfigDict) -> None:
  """Adds config.traces, for recipes that can write supervised traces (docs/traces.md)."""
  config.traces = schema.defaults(optional_sections.TracesSection)


def construct(config: ml_collections.ConfigDict) -> None:
  """Adds config.construct, for recipes on questions about a masked future (docs/moss_video.md)."""
  config.construct = schema.defaults(optional_sections.ConstructSection)


def mask_filter(config: ml_collections.ConfigDict) -> None:
  """Adds config.mask_filter, for recipes that train on masks (docs/data.md)."""
  config.mask_filter = schema.defaults(optional_sections.MaskFilterSection)


def turns(config: ml_collections.ConfigDict, *, critic: bool = True) -> None:
  """Adds config.turns, and config.critic, for recipes of several turns (docs/video_mtr.md)."""
  config.turns = schema.defaults(optional_sections.TurnsSection)
  if critic:
    config.critic = schema.defaults(optional_sections.CriticSection)


def at_size(
  config: ml_collections.ConfigDict,
  size: str,
  *,
  tiny: Callable[[ml_collections.ConfigDict], None],
  released: Callable[[ml_collections.ConfigDict, str], None],
  **others: Callable[[ml_collections.ConfigDict], None],
) -> ml_collections.ConfigDict:
  """Returns the config at a size, locked: calls the function of that name, or `released`.

  others: sizes that not all recipes have, by name.

  Raises:
    ValueError: the recipe has no such size.
  """
  own = {"tiny": tiny, **others}
  if size in own:
    own[size](config)
  elif size in RELEASES:
    released(config, size)
  else:
    known = ", ".join((*own, *RELEASES))
    raise ValueError(f"{size}: no such size; one of {known}")
  return config.lock()


def tiny_simulation(
  config: ml_collections.ConfigDict,
  *,
  videos: int = 1000,
  questions_per_video: int = 2,
  **world: Any,
) -> None:
  """Sets up simulated videos of 112 x 112 pixels for the size tiny.

  world: fields of worlds.config.WorldConfig that differ from those below.
  """
  data = config.data
  data.simulate.videos = videos
  data.simulate.questions_per_video = questions_per_video
  data.simulate.world = ml_collections.ConfigDict(
    {
      "height": 112,  # pixels
      "width": 112,
      "rows": 2,  # the canvas is a grid of rows x columns cells
      "columns": 2,
      "seconds": 10.0,
      "fps": 8,
      "dwell": 2.0,  # seconds between two changes
      "shown": 8.0,  # seconds from the start that the model may see
      "objects_min": 1,
      "objects_max": 1,
      "behaviours": ("cycle",),
      "behaviours_per_object": 1,
      "periods": (2, 3),  # number of changes after which a behaviour repeats
      "shapes": ("circle", "square", "triangle", "star", "cross", "diamond"),
      "colours": ("red", "green", "blue", "yellow"),
      "families": ("choice", "name"),
      "options_in_order": True,  # a letter then always means the same value: learned sooner
      "wordings": 1,  # ways to word a question or a step
      **world,
    }
  )
  data.threads = 1


def tiny_network(config: ml_collections.ConfigDict, *, max_pixels: int = 56 * 56) -> None:
  """Sets up a random network of 1 M parameters, for which two cores of a CPU are enough."""
  model = config.model
  model.min_pixels, model.max_pixels = 56 * 56, max_pixels
  _tiny_options(config)
  model.architecture = ml_collections.ConfigDict(
    {
      "model_type": "qwen2_5_vl",
      "text_config": {
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"mrope_section": (4, 6, 6), "type": "mrope"},
        "tie_word_embeddings": True,
        "initializer_range": 0.08,  # about 1 / sqrt(width): a network this narrow learns faster
      },
      "vision_config": {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 56,
        "fullatt_block_indexes": (2,),
        "rope_after_video": "sides",  # transformers then reads an export without code of ours
      },
    }
  )


def tiny_qwen3vl_network(config: ml_collections.ConfigDict) -> None:
  """Sets up a random network of 1 M parameters like `tiny_network`, of Qwen3-VL's kind."""
  model = config.model
  model.min_pixels = model.max_pixels = 64 * 64
  model.min_video_pixels = model.max_video_pixels = 8 * 64 * 64  # of 8 frames
  _tiny_options(config)
  model.architecture = ml_collections.ConfigDict(
    {
      "model_type": "qwen3_vl",
      "text_config": {
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {
          "mrope_section": (6, 5, 5),
          "mrope_interleaved": True,
          "rope_type": "default",
        },
        "initializer_range": 0.08,
      },
      "vision_config": {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": (0, 1),
      },
      "tie_word_embeddings": True,
    }
  )


def tiny_phi2_network(config: ml_collections.ConfigDict) -> None:
  """Sets up a random network like `tiny_network`, of the kind of TinyLLaVA-Video with Phi-2."""
  model = config.model
  model.min_pixels = model.max_pixels = 56 * 56
  _tiny_options(config)
  model.architecture = ml_collections.ConfigDict(
    {
      "model_type": "tinyllava",
      "connector_type": "groupresampler",
      "num_queries": 8,
      "group": 8,  # as many as frames: each frame has a query of its own
      "num_resampler_layers": 1,
      "vision_feature_select_strategy": "cls_patch",  # all patches: each is a cell of the world
      "tokenizer_model_max_length": 2048,
      "text_config": {
        "model_type": "phi",
        "vocab_size": 448,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.5,
        "initializer_range": 0.08,
      },
      "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,  # three of which are used
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 28,
      },
    }
  )


def _tiny_options(config: ml_collections.ConfigDict) -> None:
  """What all tiny networks share."""
  model = config.model
  model.tokenizer = "trained"
  model.system = ""
  model.question_first = True  # frames at a fixed distance from the reply are learned sooner
  model.dtype = "float32"
  model.remat = "none"
  model.freeze_vision = False
  config.eval.batch_size = 64
  config.cpu_devices = 2  # one per core


def released_network(
  config: ml_collections.ConfigDict,
  size: str,
  *,
  max_video_pixels: int = 16 * 128 * 32 * 32,
) -> None:
  """Sets up a released network, read from the directory that bears its name.

  size: a key of RELEASES.
  max_video_pixels: for Qwen3-VL. By default 16 frames have 128 tokens a temporal patch, as with the
    other sizes; shorter clips may have larger frames.
  """
  model = config.model
  model.pretrained = RELEASES[size]
  model.resize_backend = "torchvision"  # as transformers resizes frames for them
  config.export.dtype = "bfloat16"  # as the releases
  # All devices are on fsdp, and on sequence where there are more than prompts; of 72b and
  # qwen3vl_32b 8 on tensor, one for each of their key heads.
  config.mesh = (1, -1, -1, 8 if size in ("72b", "qwen3vl_32b") else 1)
  config.rl.decode_layout = "tensor"  # reads the fewest weights a token
  if size in QWEN3_VL:
    model.system = ""  # the released template has none
    model.min_video_pixels = 4 * 32 * 32
    model.max_video_pixels = max_video_pixels


def phi2_network(config: ml_collections.ConfigDict) -> None:
  """Sets up TinyLLaVA-Video with Phi-2, read from the directory that bears its name.

  A video of any length becomes 512 media tokens. The context has 3,072 tokens.
  """
  model = config.model
  model.pretrained = PHI2
  model.min_pixels = model.max_pixels = 384 * 384  # images of one size
  model.resize_backend = "pillow"  # as the released code resizes frames
  model.system = (  # of the released template
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
  )
  model.prefix_buckets = (640, 768, 1024, 1536, 2048)
  model.frame_buckets = (1,)  # a video is one frame of the tower's input
  model.patch_buckets = (8 * 729, 16 * 729)  # of all its images
  config.export.dtype = "float16"  # as the release
  config.mesh = (1, -1, 1, 1)
  config.rl.decode_layout = "tensor"


def token_pixels(size: str) -> int:
  """Pixels of a frame that become one media token of a released network."""
  return 32 * 32 if size in QWEN3_VL else 28 * 28


def released_limits(config: ml_collections.ConfigDict, size: str) -> None:
  """Limits of a single frame for Qwen3-VL in tokens, as the defaults of other sizes are."""
  if size in QWEN3_VL:
    config.model.min_pixels = 4 * token_pixels(size)
    config.model.max_pixels = 128 * token_pixels(size)
    config.model.patch_buckets = (256, 512, 784)  # 784: a square frame of data.max_side
