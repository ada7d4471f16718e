"""Writes simulated data sets: videos/*.mp4 and annotations.jsonl, all or nothing.

Where the world's queries have masks as answers, there is masks/*.json, too.
"""

from collections.abc import Callable, Iterator
import dataclasses
import json
import pathlib

from jaxtyping import UInt8
import numpy as np

from vr_jax import atomic, errors, records
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import questions as questions_lib
from vr_jax.worlds import render, tracks
from vr_jax.worlds import scene as scene_lib

_MAX_ATTEMPTS = 100  # to draw a scene that no earlier video shows


def write_dataset(
  directory: pathlib.Path | str,
  config: config_lib.WorldConfig,
  *,
  videos: int,
  seed: int,
  questions_per_video: int,
  progress: Callable[[int, int], None] | None = None,
) -> int:
  """Simulates `videos` videos with questions, and returns the number of examples.

  - Writes to <directory>.partial and renames that at the end, so <directory> is never incomplete.
  - Files: `videos/*.mp4` and `annotations.jsonl`, one JSON object a line (see to_json).
  - The same seed gives the same bytes. A larger data set starts with the videos of a smaller one.
  - No two videos show the same scene.
  - `progress(done, videos)` is called after each video.

  Raises errors.InputError if the directory is not empty, or the disk is full or read-only.
  """
  directory = pathlib.Path(directory).absolute()
  if videos < 1 or questions_per_video < 1:
    raise errors.InputError("worlds: videos and questions_per_video must be 1 or more")
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise errors.InputError(f"{directory}: is not an empty directory; remove it or choose another")
  with atomic.directory(directory) as partial:
    return _write(partial, config, videos, seed, questions_per_video, progress)


def sample_video(
  config: config_lib.WorldConfig, *, seed: int, index: int, questions: int, attempt: int = 0
) -> tuple[scene_lib.Scene, tuple[records.Example, ...]]:
  """Samples the scene and the examples of video `index`, without rendering it.

  attempt: another number gives another scene.
  """
  rng = np.random.default_rng([seed, index, attempt] if attempt else [seed, index])
  name = f"{index:06d}"
  if config.is_tracking:
    scene, queries = tracks.sample(rng, config, questions)
    files = {"video": f"{name}.mp4", "masks": f"masks/{name}.json"}
    return scene, tuple(
      tracks.example(scene, query, name=f"{name}-{number}", **files)
      for number, query in enumerate(queries)
    )
  scene, asked = questions_lib.sample(rng, config, questions)
  return scene, tuple(
    questions_lib.example(
      scene,
      question,
      name=f"{name}-{number}",
      video=f"{name}.mp4",
      shown=config.shown,
      wordings=config.wordings,
      rng=rng,
      tellings=config.tellings,
    )
    for number, question in enumerate(asked)
  )


def distinct_videos(
  config: config_lib.WorldConfig, *, videos: int, seed: int, questions: int
) -> Iterator[tuple[scene_lib.Scene, tuple[records.Example, ...]]]:
  """Samples the videos of a data set. No two show the same scene, so splits don't overlap.

  Raises errors.InputError if the world has too few different scenes.
  """
  seen: set[scene_lib.Scene] = set()
  for index in range(videos):
    for attempt in range(_MAX_ATTEMPTS):
      scene, examples = sample_video(
        config, seed=seed, index=index, questions=questions, attempt=attempt
      )
      if scene not in seen:
        break
    else:
      raise errors.InputError(
        f"worlds: no new scene after {index} of {videos} videos; "
        "simulate fewer, or allow more shapes, colours or behaviours"
      )
    seen.add(scene)
    yield scene, examples


def to_json(example: records.Example) -> dict:
  """Converts an example to its line of annotations.jsonl. Spans are [start, end] in seconds."""
  masked = {} if example.masked is None else {"masked": _pair(example.masked)}
  # Where the answer is a track, there is no text.
  answer = {"answer": example.answer} if example.answer else {}
  return {
    "id": example.id,
    "video": example.video,
    "question": example.question,
    "options": list(example.options),
    **answer,
    "problem_type": example.problem_type,
    "shown": _pair(example.shown),
    **masked,
    "relevant": [_pair(span) for span in example.relevant],
    "states": [dataclasses.asdict(state) for state in example.states],
    "steps": [dataclasses.asdict(step) for step in example.steps],
    "source": example.source,
    **example.extra,
  }


def _pair(span: records.Span) -> list[float]:
  return [span.start, span.end]


def _write(
  partial: pathlib.Path,
  config: config_lib.WorldConfig,
  videos: int,
  seed: int,
  questions_per_video: int,
  progress: Callable[[int, int], None] | None,
) -> int:
  (partial / "videos").mkdir(parents=True)
  count = 0
  with (partial / "annotations.jsonl").open("w", encoding="utf-8") as annotations:
    for index, (scene, examples) in enumerate(
      distinct_videos(config, videos=videos, seed=seed, questions=questions_per_video)
    ):
      masks = tracks.MaskWriter(scene) if config.is_tracking else None
      frames = _images(scene, masks)
      render.write_video(partial / "videos" / examples[0].video, frames, scene.fps)
      if masks is not None:
        path = partial / examples[0].extra["masks"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(masks.to_json(), separators=(",", ":")) + "\n")
      for example in examples:
        annotations.write(json.dumps(to_json(example), separators=(",", ":")) + "\n")
      count += len(examples)
      if progress is not None:
        progress(index + 1, videos)
  return count


def _images(
  scene: scene_lib.Scene, masks: tracks.MaskWriter | None
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
  """Renders the frames of a scene; `masks` gets each frame's masks."""
  for frame in render.iterate_frames(scene):
    if masks is not None:
      masks.add(frame)
    yield frame.image
