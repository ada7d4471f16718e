"""A recipe of one's own: GRPO with a reward for naming times."""

from vr_jax import base_config


def get_config(size="tiny"):
  """The recipe at a size: tiny, 3b, 7b or 72b."""
  config = base_config.base("environment.py:Timed")
  config.env.rewards = ("accuracy", "format", "times*0.5")
  config.env.wanted = 2
  return base_config.at_size(config, size, of_tiny=tiny, of_released=released)


def tiny(config):
  config.rl.steps = 50


def released(config, size):
  config.env.instruction = (
    "Reason inside <think> and </think>, with the time of what you see, as in: At 2s, it falls. "
    "Then give only the final answer inside <answer> and </answer>."
  )
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
