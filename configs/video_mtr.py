"""Video-MTR: replies ask for frames of a long video, turn by turn, until they answer.

Trains a video language model with PPO: a critic, bi-level GAE and rewards of each turn.

    tiny   Data: simulated videos of a minute, whose answer is visible for a few seconds. Network:
           random, 1 M parameters. Device: two cores of a CPU; on one, a quarter of an hour once its
           programs are compiled (some six minutes). 4.5 GB. Result: over seeds, 0.98 to 1.00 of the
           held-out questions are right, 0.30 before RL (docs/claims/video_mtr.md).
    3b     Qwen2.5-VL-3B-Instruct on NExT-GQA and QVHighlights (docs/video_mtr.md). Device: v6e-8.
           Planned: 21 of 34 GB a chip, 10 s a step. Result: not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on the same, the paper's headline. Device: v5p-8. Planned: 82 of
           103 GB a chip, 22 s a step. Result: not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on the same. Device: v5p-256. Planned: 46 of 103 GB a chip, 17 s
           a step. Result: not yet measured.
    qwen3vl_2b, qwen3vl_4b, qwen3vl_8b, qwen3vl_32b
           Qwen3-VL-2B-, -4B-, -8B- and -32B-Instruct on the same. Device: docs/pods.md.
           Result: not yet measured.

Policy, critic, the moments of both and the reference take 28 bytes a parameter over all chips: 13
of 34 GB a chip for 3b on v6e-8, 58 of 103 for 7b on v5p-8, 2,055 GB in all for 72b. Programs and
activations come on top: launch/plan.py compiles them (docs/pods.md). What is planned above is of
rl.decode_layout=replicated; with tensor, the default now, 7b takes 61 GB to decode, not 73.

The paper's rule is the default. That of its released code is env.relevance.variant and
env.exploration.variant "code", env.on_invalid_action "explain", critic.placement "last" with
critic.gamma_turn 1.0, and data.frames 64. GRPO on the same episodes is
rl.advantage_estimator="episode".

Source: arXiv 2508.20478; the released code where it is silent (clip range, lambda, sampling,
penalty).
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b, 72b or qwen3vl_2b, _4b, _8b, _32b."""
  config = base_config.base("video_mtr")
  base_config.turns(config)
  env = config.env
  env.turns = 3
  env.history_turns = 2
  env.on_invalid_action = "rethink"
  env.relevance = ml_collections.ConfigDict(  # docs/video_mtr.md
    {
      "variant": "paper",
      "accuracy": 1.0,
      "relevance": 0.5,
      "format": 0.1,
      "slope": 1.0,
      "gate": True,
    }
  )
  env.exploration = ml_collections.ConfigDict(
    {"variant": "paper", "stages": ((0.1, 1.0), (0.5, 0.5)), "patience": 3}
  )

  config.data.sampling = "pool"
  config.data.fps = 1.0
  config.model.feature_cache_gib = 0.0
  config.eval.blind = False
  config.eval.shuffled_frames = False

  rl = config.rl
  rl.advantage_estimator = "gae"
  rl.batch_size = 16  # prompts a step
  rl.clip_epsilon_low = 0.2
  rl.clip_epsilon_high = 0.2
  rl.schedule = "constant"
  rl.max_grad_norm = 1.0
  rl.aggregation = "token_mean"
  rl.kl_weight = 0.0  # the penalty is a reward: critic.kl_weight
  return base_config.at_size(
    config, size, tiny=_tiny, tiny_qwen3vl=_tiny_qwen3vl, released=_released
  )


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  base_config.released_network(config, size)
  config.data.videos = "videos"
  config.data.annotations = "annotations.jsonl"
  config.data.frames = 128  # most frames of a pool
  config.model.freeze_vision = False  # the released code trains the vision tower
  config.model.min_pixels = 32 * base_config.token_pixels(size)
  config.model.max_pixels = 32 * base_config.token_pixels(size)

  think = "Think inside <think> and </think>. Then "
  answer = "give only the final answer inside <answer> and </answer>"
  config.env.instruction = (
    f"{think}{answer}, or, to see more, the first and the last index of an interval of frames "
    "inside <retrieve> and </retrieve>, as in <retrieve>10,20</retrieve>."
  )
  config.env.last_instruction = f"{think}{answer}: this is the last turn."
  config.env.frame_budget = 32
  config.env.sft_retrieval_fraction = 0.0

  rl = config.rl
  rl.steps = 500
  rl.num_generations = 2
  rl.learning_rate = 1e-6
  rl.temperature = 0.7
  rl.max_new_tokens = 512  # a turn
  rl.entropy_weight = 0.001
  config.critic.learning_rate = 1e-5
  config.critic.kl_weight = 0.001
  _released_compiler_sizes(config)


