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
class PipelineSection:
  """A stage that Apache Beam can run."""

  workers: int = field(
    0,
    "Processes of an Apache Beam pipeline (extra beam); 0: this process, without Beam.",
    "[0, inf)",
  )
  beam: tuple[str, ...] = field(
    (), "Beam's own options, to choose another runner; (): the runner of this machine."
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracesSection(PipelineSection):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstructSection(PipelineSection):
  """Making questions about a masked future, by --mode=construct (docs/moss_video.md)."""

  CHANGE: ClassVar[str] = "any time"

  reader: Literal["rule", "local", "openai", "anthropic"] = field(
    "rule",
    "Who reads captions and judges questions: rule: for captions of the simulator; local: a model "
    "that is loaded here; openai, anthropic: an endpoint.",
  )
  captions: str = field(
    "",
    "Caption file, such as sharegpt4video_40k.jsonl; empty: captions of the simulated videos "
    "(data.simulate).",
  )
  videos: str = field(
    "",
    "Directory of the captioned videos; empty: no frames are read, so neither missing videos nor "
    "copies are found.",
  )
  benchmarks: str = field(
    "", "Directory of benchmarks' videos; questions about videos with frames of these are left out."
  )
  directory: str = field("", "Directory of the questions; empty: <workdir>/construct.")
  on_bad: Literal["stop", "skip"] = field(
    "stop",
    "A bad line, video or reply stops the run, or is left out and counted.",
  )
  keyframe_fps: float = field(
    0.0,
    "Frames a second that key frames of captions count in; 0: they are taken for seconds, and one "
    "behind the end of its span stops the run; 1: they are seconds.",
    "[0, inf)",
  )
  even_times: bool = field(
    False, "Whether captions without key frames divide the captioned span evenly."
  )
  questions_per_video: int = field(
    10, "Most questions about a video; 0: no limit [MOSS-Video has 9.6].", "[0, inf)"
  )
  options: int = field(4, "Most options of a question.", "[2, 26]")
  least_options: int = field(2, "Options that a question needs to be asked.", "[2, 26]")
  guesses: int = field(
    4,
    "Guesses of the model at each question, blind and from the trace.",
    "[1, 26]",
    only_with="reader=local|openai|anthropic",
  )
  blind_right: int = field(
    3,
    "Right blind guesses from which on a question is left out.",
    "[1, 26]",
    only_with="reader=local|openai|anthropic",
  )
  trace_right: int = field(
    3,
    "Right answers from the trace that a question needs.",
    "[1, 26]",
    only_with="reader=local|openai|anthropic",
  )
  shown_seconds: float = field(2.0, "Least seconds that are shown.", "[0, inf)")
  masked_seconds: float = field(0.5, "Least seconds that are masked.", "[0, inf)")
  least_steps: int = field(2, "Fewest steps of a reference trace.", "[1, inf)")
  most_steps: int = field(32, "Most steps of a reference trace.", "[1, inf)")
  most_words: int = field(40, "Most words of a question, an option or a step.", "[1, inf)")
  near_duplicate: float = field(
    0.9, "Jaccard similarity of texts from which on a question is a near-duplicate.", "(0, 1]"
  )
  frame_fps: float = field(1.0, "Frames a second of videos that are compared.", "(0, inf)")
  frame_similarity: float = field(
    0.7, "Similarity of two frames' perceptual hashes from which on they are alike.", "(0, 1]"
  )
  frame_share: float = field(
    0.5,
    "Fraction of frames that a captioned span shares with one benchmark video, of the shorter of "
    "the two, from which on its video is left out.",
    "(0, 1]",
  )
  seed: int = field(0, "Seed of what is drawn: wordings, options and their order.", "[0, inf)")
  batch_size: int = field(16, "Videos that are read, asked about and written together.", "[1, inf)")
  model: str = field(
    "",
    "Name of the model at its endpoint; local: a Hugging Face directory.",
    only_with="reader=local|openai|anthropic",
  )
  base_url: str = field(
    "", "URL of the endpoint; empty: the provider's own.", only_with="reader=openai|anthropic"
  )
  key_variable: str = field(
    "",
    "Environment variable that holds the key; empty: the provider's own.",
    only_with="reader=openai|anthropic",
  )
  max_tokens: int = field(
    2048, "Most tokens of a reply.", "[1, inf)", only_with="reader=local|openai|anthropic"
  )
  in_flight: int = field(16, "Most requests at the same time.", "[1, inf)")
  retries: int = field(
    4, "Most further requests after one that failed, or whose reply is unreadable.", "[0, inf)"
  )
  timeout: float = field(120.0, "Seconds that a request may take.", "(0, inf)")
  budget: int = field(
    0,
    "Most requests of a process, retries included, counted anew at each start; 0: no limit.",
    "[0, inf)",
  )


# By the name that each has in a config.
OPTIONAL = {
  "construct": ConstructSection,
  "mask_filter": MaskFilterSection,
  "judge": JudgeSection,
  "traces": TracesSection,
  "turns": TurnsSection,
  "critic": CriticSection,
}


def takes_turns(config: ml_collections.ConfigDict) -> bool:
  """Whether replies may ask for frames, turn by turn: the recipe has the section `turns`."""
  return "turns" in config
