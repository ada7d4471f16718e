"""What a run reads, from its config: where its data and its tokenizer lie, and how clips are sampled."""

from pathlib import Path

import ml_collections

from vr_jax import errors
from vr_jax.data import sampling

TRAINED = (
  "trained"  # value of config.model.tokenizer: learn one from the texts of the training split
)


def data_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """Where the data of this run lies."""
  return Path(config.data.directory) if config.data.directory else workdir / "data"


def shards_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """Where the frames and examples of this run lie: what ingestion writes."""
  return data_directory(config, workdir) / "shards"


def features_directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """Where features of frozen towers are kept."""
  return data_directory(config, workdir) / "features"


def tokenizer_path(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The tokenizer.json of this run: the one that the data stage trained, the one named, or the pretrained model's."""
  if config.model.tokenizer == TRAINED:
    from vr_jax.train import model_setup  # late, since it imports JAX

    size = model_setup.model_of(config).vocab_size
    return data_directory(config, workdir) / f"tokenizer-{size}.json"
  return Path(config.model.tokenizer or config.model.pretrained)


def sampling_rule(data: ml_collections.ConfigDict) -> sampling.Rule:
  """Which frames of what is shown the recipe takes; `data` is the section of that name."""
  if data.sampling == "uniform":
    return sampling.UniformRule(frames=data.frames)
  if data.sampling == "fps":
    return sampling.RateRule(
      fps=data.sample_fps, min_frames=data.min_frames, max_frames=data.max_frames
    )
  if data.sampling == "pool":
    return sampling.PoolRule(frames=data.frames)
  raise errors.InputError(f"config.data.sampling={data.sampling}: uniform, fps or pool")
