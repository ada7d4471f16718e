"""MOSS-ChatV: GRPO with accuracy, format and a process reward (subsequence DTW of reasoning steps).

    tiny   simulated videos, a random network of 1 M parameters, from nothing; two cores of a CPU, 10 minutes, 2.2 GB.
           Result: docs/claims.md.
    3b     Qwen2.5-VL-3B-Instruct on MOSS-Video; v5e-16 or v6e-8. By plan on v5e-16: 10 of 17 GB a chip, 8 s a step.
           Not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on MOSS-Video (the paper's headline); v5p-16 or v6e-32. By plan with 64 frames on
           v5p-16: 33 of 103 GB a chip, 14 s a step; on v6e-32 21 of 34 GB, 12 s. Not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on MOSS-Video; v5p-256. By plan: 28 of 103 GB a chip, 8 s a step. Not yet measured.

Memory and step time by plan are launch/plan.py's, in docs/pods.md. The pretrained sizes show 16 frames of at most 128
tokens, as the paper's family. 64 frames of 256 tokens (a temporal patch holds two frames), as planned for 7b, are

    --config.data.frames=64 --config.data.max_side=896 --config.model.max_pixels=200704 --config.rl.max_new_tokens=1024
    --config.model.prefix_buckets="(8448,)" --config.model.patch_buckets="(1024,)"

with --config.rl.microbatches=2 on v5p-16, and --config.mesh="(1,16,2,1)" on v6e-32. Smaller buckets beside these let
shorter clips cost less.

prompts, batch and evaluation batch divide over 1, 2, 4, 8 or 16 devices (data x fsdp). Where their memory is short, set
--config.rl.microbatches (and sft.microbatches), of which a run makes 16 / devices at most: the update is the same, in parts. In
tiny a CPU counts as two devices (--config.cpu_devices).

Source: arXiv 2509.21113. The paper gives neither reward weights nor training details: those marked `Reconstruction` are
defaults of ours or of the Video-R1 family that it compares with.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: tiny, 3b, 7b or 72b."""
  config = base_config.base("moss_chatv")
  env = config.env
  env.instruction = (
    "First reason about the video inside <think> and </think>, as short steps in the order of time. "
    "Then give only the final answer inside <answer> and </answer>."
  )
  env.weights = ml_collections.ConfigDict()  # of the reward parts; Reconstruction: 1 each
  env.weights.accuracy = 1.0
  env.weights.format = 1.0
  env.weights.process = 1.0
  env.alpha = 1.0  # Reconstruction
  env.dtw_moves = "jump"
  env.dtw_alignment = "subsequence"
  env.process_gate = "none"

  return base_config.at_size(config, size, of_tiny=_tiny, of_released=_released)


def _tiny(config: ml_collections.ConfigDict) -> None:
  config.env.instruction = ""  # a network that knows no words


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  config.data.videos = "MOSS-Video/videos"
  config.data.annotations = "MOSS-Video/annotations.jsonl"
