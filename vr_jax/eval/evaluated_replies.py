"""Evaluated replies as JSON, and the frames of those that the report shows.

eval/<name>.jsonl   all replies of an evaluation, one a line (docs/evaluation.md)
eval/frames.jsonl   {"id": of a question, "frames": {index in the clip: base64 JPEG}}, one a line,
                    in the order of the report
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from vr_jax import records
from vr_jax.data import batches
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import grounding as grounding_lib
from vr_jax.eval import evaluated_episode

FRAMES = "frames.jsonl"
SIDE = 256  # pixels: the longer side of a frame in the report, at most
QUALITY = 80  # of its JPEG


def to_json(
  environment: environment_lib.Environment,
  evaluated: evaluated_episode.EvaluatedEpisode,
  metrics: Mapping[str, float],
) -> dict[str, Any]:
  """One reply, or one episode of several turns, as JSON. Numbers that are not finite become null.

  metrics: what it contributes to each metric of the evaluation.
  """
  example, episode = evaluated.example, evaluated.episode
  reply = {
    "id": example.id,
    "video": example.video,
    "shown": [example.shown.start, example.shown.end],
    "question": example.question,
    "options": list(example.options),
    "answer": example.answer,
    "problem_type": example.problem_type,
    "reply": evaluated.reply,
    "parsed_answer": evaluated.answer,
    "accuracy": evaluated.accuracy,
    "tokens": evaluated.tokens,
    "truncated": evaluated.truncated,
    "metrics": dict(metrics),
    "rewards": evaluated.rewards,
    "reference": [dataclasses.asdict(step) for step in example.steps],
    "times": [float(time) for time in evaluated.clip.timestamps],
    **environment.explain(example, evaluated.reply),
  }
  if evaluated.problem:
    reply["problem"] = evaluated.problem
  if episode:
    reply["turns"] = _turns(environment, evaluated, episode)
    reply["relevant"] = [[span.start, span.end] for span in example.relevant]
  elif evaluated.segment_rewards:
    reply["segment_rewards"] = evaluated.segment_rewards
  if (found := evaluated.grounding) is not None:
    reply["grounding"] = _grounding(evaluated, found)
  return _finite(reply)


def frames_to_json(clip: batches.Clip, indices: Iterable[int]) -> dict[str, Any]:
  """Some frames of the clip of a question, as JSON.

  Raises InputError if a stored frame is damaged.
  """
  wanted = sorted(set(indices))
  frames = clip.read(wanted) if wanted else ()
  return {
    "id": clip.example.id,
    "frames": {str(index): _jpeg(frame) for index, frame in zip(wanted, frames, strict=True)},
  }


def _turns(
  environment: environment_lib.Environment,
  evaluated: evaluated_episode.EvaluatedEpisode,
  episode: environment_lib.Episode,
) -> list[dict[str, Any]]:
  """The turns of an episode: what each was shown, did and earned."""
  example, pool = evaluated.example, evaluated.clip
  turns = []
  for number, (reply, rewards) in enumerate(
    zip(episode.replies, evaluated.segment_rewards.values(), strict=True)
  ):
    action = environment.parse_action(example, len(pool), reply, number)
    retrieves = action.kind == "retrieve"
    turns.append(
      {
        "reply": reply,
        "kind": action.kind,
        "problem": action.problem,
        "first": action.start if retrieves else None,
        "last": action.end if retrieves else None,
        "shown": _observed_frames(environment, example, len(pool), episode.replies[:number]),
        "rewards": rewards,
      }
    )
  return turns


def _grounding(
  evaluated: evaluated_episode.EvaluatedEpisode, found: grounding_lib.Grounding
) -> dict[str, Any]:
  """What an episode found, and where the object is in its key frame (docs/evaluation.md)."""
  track, time, true_box = evaluated.example.object_track, None, None
  assert track is not None  # or there would be nothing to find
  if found.key_frame is not None:
    time = float(evaluated.clip.timestamps[found.key_frame])
    (corners,) = grounding_lib.boxes_at(evaluated.example, np.array([time])).tolist()
    true_box = None if math.isnan(corners[0]) else corners
  tracked = evaluated.tracked
  return {
    "frame": found.key_frame,
    "time": time,
    "description": found.description,
    "box": None if found.box is None else list(found.box),
    "true_box": true_box,
    "problem": found.problem,
    "height": track.height,
    "width": track.width,
    **({"masks": {str(index): mask for index, mask in tracked.masks.items()}} if tracked else {}),
  }


def _observed_frames(
  environment: environment_lib.Environment,
  example: records.Example,
  pool: int,
  replies: Sequence[str],
) -> list[int]:
  """Indices of the frames that the next turn shows, in a clip of `pool` frames."""
  observation = environment.observe(example, pool, replies)
  assert observation is not None, "the episode has ended"
  return list(range(pool) if observation.shows_clip else observation.frames)


def _jpeg(frame: np.ndarray) -> str:
  image, stream = Image.fromarray(frame), io.BytesIO()
  image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
  image.save(stream, "JPEG", quality=QUALITY)
  return base64.b64encode(stream.getvalue()).decode()


def _finite(value: Any) -> Any:
  """The same JSON with null for numbers that are not finite, which JSON can't say."""
  if isinstance(value, dict):
    return {name: _finite(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each) for each in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
