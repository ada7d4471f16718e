"""VideoP2R: supervised traces, then PA-GRPO: perception and reasoning of a reply are rewarded apart.

    tiny   simulated videos with questions of all five problem types, a random network of 1 M parameters, from nothing; two
           cores of a CPU. After 60 of its 100 updates 0.51 ± 0.35 right over three seeds, from 0.45 ± 0.30 of the warm start
           (docs/claims/videop2r.md).
    3b     Qwen2.5-VL-3B-Instruct on the released VideoP2R data; v6e-8, or v5e-16. By plan on v6e-8: 13 of 34 GB a chip, 5 s a
           step. Not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on the same (the paper's headline); v5p-16, or v6e-32. By plan on v5p-16: 32 of 103 GB a
           chip, 8 s a step. Not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on the same; v5p-256. By plan: 28 of 103 GB a chip, 10 s a step. Not yet measured.

The released data is two files, traces for the warm start and questions for RL. The pretrained sizes start with the second; the first
is a run of its own, whose checkpoints RL then starts from:

    --mode=sft --config.data.annotations=VideoP2R/sft.json --config.sft.steps=10000 --workdir=runs/p2r-sft
    --mode=rl --config.rl.init_checkpoint=runs/p2r-sft/checkpoints/sft --workdir=runs/p2r

The paper updates on 7 prompts x 8 replies; 8 prompts divide over up to 8 devices (data x fsdp). A slice of more splits each of
them: --config.mesh="(1,8,-1,1)", which 72b has with 8 ways of tensor. Supervised traces are made by
--mode=traces (docs/traces.md), or are the released ones. The judge of perception is config.judge (docs/judges.md): `rule` knows
simulated videos only, so that other sizes need an endpoint, whose key stands in the environment.

Source: arXiv 2511.11113. Clip range, averaging and the std floor are not stated: those of GRPO.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b or 72b."""
  config = base_config.base("videop2r")
  base_config.judge(config)
  base_config.traces(config)
  env = config.env
  env.instruction = (
    "First say inside <observation> and </observation> what the video shows that bears on the question. "
    "Then reason from it inside <think> and </think>. Then give only the final answer inside <answer> and </answer>."
  )
  env.weights = ml_collections.ConfigDict()
  env.weights.perception = 1.0  # of the two segments
  env.weights.reasoning = 1.0
  env.weights.accuracy = 1.0  # of the parts
  env.weights.format = 1.0
  env.weights.length = 0.2
  env.weights.temporal = 0.3  # counts where rl.num_shuffled_generations > 0 (T-GRPO)
  env.length = "segment"
  env.perception_tokens = (128, 320)
  env.reasoning_tokens = (320, 512)
  env.length_accuracy = 0.1
  env.temporal_ratio = 0.8

  rl = config.rl
  rl.batch_size = 8
  rl.max_new_tokens = 1024
  sft = config.sft
  sft.max_reply_tokens = 1024

  return base_config.at_size(config, size, of_tiny=_tiny, of_released=_released)


def _tiny(config: ml_collections.ConfigDict) -> None:
  config.data.simulate.questions_per_video = 1
  world = config.data.simulate.world
  world.lives = ("cycle", "count", "charge")
  world.families = ("choice", "name", "visits", "read", "measure")  # one of each problem type
  world.digits = 1
  config.data.simulate.videos = 2000
  config.env.instruction = ""  # a network that knows no words
  config.env.perception_tokens = (40, 80)
  config.env.reasoning_tokens = (16, 48)
  config.rl.steps = 100
  config.rl.max_new_tokens = config.sft.max_reply_tokens = config.traces.max_tokens = 112


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  if size == "72b":
    config.mesh = (1, 8, -1, 8)  # 8 prompts on 128 chips
  config.data.videos = "VideoP2R"
  config.data.annotations = "VideoP2R/rl.json"
  config.judge.kind = "openai"
