"""Stage `data`: simulated or given videos -> frame store, examples and, where the recipe trains one, a tokenizer."""

import json
import os
from pathlib import Path

import ml_collections

from vr_jax import errors
from vr_jax.data import examples, ingest, sampling
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib
from vr_jax.train import console
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write

TRAINED = (
  "trained"  # value of config.model.tokenizer: learn one from the texts of the training split
)


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Simulates where the config says so, then ingests. What is complete is left as it is."""
  data = config.data
  output = directory(config, workdir)
  videos, annotations = Path(data.videos), Path(data.annotations)
  if data.simulate.videos:
    raw = output / "simulated"
    _simulate(data.simulate, raw)
    videos, annotations = raw / "videos", raw / "annotations.jsonl"
  elif not (data.videos and data.annotations):
    raise errors.InputError(
      "config.data: needs videos and annotations (docs/data.md), or simulate.videos > 0"
    )
  options = ingest.IngestConfig(
    fps=data.fps,
    quality=data.quality,
    max_side=data.max_side,
    validation_fraction=data.validation_fraction,
    test_fraction=data.test_fraction,
    split_seed=data.split_seed,
    rule=sampling_rule(data),
    on_bad=data.on_bad,
  )
  with console.progress("ingest") as tick:
    report = ingest.ingest(videos, annotations, output / "shards", options, progress=tick)
  counts = ", ".join(f"{count} {split}" for split, count in report.examples.items())
  console.say(
    f"data: {report.videos} videos, {report.frames} frames; examples: {counts}; "
    f"skipped {report.skipped_videos} videos, {report.skipped_records} records"
  )
  if config.model.tokenizer == TRAINED and not tokenizer_path(config, workdir).is_file():
    _train_tokenizer(config, workdir)


def _simulate(simulate: ml_collections.ConfigDict, raw: Path) -> None:
  """Writes the simulated videos, unless they are there; raises InputError where those are of another world."""
  record = raw.with_suffix(".json")
  made_of = json.loads(json.dumps(simulate.to_dict()))
  if raw.exists():
    if not record.is_file() or json.loads(record.read_text()) != made_of:
      raise errors.InputError(
        f"{raw}: simulated from other values of config.data.simulate; choose another directory"
      )
    return
  world = world_config.WorldConfig(**simulate.world)
  raw.parent.mkdir(parents=True, exist_ok=True)
  record.write_text(json.dumps(made_of) + "\n")
  with console.progress("simulate", simulate.videos) as tick:
    write.write_dataset(
      raw,
      world,
      videos=simulate.videos,
      seed=simulate.seed,
      questions_per_video=simulate.questions_per_video,
      progress=tick,
    )


def sampling_rule(data: ml_collections.ConfigDict) -> sampling.Rule:
  """Which frames of what is shown the recipe takes; `data` is the section of that name."""
  if data.sampling == "uniform":
    return sampling.Uniform(frames=data.frames)
  if data.sampling == "fps":
    return sampling.Rate(
      fps=data.sample_fps, min_frames=data.min_frames, max_frames=data.max_frames
    )
  raise errors.InputError(f"config.data.sampling={data.sampling}: uniform or fps")


def tokenizer_path(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """The tokenizer.json of this run: the one that the data stage trained, the one named, or the pretrained model's."""
  if config.model.tokenizer == TRAINED:
    size = config.model.architecture.text_config.vocab_size
    return directory(config, workdir) / f"tokenizer-{size}.json"
  return Path(config.model.tokenizer or config.model.pretrained)


def directory(config: ml_collections.ConfigDict, workdir: Path) -> Path:
  """Where the data of this run lies."""
  return Path(config.data.directory) if config.data.directory else workdir / "data"


def _train_tokenizer(config: ml_collections.ConfigDict, workdir: Path) -> None:
  source = examples.ExampleSource(directory(config, workdir) / "shards", "train")
  texts = (
    text
    for example in (source[index] for index in range(len(source)))
    for text in (example.question, *example.options, *(step.text for step in example.steps))
  )
  # What stands around every text: the template's words and the tags of a reply, each often enough to be merged.
  frame = ["user\n", "assistant\n", "<think>", "</think>\n<answer>", "</answer>"] * 1000
  size = config.model.architecture.text_config.vocab_size
  path = tokenizer_path(config, workdir)
  aside = path.with_suffix(".partial")
  tokenizer_lib.train_tokenizer([*texts, *frame], size).save(str(aside))
  os.replace(aside, path)
