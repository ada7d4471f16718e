"""ReVSeg: replies choose the frame that shows an object best, then give the object's box in it.

Trains a video language model with GRPO on rewards of the format, of the key frame and of the box. A
tracker turns the box into masks (docs/revseg.md).

    tiny   Data: simulated videos in which an object is large, and in a colour of its own, for some
           seconds only. Network: random, 1 M parameters. Device: two cores of a CPU.
    tiny_qwen3vl
           The same with a network of Qwen3-VL's kind.
    tiny_hidden
           `tiny` with queries that need time ("the object that left and came back"), about objects
           that are out of sight in a third of the frames, and mostly while another one is large. So
           a wrong key frame often shows nothing, and no one frame always shows the object.
    3b     Qwen2.5-VL-3B-Instruct on data sets of referring video segmentation (docs/revseg.md).
           Device: v6e-16. Planned: 19 of 34 GB a chip, 37 s a step (docs/pods.md). Result: not yet
           measured.
    7b     Qwen2.5-VL-7B-Instruct on the same, the paper's. Device: v5p-64. Planned: 27 of 103 GB a
           chip, 26 s a step. Result: not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on the same. Neither planned nor measured.
    qwen3vl_2b, qwen3vl_4b, qwen3vl_8b, qwen3vl_32b
           Qwen3-VL-2B-, -4B-, -8B- and -32B-Instruct on the same; they write boxes in thousandths
           of a frame. Result: not yet measured.

What is planned is of rl.decode_layout=replicated; with tensor, the default now, decoding takes less
(docs/pods.md).

Source: arXiv 2512.02835. Its code is not public. `Reconstruction:` are the prompts, sampling, the
lengths of replies, a frozen vision tower, the mean over replies in the loss and the size of stored
frames.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, tiny_qwen3vl, tiny_hidden, 3b, 7b, 72b or qwen3vl_2b to _32b."""
  config = base_config.base("revseg")
  base_config.turns(config, critic=False)
  base_config.mask_filter(config)
  config.env.reward = ml_collections.ConfigDict(  # section 3.3, eq. 8: not weighted
    {
      "format": 1.0,
      "temporal": 1.0,
      "spatial": 1.0,
      "temporal_kind": "soft",  # eq. 7; table 5 compares it with visible and none
      "spatial_kind": "hard",
      "spatial_threshold": 0.5,
    }
  )
  config.data.sampling = "uniform"
  config.eval.blind = False
  config.eval.shuffled_frames = False

  rl = config.rl
  rl.advantage_estimator = "episode"  # one advantage for both replies
  rl.num_generations = 8  # section 4.1
  rl.num_iterations = 1  # strictly on policy
  rl.clip_epsilon_low = 0.2  # without effect on policy
  rl.clip_epsilon_high = 0.2
  rl.schedule = "constant"
  rl.max_grad_norm = 1.0
  rl.aggregation = "sequence_mean"
  return base_config.at_size(
    config,
    size,
    tiny=_tiny,
    tiny_qwen3vl=_tiny_qwen3vl,
    tiny_hidden=_tiny_hidden,
    released=_released,
  )


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  base_config.released_network(config, size, max_video_pixels=16 * 448 * 448)
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
  config.data.max_side = 1280
  config.data.frames = 16  # section 4.1, in training and testing
  env = config.env
  env.frame_size = (448, 448)  # section 4.1
  side = 832 if size in base_config.QWEN3_VL else 840  # a multiple of 32, or of 28
  env.key_frame_size = (side, side)
  config.model.max_pixels = side * side
  env.instruction = (
    "These are {frames} frames, 0 to {last}, of a video of {seconds} seconds, two a second. Find "
    "the object that the text above asks for. First think: go through the video in time, compare "
    "all objects that could be meant, and decide on one. Then choose the frame from which it is "
    "easiest to cut the object out: there it should be in full view, hardly covered, large, sharp, "
    "unlike what is around it, and near the middle. Say what the object looks like in that frame, "
    "not what it does. Put your thoughts inside <think> and </think>, then the frame and the "
    "description as JSON inside <answer> and </answer>, like this: "
    '<think>...</think> <answer>[{"frame_idx": 7, "object description": "..."}]</answer>'
  )
  env.box_instruction = (
    "This is the frame that you chose. Detect '{description}' in it. Put your thoughts inside "
    "<think> and </think>, then the coordinates of its bounding box as JSON inside <answer> and "
    '</answer>, like this: <answer>[{"bbox_2d": [x1, y1, x2, y2]}]</answer>'
  )

  rl = config.rl
  rl.steps = 525  # the paper's curves: one epoch of 67,000 queries
  rl.batch_size = 128  # prompts a step, section 4.1
  rl.learning_rate = 1e-6
  rl.kl_weight = 1e-3
  rl.max_new_tokens = 384  # a turn; the paper's two replies have 200 to 310 together
  _released_compiler_sizes(config, size)