def _released_compiler_sizes(config: ml_collections.ConfigDict) -> None:
  """Shapes that programs are compiled for."""
  config.model.prefix_buckets = (1024, 1536, 2048)
  config.model.frame_buckets = (16,)  # temporal patches, of two frames each
  config.model.patch_buckets = (128, 144)
  config.turns.episode_buckets = (2048, 3072)
  config.turns.observation_buckets = (512, 768)


def _tiny(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_network(config)
  _tiny_training(config)


def _tiny_qwen3vl(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_qwen3vl_network(config)
  _tiny_training(config)
  # The times of frames are text.
  config.model.prefix_buckets = (176, 320)
  config.turns.observation_buckets = (144,)
  config.turns.episode_buckets = (448, 960)


def _tiny_training(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_simulation(
    config,
    questions_per_video=4,
    seconds=64.0,
    shown=64.0,
    fps=1,
    dwell=4.0,  # seconds that the answer is visible: in the first frames of one question in four
    behaviours=("flicker",),
    families=("moment",),
  )
  config.data.frames = 64
  env = config.env
  env.instruction, env.last_instruction = "", "!"  # the network knows no words
  env.frame_budget = 8
  # Of each supervised episode one reply is learned; where it retrieves, half of the time that one.
  env.sft_retrieval_fraction = 0.5

  # What is left of the loss is chance, whether to retrieve, and answers without having retrieved:
  # small steps at the end learn it. So there is no target loss.
  sft = config.sft
  sft.steps = 400
  sft.learning_rate = 2e-3
  sft.schedule = "cosine"
  sft.warmup_steps = 20
  sft.max_grad_norm = 1.0
  sft.max_reply_tokens = 64

  rl = config.rl
  rl.steps = 50
  rl.num_generations = 4
  rl.learning_rate = 3e-4
  rl.warmup_steps = 5
  rl.temperature = 1.0
  rl.top_p = 1.0
  rl.max_new_tokens = 64  # a turn
  rl.entropy_weight = 0.0
  config.critic.learning_rate = 1e-3
  config.critic.warmup_steps = 5
  config.critic.kl_weight = 0.0  # there is no pretrained ability to keep
  _tiny_compiler_sizes(config)


def _tiny_compiler_sizes(config: ml_collections.ConfigDict) -> None:
  """Shapes that programs are compiled for.

  Lengths change much while retrieving is learned, and each shape is compiled for. Hence few sizes,
  and few microbatches, whose fullest one sets the shape.
  """
  config.model.prefix_buckets = (112, 256)
  config.model.frame_buckets = (4, 8)  # temporal patches, of two frames each
  config.model.patch_buckets = (16,)
  config.turns.episode_buckets = (320, 768)
  config.turns.observation_buckets = (84,)
  config.turns.frame_buckets = (4, 8)
  config.turns.decode_chunk = 12
  config.turns.append_batch_size = 16
  config.rl.token_bucket_ratio = 1.3
  config.rl.microbatches = 2
  # Decoding shrinks twice as episodes end: few reach the third turn.
  config.rl.decode_slot_fractions = (0.5, 0.125)
