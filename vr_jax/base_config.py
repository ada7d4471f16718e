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
RELEASES = {size: f"Qwen2.5-VL-{size.upper()}-Instruct" for size in ("3b", "7b", "72b")}


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
) -> ml_collections.ConfigDict:
  """Returns the config at a size, locked: calls `tiny(config)` or `released(config, size)`.

  Raises:
    ValueError: the size is none of tiny, 3b, 7b and 72b.
  """
  if size == "tiny":
    tiny(config)
  elif size in RELEASES:
    released(config, size)
  else:
    known = ", ".join(("tiny", *RELEASES))
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
      "lives": ("cycle",),
      "lives_per_object": 1,
      "periods": (2, 3),  # number of changes after which a life repeats
      "shapes": ("circle", "square", "triangle", "star", "cross", "diamond"),
      "colours": ("red", "green", "blue", "yellow"),
      "families": ("choice", "name"),
      "options_in_order": True,  # a letter then always means the same value: learned sooner
      "wordings": 1,  # ways to word a question or a step
      **world,
    }
  )
  data.threads = 1


def tiny_network(config: ml_collections.ConfigDict) -> None:
  """Sets up a random network of 1 M parameters, for which two cores of a CPU are enough."""
  model = config.model
  model.tokenizer = "trained"
  model.min_pixels = model.max_pixels = 56 * 56
  model.system = ""
  model.question_first = True  # frames at a fixed distance from the reply are learned sooner
  model.dtype = "float32"
  model.remat = "none"
  model.freeze_vision = False
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
  config.eval.batch_size = 64
  config.cpu_devices = 2  # one per core


def released_network(
  config: ml_collections.ConfigDict, size: str, *, mesh: tuple[int, int, int, int] | None = None
) -> None:
  """Sets up a released network, read from the directory that bears its name.

  size: 3b, 7b or 72b.
  mesh: devices on the axes data, fsdp, sequence, tensor. None: all on fsdp, but for 72b 8 on
    tensor, one for each of its key heads.
  """
  config.model.pretrained = RELEASES[size]
  config.model.resize_backend = "torchvision"  # as transformers resizes frames for them
  config.export.dtype = "bfloat16"  # as the releases
  config.mesh = mesh or ((1, -1, 1, 8) if size == "72b" else (1, -1, 1, 1))
