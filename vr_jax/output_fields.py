"""The fields of config.eval, config.export and config.log; otherwise as config_fields.py."""

import dataclasses
from typing import ClassVar, Literal

from vr_jax import model_fields
from vr_jax.schema import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSection:
  """Evaluation on the test split."""

  CHANGE: ClassVar[str] = "any time"

  checkpoint: Literal["last", "best"] = field(
    "last",
    "Checkpoint of RL that is evaluated, and that answers `vr-jax ask`; best: the one that "
    "rl.eval_every kept.",
  )
  examples: int = field(0, "Number of test examples that are used; 0: all.", "[0, inf)")
  batch_size: int = field(16, "Prompts a batch.", "[1, inf)")
  temperature: float = field(
    0.0, "Temperature of sampling; 0: always the most likely token.", "[0, inf)"
  )
  report_samples: int = field(
    24, "Number of questions whose replies are in the report.", "[0, inf)"
  )
  blind: bool = field(True, "Whether to evaluate without frames as well.")
  shuffled_frames: bool = field(True, "Whether to evaluate with frames in random order as well.")
  tracker: str = field(
    "",
    "What follows the boxes of ReVSeg through the video: a path of SAM2's weights, or exact, the "
    "masks of simulated videos; empty: nothing, and there are no masks.",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSection:
  """What --mode=export writes."""

  CHANGE: ClassVar[str] = "any time"

  checkpoint: Literal["last", "best"] = field(
    "last", "Checkpoint of RL that is exported; best: the one that rl.eval_every kept."
  )
  directory: str = field("", "Directory of the export; empty: <workdir>/export.")
  dtype: model_fields.Dtype = field("float32", "Dtype of the exported tensors.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSection:
  """What can be watched while a run trains (docs/watching.md)."""

  CHANGE: ClassVar[str] = "any time"

  rollouts_every: int = field(
    1,
    "Steps of RL between two files rollouts/step-*.jsonl, with all replies of a step, their "
    "rewards and advantages; 0: none.",
    "[0, inf)",
  )
  rollouts_kept: int = field(
    500,
    "Number of steps whose files are kept: the latest ones.",
    "[1, inf)",
    only_with="rollouts_every",
  )
  hang_timeout: float = field(
    1800.0,
    "Seconds without any progress after which a process ends itself and leaves the stacks of its "
    "threads in <workdir>/health; 0: never.",
    "[0, inf)",
  )
  health_port: int = field(
    0,
    "Port at which process 0 says over HTTP whether the run is well, and what `vr-jax status` "
    "says; 0: none.",
    "[0, 65535]",
  )
  health_address: str = field(
    "127.0.0.1",
    "Address of this machine to answer at: the default one for this machine only, 0.0.0.0 for all "
    "that can reach it, who then read replies too.",
    only_with="health_port",
  )
  profile_steps: str = field(
    "",
    "First and last step to profile, as 10:15, in each stage that has them; empty: none. Traces "
    "for XProf, TensorBoard and Perfetto are in <workdir>/profile.",
  )
  completions_every: int = field(
    20,
    "Two replies are shown every so many steps of RL: on the terminal and, with their frames, in "
    "TensorBoard; 0: never.",
    "[0, inf)",
  )
  wandb: str = field(
    "",
    "Project of Weights & Biases that metrics and replies are sent to as well (docs/watching.md); "
    "empty: none.",
  )
