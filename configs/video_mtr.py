"""Video-MTR: replies ask for frames of a long video, turn by turn, until they answer; PPO with a critic and bi-level GAE.

    tiny   simulated videos of a minute whose answer shows for a few seconds, a random network of 1 M parameters, from nothing;
           two cores of a CPU, or a quarter of an hour on one once its programs are compiled (some six minutes), 4.5 GB. Over seeds 0.98 to
           1.00 of held-out questions are right, 0.30 before RL (docs/claims/video_mtr.md).
    3b     Qwen2.5-VL-3B-Instruct on NExT-GQA and QVHighlights (docs/video_mtr.md); v6e-8. By plan: 21 of 34 GB a chip, 10 s a
           step. Not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on the same (the paper's headline); v5p-8. By plan: 82 of 103 GB a chip, 22 s a step. Not yet
           measured.
    72b    Qwen2.5-VL-72B-Instruct on the same; v5p-256. By plan: 46 of 103 GB a chip, 17 s a step. Not yet measured.

Policy, critic, their moments and the reference take 28 bytes a parameter over all chips: 13 of 34 GB a chip for 3b on v6e-8, 58 of
103 for 7b on v5p-8, 2,055 GB in all for 72b. Programs and activations come to that: launch/plan.py compiles them (docs/pods.md).

The paper's rule is the default, its released code's an option: env.relevance.variant and env.exploration.variant "code",
env.on_invalid_action "explain", critic.placement "last" with critic.gamma_turn 1.0, data.frames 64. GRPO on the same episodes is rl.advantage_estimator="episode".

Source: arXiv 2508.20478, and the released code where it is silent (clip range, lambda, sampling, penalty).
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b or 72b."""
  config = base_config.base("video_mtr")
  base_config.turns(config)
  env = config.env
  ask = "Think inside <think> and </think>. Then "
  answer = "give only the final answer inside <answer> and </answer>"
  env.instruction = (
    f"{ask}{answer}, or, to see more, the first and the last index of an interval of frames inside <retrieve> and "
    "</retrieve>, as in <retrieve>10,20</retrieve>."
  )
  env.last_instruction = f"{ask}{answer}: this is the last turn."
  env.turns = 3
  env.history_turns = 2
  env.frame_budget = 32
  env.on_invalid_action = "rethink"
  # Of each supervised episode one reply is learnt; where it looks, half of the time the look.
  env.sft_retrieval_fraction = 0.0
  env.relevance = ml_collections.ConfigDict()  # docs/video_mtr.md
  env.relevance.variant = "paper"
  env.relevance.slope = 1.0
  env.relevance.relevance = 0.5
  env.relevance.gate = True
  env.exploration = ml_collections.ConfigDict()
  env.exploration.variant = "paper"
  env.exploration.stages = ((0.1, 1.0), (0.5, 0.5))
  env.exploration.patience = 3

  config.data.sampling = "pool"
  config.data.fps = 1.0
  config.data.frames = 128  # of the pool, at most
  config.model.feature_cache_gib = 0.0
  config.model.freeze_vision = False  # the released code trains it
  config.model.min_pixels = config.model.max_pixels = 128 * 14 * 14
  config.model.prefix_buckets = (1024, 1536, 2048)
  config.model.frame_buckets = (16,)
  config.model.patch_buckets = (128, 144)
  config.turns.episode_buckets = (2048, 3072)
  config.turns.observation_buckets = (512, 768)
  config.eval.blind = config.eval.shuffled_frames = False

  rl = config.rl
  rl.advantage_estimator = "gae"
  rl.steps = 500
  rl.batch_size = 16
  rl.num_generations = 2
  rl.max_new_tokens = 512  # of a turn
  rl.temperature = 0.7
  rl.schedule = "constant"
  rl.max_grad_norm = 1.0
  rl.aggregation = "token_mean"
  rl.entropy_weight = 0.001
  rl.kl_weight = 0.0  # the penalty is a reward
  config.critic.kl_weight = 0.001

  return base_config.at_size(config, size, of_tiny=_tiny, of_released=_released)


def _tiny(config: ml_collections.ConfigDict) -> None:
  env = config.env
  env.instruction, env.last_instruction = "", "!"  # a network that knows no words
  env.frame_budget = 8
  env.sft_retrieval_fraction = 0.5
  config.data.frames = 64
  config.data.simulate.videos = 1000
  config.data.simulate.questions_per_video = 4
  world = config.data.simulate.world
  world.seconds = world.shown = 64.0
  world.fps = 1
  world.dwell = 4.0  # how long the answer shows; the first frames meet it in one of four questions
  world.lives = ("flicker",)
  world.families = ("moment",)
  config.model.prefix_buckets = (112, 256)
  config.model.frame_buckets = (4, 8)
  config.turns.episode_buckets = (320, 768)
  config.turns.observation_buckets = (84,)
  config.turns.frame_buckets = (4, 8)
  config.turns.decode_chunk = 12
  config.turns.append_batch_size = 16
  config.sft.steps = 400
  # What is left of the loss is chance, whether to look and answers without a look: calm steps at the end learn it.
  config.sft.target_loss = 0.0
  config.sft.schedule = "cosine"
  config.sft.max_reply_tokens = config.rl.max_new_tokens = 64
  config.rl.steps = 50
  # Lengths change much as looking is learnt, and each shape is compiled for: few sizes, and few parts, whose fullest sets them.
  config.rl.token_bucket_ratio = 1.3
  config.rl.microbatches = 2
  config.rl.decode_slot_fractions = (0.5, 0.125)  # few look a third time
  config.rl.batch_size, config.rl.num_generations = 16, 4
  config.rl.temperature = 1.0
  config.rl.entropy_weight = 0.0
  config.critic.kl_weight = 0.0  # nothing pretrained is to be kept
  config.critic.learning_rate = 1e-3
  config.critic.warmup_steps = 5


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
