"""The fields of config.data; otherwise as config_fields.py."""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar, Literal

from vr_jax.schema import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulateSection:
  """Videos that the data stage simulates."""

  CHANGE: ClassVar[str] = "never"

  videos: int = field(
    0,
    "Number of simulated videos; 0: data.videos and data.annotations are read. Giving one of these "
    "on the command line makes it 0.",
    "[0, inf)",
  )
  questions_per_video: int = field(1, "Number of questions about each video.", "[1, inf)")
  seed: int = field(0, "Seed of the simulation.")
  world: Mapping[str, Any] = field({}, "Settings of the world, as in worlds.config.WorldConfig.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSection:
  """The processes that decode videos, and limits on what a bad file may take (docs/data.md)."""

  CHANGE: ClassVar[str] = "any time"

  processes: int = field(
    0, "Most processes that decode videos during ingestion; 0: one a core, at most 16.", "[0, inf)"
  )
  seconds: float = field(
    120.0, "Seconds without a new frame, after which a file counts as bad.", "(0, inf)"
  )
  memory_gib: float = field(
    8.0, "GiB of memory that decoding one file may take; only Linux has this limit.", "(0, inf)"
  )
  megapixels: float = field(
    100.0, "Most million pixels of a picture or frame, before it is scaled down.", "(0, inf)"
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection:
  """Videos, questions, and the frames that the model sees."""

  CHANGE: ClassVar[str] = "never"

  directory: str = field(
    "", "Directory of the frame store and the examples; empty: <workdir>/data."
  )
  videos: str = field("", "Directory of videos; empty if they are simulated.")
  annotations: str = field("", "Annotation file (docs/data.md); empty if videos are simulated.")
  on_bad: Literal["stop", "skip"] = field(
    "stop",
    "A bad record stops the run, or is skipped and listed in bad_records.jsonl.",
    change="any time",
  )
  fps: float = field(2.0, "Frames that are stored for each second of video.")
  quality: int = field(90, "JPEG quality of stored frames.")
  max_side: int = field(
    448, "Longer side of stored frames in pixels; larger frames are scaled down."
  )
  validation_fraction: float = field(
    0.0, "Fraction of the videos in the validation split; 0: there is none.", "[0, 1)"
  )
  test_fraction: float = field(
    0.2, "Fraction of the videos in the test split; the rest is for training.", "[0, 1)"
  )
  split_seed: int = field(0, "Seed of the split of the videos.")
  sampling: Literal["uniform", "fps", "pool"] = field(
    "uniform",
    "How frames of a clip are chosen: a fixed number, a fixed rate, or (pool) the frames that "
    "replies of several turns choose from.",
  )
  frames: int = field(16, "Number of frames of a clip (uniform), or the most of a pool (pool).")
  sample_fps: float = field(
    2.0,
    "Frames for each second of a clip (fps), within min_frames and max_frames.",
    only_with="sampling=fps",
  )
  min_frames: int = field(4, "Fewest frames of a clip (fps).", only_with="sampling=fps")
  max_frames: int = field(64, "Most frames of a clip (fps).", only_with="sampling=fps")
  required_frames: int = field(
    1,
    "Stored frames that a question needs; with fewer, it is a bad record. One that has enough, but "
    "fewer than a clip usually has, shows those.",
    "[1, inf)",
  )
  threads: int = field(
    4,
    "Threads that prepare batches ahead of the step; 0: none, batches are made on demand.",
    "[0, inf)",
    change="any time",
  )
  decode: DecodeSection = DecodeSection()
  simulate: SimulateSection = SimulateSection()
