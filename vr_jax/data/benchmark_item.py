"""Questions of public benchmarks in one form, whatever files they were released in.

A converter (`benchmark_sets`) makes `Item`s of a released set; a protocol says how each is asked
and scored. On disk an item is one line of JSON.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
from pathlib import Path
import string
from typing import Any, Literal

from vr_jax import atomic, inner_path, plain_json, records
from vr_jax.errors import InputError

Media = Literal["video", "frames", "image"]
Scorer = Literal[
  "choice",
  "yes_no",
  "caption_match",
  "mra",
  "open_rule",
  "judge",
  "caption_judge",
  "rubric",
  "reasoning_steps",
  "masks",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemStep:
  """A step of the reference reasoning; `times` is the part of the video in seconds, if known."""

  text: str
  times: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """One question of a benchmark.

  id: unique within the benchmark and split.
  benchmark, split: such as "mvbench" and "test".
  video: path below the directory of the benchmark's videos.
  question: without options, subtitles and instructions.
  scorer: the kind of answer, by which a protocol chooses its rule.
  answer: the letter of an option, or a text; "" where it was not released.
  options: without letters, in the order released.
  clip: seconds of the video that the question is about; None: all of it.
  media: video, a file; frames, a directory of pictures; image, one picture.
  frames_fps: pictures a second, where media is frames.
  frames: file names of the pictures that are the video's frames, where media is frames; (): all.
  images: pictures that belong to the question, paths like `video`.
  subtitles: file of subtitles, a path like `video`; "": none.
  strata: the groups that its score is reported for, by kind: {"task": ("Counting",), …}.
  cluster: the source video; answers about one depend on each other.
  steps: reference reasoning.
  source_record: the released record.
  """

  id: str
  benchmark: str
  split: str
  video: str
  question: str
  scorer: Scorer
  answer: str
  options: tuple[str, ...] = ()
  clip: records.Span | None = None
  media: Media = "video"
  frames_fps: float | None = None
  frames: tuple[str, ...] = ()
  images: tuple[str, ...] = ()
  subtitles: str = ""
  strata: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
  cluster: str = ""
  steps: tuple[ItemStep, ...] = ()
  source_record: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  @property
  def letters(self) -> str:
    """The letters of the options."""
    return string.ascii_uppercase[: len(self.options)]


def to_json(item: Item) -> dict[str, Any]:
  """An item as JSON, without fields that have their defaults."""
  defaults = {field.name: field.default for field in dataclasses.fields(Item)}
  value = dataclasses.asdict(item)
  value["clip"] = None if item.clip is None else [item.clip.start, item.clip.end]
  return {
    name: each for name, each in value.items() if each not in ((), {}) and each != defaults[name]
  }


def from_json(value: Any, where: str) -> Item:
  """Makes an item of what `to_json` returns.

  Raises InputError if a field is missing, unknown or of another type, if the answer is not the
  letter of an option, or if a file lies outside of the benchmark's directory.
  """
  try:
    value = dict(value)
    steps = tuple(plain_json.build(ItemStep, each) for each in value.pop("steps", ()))
    clip = value.pop("clip", None)
    if clip is not None:
      clip = plain_json.build(records.Span, dict(zip(("start", "end"), clip, strict=True)))
    strata = value.pop("strata", {})
    if not plain_json.has_type(strata, Mapping[str, tuple[str, ...]]):
      raise ValueError(f"field 'strata' can't be {strata!r:.60}")
    strata = {kind: tuple(names) for kind, names in strata.items()}
    item = dataclasses.replace(plain_json.build(Item, value), steps=steps, clip=clip, strata=strata)
  except (ValueError, TypeError) as error:
    raise InputError(f"{where}: {error}") from error
  check(item, where)
  return item


def check(item: Item, where: str) -> None:
  """Raises InputError if an item contradicts itself."""
  for name in (item.video, *item.images, *filter(None, [item.subtitles])):
    if not inner_path.is_inner(name):
      raise InputError(f"{where}: {name!r:.80} is no path below the benchmark's directory")
  if item.options and item.answer and item.scorer == "choice" and item.answer not in item.letters:
    raise InputError(f"{where}: answer {item.answer!r:.40} is none of {item.letters}")
  if len(item.options) > len(string.ascii_uppercase):
    raise InputError(f"{where}: has {len(item.options)} options")
  if item.scorer == "choice" and len(item.options) < 2:
    raise InputError(f"{where}: has {len(item.options)} options; needs at least 2")
  if item.clip and not 0 <= item.clip.start < item.clip.end:
    raise InputError(f"{where}: clip {item.clip.start:g} to {item.clip.end:g} s is empty")
  for name in item.frames:
    if not inner_path.is_plain(name):
      raise InputError(f"{where}: frame {name!r:.80} is no file of the video's folder")
  if (item.media == "frames") != (item.frames_fps is not None):
    raise InputError(f"{where}: frames_fps belongs to media 'frames'")


def write(path: Path, items: Iterable[Item]) -> None:
  """Writes items, one a line."""
  atomic.write_json_lines(path, (to_json(item) for item in items))


def read(path: Path) -> Iterator[Item]:
  """Reads what `write` wrote. Raises InputError naming the line."""
  try:
    with path.open(encoding="utf-8") as lines:
      for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
          value = plain_json.parse(line)
        except ValueError as error:
          raise InputError(f"{where}: is no JSON: {error}") from error
        yield from_json(value, where)
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: cannot be read: {error}") from error
