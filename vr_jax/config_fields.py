"""The fields that every recipe has, a class for each section: default, meaning, choices, bounds.

`change` and `CHANGE` say until when a run may change a field, or the fields of a section
(`schema.CHANGES`); other fields may change until the workdir has a checkpoint.

Fields of the section `data` are in data_fields.py, of `model` in model_fields.py, those of `eval`,
`export` and `log` in output_fields.py, sections of some recipes alone in optional_sections.py. The
fields of config.env belong to the environment of a recipe (vr_jax/envs). base_config.py makes
configs from these classes; config_docs.py writes docs/config.md from them.
"""

import dataclasses
from typing import ClassVar, Literal

from vr_jax import data_fields, model_fields, output_fields
from vr_jax.schema import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSection:
  """AdamW, for the policy and for a critic."""

  learning_rate: float = field(1e-6, "Highest learning rate.", "[0, inf)", change="from here on")
  schedule: Literal["cosine", "constant"] = field(
    "cosine", "Course of the learning rate after the warm-up.", change="from here on"
  )
  warmup_steps: int = field(
    0, "Updates over which the learning rate rises from 0; 0: no warm-up.", "[0, inf)"
  )
  b1: float = field(0.9, "Decay rate of Adam's first moment.", "[0, 1)")
  b2: float = field(0.999, "Decay rate of Adam's second moment.", "[0, 1)")
  moment_dtype: Literal["float32", "bfloat16"] = field("float32", "Dtype of Adam's first moment.")
  weight_decay: float = field(0.01, "Weight decay of AdamW; 0: none.", "[0, inf)")
  max_grad_norm: float = field(
    5.0, "Norm that a larger gradient is scaled down to before the update.", "(0, inf)"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSection(OptimizerSection):
  """Fields of both training loops."""

  microbatches: int = field(
    1,
    "Number of equal parts in which an update is computed, to save memory; at most one for each "
    "prompt of a device.",
    "[1, inf)",
    change="rounding",
  )
  checkpoint_every: int = field(50, "Steps between two checkpoints.", "[1, inf)", change="any time")
  copy_every: int = field(
    0,
    "Steps between two copies of the train state on each host's own disk, from which a run goes on "
    "that starts again on the same hosts; 0: none.",
    "[0, inf)",
    change="any time",
  )
  max_consecutive_nonfinite: int = field(
    5, "Number of non-finite updates in a row that ends the run.", "[1, inf)", change="any time"
  )
  token_bucket_ratio: float = field(
    1.1,
    "Ratio between the numbers of reply tokens that updates are compiled for; 0: one program, "
    "which computes the padding too.",
    "[0, inf)",
    change="rounding",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftSection(LoopSection):
  """The supervised warm start."""

  steps: int = field(
    0, "Most updates; 0: no supervised warm start.", "[0, inf)", change="from here on"
  )
  target_loss: float = field(
    0.0,
    "Mean loss of 10 updates, in nats a token, at which the stage ends; 0: it runs all its steps.",
    "[0, inf)",
    change="from here on",
  )
  examples: int = field(0, "Number of training examples that are used; 0: all.", "[0, inf)")
  batch_size: int = field(16, "Examples an update.", "[1, inf)")
  max_reply_tokens: int = field(
    768, "Most tokens of a reference reply; a longer one is a bad record.", "[1, inf)"
  )
  skip_without_reply: bool = field(
    False,
    "Leave examples without a reference reply (without steps, say) to RL and evaluations; False: "
    "such an example is a bad record.",
  )
  validate_every: int = field(
    0,
    "Updates between two measurements of the validation loss; 0: none.",
    "[0, inf)",
    change="from here on",
  )
  patience: int = field(
    0,
    "Measurements of the validation loss in a row without a new minimum that end the stage; 0: "
    "they never end it.",
    "[0, inf)",
    change="from here on",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RlSection(LoopSection):
  """Reinforcement learning."""

  CHANGE: ClassVar[str] = "before rl"

  init_checkpoint: str = field(
    "", "Directory of checkpoints to start from; empty: checkpoints/sft of the workdir."
  )
  steps: int = field(
    1000,
    "Number of steps; each samples replies to a batch of prompts.",
    "[0, inf)",
    change="from here on",
  )
  batch_size: int = field(16, "Prompts a step.", "[1, inf)")
  num_generations: int = field(8, "Replies to each prompt: the size of a group.", "[1, inf)")
  num_iterations: int = field(1, "Updates on each batch of replies.", "[1, inf)")
  log_prob_microbatches: int = field(
    1,
    "Number of equal parts in which the passes without gradient are computed, to save memory: "
    "log-probs of the reference and of the policy before its update, values of a critic; at most "
    "one for each prompt of a device.",
    "[1, inf)",
    change="rounding",
  )
  temperature: float = field(1.0, "Temperature of sampling.", "(0, inf)")
  top_p: float = field(
    0.95, "Probability mass of the tokens that are sampled from; 1: all tokens.", "(0, 1]"
  )
  top_k: int = field(
    0, "Number of tokens that are sampled from, the most likely ones; 0: all.", "[0, inf)"
  )
  min_p: float = field(
    0.0,
    "Fraction of the most likely token's probability that the tokens that are sampled from have at "
    "least; 0: any. It comes before top_k, and top_p is of what both keep.",
    "[0, 1)",
  )
  sampler_log_probs: Literal["all", "kept"] = field(
    "all",
    "Tokens among which the sampler's log-probs are: all, as the trainer's; or those that min_p, "
    "top_k and top_p keep, of which one is drawn.",
  )
  sampler_weights: Literal["as_trained", "int8"] = field(
    "as_trained",
    "Weights that replies are sampled with. int8: the matrices of the language model's layers are "
    "rounded to 8 bits once a step; rl.tis_cap corrects for it. Evaluations have them as trained.",
    change="from here on",
  )
  max_new_tokens: int = field(
    768, "Most tokens of a reply; with several turns, of each turn.", "[1, inf)"
  )
  repetition_window: int = field(
    0,
    "A reply ends, as if it were at rl.max_new_tokens, where so many last tokens are one pattern "
    "that comes rl.repetition_count times or more in a row; 0: none does.",
    "[0, inf)",
  )
  repetition_count: int = field(4, "Fewest repetitions.", "[2, inf)", only_with="repetition_window")
  decode_slot_fractions: tuple[float, ...] = field(
    (0.86, 0.74, 0.63, 0.54, 0.46, 0.38, 0.3, 0.24, 0.18, 0.13, 0.09, 0.06, 0.04, 0.03, 0.02, 0.01),
    "Fractions of the batch that decoding shrinks to as replies end, each compiled once; (): it "
    "never shrinks.",
    "(0, 1)",
    change="rounding",
  )
  decode_slots: int = field(
    0,
    "Replies that decode at once, over all devices: a slot that is free gets the next prompt's "
    "reply; 0: all of a step's, in slots that shrink by decode_slot_fractions. "
    "Evaluations too. One turn only.",
    "[0, inf)",
    change="rounding",
  )
  decode_layout: Literal["training", "replicated", "tensor"] = field(
    "replicated",
    "Weights that a device decodes with: training: its own, the rest is received for each token; "
    "replicated: all but for tensor's split; tensor: fsdp splits them too.",
    change="rounding",
  )
  decode_copies: int = field(
    0,
    "With decode_layout=tensor, copies of the weights in a slice: more copies read more memory and "
    "send less over links; 0: as an estimate says, more where slots are many.",
    "[0, inf)",
    change="rounding",
  )
  dynamic_sampling_max_batches: int = field(
    0,
    "Most further batches that a step samples, to replace groups whose replies all earn the same "
    "(DAPO); 0: none.",
    "[0, inf)",
  )
  carry_over: bool = field(
    False,
    "Whether slots that are free at the end of a step's sampling begin the next step's replies, "
    "which go on after the update. Needs rl.decode_slots, at most all replies of a step. Their "
    "first tokens are one update stale.",
  )
  num_shuffled_generations: int = field(
    0,
    "Further replies to each prompt, with its frames in random order, for the reward of temporal "
    "order (T-GRPO); 0: no such reward.",
    "[0, inf)",
  )
  curriculum: Literal["none", "length"] = field(
    "none",
    "Order of prompts. none: random. length: in every epoch from the shortest clip to the longest.",
  )
  one_step_off_policy: bool = field(
    False,
    "Whether the replies of the next step are sampled before the update of this step, and scored "
    "during it.",
  )
  disjoint_meshes: bool = field(
    False,
    "Whether half of each process's devices sample the next step's replies while the other half "
    "compute the update (docs/pods.md). config.mesh is then that of one half; other stages and "
    "evaluations use the half that trains, and leave the other idle.",
    only_with="one_step_off_policy",
    change="rounding",
  )
  normalize_by_std: bool = field(
    True, "Whether advantages are divided by the standard deviation of their group."
  )
  baseline: Literal["group_mean", "leave_one_out"] = field(
    "group_mean",
    "What is subtracted from the reward of a reply: the mean of its group, or of the group's other "
    "replies (RLOO).",
  )
  aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = field(
    "sequence_mean",
    "How the losses of tokens are averaged: over each reply, then over replies (GRPO); over all "
    "tokens (DAPO); or summed over each reply and divided by a constant length (Dr. GRPO).",
  )
  objective: Literal["clip", "cispo"] = field(
    "clip",
    "clip: PPO's clipped ratio; cispo: the clipped ratio weights the gradient of each token.",
  )
  importance_sampling_level: Literal["token", "sequence"] = field(
    "token", "Whether each token has a ratio, or a whole reply has one (GSPO)."
  )
  clip_epsilon_low: float = field(
    0.2, "Distance below 1 at which the ratio is clipped.", "[0, inf)"
  )
  clip_epsilon_high: float = field(
    0.2, "Distance above 1 at which the ratio is clipped.", "[0, inf)"
  )
  dual_clip: float = field(
    0.0,
    "Largest ratio that counts for a token with a negative advantage; 0: no such limit.",
    "[0, inf)",
  )
  kl_weight: float = field(
    0.04, "Weight of the KL divergence from the reference in the loss; 0: none.", "[0, inf)"
  )
  kl_estimator: Literal["k1", "k2", "k3"] = field(
    "k3", "Estimator of that KL divergence.", only_with="kl_weight"
  )
  kl_clamp: float = field(
    0.0,
    "Largest KL divergence of a token that counts, in either direction; 0: no bound. arXiv "
    "2504.09641 has 100.",
    "[0, inf)",
    only_with="kl_weight",
  )
  entropy_weight: float = field(
    0.0, "Weight of the entropy bonus in the loss; 0: no bonus.", "[0, inf)"
  )
  advantage_noise: float = field(
    0.0,
    "Standard deviation of normal noise on the advantage of each reply; 0: none. arXiv 2504.09641 "
    "has 0.02. Groups whose replies all earn the same are then trained on, too.",
    "[0, inf)",
  )
  advantage_estimator: Literal["segments", "joint", "episode", "outcome", "gae"] = field(
    "segments",
    "Which rewards make the advantage of a token. segments: those of its own segment. joint: the "
    "sum of all segments, for replies whose segments all have a score. episode: the sum of the "
    "segments that have a score. outcome: those of the last segment. gae: bi-level GAE over turns, "
    "with a critic (config.critic).",
  )
  overlong_buffer: int = field(
    0,
    "Number of last tokens over which the penalty for long replies grows (DAPO); 0: no penalty.",
    "[0, inf)",
  )
  overlong_max_tokens: int = field(
    0, "Reply length at which that penalty is full; 0: rl.max_new_tokens.", "[0, inf)"
  )
  overlong_weight: float = field(
    1.0,
    "Weight of that penalty in the total reward; the penalty itself goes from 0 to -1.",
    "[0, inf)",
    only_with="overlong_buffer",
  )
  tis_cap: float = field(
    2.0,
    "Highest importance weight; the weights correct for probabilities that sampler and trainer "
    "compute differently.",
    "(0, inf)",
  )
  mismatch_warning: float = field(
    0.1,
    "Mean difference of sampler's and trainer's log-probs, in nats a token, above which a line "
    "warns: at the first such step, the 10th, the 100th and so on. 0: never.",
    "[0, inf)",
    change="any time",
  )
  eval_every: int = field(
    0,
    "Steps between evaluations on held-out videos (docs/watching.md); the best is kept. 0: none.",
    "[0, inf)",
    change="any time",
  )
  eval_split: Literal["validation", "test"] = field(
    "validation",
    "Split that these evaluations use. With test, the final evaluation is too good: its checkpoint "
    "was chosen by the same videos.",
    only_with="eval_every",
    change="any time",
  )
  eval_examples: int = field(
    0,
    "Number of its examples that are used; 0: all.",
    "[0, inf)",
    only_with="eval_every",
    change="any time",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
  """The sections and fields of every recipe."""

  recipe: str = field(
    "",
    "The environment: a registered name, module:Class or file.py:Class of your own.",
    change="never",
  )
  seed: int = field(0, "Seed of initial weights, order of data and sampling.")
  mesh: tuple[int, ...] = field(
    (-1, 1, 1, 1),
    "Devices on the axes data, fsdp, sequence, tensor; -1: all that are left. If fsdp and sequence "
    "are both -1, sequence is 1, or as much more as the batches need to divide (docs/pods.md).",
    change="rounding",
  )
  compiler_options: tuple[str, ...] = field(
    (),
    "XLA options for TPUs, xla_NAME=VALUE each; xla_NAME= leaves a default out (docs/pods.md). A "
    "flag in LIBTPU_INIT_ARGS wins.",
    change="rounding",
  )
  cpu_devices: int = field(
    0,
    "Number of devices that a CPU counts as; 0: as JAX says. Without effect if XLA_FLAGS or JAX "
    "already sets it.",
    "[0, inf)",
    change="rounding",
  )
  data: data_fields.DataSection = dataclasses.field(default_factory=data_fields.DataSection)
  model: model_fields.ModelSection = dataclasses.field(default_factory=model_fields.ModelSection)
  sft: SftSection = SftSection()
  rl: RlSection = RlSection()
  eval: output_fields.EvalSection = dataclasses.field(default_factory=output_fields.EvalSection)
  export: output_fields.ExportSection = dataclasses.field(
    default_factory=output_fields.ExportSection
  )
  log: output_fields.LogSection = dataclasses.field(default_factory=output_fields.LogSection)
