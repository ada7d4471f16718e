"""The config of a recipe: fields that all recipes have, and the sizes that recipes share.

A recipe (configs/<recipe>.py) starts from `base` and a size, adds config.env, and sets what its paper
says. Defaults, choices, bounds and meanings of the fields stand in config_fields.py.
"""

from collections.abc import Callable

import ml_collections

from vr_jax import config_fields, schema

# The pretrained sizes, by the names of Hugging Face's releases.
RELEASES = {size: f"Qwen2.5-VL-{size.upper()}-Instruct" for size in ("3b", "7b", "72b")}


def base(recipe: str) -> ml_collections.ConfigDict:
  """All fields but those of the environment, which are the recipe's own.

  recipe: a registered name, module:Class or file.py:Class; a file is sought beside the config.
  """
  config = schema.defaults(config_fields.Config)
  config.recipe = recipe
  config.env = ml_collections.ConfigDict()
  return config


def judge(config: ml_collections.ConfigDict) -> None:
  """Adds config.judge, of recipes whose replies one judges (docs/judges.md)."""
  config.judge = schema.defaults(config_fields.Judge)


def traces(config: ml_collections.ConfigDict) -> None:
  """Adds config.traces, of recipes whose replies hold an observation (docs/traces.md)."""
  config.traces = schema.defaults(config_fields.Traces)


def turns(config: ml_collections.ConfigDict) -> None:
  """Adds config.turns and config.critic, of recipes whose replies ask for frames (docs/video_mtr.md)."""
  config.turns = schema.defaults(config_fields.Turns)
  config.critic = schema.defaults(config_fields.Critic)


def at_size(
  config: ml_collections.ConfigDict,
  size: str,
  *,
  of_tiny: Callable[[ml_collections.ConfigDict], None],
  of_released: Callable[[ml_collections.ConfigDict, str], None],
) -> ml_collections.ConfigDict:
  """The recipe at a size, locked: what that size is in all recipes, then what `of_tiny(config)` or `of_released(config, size)` add.

  Raises ValueError for a size that there is none of.
  """
  if size == "tiny":
    tiny(config)
    of_tiny(config)
  elif size in RELEASES:
    released(config, RELEASES[size])
    of_released(config, size)
  else:
    known = ", ".join(("tiny", *RELEASES))
    raise ValueError(f"{size}: no such size; one of {known}")
  return config.lock()


def tiny(config: ml_collections.ConfigDict) -> None:
  """Simulated videos and a random network of 1 M parameters: two cores of a CPU are enough."""
  data = config.data
  data.simulate.videos = 1000
  data.simulate.questions_per_video = 2
  data.simulate.world = ml_collections.ConfigDict(
    {
      "height": 112,  # pixels
      "width": 112,
      "rows": 2,  # places of the canvas: rows x columns
      "columns": 2,
      "seconds": 10.0,
      "fps": 8,
      "dwell": 2.0,  # seconds between two changes
      "shown": 8.0,  # seconds from the start that the model may see
      "objects_min": 1,
      "objects_max": 1,
      "lives": ("cycle",),
      "lives_per_object": 1,
      "periods": (2, 3),  # changes after which a life repeats
      "shapes": ("circle", "square", "triangle", "star", "cross", "diamond"),
      "colours": ("red", "green", "blue", "yellow"),
      "families": ("choice", "name"),
      "options_in_order": True,  # a letter then stands for one value, which is sooner learnt
      "wordings": 1,  # of questions and steps
    }
  )
  data.fps = 1.0
  data.frames = 8
  data.threads = 1

  model = config.model
  model.tokenizer = "trained"
  model.min_pixels = model.max_pixels = 56 * 56
  model.system = ""
  model.question_first = True  # a fixed distance from frames to reply is learnt sooner
  model.dtype = "float32"
  model.remat = "none"
  model.freeze_vision = False
  model.prefix_buckets = (64, 96)
  model.frame_buckets = (4,)
  model.patch_buckets = (16,)
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
      },
    }
  )
  # The warm start ends where traces tell most of what happens, but answers do not yet follow from them. Networks get
  # there at different steps, after a long time of seeing nothing: hence a loss, and not a number of steps.
  sft = config.sft
  sft.steps = 250
  sft.target_loss = 0.03
  sft.batch_size = 16
  sft.learning_rate = 2e-3
  sft.schedule = "constant"
  sft.warmup_steps = 20
  sft.max_grad_norm = 1.0
  sft.max_reply_tokens = 72

  rl = config.rl
  rl.steps = 200
  rl.batch_size = 16
  rl.microbatches = 4  # what each leaves for its gradient stays in the caches of a CPU
  rl.top_p = 1.0
  rl.max_new_tokens = 72
  rl.decode_slot_fractions = (0.5,)  # its replies are all about as long
  rl.learning_rate = 3e-4
  rl.schedule = "constant"
  rl.warmup_steps = 5
  rl.max_grad_norm = 1.0
  rl.kl_weight = 0.0  # nothing pretrained is to be kept

  config.eval.batch_size = 64
  config.cpu_devices = 2  # one a core


def released(config: ml_collections.ConfigDict, name: str) -> None:
  """A Hugging Face release of Qwen2.5-VL, in the directory of that name."""
  config.model.pretrained = name
  config.model.rope_after_video = "largest"  # as the released weights were trained
  config.model.resize_backend = "torchvision"  # as transformers resizes for them
  config.export.dtype = "bfloat16"  # as the releases
  # The 8 key heads of the largest stand one a device.
  config.mesh = (1, -1, 1, 8) if "72B" in name else (1, -1, 1, 1)
