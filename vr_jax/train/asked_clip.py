"""The clip that `vr-jax ask` shows: what the run's data shows, where the video is one of them.

A question of the run's data becomes exactly the prompt that training and evaluation make of it: its
frames are read from the run's frame store, and its options and the span that is shown are taken
from its example. Any other question about a video of the run's data is asked about the span that
the run's questions show.
"""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
import re

import ml_collections

from vr_jax import atomic, errors, records
from vr_jax.data import (
  batches,
  examples,
  frame_store,
  guarded_reader,
  sampling,
  video_clip,
  video_file,
)
from vr_jax.rollout import dialogue
from vr_jax.train import paths

_LETTER = re.compile(r"\s*\(?[A-Z][.):]\s*")
_TOLERANCE = 0.05  # seconds that --shown may end after the video
_LISTED = 4  # most spans that a message lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedClip:
  """A question, and the frames of a video that it is asked about.

  example: its `shown` is the span that the frames are of; its answer is "" if it is not known.
  duration: of the video, in seconds.
  origin: says in a few words why this span is shown.
  """

  example: records.Example
  pool: dialogue.FramePool
  duration: float
  origin: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
  """A video of the run's data.

  names: its names in the frame store; several files may have the same frames.
  same_frames: whether the store holds the frames of the file that is asked about.
  questions: about it, with the split of each.
  """

  store: frame_store.FrameStore
  names: tuple[str, ...]
  same_frames: bool
  questions: tuple[tuple[str, records.Example], ...]

  @property
  def duration(self) -> float:
    """Of the video, in seconds."""
    return self.store.duration(self.names[0])


def open_clip(
  video: Path,
  question: str,
  *,
  options: Sequence[str] = (),
  problem_type: str = "",
  config: ml_collections.ConfigDict,
  workdir: Path | None = None,
  shown: records.Span | None = None,
  extracted: video_file.ExtractedVideo | None = None,
) -> AskedClip:
  """Opens the clip that a question is asked about.

  Args:
    video: a file, or the name of a video in the run's data.
    question: without the instruction, which the environment adds.
    options: with their letters. Without options and problem type, those of the run's data are taken
      if the question is one of it; else it is free-form.
    problem_type: one of `records.PROBLEM_TYPES`, or "".
    config: of the run; says how frames are stored and sampled.
    workdir: of the run; None if there is none.
    shown: what to show of the video, in seconds; None: what the run's data shows, or else all.
    extracted: the file, as `decode` returns it; None: it is decoded.

  Raises:
    InputError: there is no such video, it can't be decoded, the run's data shows different spans of
      it, or a span is not inside of it.
  """
  if extracted is None and video.is_file():
    extracted = decode(video, config)
  found = _find(video, extracted, config, workdir) if workdir else None
  if extracted is None and found is None:
    other = ", nor a video of the run's data" if workdir else ""
    raise errors.InputError(f"{video}: no such file{other}")
  duration = (
    found.duration if extracted is None and found else extracted.duration if extracted else 0.0
  )
  if shown and not shown.start < shown.end <= duration + _TOLERANCE:
    raise errors.InputError(
      f"--shown={shown.start:g},{shown.end:g}: is no part of {video}, which has {duration:g} s"
    )
  asked = records.Example(
    id="question",
    video=str(video),
    question=question,
    options=tuple(options),
    answer="",
    problem_type=problem_type,
    shown=records.Span(start=0.0, end=duration),
  )
  example, origin = _choose(asked, video, found, shown)
  if found and not found.same_frames:
    origin += "; the file's frames are not those of the data"
  return AskedClip(
    example=example,
    pool=_pool(example, video, extracted, found, config),
    duration=duration,
    origin=origin,
  )


def decode(video: Path, config: ml_collections.ConfigDict) -> video_file.ExtractedVideo:
  """Decodes a file as ingestion would."""
  data = config.data
  sampling.check_rate(paths.sampling_rule(data), data.fps)
  return guarded_reader.extract(
    video,
    fps=data.fps,
    quality=data.quality,
    max_side=data.max_side,
    limits=paths.decode_limits(data),
  )


