"""GRPO for questions and answers without reference steps: the commonest data there is.

    tiny   simulated videos, a random network of 1 M parameters, from nothing; two cores of a CPU. Its
           warm start learns from the simulator's steps, as that of moss_chatv. Not yet measured.
    3b     Qwen2.5-VL-3B-Instruct on your own questions (docs/data.md); v5e-16 or v6e-8.
    7b     Qwen2.5-VL-7B-Instruct on the same; v5p-16 or v6e-32.
    72b    Qwen2.5-VL-72B-Instruct on the same; v5p-256.

Memory and step time are those of moss_chatv. Rewards are a list, in which your own functions may stand
(docs/own_reward.md):

    --config.env.rewards='("accuracy","format*0.5","my_rewards.py:brevity*0.1")'

Source of the defaults: Video-R1, arXiv 2503.21776, without T-GRPO.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b or 72b."""
  config = base_config.base("grpo")
  config.env.instruction = (
    "First reason about the video inside <think> and </think>. "
    "Then give only the final answer inside <answer> and </answer>."
  )
  config.env.rewards = ("accuracy", "format")

  return base_config.at_size(config, size, of_tiny=_tiny, of_released=_released)


def _tiny(config: ml_collections.ConfigDict) -> None:
  config.env.instruction = ""  # a network that knows no words


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
