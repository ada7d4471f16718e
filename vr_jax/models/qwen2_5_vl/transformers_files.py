"""Files of an exported directory that tell transformers how prompts were made in training.

With them its `AutoProcessor` and `generate` see the tokens, pixels and positions of our processor.
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels, processor

SOURCES = pathlib.Path(__file__).parent / "exported"

# The class that transformers loads with trust_remote_code=True.
MODULE = "as_trained"
AUTO_MAP = {"AutoModelForImageTextToText": f"{MODULE}.Qwen2_5_VLAsTrained"}


def model_files(
  config: config_lib.Qwen2_5_VLConfig, source: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
  """Builds the fields of an exported config.json, and the code that it refers to, by file name.

  There is code where transformers by itself counts positions otherwise than in training.

  source: the fields of the config.json that the weights started from; None: all fields are new.
  """
  fields = config_lib.config_fields(config) if source is None else dict(source)
  after = config.vision.rope_after_video
  fields["vision_config"] = {**fields["vision_config"], "rope_after_video": after}
  fields.pop("auto_map", None)  # code of the source, which is not copied
  if after == "sides":
    return fields, {}
  code = (SOURCES / f"{MODULE}.py.txt").read_text(encoding="utf-8")
  return {**fields, "auto_map": AUTO_MAP}, {f"{MODULE}.py": code}


def patch_fields(config: config_lib.Qwen2_5_VLConfig) -> dict[str, int]:
  """Sizes of patches, named as in the files of a processor."""
  vision = config.vision
  return {
    "patch_size": vision.patch_size,
    "temporal_patch_size": vision.temporal_patch_size,
    "merge_size": vision.spatial_merge_size,
  }


def processor_files(
  made: processor.Qwen2_5_VLProcessor, sampling: Mapping[str, Any]
) -> dict[str, str | None]:
  """The texts of these files by name; None for one that would contradict them.

  sampling: fields of transformers' video processors by which frames of a whole video are chosen.
  """
  limits = {"min_pixels": made.min_pixels, "max_pixels": made.max_pixels}
  shared = {
    "processor_class": "Qwen2_5_VLProcessor",
    **limits,
    "size": {"shortest_edge": made.min_pixels, "longest_edge": made.max_pixels},
    **patch_fields(made.config),
    "image_mean": [float(x) for x in pixels.MEAN.astype(str)],
    "image_std": [float(x) for x in pixels.STD.astype(str)],
  }
  image = {**shared, "image_processor_type": "Qwen2VLImageProcessor"}
  # A bound on the pixels of a whole video would shrink frames that training did not.
  video = {**shared, "video_processor_type": "Qwen2VLVideoProcessor", "cap_pixels_per_frame": False}
  template = (SOURCES / "chat_template.jinja").read_text(encoding="utf-8")
  return {
    "preprocessor_config.json": json.dumps(image, indent=2) + "\n",
    "video_preprocessor_config.json": json.dumps({**video, **sampling}, indent=2) + "\n",
    "processor_config.json": None,  # its fields would replace those above
    "chat_template.jinja": template.replace("SYSTEM", json.dumps(made.system)).strip(),
    "chat_template.json": None,  # an older form of the same
  }
