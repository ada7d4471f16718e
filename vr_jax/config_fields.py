"""The fields that every recipe has, a class for each section: default, meaning, bounds.

Those of config.env are the environment's own (vr_jax/envs). base_config.py makes configs of these.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from vr_jax.schema import field

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateSection:
  """Videos that the data stage simulates."""

  videos: int = field(0, "How many; 0: data.videos and data.annotations are used.", "[0, inf)")
  questions_per_video: int = field(1, "Questions about each video.", "[1, inf)")
  seed: int = field(0, "Of the simulation.")
  world: Mapping[str, Any] = field({}, "Fields of worlds.config.WorldConfig.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection:
  """Videos, questions and the frames that are shown of them."""

  directory: str = field("", "Of the frame store and the examples; empty: <workdir>/data.")
  videos: str = field("", "Directory of videos; empty where they are simulated.")
  annotations: str = field("", "Annotation file (docs/data.md).")
  on_bad: Literal["stop", "skip"] = field(
    "stop", "A bad record stops the run, or is skipped and listed in bad_records.jsonl."
  )
  fps: float = field(2.0, "Frames stored a second.")
  quality: int = field(90, "Of the stored JPEGs.")
  max_side: int = field(448, "Longer side of stored frames in pixels; larger ones are scaled down.")
  validation_fraction: float = field(0.0, "Of the videos.", "[0, 1)")
  test_fraction: float = field(0.2, "Of the videos; the rest is for training.", "[0, 1)")
  split_seed: int = field(0, "Another one gives another split.")
  sampling: Literal["uniform", "fps", "pool"] = field(
    "uniform", "How frames are chosen; pool: what several turns choose from."
  )
  frames: int = field(16, "Uniform: frames of a clip; pool: at most so many.")
  sample_fps: float = field(2.0, "Fps: frames a second, but min_frames to max_frames.")
  min_frames: int = field(4, "Fps: frames of a clip, at least.")
  max_frames: int = field(64, "Fps: frames of a clip, at most.")
  threads: int = field(4, "Read and cut frames ahead of the step.", "[0, inf)")
  simulate: SimulateSection = SimulateSection()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSection:
  """Low-rank adapters (docs/checkpoints.md)."""

  rank: int = field(0, "Of the adapters, which alone are trained; 0: all weights are trained.")
  alpha: float = field(32.0, "What adapters add is multiplied by alpha / rank.")
  text: tuple[str, ...] = field(
    ("query", "key", "value", "out", "gate", "up", "down"), "Projections that get an adapter."
  )
  vision: tuple[str, ...] = field((), "The same of the tower: of qkv, out, gate, up, down.")
  base_dtype: Dtype = field("bfloat16", "Of all weights that are not trained.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSection:
  """The network, its tokenizer, and what it is shown."""

  pretrained: str = field(
    "", "Hugging Face directory; empty: random weights of model.architecture."
  )
  architecture: Mapping[str, Any] = field({}, "As in a config.json of Hugging Face.")
  tokenizer: str = field(
    "", 'A tokenizer.json; "trained": learnt from the training split; empty: the pretrained one.'
  )
  min_pixels: int = field(4 * 28 * 28, "Of a frame, at least.", "[1, inf)")
  max_pixels: int = field(128 * 28 * 28, "Of a frame, at most [Video-R1].", "[1, inf)")
  resize_backend: Literal["torchvision", "pillow"] = field(
    "pillow", "Whose bicubic filter resizes frames (docs/design.md)."
  )
  system: str = field("You are a helpful assistant.", "System turn; empty: none.")
  question_first: bool = field(False, "The question stands before the video in the prompt.")
  rope_after_video: Literal["", "sides", "largest"] = field(
    "", "Position of text behind a video (docs/design.md); empty: as the model says."
  )
  dtype: Dtype = field("bfloat16", "Of activations; parameters stay float32.")
  remat: Literal["none", "full", "attention", "dots"] = field(
    "full", "What is computed again in the backward pass."
  )
  attention: Literal["", "xla", "splash", "cudnn"] = field(
    "", "Splash is TPU's, cudnn GPU's; empty: that of the platform."
  )
  logit_chunk: int = field(
    8192, "Rows of the vocabulary whose logits an update has in memory at once.", "[1, inf)"
  )
  freeze_vision: bool = field(True, "Reconstruction: optional in the family.")
  # A clip of 16 frames takes 4 MiB with 3b, 7 MiB with 7b, and 16 MiB with 72b.
  feature_cache_gib: float = field(
    64.0,
    "Features of a frozen tower kept on disk, at most so many GiB; 0 (needed with several turns): none.",
    "[0, inf)",
  )
  lora: LoraSection = LoraSection()
  prefix_buckets: tuple[int, ...] = field(
    (640, 768, 1024, 1152, 1280, 1408, 1536, 2048, 3072, 4096),
    "Prompt lengths that programs are compiled for: a batch takes that of its longest prompt.",
    "[1, inf)",
    length=1,
  )
  frame_buckets: tuple[int, ...] = field(
    (8, 32), "The same of temporal patches a prompt.", "[1, inf)", length=1
  )
  patch_buckets: tuple[int, ...] = field(
    (256, 512), "The same of patches a frame.", "[1, inf)", length=1
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSection:
  """AdamW, as the policy and a critic have it."""

  learning_rate: float = field(1e-6, "Its highest.", "[0, inf)")
  schedule: Literal["cosine", "constant"] = field("cosine", "Of the learning rate after warm-up.")
  warmup_steps: int = field(0, "Updates over which the learning rate rises.", "[0, inf)")
  b1: float = field(0.9, "Decay of Adam's first moment.", "[0, 1)")
  b2: float = field(0.999, "Decay of Adam's second moment.", "[0, 1)")
  moment_dtype: Literal["float32", "bfloat16"] = field("float32", "Of Adam's first moment.")
  weight_decay: float = field(0.01, "Of AdamW.", "[0, inf)")
  max_grad_norm: float = field(5.0, "Gradients are scaled down to this norm.", "(0, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSection(OptimizerSection):
  """What both training loops have."""

  microbatches: int = field(
    1, "Equal parts of an update, at most one for each prompt of a device.", "[1, inf)"
  )
  checkpoint_every: int = field(50, "Steps between checkpoints.", "[1, inf)")
  max_consecutive_nonfinite: int = field(
    5, "Non-finite updates in a row that end the run.", "[1, inf)"
  )
  token_bucket_ratio: float = field(
    1.1,
    "Updates are compiled for numbers of reply tokens this far apart; 0: padding is computed too.",
    "[0, inf)",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftSection(LoopSection):
  """The supervised warm start."""

  steps: int = field(0, "Updates at most; 0: no supervised warm start.", "[0, inf)")
  target_loss: float = field(
    0.0, "It ends where the mean loss of 10 updates (nats a token) is this low.", "[0, inf)"
  )
  examples: int = field(0, "Of the training set that are used; 0: all.", "[0, inf)")
  batch_size: int = field(16, "Prompts an update.", "[1, inf)")
  max_reply_tokens: int = field(768, "Longer reference replies are an error.", "[1, inf)")
  validate_every: int = field(
    0, "Updates between two looks at the validation split; 0: none.", "[0, inf)"
  )
  patience: int = field(
    0, "It ends after so many looks in a row that find no lower loss; 0: never.", "[0, inf)"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RlSection(LoopSection):
  """Reinforcement learning."""

  init_checkpoint: str = field(
    "", "Directory of checkpoints to start from; empty: this workdir's checkpoints/sft."
  )
  steps: int = field(1000, "Batches of replies.", "[0, inf)")
  batch_size: int = field(16, "Prompts an update.", "[1, inf)")
  num_generations: int = field(8, "Replies to each prompt.", "[1, inf)")
  num_iterations: int = field(1, "Updates on one batch of replies.", "[1, inf)")
  temperature: float = field(1.0, "Of sampling.", "(0, inf)")
  top_p: float = field(0.95, "Of sampling.", "(0, 1]")
  max_new_tokens: int = field(768, "Of a reply.", "[1, inf)")
  decode_slot_fractions: tuple[float, ...] = field(
    (0.86, 0.74, 0.63, 0.54, 0.46, 0.38, 0.3, 0.24, 0.18, 0.13, 0.09, 0.06, 0.04, 0.03, 0.02, 0.01),
    "Shares of the replies that decoding goes down to as others end; each is compiled once.",
    "(0, 1)",
  )
  replicate_weights_for_decode: bool = field(
    True, "Whole weights on each device while it decodes; False: less memory, more traffic."
  )
  dynamic_sampling_max_batches: int = field(
    0, "More batches a step at most, whose groups replace those without signal (DAPO).", "[0, inf)"
  )
  num_shuffled_generations: int = field(
    0,
    "More replies to each prompt, to its frames in random order (T-GRPO compares).",
    "[0, inf)",
  )
  curriculum: Literal["none", "length"] = field(
    "none", "none: in random order; length: every epoch from the shortest clips to the longest."
  )
  one_step_off_policy: bool = field(
    False, "Replies of the next step are judged while this one updates."
  )
  normalize_by_std: bool = field(True, "Advantages by the group's standard deviation.")
  baseline: Literal["group_mean", "leave_one_out"] = field(
    "group_mean",
    "What is taken off a reply's reward: its group's mean, or the mean of the others (RLOO).",
  )
  aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = field(
    "sequence_mean", "How the losses of tokens are averaged."
  )
  objective: Literal["clip", "cispo"] = field(
    "clip", "clip: PPO's; cispo: the clipped ratio weighs each token's gradient."
  )
  importance_sampling_level: Literal["token", "sequence"] = field(
    "token", "token: a ratio for each token; sequence: one for a whole reply (GSPO)."
  )
  clip_epsilon_low: float = field(0.2, "Of the ratio below 1.", "[0, inf)")
  clip_epsilon_high: float = field(0.2, "Of the ratio above 1.", "[0, inf)")
  dual_clip: float = field(
    0.0, "Largest ratio that counts against a token of negative advantage; 0: any.", "[0, inf)"
  )
  kl_weight: float = field(0.04, "Of the KL to the reference, in the loss.", "[0, inf)")
  kl_estimator: Literal["k1", "k2", "k3"] = field("k3", "Of that KL.")
  entropy_weight: float = field(0.0, "Of the replies' entropy, which the loss rewards.", "[0, inf)")
  advantage_estimator: Literal["segments", "joint", "episode", "outcome", "gae"] = field(
    "segments",
    "Which rewards count for which tokens. segments: each segment's for its own; joint: the sum for "
    "all, of replies whose segments are all judged; episode: the sum of what is judged for all; "
    "outcome: the last segment's for all; gae: turns by bi-level GAE, with a critic (config.critic).",
  )
  overlong_buffer: int = field(
    0, "Last tokens over which a penalty of length grows (DAPO); 0: no penalty.", "[0, inf)"
  )
  overlong_max_tokens: int = field(
    0, "Where the penalty has grown to its end; 0: at rl.max_new_tokens.", "[0, inf)"
  )
  overlong_weight: float = field(
    1.0, "Weight of the penalty, which goes from 0 to -1, in the total reward.", "[0, inf)"
  )
  tis_cap: float = field(2.0, "Cap of the trainer/sampler importance weight.", "(0, inf)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSection:
  """Evaluation on the test split."""

  examples: int = field(0, "Of the test set; 0: all.", "[0, inf)")
  batch_size: int = field(16, "Prompts at a time.", "[1, inf)")
  temperature: float = field(0.0, "Of sampling; 0: the most likely token.", "[0, inf)")
  report_samples: int = field(24, "Shown in the report.", "[0, inf)")
  blind: bool = field(True, "Also without frames.")
  shuffled_frames: bool = field(True, "Also with frames in random order.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSection:
  """What --mode=export writes."""

  directory: str = field("", "Where; empty: <workdir>/export.")
  dtype: Dtype = field("float32", "Of its tensors.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """The sections and fields of every recipe."""

  recipe: str = field("", "A registered name, module:Class or file.py:Class of an environment.")
  seed: int = field(0, "Of initial weights, order of data and sampling.")
  mesh: tuple[int, ...] = field(
    (-1, 1, 1, 1), "Devices on the axes data, fsdp, sequence, tensor; -1: what is left."
  )
  cpu_devices: int = field(
    0, "That a CPU counts as, where JAX is not told; 0: as JAX says.", "[0, inf)"
  )
  data: DataSection = DataSection()
  model: ModelSection = ModelSection()
  sft: SftSection = SftSection()
  rl: RlSection = RlSection()
  eval: EvalSection = EvalSection()
  export: ExportSection = ExportSection()


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSection:
  """The judge of recipes whose replies one judges (docs/judges.md)."""

  kind: Literal["rule", "local", "openai", "anthropic"] = field(
    "rule", "rule: the simulator's truth; local: a model loaded here; else an endpoint."
  )
  model: str = field("", "Its name, or for local a Hugging Face directory.")
  base_url: str = field("", "Of the endpoint; empty: that of the provider.")
  key_variable: str = field(
    "", "Environment variable that holds the key; empty: the provider's own."
  )
  in_flight: int = field(32, "Questions at a time.", "[1, inf)")
  requests_per_minute: float = field(0.0, "At most; 0: no limit.", "[0, inf)")
  timeout: float = field(30.0, "Seconds.", "(0, inf)")
  retries: int = field(4, "Then there is no verdict.", "[0, inf)")
  budget: int = field(
    0, "Calls of one start of the program, in each process; 0: no limit.", "[0, inf)"
  )
  max_tokens: int = field(256, "Of an answer.", "[1, inf)")
  blinded: bool = field(
    False, "It answers from the observation alone, and that answer is compared with the right one."
  )
  threshold: float = field(
    0.6, "Blinded: of the task metric, from which the observation suffices.", "[0, 1]"
  )
  leak_filter: bool = field(
    False, "An observation that states the answer outright does not suffice."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracesSection:
  """Supervised traces that a writer proposes (docs/traces.md)."""

  writer: Literal["sampler", "openai"] = field(
    "sampler", "sampler: the weights that RL would start from; openai: an endpoint."
  )
  directory: str = field("", "What is written; empty: <workdir>/traces.")
  examples: int = field(0, "Of each split that are asked about; 0: all.", "[0, inf)")
  threshold: float = field(
    0.6, "Of the task metric: an answer that scores less is rejected [VideoP2R].", "[0, 1]"
  )
  batch_size: int = field(16, "Questions that are asked, decided and written together.", "[1, inf)")
  max_tokens: int = field(1024, "Of a reply.", "[1, inf)")
  model: str = field("", "openai: the writer's name at its endpoint.")
  base_url: str = field("", "openai: of the endpoint; empty: OpenAI's own.")
  key_variable: str = field("OPENAI_API_KEY", "openai: environment variable that holds the key.")
  in_flight: int = field(16, "openai: requests at a time.", "[1, inf)")
  retries: int = field(4, "openai: of a request.", "[0, inf)")
  timeout: float = field(120.0, "openai: seconds that a request may take.", "(0, inf)")
  workers: int = field(
    0, "Processes of an Apache Beam pipeline (extra beam); 0: this process, no Beam.", "[0, inf)"
  )
  beam: tuple[str, ...] = field(
    (), "Beam's own options, of another runner than that of this machine."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnsSection:
  """Sizes of recipes whose replies ask for frames (docs/video_mtr.md)."""

  episode_buckets: tuple[int, ...] = field(
    (2048, 3072, 4096),
    "Tokens of a whole episode behind its opening that programs are compiled for.",
    "[1, inf)",
    length=1,
  )
  observation_buckets: tuple[int, ...] = field(
    (512, 1024, 1536), "The same of what one turn shows.", "[1, inf)", length=1
  )
  frame_buckets: tuple[int, ...] = field(
    (8, 16),
    "The same of temporal patches: of one turn, and of all behind the first together.",
    "[1, inf)",
    length=1,
  )
  decode_chunk: int = field(
    32, "Steps of decoding; what a reply is shown next is made during one.", "[1, inf)"
  )
  append_batch_size: int = field(
    8, "Replies a device that are shown frames together, at most.", "[1, inf)"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticSection(OptimizerSection):
  """The critic of PPO (docs/video_mtr.md)."""

  placement: Literal["every", "last"] = field(
    "every", "Which turn ends receive the answer's reward."
  )
  gamma_turn: float = field(0.95, "Discount between turns.", "[0, 1]")
  gamma_token: float = field(1.0, "Discount within a turn.", "[0, 1]")
  gae_lambda: float = field(1.0, "Lambda.", "[0, 1]")
  kl_weight: float = field(
    0.0, "Of the penalty that is a reward; that of the loss is rl.kl_weight.", "[0, inf)"
  )
  value_clip: float = field(0.5, "Of a value's change in an update.", "(0, inf)")
  learning_rate: float = field(1e-5, "Its highest.", "[0, inf)")
  schedule: Literal["cosine", "constant"] = field("constant", "Of the learning rate.")
  max_grad_norm: float = field(1.0, "Gradients are scaled down to this norm.", "(0, inf)")


# Sections that some recipes have.
OPTIONAL = {
  "judge": JudgeSection,
  "traces": TracesSection,
  "turns": TurnsSection,
  "critic": CriticSection,
}
