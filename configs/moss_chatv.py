"""MOSS-ChatV: GRPO with a process reward for reasoning steps, aligned with a reference by DTW.

Trains a video language model with GRPO; a reply is rewarded for its answer, its format and its
reasoning steps (subsequence DTW).

    tiny   Data: simulated videos. Network: random, 1 M parameters. Device: two cores of a CPU. It
           takes 10 minutes and 2.2 GB. Result: docs/claims.md.
    tiny_qwen3vl
           The same with a random network of Qwen3-VL's kind, 1 M parameters. Result:
           docs/claims/moss_chatv_qwen3vl.md.
    tiny_phi2
           The same with a random network of the kind of TinyLLaVA-Video with Phi-2, 1.3 M
           parameters. Result: docs/claims/moss_chatv_phi2.md.
    tiny_wordings
           tiny with four wordings of questions and reference steps. Result:
           docs/claims/moss_chatv_wording.md.
    tiny_steps
           tiny with references of five to ten steps, and room for longer replies. Result: not yet
           measured; docs/claims/moss_chatv_steps/notes.md says what is expected.
    3b     Qwen2.5-VL-3B-Instruct on MOSS-Video. Device: v5e-16 or v6e-8. Planned for v5e-16: 10 of
           17 GB a chip, 8 s a step. Result: not yet measured.
    7b     Qwen2.5-VL-7B-Instruct on MOSS-Video, the paper's headline. Device: v5p-16 or v6e-32. By
           default 16 frames; the plan is for the 64-frame flags below: on v5p-16 33 of 103 GB a
           chip, 14 s a step; on v6e-32 21 of 34 GB, 12 s. Result: not yet measured.
    72b    Qwen2.5-VL-72B-Instruct on MOSS-Video. Device: v5p-256. Planned: 28 of 103 GB a chip, 8 s
           a step. Result: not yet measured.
    qwen3vl_2b, qwen3vl_4b, qwen3vl_8b, qwen3vl_32b
           Qwen3-VL-2B-, -4B-, -8B- and -32B-Instruct on MOSS-Video. Device: docs/pods.md.
           Result: not yet measured.
    phi2   TinyLLaVA-Video with Phi-2 (naive resampler, 16 frames, 512 queries) on MOSS-Video, the
           paper's second architecture. Reconstruction: which resampler it had; 3.1 B parameters.
           Device: v6e-8. Planned: 18 of 34 GB a chip, 7 s a step. Result: not yet measured.

Planned memory and step time come from launch/plan.py (docs/pods.md). They are of
rl.decode_layout=replicated; with tensor, the default now, decoding is about 3 times as fast.

The sizes 3b, 7b and 72b use 16 frames, at most 128 tokens per pair of frames (a temporal patch), as
Video-R1 and its successors do. For 64 frames, 256 tokens per pair of frames, add these flags:

    --config.data.frames=64 --config.data.max_side=896 --config.model.max_pixels=200704
    --config.rl.max_new_tokens=1024
    --config.model.prefix_buckets="(8448,)" --config.model.patch_buckets="(1024,)"

and --config.rl.microbatches=2 on v5p-16, or --config.mesh="(1,16,2,1)" on v6e-32. Add smaller
buckets to these to make shorter clips cheaper.

rl.batch_size, sft.batch_size and eval.batch_size divide over 1, 2, 4, 8 or 16 devices (data x
fsdp). Where memory is short, set --config.rl.microbatches (and sft.microbatches), at most 16 /
devices: the update is the same, computed in several passes. In tiny a CPU counts as two devices
(--config.cpu_devices).

Source: arXiv 2509.21113. The paper gives neither reward weights nor training details. Values that
we chose, or took from Video-R1 (arXiv 2503.21776), are marked `Reconstruction`; the size tiny is
our own as a whole.
"""

import ml_collections

from vr_jax import base_config


