"""GRPO on questions and answers without reference steps, the commonest kind of data.

Trains a video language model with GRPO; a reply is rewarded for its answer and its format.

    tiny   Data: simulated videos. Network: random, 1 M parameters. Device: two cores of a CPU. Its
           warm start learns from the simulator's steps, as that of moss_chatv. Result: not yet
           measured.
    3b     Qwen2.5-VL-3B-Instruct on your own questions (docs/data.md). Device: v5e-16 or v6e-8.
           Result: not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on the same. Device: v5p-16 or v6e-32. Result: not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on the same. Device: v5p-256. Result: not yet measured.
    qwen3vl_2b, qwen3vl_4b, qwen3vl_8b, qwen3vl_32b
           Qwen3-VL-2B-, -4B-, -8B- and -32B-Instruct on the same. Device: docs/pods.md.
           Result: not yet measured.

Memory and step time are those of moss_chatv (those of 7b are for its 64-frame flags). Rewards are a
list, which may contain functions of your own (docs/own_reward.md):

    --config.env.rewards='("accuracy","format*0.5","my_rewards.py:brevity*0.1")'

Source: the training numbers of 3b, 7b and 72b are those of Video-R1, arXiv 2503.21776, without
T-GRPO.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b, 72b or qwen3vl_2b, _4b, _8b, _32b."""
  config = base_config.base("grpo")
  config.env.rewards = ("accuracy", "format")
  config.rl.num_generations = 8
  config.rl.clip_epsilon_low = 0.2
  config.rl.clip_epsilon_high = 0.2
  return base_config.at_size(config, size, tiny=_tiny, released=_released)


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  base_config.released_network(config, size)
  base_config.released_limits(config, size)
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
  config.data.frames = 16
  config.env.instruction = (
    "First reason about the video inside <think> and </think>. "
    "Then give only the final answer inside <answer> and </answer>."
  )

  rl = config.rl
  rl.steps = 1000
  rl.batch_size = 16  # prompts a step
  rl.learning_rate = 1e-6
  rl.schedule = "cosine"
  rl.max_grad_norm = 5.0
  rl.kl_weight = 0.04
  rl.max_new_tokens = 768


def _tiny(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_simulation(config)
  base_config.tiny_network(config)
  config.data.fps = 1.0
  config.data.frames = 8
  config.env.instruction = ""  # the network knows no words

  sft = config.sft  # stops when the loss reaches target_loss: see moss_chatv
  sft.steps = 250
  sft.target_loss = 0.03
  sft.learning_rate = 2e-3
  sft.schedule = "constant"
  sft.warmup_steps = 20
  sft.max_grad_norm = 1.0
  sft.max_reply_tokens = 72

  rl = config.rl
  rl.steps = 200
  rl.batch_size = 16  # prompts a step
  rl.learning_rate = 3e-4
  rl.schedule = "constant"
  rl.warmup_steps = 5
  rl.max_grad_norm = 1.0
  rl.kl_weight = 0.0  # there is no pretrained ability to keep
  rl.top_p = 1.0
  rl.max_new_tokens = 72
  _tiny_compiler_sizes(config)


def _tiny_compiler_sizes(config: ml_collections.ConfigDict) -> None:
  """Shapes that programs are compiled for; the other sizes use the defaults."""
  config.model.prefix_buckets = (64, 96)
  config.model.frame_buckets = (4,)  # temporal patches, of two frames each
  config.model.patch_buckets = (16,)
  config.rl.microbatches = 4  # a microbatch's saved activations then fit the CPU's cache
  # Decoding shrinks once, when half of the replies have ended: all are about equally long.
  config.rl.decode_slot_fractions = (0.5,)
