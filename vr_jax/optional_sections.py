"""Sections of the config that only some recipes have; otherwise as config_fields.py."""

import dataclasses
from typing import ClassVar, Literal

import ml_collections

from vr_jax import config_fields
from vr_jax.schema import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSection:
  """The judge, for recipes that need one (docs/judges.md)."""

  CHANGE: ClassVar[str] = "before rl"

  kind: Literal["rule", "local", "openai", "anthropic"] = field(
    "rule",
    "rule: the truth of the simulator; local: a model that is loaded here; openai, anthropic: an "
    "endpoint.",
  )
  model: str = field(
    "",
    "Name of the model at its endpoint; local: a Hugging Face directory.",
    only_with="kind=local|openai|anthropic",
  )
  base_url: str = field(
    "", "URL of the endpoint; empty: the provider's own.", only_with="kind=openai|anthropic"
  )
  key_variable: str = field(
    "",
    "Environment variable that holds the key; empty: the provider's own.",
    only_with="kind=openai|anthropic",
    change="any time",
  )
  in_flight: int = field(32, "Most requests at the same time.", "[1, inf)", change="any time")
  requests_per_minute: float = field(
    0.0, "Most requests a minute; 0: no limit.", "[0, inf)", change="any time"
  )
  timeout: float = field(30.0, "Seconds that a request may take.", "(0, inf)", change="any time")
  retries: int = field(
    4,
    "Most further requests after one that failed; then there is no verdict.",
    "[0, inf)",
    change="any time",
  )
  budget: int = field(
    0,
    "Most requests of a process, retries included, counted anew at each start; 0: no limit.",
    "[0, inf)",
    change="any time",
  )
  max_tokens: int = field(256, "Most tokens of a verdict.", "[1, inf)")
  blinded: bool = field(
    False,
    "Whether the judge answers the question from the observation alone, and its answer is compared "
    "with the right one.",
  )
  threshold: float = field(
    0.6,
    "Task metric that a blinded judge's answer must reach for the observation to suffice.",
    "[0, 1]",
  )
  leak_filter: bool = field(
    False, "Whether an observation that states the answer outright is rejected."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracesSection:
  """Writing supervised traces, by --mode=traces (docs/traces.md)."""

  CHANGE: ClassVar[str] = "any time"

  writer: Literal["sampler", "openai"] = field(
    "sampler",
    "Who writes traces: sampler: the weights that RL would start from; openai: an endpoint.",
  )
  directory: str = field("", "Directory of the traces; empty: <workdir>/traces.")
  examples: int = field(0, "Number of examples of each split; 0: all.", "[0, inf)")
  threshold: float = field(
    0.6, "Lowest task metric of an answer whose trace is kept [VideoP2R].", "[0, 1]"
  )
  batch_size: int = field(
    16, "Questions that are asked, filtered and written together.", "[1, inf)"
  )
  max_tokens: int = field(1024, "Most tokens of a reply.", "[1, inf)")
  model: str = field("", "Name of the model at its endpoint (openai).", only_with="writer=openai")
  base_url: str = field(
    "", "URL of the endpoint (openai); empty: OpenAI's own.", only_with="writer=openai"
  )
  key_variable: str = field(
    "OPENAI_API_KEY",
    "Environment variable that holds the key (openai).",
    only_with="writer=openai",
  )
  in_flight: int = field(16, "Most requests at the same time (openai).", "[1, inf)")
  retries: int = field(4, "Most further requests after one that failed (openai).", "[0, inf)")
  timeout: float = field(120.0, "Seconds that a request may take (openai).", "(0, inf)")
  workers: int = field(
    0,
    "Processes of an Apache Beam pipeline (extra beam); 0: this process, without Beam.",
    "[0, inf)",
  )
  beam: tuple[str, ...] = field(
    (), "Beam's own options, to choose another runner; (): the runner of this machine."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnsSection:
  """Sizes for recipes of several turns (docs/video_mtr.md, docs/revseg.md)."""

  episode_buckets: tuple[int, ...] = field(
    (2048, 3072, 4096),
    "Lengths in tokens of a whole episode after its prompt that programs are compiled for.",
    "[1, inf)",
    length=1,
  )
  observation_buckets: tuple[int, ...] = field(
    (512, 1024, 1536),
    "Lengths in tokens of one observation that programs are compiled for.",
    "[1, inf)",
    length=1,
  )
  frame_buckets: tuple[int, ...] = field(
    (8, 16),
    "Numbers of temporal patches that programs are compiled for: of one observation, and of all "
    "observations of an episode together.",
    "[1, inf)",
    length=1,
  )
  patch_buckets: tuple[int, ...] = field(
    (),
    "Numbers of patches a frame that turns after the first are compiled for; empty: those of "
    "model.patch_buckets.",
    "[1, inf)",
  )
  decode_chunk: int = field(
    32,
    "Decoding steps of one program, during which the next observations are prepared.",
    "[1, inf)",
    change="rounding",
  )
  append_batch_size: int = field(
    8,
    "Most replies of a device that get their observation together.",
    "[1, inf)",
    change="rounding",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticSection(config_fields.OptimizerSection):
  """The critic of PPO (docs/video_mtr.md)."""

  CHANGE: ClassVar[str] = "before rl"

  placement: Literal["every", "last"] = field(
    "every", "Which turn ends receive the reward of the answer."
  )
  gamma_turn: float = field(0.95, "Discount between turns.", "[0, 1]")
  gamma_token: float = field(1.0, "Discount between the tokens of a turn.", "[0, 1]")
  gae_lambda: float = field(1.0, "Lambda of GAE.", "[0, 1]")
  kl_weight: float = field(
    0.0,
    "Weight of the KL penalty in the reward; 0: none. rl.kl_weight is that of the loss.",
    "[0, inf)",
  )
  value_clip: float = field(
    0.5,
    "Largest change of a value, from before a batch's updates, that still counts in the critic's "
    "loss.",
    "(0, inf)",
  )
  learning_rate: float = field(1e-5, "Highest learning rate.", "[0, inf)", change="from here on")
  schedule: Literal["cosine", "constant"] = field(
    "constant", "Course of the learning rate after the warm-up.", change="from here on"
  )
  max_grad_norm: float = field(
    1.0, "Norm that a larger gradient is scaled down to before the update.", "(0, inf)"
  )


# By the name that each has in a config.
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFilterSection:
  """Leaving out videos whose masks a tracker can't reproduce, by --mode=filter (docs/data.md)."""

  CHANGE: ClassVar[str] = "before sft"

  sam2: str = field(
    "", "Directory or .safetensors file of SAM2's weights; empty: nothing is left out."
  )
  threshold: float = field(
    0.6,
    "Queries about a video are not trained on if the mean IoU of its masks is below this.",
    "[0, 1]",
    only_with="sam2",
  )


OPTIONAL = {
  "mask_filter": MaskFilterSection,
  "judge": JudgeSection,
  "traces": TracesSection,
  "turns": TurnsSection,
  "critic": CriticSection,
}


def takes_turns(config: ml_collections.ConfigDict) -> bool:
  """Whether replies may ask for frames, turn by turn: the recipe has the section `turns`."""
  return "turns" in config