def _find(
  video: Path,
  extracted: video_file.ExtractedVideo | None,
  config: ml_collections.ConfigDict,
  workdir: Path,
) -> _Found | None:
  """Finds a video in the run's data; None if it is none of them, or the data was deleted.

  A file is one of them by its frames, or else by its path.
  """
  shards = paths.shards_directory(config, workdir)
  if not atomic.is_whole(shards):
    return None
  store = frame_store.FrameStore(shards / "frames")
  alike = (video.as_posix(),) if extracted is None else store.find(extracted)
  names = alike
  if not names:
    names = (os.path.relpath(video.resolve(), paths.videos_directory(config, workdir).resolve()),)
  names = tuple(name for name in names if name in store.videos)
  if not names:
    return None
  return _Found(
    store=store,
    names=names,
    same_frames=bool(alike),
    questions=tuple(
      (split, example)
      for split in examples.SPLITS
      for example in examples.ExampleSource(shards, split).about(frozenset(names))
    ),
  )


def _choose(
  asked: records.Example,
  video: Path,
  found: _Found | None,
  shown: records.Span | None,
) -> tuple[records.Example, str]:
  """The example to ask, and why it shows what it shows."""
  questions = found.questions if found else ()
  same = _same_questions(asked, questions)
  if shown and any(each.shown == shown for _, each in same):
    same = [(split, each) for split, each in same if each.shown == shown]
  kinds = {(each.shown, each.options, each.problem_type) for _, each in same}
  if len(kinds) > 1:
    raise errors.InputError(
      f"{video}: the run's data asks this question {len(kinds)} times with other options, types or "
      "spans; say which one with --options, --problem_type or --shown"
    )
  if same:
    split, example = same[0]
    if shown and shown != example.shown:
      return dataclasses.replace(example, shown=shown), "as --shown says"
    options = ", with its options" if example.options and not asked.options else ""
    return example, f"as in question {example.id} of the run's {split} split{options}"
  spans = sorted({(each.shown.start, each.shown.end) for _, each in questions})
  if not shown and len(spans) > 1:
    listed = ", ".join(f"{start:g},{end:g}" for start, end in spans[:_LISTED])
    raise errors.InputError(
      f"{video}: the run's questions show different parts of it; choose one with --shown=: {listed}"
      + (f" (and {len(spans) - _LISTED} more)" if len(spans) > _LISTED else "")
    )
  origin = "as --shown says"
  if not shown:
    shown = records.Span(start=spans[0][0], end=spans[0][1]) if spans else asked.shown
    origin = "as the run's questions about this video" if spans else "all of it"
  example = dataclasses.replace(
    asked,
    video=found.names[0] if found else asked.video,
    shown=shown,
    problem_type=asked.problem_type or ("multiple choice" if asked.options else "free-form"),
  )
  return example, origin


def _same_questions(
  asked: records.Example, questions: Sequence[tuple[str, records.Example]]
) -> list[tuple[str, records.Example]]:
  """The run's questions that the user asks: with these options and this type, if they are given.

  If they are not, a free-form question goes before one that the data asks with options.
  """
  text = asked.question.strip()
  same = [(split, each) for split, each in questions if each.question.strip() == text]
  if asked.options:
    wanted = _texts(asked.options)
    return [(split, each) for split, each in same if _texts(each.options) == wanted]
  wanted = asked.problem_type or "free-form"
  plain = [(split, each) for split, each in same if each.problem_type == wanted]
  return plain if plain or asked.problem_type else same


def _texts(options: Sequence[str]) -> list[str]:
  """Options without their letters."""
  return [_LETTER.sub("", option, count=1).strip() for option in options]


def _pool(
  example: records.Example,
  video: Path,
  extracted: video_file.ExtractedVideo | None,
  found: _Found | None,
  config: ml_collections.ConfigDict,
) -> dialogue.FramePool:
  """The frames that the sampling rule takes from what is shown; stored ones, if they are equal."""
  rule = paths.sampling_rule(config.data)
  if found and found.same_frames:
    return batches.select_clip(example, found.store, rule)
  assert extracted is not None
  return video_clip.take(extracted, example.shown, rule, where=str(video))