def get_config(size: str = "tiny") -> ml_collections.ConfigDict:
  """The recipe at a size: one of those named tiny…, phi2, or one of base_config.RELEASES."""
  config = base_config.base("moss_chatv")
  base_config.construct(config)  # --mode=construct makes such data
  env = config.env
  env.rewards = ("accuracy", "format", "process")
  # Reconstruction: each reward weighs 1.
  env.weights = ml_collections.ConfigDict({"accuracy": 1.0, "format": 1.0, "process": 1.0})
  env.alpha = 1.0  # process reward = exp(-alpha * distance); Reconstruction
  env.dtw_moves = "jump"  # the alignment may skip a generated step; Reconstruction
  env.dtw_alignment = "subsequence"  # a reply may have steps before and after the reference's
  env.step_distance = "rouge"  # steps are compared by their words
  env.process_gate = "none"  # the process reward counts whatever the other rewards are

  config.rl.num_generations = 8  # Reconstruction
  config.rl.clip_epsilon_low = 0.2  # Reconstruction
  config.rl.clip_epsilon_high = 0.2  # Reconstruction
  return base_config.at_size(
    config,
    size,
    tiny=_tiny,
    tiny_qwen3vl=_tiny_qwen3vl,
    tiny_phi2=_tiny_phi2,
    tiny_wordings=_tiny_wordings,
    tiny_steps=_tiny_steps,
    phi2=_phi2,
    released=_released,
  )


def _released(config: ml_collections.ConfigDict, size: str) -> None:
  base_config.released_network(config, size)
  base_config.released_limits(config, size)
  _moss_video(config)


def _phi2(config: ml_collections.ConfigDict) -> None:
  base_config.phi2_network(config)
  _moss_video(config)


def _moss_video(config: ml_collections.ConfigDict) -> None:
  config.data.videos = "MOSS-Video/videos"
  config.data.annotations = "MOSS-Video/annotations.jsonl"
  config.data.frames = 16  # Reconstruction
  config.env.instruction = (  # Reconstruction
    "First reason about the video inside <think> and </think>, as short steps in the order of "
    "time. Then give only the final answer inside <answer> and </answer>."
  )

  rl = config.rl
  rl.steps = 1000  # Reconstruction
  rl.batch_size = 16  # prompts a step; Reconstruction
  rl.learning_rate = 1e-6  # Reconstruction
  rl.schedule = "cosine"  # Reconstruction
  rl.max_grad_norm = 5.0  # Reconstruction
  rl.kl_weight = 0.04  # Reconstruction
  rl.max_new_tokens = 768  # Reconstruction


def _tiny(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_network(config)
  _tiny_training(config)
  config.model.prefix_buckets = (64, 96)


def _tiny_qwen3vl(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_qwen3vl_network(config)
  _tiny_training(config)
  config.model.prefix_buckets = (96, 128)  # the times of frames are text


def _tiny_phi2(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_phi2_network(config)
  _tiny_training(config)
  # It reaches the loss after about 300 updates: what a resampler reads has to be found first.
  config.sft.steps = 500
  config.sft.learning_rate = 3e-3
  config.sft.warmup_steps = 50
  config.model.prefix_buckets = (64, 96)
  config.model.frame_buckets = (1,)  # a video is one frame of the tower's input
  config.model.patch_buckets = (8 * 4,)  # of all its images


def _tiny_wordings(config: ml_collections.ConfigDict) -> None:
  _tiny(config)
  config.data.simulate.world.wordings = 4
  # Nothing tells which wording the reference has: of about 70 tokens, that choice alone costs
  # log(4) / 70 = 0.02 nats a token.
  config.sft.target_loss = 0.05
  config.sft.steps = 400
  config.sft.max_reply_tokens = 88  # references have up to 79
  config.rl.max_new_tokens = 88


def _tiny_steps(config: ml_collections.ConfigDict) -> None:
  _tiny(config)
  config.data.simulate.world.tellings = 2
  # Nothing tells which of five cells are told twice: of about 97 tokens, these choices alone cost
  # 5 log(2) / 97 = 0.036 nats a token.
  config.sft.target_loss = 0.06
  config.sft.steps = 400
  config.sft.max_reply_tokens = 136  # references have up to 127
  config.rl.max_new_tokens = 208  # a reply may repeat steps


def _tiny_training(config: ml_collections.ConfigDict) -> None:
  base_config.tiny_simulation(config)
  config.data.fps = 1.0
  config.data.frames = 8
  config.env.instruction = ""  # the network knows no words

  # SFT stops when the loss reaches target_loss (at most `steps`): how many steps the network needs
  # until it uses the video varies between seeds. At this loss reasoning steps tell most of what
  # happens, but answers do not yet follow from them.
  sft = config.sft
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
  config.model.frame_buckets = (4,)  # temporal patches, of two frames each
  config.model.patch_buckets = (16,)
  config.rl.microbatches = 4  # a microbatch's saved activations then fit the CPU's cache
  # Decoding shrinks once, when half of the replies have ended: all are about equally long.
  config.rl.decode_slot_fractions = (0.5,)