def _released_compiler_sizes(config: ml_collections.ConfigDict, size: str) -> None:
  """Shapes that programs are compiled for."""
  config.model.frame_buckets = (8,)  # temporal patches, of two frames each
  config.turns.frame_buckets = (1,)
  if size in base_config.QWEN3_VL:  # patches of 16 x 16 pixels
    config.model.patch_buckets = (784,)  # 448 x 448 pixels
    config.model.prefix_buckets = (1920, 2176)  # of which 1,568 are media
    config.turns.patch_buckets = (2704,)  # 832 x 832 pixels
    config.turns.observation_buckets = (896, 1280)  # of which 676 are media
    config.turns.episode_buckets = (1280, 2048)
  else:  # of 14 x 14
    config.model.patch_buckets = (1024,)
    config.model.prefix_buckets = (2304, 2560)  # 2,048
    config.turns.patch_buckets = (3600,)  # 840 x 840 pixels
    config.turns.observation_buckets = (1152, 1536)  # 900
    config.turns.episode_buckets = (1536, 2304)
  config.rl.microbatches = 16  # one prompt of each of eight devices
  config.rl.log_prob_microbatches = 16


def _tiny(
  config: ml_collections.ConfigDict,
  families: tuple[str, ...] = ("described",),
  target_loss: float = 0.008,
) -> None:
  _tiny_world(config, side=112, families=families)
  base_config.tiny_network(config, max_pixels=112 * 112)
  config.env.frame_size, config.env.key_frame_size = (56, 56), (112, 112)
  _tiny_training(config, target_loss)


def _tiny_hidden(config: ml_collections.ConfigDict) -> None:
  _tiny(config, families=("recoloured", "returned", "covered"), target_loss=0.03)


def _tiny_qwen3vl(config: ml_collections.ConfigDict) -> None:
  _tiny_world(config, side=128, families=("described",))
  base_config.tiny_qwen3vl_network(config)
  config.model.max_pixels = 128 * 128
  config.env.frame_size, config.env.key_frame_size = (64, 64), (128, 128)
  config.data.required_frames = 8  # fewer would be enlarged to model.min_video_pixels
  _tiny_training(config, target_loss=0.008)
  config.model.prefix_buckets = (96, 208)  # the times of frames are text


def _tiny_world(config: ml_collections.ConfigDict, *, side: int, families: tuple[str, ...]) -> None:
  """Eight frames, in two of which the object of a query is large; frames are `side` pixels."""
  base_config.tiny_simulation(
    config,
    videos=300,  # few: the network learns to see sooner from videos that it sees again
    questions_per_video=2,
    height=side,
    width=side,
    seconds=8.0,
    shown=8.0,
    fps=4,
    objects_min=2,
    objects_max=2,
    behaviours=("approach",),
    families=families,
    large_cells=1,
    graded=True,
    shapes=("circle", "square", "triangle"),
    colours=("red", "green", "blue", "yellow"),
  )
  config.data.fps = 1.0
  config.data.frames = 8


def _tiny_training(config: ml_collections.ConfigDict, target_loss: float) -> None:
  env = config.env
  env.instruction, env.box_instruction = "", "{description}"  # the network knows no words
  env.description_bytes = 40

  # SFT stops when the loss reaches target_loss (at most `steps`), while boxes are still often
  # wrong, so that RL has something to improve. Before the network sees where objects are, the loss
  # is 0.021 (0.05 in the world of `tiny_hidden`).
  sft = config.sft
  sft.steps = 900
  sft.target_loss = target_loss
  sft.learning_rate = 2e-3
  sft.schedule = "cosine"
  sft.warmup_steps = 20
  sft.max_grad_norm = 1.0
  sft.max_reply_tokens = 72
  sft.token_bucket_ratio = 0.0  # one program for all lengths

  rl = config.rl
  rl.steps = 100
  rl.batch_size = 16  # prompts a step
  rl.learning_rate = 3e-4
  rl.warmup_steps = 10
  rl.kl_weight = 1e-3
  rl.temperature = 1.0
  rl.top_p = 1.0
  rl.max_new_tokens = 72  # a turn
  _tiny_compiler_sizes(config)


def _tiny_compiler_sizes(config: ml_collections.ConfigDict) -> None:
  """Shapes that programs are compiled for."""
  config.model.prefix_buckets = (64, 176)  # the second holds conversations to learn from
  config.model.frame_buckets = (4, 5)  # temporal patches, of two frames each
  config.model.patch_buckets = (16,)
  config.turns.patch_buckets = (64,)
  config.turns.frame_buckets = (1,)
  config.turns.observation_buckets = (64, 80)
  config.turns.episode_buckets = (160, 224)
  config.turns.decode_chunk = 12
  config.turns.append_batch_size = 16
  config.rl.token_bucket_ratio = 1.3
  config.rl.microbatches = 2
  config.rl.decode_slot_fractions = (0.5,)
