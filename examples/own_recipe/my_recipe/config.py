"""A recipe of one's own: GRPO with a reward for naming times."""

from vr_jax import base_config


def get_config(size="tiny"):
  """The recipe at a size: tiny, 3b, 7b or 72b."""
  config = base_config.base("environment.py:Timed")
  config.env.rewards = ("accuracy", "format", "times*0.5")
  config.env.wanted = 2
  config.rl.num_generations = 8
  return base_config.at_size(config, size, tiny=tiny, released=released)


def tiny(config):
  """Simulated videos and a random network of 1 M parameters."""
  base_config.tiny_simulation(config)
  base_config.tiny_network(config)
  config.data.fps = 1.0
  config.data.frames = 8
  config.model.prefix_buckets = (64, 96)
  config.model.frame_buckets = (4,)
  config.model.patch_buckets = (16,)

  sft = config.sft
  sft.steps = 250
  sft.target_loss = 0.03
  sft.learning_rate = 2e-3
  sft.schedule = "constant"
  sft.warmup_steps = 20
  sft.max_grad_norm = 1.0
  sft.max_reply_tokens = 72

  rl = config.rl
  rl.steps = 50
  rl.learning_rate = 3e-4
  rl.schedule = "constant"
  rl.warmup_steps = 5
  rl.max_grad_norm = 1.0
  rl.kl_weight = 0.0
  rl.top_p = 1.0
  rl.max_new_tokens = 72
  rl.microbatches = 4
  rl.decode_slot_fractions = (0.5,)


def released(config, size):
  """A released network on your own videos and questions."""
  base_config.released_network(config, size)
  config.env.instruction = (
    "Reason inside <think> and </think>, with the time of what you see, as in: At 2s, it falls. "
    "Then give only the final answer inside <answer> and </answer>."
  )
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
  config.rl.learning_rate = 1e-6
  config.rl.kl_weight = 0.04
