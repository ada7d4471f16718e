"""Small runs of the construct stage, and caption files for them."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from vr_jax import recipe_config, schema
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.traces.construct import future_questions, quality
from vr_jax.traces.construct import states as states_lib
from vr_jax.worlds import config as world_config

WORLD = {
  "seconds": 12.0,
  "shown": 10.0,
  "rows": 3,
  "columns": 3,
  "objects_min": 2,
  "objects_max": 3,
  "behaviours": world_config.BEHAVIOURS + world_config.DISPLAYS,
  "families": world_config.FAMILIES,
  "colours": world_config.COLOURS,
}


def config(videos: int = 0, /, **construct: Any) -> ml_collections.ConfigDict:
  """The tiny recipe; `videos` are simulated, or captions are given as a field of `construct`."""
  made = recipe_config.load("moss_chatv:tiny").copy_and_resolve_references().unlock()
  made.data.simulate.videos = videos
  made.data.simulate.questions_per_video = 1
  made.data.simulate.seed = 11
  made.data.simulate.world = ml_collections.ConfigDict(WORLD | {"wordings": 4})
  made.data.test_fraction, made.data.validation_fraction = 0.25, 0.25
  made.construct.update(construct)
  return made


def world() -> world_config.WorldConfig:
  """The world of the simulated videos."""
  return schema.build(world_config.WorldConfig, ml_collections.ConfigDict(WORLD))


def lines(path: Path) -> list[Any]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *values: Any) -> Path:
  """Writes a caption file; a text is a line as it is."""
  texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
  path.write_text("\n".join(texts) + "\n")
  return path


def man(number: int = 0, **changes: Any) -> dict[str, Any]:
  """A line as ShareGPT4Video has them, about a man who stands, sits and lies."""
  texts = (
    f"Man {number} stands in a kitchen. The pot is empty.",
    "He is sitting on the floor. The pot is half full.",
    "He is standing again.",
    "Then he lies down.",
  )
  captions = [{"idx": str(index), "content": text} for index, text in enumerate(texts)]
  return {
    "video_id": f"v{number}",
    "video_path": f"pexels/v{number}.mp4",
    "timestamp": ["00:00:00.000", "00:00:08.000"],
    "keyframe": [0, 2, 4, 6],
    "captions": [*captions, {"idx": "-1", "content": "A man lies down in the end."}],
    "zip_folder": "pexels_videos_1.zip",
    **changes,
  }


def parsed(value: Any, **how: Any) -> captions_lib.CaptionedVideo:
  return captions_lib.parse_record(value, "c.jsonl:1", **{"keyframe_fps": 0.0, "even": False} | how)


def told(*states: tuple[str, str, str, int]) -> tuple[states_lib.ToldState, ...]:
  return tuple(
    states_lib.ToldState(object=name, attribute=attribute, value=value, caption=caption)
    for name, attribute, value, caption in states
  )


MAN = told(
  ("man", "posture", "standing", 0),
  ("pot", "fill", "empty", 0),
  ("man", "posture", "sitting", 1),
  ("pot", "fill", "half full", 1),
  ("man", "posture", "standing", 2),
  ("man", "posture", "lies down", 3),
)

RULES = future_questions.QuestionRules(
  style="general", per_video=0, most_options=4, least_options=2, seed=0
)
QUALITY = quality.QualityRules(
  shown_seconds=2.0, masked_seconds=0.5, least_steps=2, most_steps=32, most_words=40
)
