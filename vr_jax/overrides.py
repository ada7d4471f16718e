"""What the command line sets goes before what a size of a recipe sets.

A size sets fields that belong together: `tiny` simulates its videos and trains a tokenizer. If the
command line sets one of them to something else, the others have to follow, or they would silently
replace it. Fields that the command line sets are never changed: if they contradict each other,
`config_checks.check` raises.
"""

from collections.abc import Set

import ml_collections

from vr_jax import errors


def reconcile(config: ml_collections.ConfigDict, given: Set[str]) -> None:
  """Changes fields of the size, in place, that contradict what the command line sets.

  given: names of the fields that the command line sets, such as "data.videos".

  Raises:
    InputError: a field is set that has no effect with what another one is set to.
  """
  data, model = config.data, config.model
  own_data, simulated = {"data.videos", "data.annotations"}, "data.simulate.videos"
  if (data.videos or data.annotations) and own_data & given and simulated not in given:
    data.simulate.videos = 0
  elif data.simulate.videos and simulated in given and not own_data & given:
    data.videos = data.annotations = ""
  sizes = [name for name in given if name.startswith("model.architecture.")]
  if model.pretrained and "model.pretrained" in given:
    if sizes:
      raise errors.InputError(
        f"--config.{min(sizes)}: has no effect, as the sizes are those of "
        f"model.pretrained={model.pretrained}; leave out one of the two"
      )
    if "model.tokenizer" not in given:
      model.tokenizer = ""
  if data.sampling == "fps" and {"data.frames", "data.sampling"} <= given:
    raise errors.InputError(
      f"--config.data.frames={data.frames}: has no effect with data.sampling=fps; "
      "set data.sample_fps, data.min_frames and data.max_frames"
    )
