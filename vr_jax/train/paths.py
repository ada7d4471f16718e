"""Where the data and the tokenizer of a run are, and how its clips are sampled."""

from pathlib import Path

import ml_collections

from vr_jax import errors, schema
from vr_jax.data import guarded_reader, sampling

# Value of config.model.tokenizer: train a tokenizer on the texts of the training split.
TRAINED = "trained"


def data_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The directory of this run's data."""
  return Path(config.data.directory) if config.data.directory else workdir / "data"


def shards_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The directory of this run's frames and examples, which ingestion writes."""
  return data_directory(config, workdir) / "shards"


def videos_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The directory of this run's videos: simulated, or the user's own."""
  if config.data.simulate.videos:
    return data_directory(config, workdir) / "simulated" / "videos"
  return Path(config.data.videos)


def annotation_file(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The annotations of this run's videos: a file, or a pattern of several."""
  if config.data.simulate.videos:
    return videos_directory(config, workdir).parent / "annotations.jsonl"
  return Path(config.data.annotations)


def features_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The directory of the cached features of frozen towers."""
  return data_directory(config, workdir) / "features"


def tokenizer_path(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The tokenizer of this run: trained by the data stage, named, or the pretrained model's."""
  if config.model.tokenizer == TRAINED:
    from vr_jax.train import model_setup  # late, since it imports JAX

    size = model_setup.model_of(config).vocab_size
    return data_directory(config, workdir) / f"tokenizer-{size}.json"
  return Path(config.model.tokenizer or config.model.pretrained)


def sampling_rule(data: ml_collections.ConfigDict) -> sampling.Rule:
  """The rule by which the recipe samples frames of a clip. data: the section `data`."""
  required = data.required_frames
  if data.sampling == "uniform":
    return sampling.UniformRule(frames=data.frames, required=required)
  if data.sampling == "fps":
    return sampling.RateRule(
      fps=data.sample_fps,
      min_frames=data.min_frames,
      max_frames=data.max_frames,
      required=required,
    )
  if data.sampling == "pool":
    return sampling.PoolRule(frames=data.frames, required=required)
  raise errors.InputError(f"config.data.sampling={data.sampling}: uniform, fps or pool")


def decode_limits(data: ml_collections.ConfigDict) -> guarded_reader.DecodeLimits:
  """The limits of processes that decode files. data: the section `data`."""
  return schema.build(guarded_reader.DecodeLimits, data.decode)
