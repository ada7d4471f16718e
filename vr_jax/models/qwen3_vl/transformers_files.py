"""Files of an exported directory that tell transformers how prompts were made in training.

With them its `AutoProcessor` and `generate` see the tokens, pixels and positions of our processor.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from vr_jax.models.qwen3_vl import config as config_lib
from vr_jax.models.qwen3_vl import pixels, processor

SOURCES = pathlib.Path(__file__).parent / "exported"


def model_files(
  config: config_lib.Qwen3VLConfig, source: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
  """Builds the fields of an exported config.json; it needs no code beside it.

  source: the fields of the config.json that the weights started from; None: all fields are new.
  """
  fields = config_lib.config_fields(config) if source is None else dict(source)
  fields.pop("auto_map", None)  # code of the source, which is not copied
  return fields, {}


def patch_fields(config: config_lib.Qwen3VLConfig) -> dict[str, int]:
  """Sizes of patches, named as in the files of a processor."""
  vision = config.vision
  return {
    "patch_size": vision.patch_size,
    "temporal_patch_size": vision.temporal_patch_size,
    "merge_size": vision.spatial_merge_size,
  }


def processor_files(
  made: processor.Qwen3VLProcessor, sampling: Mapping[str, Any]
) -> dict[str, str | None]:
  """The texts of these files by name; None for one that would contradict them.

  sampling: fields of transformers' video processors by which frames of a whole video are chosen.
  """
  shared = {
    "processor_class": "Qwen3VLProcessor",
    **patch_fields(made.config),
    "image_mean": pixels.MEAN.tolist(),
    "image_std": pixels.STD.tolist(),
  }
  image = {
    **shared,
    "image_processor_type": "Qwen2VLImageProcessor",
    "size": {"shortest_edge": made.min_pixels, "longest_edge": made.max_pixels},
  }
  video = {
    **shared,
    "video_processor_type": "Qwen3VLVideoProcessor",
    "size": {"shortest_edge": made.min_video_pixels, "longest_edge": made.max_video_pixels},
    "cap_pixels_per_frame": False,  # training bounds whole videos alone
    **sampling,
  }
  if "num_frames" in sampling:
    video["fps"] = None  # it has a default, and only one of them may be set
  # Its videos have no tokens around them, only around each temporal patch, as the weights know it;
  # transformers 5 would leave those of the released template standing.
  template = (SOURCES / "chat_template.jinja").read_text(encoding="utf-8")
  return {
    "preprocessor_config.json": json.dumps(image, indent=2) + "\n",
    "video_preprocessor_config.json": json.dumps(video, indent=2) + "\n",
    "processor_config.json": None,  # its fields would replace those above
    "chat_template.jinja": template.replace("SYSTEM", json.dumps(made.system)).strip(),
    "chat_template.json": None,  # an older form of the same
  }
