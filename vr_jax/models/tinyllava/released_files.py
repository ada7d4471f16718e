"""Files of an exported directory: the fields of a config.json as the released code reads them."""

from collections.abc import Mapping
from typing import Any

from vr_jax.models.tinyllava import config as config_lib


def model_files(
  config: config_lib.TinyLlavaConfig, source: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
  """Builds the fields of an exported config.json; the released code is not copied.

  source: the fields of the config.json that the weights started from; None: all fields are new.
  """
  fields = config_lib.config_fields(config) if source is None else dict(source)
  fields.pop("auto_map", None)
  return fields, {}


def patch_fields(config: config_lib.TinyLlavaConfig) -> dict[str, Any]:
  """The size of images, as in the files of a processor."""
  side = config.vision.image_size
  return {"size": {"height": side, "width": side}}
