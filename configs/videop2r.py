"""VideoP2R: supervised traces, then PA-GRPO, which rewards perception and reasoning separately.

Trains a video language model first on traces, then with PA-GRPO: each of a reply's two segments
gets the advantage of its own rewards.

    tiny   Data: simulated videos with questions of all five problem types. Network: random, 1 M
           parameters. Device: two cores of a CPU. Result: after 60 of its 100 updates 0.51 ± 0.35
           right over three seeds, from 0.45 ± 0.30 after the warm start (docs/claims/videop2r.md).
    3b     Qwen2.5-VL-3B-Instruct on the released VideoP2R data. Device: v6e-8 or v5e-16. Planned
           for v6e-8: 13 of 34 GB a chip, 5 s a step. Result: not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on the same, the paper's headline. Device: v5p-16 or v6e-32.
           Planned for v5p-16: 32 of 103 GB a chip, 8 s a step. Result: not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on the same. Device: v5p-256. Planned: 28 of 103 GB a chip, 10 s
           a step. Result: not yet measured.
    qwen3vl_2b, qwen3vl_4b, qwen3vl_8b, qwen3vl_32b
           Qwen3-VL-2B-, -4B-, -8B- and -32B-Instruct on the same. Device: docs/pods.md.
           Result: not yet measured.

Planned memory and step time come from launch/plan.py (docs/pods.md). They are of
rl.decode_layout=replicated; with tensor, the default now, decoding is about 3 times as fast.

The released data is two files, traces for the warm start and questions for RL. The sizes 3b, 7b and
72b read the second. The warm start is a run of its own, from whose checkpoints RL then starts:

    --mode=sft --config.data.annotations=VideoP2R/sft.json --config.sft.steps=10000
    --workdir=runs/p2r-sft

    --mode=rl --config.rl.init_checkpoint=runs/p2r-sft/checkpoints/sft --workdir=runs/p2r

The paper updates on 7 prompts x 8 replies. 8 prompts divide over up to 8 devices (data x fsdp). On
a larger slice, several devices share a prompt (docs/pods.md); 72b also has 8 devices on the tensor
axis. Traces are written by --mode=traces (docs/traces.md), or are the released ones. config.judge
(docs/judges.md) judges perception. The judge `rule` knows simulated videos only, so the sizes 3b,
7b and 72b need an endpoint, whose key is read from the environment.

Source: arXiv 2511.11113. It does not state the clip range, the averaging of the loss and the floor
of the standard deviation: those of GRPO are used.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b, 72b or qwen3vl_2b, _4b, _8b, _32b."""
  config = base_config.base("videop2r")
  base_config.judge(config)
  base_config.traces(config)
  env = config.env
  env.weights = ml_collections.ConfigDict(
    {
      "perception": 1.0,  # of the two segments
      "reasoning": 1.0,
      "accuracy": 1.0,  # of the rewards
      "format": 1.0,
      "length": 0.2,
      "temporal": 0.3,  # counts only if rl.num_shuffled_generations > 0 (T-GRPO)
    }
  )
  env.length = "segment"
  env.length_accuracy = 0.1
  env.temporal_ratio = 0.8

  rl = config.rl
  rl.advantage_estimator = "segments"  # PA-GRPO
  rl.num_generations = 8
  rl.clip_epsilon_low = 0.2
  rl.clip_epsilon_high = 0.2
  return base_config.at_size(config, size, tiny=_tiny, released=_released)


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  base_config.released_network(config, size)
  base_config.released_limits(config, size)
  config.data.videos = "VideoP2R"
  config.data.annotations = "VideoP2R/rl.json"
  config.data.frames = 16
  config.judge.kind = "openai"
  config.env.instruction = (
    "First say inside <observation> and </observation> what the video shows that bears on the "
    "question. Then reason from it inside <think> and </think>. "
    "Then give only the final answer inside <answer> and </answer>."
  )
  config.env.perception_tokens = (128, 320)
  config.env.reasoning_tokens = (320, 512)
  config.sft.max_reply_tokens = 1024

  rl = config.rl
  rl.steps = 1000
  rl.batch_size = 8  # prompts a step
  rl.learning_rate = 1e-6
  rl.schedule = "cosine"
  rl.max_grad_norm = 5.0
  rl.kl_weight = 0.04
  rl.max_new_tokens = 1024


def _tiny(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_simulation(
    config,
    videos=2000,
    questions_per_video=1,
    behaviours=("cycle", "count", "charge"),
    families=("choice", "name", "visits", "read", "measure"),  # one of each problem type
    digits=1,
  )
  base_config.tiny_network(config)
  config.data.fps = 1.0
  config.data.frames = 8
  config.env.instruction = ""  # the network knows no words
  config.env.perception_tokens = (40, 80)
  config.env.reasoning_tokens = (16, 48)
  config.traces.max_tokens = 112

  sft = config.sft  # stops when the loss reaches target_loss: see moss_chatv
  sft.steps = 250
  sft.target_loss = 0.03
  sft.learning_rate = 2e-3
  sft.schedule = "constant"
  sft.warmup_steps = 20
  sft.max_grad_norm = 1.0
  sft.max_reply_tokens = 112

  rl = config.rl
  rl.steps = 100
  rl.batch_size = 16  # prompts a step
  rl.learning_rate = 3e-4
  rl.schedule = "constant"
  rl.warmup_steps = 5
  rl.max_grad_norm = 1.0
  rl.kl_weight = 0.0  # there is no pretrained ability to keep
  rl.top_p = 1.0
  rl.max_new_tokens = 112
  _tiny_compiler_sizes(config)


def _tiny_compiler_sizes(config: ml_collections.ConfigDict) -> None:
  """Shapes that programs are compiled for; the other sizes use the defaults."""
  config.model.prefix_buckets = (64, 96)
  config.model.frame_buckets = (4,)  # temporal patches, of two frames each
  config.model.patch_buckets = (16,)
  config.rl.microbatches = 4  # a microbatch's saved activations then fit the CPU's cache
  # Decoding shrinks once, when half of the replies have ended: all are about equally long.
  config.rl.decode_slot_fractions = (0.5,)
