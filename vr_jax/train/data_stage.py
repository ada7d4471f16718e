"""Stage `data`: makes the frame store and examples from given or simulated videos.

Where the recipe asks for it, this stage trains the tokenizer as well.
"""

from collections.abc import Iterable
import functools
import itertools
import json
import math
from pathlib import Path

import ml_collections
import tokenizers

from vr_jax import atomic, errors, plain_json, records
from vr_jax.data import examples, ingest, sampling, trace_store
from vr_jax.envs import registry
from vr_jax.train import (
  check_examples,
  config_checks,
  console,
  model_setup,
  paths,
  run_context,
)
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write


def prepare(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Simulates videos if the config asks for it, ingests them, and checks the examples.

  Results that are complete are left as they are, and so are data that --mode=traces wrote.
  """
  if trace_store.summary(paths.data_directory(config, workdir)) is None:
    _ingest(config, workdir)
  if (
    config.model.tokenizer == paths.TRAINED and not paths.tokenizer_path(config, workdir).is_file()
  ):
    with console.doing("training the tokenizer", announce=True):
      source = examples.ExampleSource(paths.shards_directory(config, workdir), "train")
      tokenizer = train_tokenizer(config, source)
      with atomic.file(paths.tokenizer_path(config, workdir)) as partial:
        tokenizer.save(str(partial))
  with console.doing("checking that prompts and replies fit", announce=True):
    checked = run_context.make_example_checks(config, workdir).run()
  if any(checked.left_out.values()):
    counts = ", ".join(f"{len(indices)} {split}" for split, indices in checked.left_out.items())
    console.print_line(f"data: left out, as they can't be used with this recipe: {counts}")
  for split, indices in checked.no_reply.items():
    if indices:
      console.print_line(no_reply_line(split, len(indices)))
  if checked.short:
    usual = sampling.usual_frames(paths.sampling_rule(config.data))
    console.print_line(
      f"data: {_count(checked.short, 'question has', 'questions have')} fewer stored frames than "
      f"the {usual} of a clip; they show fewer, at least {checked.fewest_frames} "
      "(config.data.required_frames, config.data.fps)"
    )


def no_reply_line(split: str, count: int) -> str:
  """Says how many examples of a split the warm start leaves out."""
  lack = _count(count, "question has", "questions have")
  return (
    f"data: {split}: {lack} no reference reply, so the warm start leaves "
    f"{'it' if count == 1 else 'them'} out (config.sft.skip_without_reply)"
  )


def _count(number: int, one: str, several: str) -> str:
  return f"{number} {one if number == 1 else several}"


def require_videos(data: ml_collections.ConfigDict) -> None:
  """Raises InputError unless the section `data` names videos and annotations."""
  if not (data.videos and data.annotations):
    raise errors.InputError(
      "config.data: needs videos and annotations (docs/data.md), or simulate.videos > 0"
    )


def _ingest(config: ml_collections.ConfigDict, workdir: Path) -> None:
  data = config.data
  output = paths.data_directory(config, workdir)
  if data.simulate.videos:
    raw = paths.videos_directory(config, workdir).parent
    if paths.shards_directory(config, workdir).exists() and not raw.with_suffix(".json").exists():
      raise errors.InputError(
        f"--config.data.simulate.videos={data.simulate.videos}: {output} holds data that was not "
        "simulated; give its data.videos and data.annotations, or another data.directory"
      )
    _simulate(data.simulate, raw)
  else:
    require_videos(data)
  options = ingest_config(data)
  shards = paths.shards_directory(config, workdir)
  # Recipes may share the directory, so what this one can't use is left out by `check_examples`.
  # But a run that stops does so before hours of decoding.
  stops = data.on_bad == "stop"
  with console.progress("files") as compared, console.progress("ingest") as tick:
    report = ingest.ingest(
      paths.videos_directory(config, workdir),
      paths.annotation_file(config, workdir),
      shards,
      options,
      limits=paths.decode_limits(data),
      check=functools.partial(check_splits, config),
      check_record=registry.make_environment(config).reference_problem if stops else None,
      progress=tick,
      compared=compared,
    )
  counts = ", ".join(f"{count} {split}" for split, count in report.examples.items())
  console.print_line(
    f"data: {report.videos} videos, {report.frames} frames; examples: {counts}; "
    f"skipped {report.skipped_videos} videos, {report.skipped_records} records"
  )
  if report.copies:
    copy, original = min(report.copies.items())
    copies = _count(len(report.copies), "video has", "videos have")
    console.print_line(
      f"data: {copies} the same frames as another one ({copy} as {original}; "
      f"all: {shards}/ingest.json); such videos are in one split"
    )


def ingest_config(data: ml_collections.ConfigDict) -> ingest.IngestConfig:
  """How the section `data` has videos ingested."""
  return ingest.IngestConfig(
    fps=data.fps,
    quality=data.quality,
    max_side=data.max_side,
    validation_fraction=data.validation_fraction,
    test_fraction=data.test_fraction,
    split_seed=data.split_seed,
    rule=paths.sampling_rule(data),
    on_bad=data.on_bad,
  )


def check_splits(config: ml_collections.ConfigDict, splits: ingest.Splits) -> None:
  """Raises InputError if a split that will be needed has no example, or none that can be used."""
  for problem in split_problems(config, splits):
    raise problem


def split_problems(
  config: ml_collections.ConfigDict, splits: ingest.Splits
) -> config_checks.Problems:
  """Yields what is wrong with the examples of each split taken together."""
  videos = len({example.video for part in splits.values() for example in part})
  for split in ("test", "validation"):
    fraction = config.data[f"{split}_fraction"]
    if fraction and videos and not splits[split]:
      yield errors.InputError(
        f"--config.data.{split}_fraction={fraction:g}: leaves none of {videos} videos for the "
        f"{split} split; give {math.ceil(100 / videos) / 100:g} or more, or 0 for no such split"
      )
  if videos and not splits["train"]:
    yield errors.InputError(
      f"config.data: none of {videos} videos is left for training; "
      "lower --config.data.test_fraction and --config.data.validation_fraction"
    )
  environment = registry.make_environment(config)
  yield from config_checks.as_problems(lambda: environment.check_examples(splits["train"]))


def check_before_training(config: ml_collections.ConfigDict, workdir: Path, mode: str) -> None:
  """Raises InputError if a split is empty that a stage of `mode` would need after hours."""
  shards = paths.shards_directory(config, workdir)
  if not atomic.is_whole(shards):
    return  # the stage says so
  ingest.check_annotations(shards, paths.annotation_file(config, workdir))
  left_out = run_context.make_example_checks(config, workdir).find_unusable()
  needed = check_examples.read_splits(config)
  for split, leave in (
    ("test", "run --mode=sft and --mode=rl alone"),
    ("validation", "set --config.sft.validate_every=0 and --config.rl.eval_split=test"),
  ):
    if split not in needed or (split == "test" and mode != "all"):
      continue
    source = examples.ExampleSource(shards, split)
    if len(source) == len(left_out[split]):
      raise errors.InputError(
        f"{source}: holds no example that can be used; {leave}, or ingest into another directory "
        f"with a larger --config.data.{split}_fraction"
      )


def _simulate(simulate: ml_collections.ConfigDict, raw: Path) -> None:
  """Writes the simulated videos unless they exist.

  Raises InputError if they were simulated with other options.
  """
  record = raw.with_suffix(".json")
  options = json.loads(json.dumps(simulate.to_dict()))
  atomic.finish_move(raw)
  if raw.exists():
    if not record.is_file() or _read_json(record) != options:
      raise errors.InputError(
        f"{raw}: simulated from other values of config.data.simulate; choose another directory"
      )
    return
  world = world_config.WorldConfig(**simulate.world)
  raw.parent.mkdir(parents=True, exist_ok=True)
  record.write_text(json.dumps(options) + "\n")
  with console.progress("simulate", simulate.videos) as tick:
    write.write_dataset(
      raw,
      world,
      videos=simulate.videos,
      seed=simulate.seed,
      questions_per_video=simulate.questions_per_video,
      progress=tick,
    )


def _read_json(path: Path) -> object:
  """What a JSON file holds; None if it is damaged."""
  try:
    return plain_json.parse(path.read_bytes())
  except ValueError:
    return None


def train_tokenizer(
  config: ml_collections.ConfigDict, training: Iterable[records.Example]
) -> tokenizers.Tokenizer:
  """Trains the recipe's tokenizer on the texts of the examples to train on."""
  environment, family = registry.make_environment(config), model_setup.family_of(config)
  texts = (
    text
    for example in training
    for text in (
      *environment.tokenizer_texts(example, config.data.frames),
      *(step.text for step in example.steps),
      example.observation,
      example.reasoning,
    )
  )
  # Words of the chat template and tags of replies, repeated so that each becomes a single token.
  markup = [*family.template_words, *environment.tags] * 1000
  all_texts = itertools.chain(texts, markup)
  return family.train_tokenizer(all_texts, model_setup.model_of(config).vocab_size)
