"""--mode=check: lists all problems that a run would meet, and estimates what it takes.

Nothing is written to the workdir, and nothing is trained.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import itertools
import os
from pathlib import Path
import shutil
import tempfile

import ml_collections

from vr_jax import atomic, durations, errors, records
from vr_jax.data import (
  annotations,
  batches,
  examples,
  frame_store,
  ingest,
  ingest_trial,
  sampling,
  trace_store,
)
from vr_jax.envs import registry
from vr_jax.parallel import cpu_devices
from vr_jax.train import (
  check_examples,
  config_checks,
  console,
  data_stage,
  judge_factory,
  machine_check,
  model_checks,
  paths,
  run_context,
)
from vr_jax.train import workdir as workdir_lib
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write

SHOWN = 20  # problems of records that are listed; of more, only the number is
SIMULATED = 4  # videos that are simulated for the estimates
TRAINED_ON = 10_000  # examples at most, where the tokenizer is trained for the checks alone


def report(
  config: ml_collections.ConfigDict | None,
  workdir: Path,
  flags: Iterable[str] = (),
  *,
  fallback: ml_collections.ConfigDict | None = None,
  seconds: float = 10.0,
) -> int:
  """Prints all problems and the estimates; returns the number of problems.

  config: None if the command line is so wrong that there is none.
  flags: problems that the command line has.
  fallback: has the values with which the rest is checked, of fields that are wrong in `config`.
  seconds: that are spent on reading videos.
  """
  cpu_devices.set_number(config.cpu_devices if config else 0)
  found, lines = list(flags), []
  if config is not None:
    of_config = [str(problem) for problem in config_checks.problems(config)]
    found += of_config
    config = _mended(config, fallback, of_config)
  if config is not None:
    found += _problems(config, workdir, lines, seconds)
  else:
    lines.append("data, model and machine: not checked, as the config is wrong")
  for problem in found:
    console.print_line(f"problem: {problem}")
  for line in lines:
    console.print_line(line)
  console.print_line(f"check: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
  return len(found)


def _mended(
  config: ml_collections.ConfigDict,
  fallback: ml_collections.ConfigDict | None,
  problems: Iterable[str],
) -> ml_collections.ConfigDict | None:
  """The config with other values for the fields that problems name; None if that does not help."""
  mended = ml_collections.ConfigDict(config.to_dict(), type_safe=False)
  for problem in problems:
    name = problem.removeprefix("--config.").partition("=")[0].partition(":")[0]
    with contextlib.suppress(KeyError, AttributeError, TypeError):
      value = fallback
      for part in name.split("."):
        value = value[part]  # pyright: ignore[reportOptionalSubscript] (suppressed)
      *sections, field = name.split(".")
      functools.reduce(getattr, sections, mended)[field] = value
  return None if any(config_checks.problems(mended)) else mended


def _problems(
  config: ml_collections.ConfigDict, workdir: Path, lines: list[str], seconds: float
) -> Iterator[str]:
  """Yields the problems of workdir, model, machine and data; adds estimates to `lines`."""
  yield from _as_lines(workdir_lib.problems(workdir, config))
  of_model = [str(problem) for problem in model_checks.problems(config, workdir, "check")]
  yield from of_model
  if of_model:
    lines.append("data: lengths of prompts and replies are not checked, as the model has problems")
  if "judge" in config:
    yield from _as_lines(config_checks.as_problems(lambda: judge_factory.check(config, workdir)))
  taken = [0]  # bytes of disk
  yield from _data_problems(config, workdir, lines, taken, seconds, model_is_good=not of_model)
  yield from machine_check.problems(config, lines, taken)
  yield from _disk_problems(config, workdir, lines, taken[0])


def _as_lines(problems: Iterable[errors.InputError]) -> Iterator[str]:
  yield from map(str, problems)


def _data_problems(
  config: ml_collections.ConfigDict,
  workdir: Path,
  lines: list[str],
  taken: list[int],
  seconds: float,
  *,
  model_is_good: bool,
) -> Iterator[str]:
  shards, directory = paths.shards_directory(config, workdir), paths.data_directory(config, workdir)
  if atomic.is_whole(shards) or trace_store.summary(directory) is not None:
    lines.append(f"data: {directory} is complete")
    yield from _stored_problems(config, workdir, shards, lines, model_is_good=model_is_good)
    return
  with contextlib.ExitStack() as stack:
    try:
      videos, annotation_file, scale = _find_videos(config, stack)
      trial = stack.enter_context(
        ingest_trial.try_ingest(
          videos,
          annotation_file,
          data_stage.ingest_config(config.data),
          limits=paths.decode_limits(config.data),
          check_record=registry.make_environment(config).reference_problem,
          seconds=seconds,
        )
      )
      checks = _make_checks(config, workdir, trial.splits["train"], model_is_good=model_is_good)
    except errors.InputError as error:
      yield str(error)
      if config.data.annotations and not Path(config.data.videos).is_dir():
        read = functools.partial(annotations.read_first, Path(config.data.annotations))
        yield from _as_lines(config_checks.as_problems(read))
      return
    found = trial.problems if config.data.on_bad == "stop" else []
    if scale == 1:
      found += _as_lines(data_stage.split_problems(config, trial.splits))
    split_of = {each.id: split for split, part in trial.splits.items() for each in part}
    parts = {
      split: [each for each in trial.examples if split_of[each.id] == split]
      for split in check_examples.read_splits(config)
    }
    whole = scale == 1 and trial.read == trial.videos
    found += _unusable_examples(checks, parts, trial.store, lines, whole=whole)
    yield from _first_ones(found, "records and videos")
    count = round(scale * trial.videos)
    stored = trial.stored_bytes * count / max(trial.read, 1)
    taken[0] += round(stored)
    bad = f", and {trial.bad} could not be" if trial.bad else ""
    takes = durations.as_text(max(1, trial.seconds_per_video * count))
    lines.append(
      f"data: {trial.read - trial.bad} of {count} videos were read{bad}; all of them take about "
      f"{takes} and {machine_check.size_text(stored)} of disk"
    )
    if trial.problems and config.data.on_bad == "skip":
      lines.append(f"data: {len(trial.problems)} of them or their records would be left out")


def _find_videos(
  config: ml_collections.ConfigDict, stack: contextlib.ExitStack
) -> tuple[Path, Path, float]:
  """The videos and annotations of a run, and how many times as many the run has.

  A few are simulated where the run simulates its videos. Raises InputError if there are none.
  """
  data = config.data
  if not data.simulate.videos:
    data_stage.require_videos(data)
    return Path(data.videos), Path(data.annotations), 1.0
  raw = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "simulated"
  count = min(SIMULATED, data.simulate.videos)
  write.write_dataset(
    raw,
    world_config.WorldConfig(**data.simulate.world),
    videos=count,
    seed=data.simulate.seed,
    questions_per_video=data.simulate.questions_per_video,
  )
  return raw / "videos", raw / "annotations.jsonl", data.simulate.videos / count


def _stored_problems(
  config: ml_collections.ConfigDict,
  workdir: Path,
  shards: Path,
  lines: list[str],
  *,
  model_is_good: bool,
) -> Iterator[str]:
  try:
    ingest.check_annotations(shards, paths.annotation_file(config, workdir))
    store = frame_store.FrameStore(shards / "frames")
    splits = check_examples.read_splits(config)
    parts = {split: examples.ExampleSource(shards, split) for split in splits}
    checks = _make_checks(config, workdir, parts["train"], model_is_good=model_is_good)
  except errors.InputError as error:
    yield str(error)
    return
  found = list(_unusable_examples(checks, parts, store, lines, whole=True))
  yield from _first_ones(found, "examples")
  if isinstance(checks, check_examples.Checks) and not found:
    yield from _as_lines(
      config_checks.as_problems(lambda: data_stage.check_before_training(config, workdir, "all"))
    )


def _unusable_examples(
  checks: check_examples.ReferenceChecks,
  parts: Mapping[str, Sequence[records.Example] | examples.ExampleSource],
  store: frame_store.FrameStore,
  lines: list[str],
  *,
  whole: bool,
) -> Iterator[str]:
  """Yields a problem for each example that can't be used; with on_bad "skip", if nothing is left.

  parts: the examples of each split that the run reads.
  lines: gets what a run would skip, what its warm start leaves out, and what clips lack.
  whole: whether these are all examples of the run.
  """
  config, skips = checks.config, checks.config.data.on_bad == "skip"
  lengths, skipped = [], 0
  for split, part in parts.items():
    good = check_examples.GoodExamples()
    bad = [
      f"{batches.example_name(example)}: {problem}"
      for _, example, problem in checks.problems(part, store, split, good)
    ]
    if not skips:
      yield from bad
    else:
      shown = max(SHOWN - skipped, 0)
      lines += [f"would be skipped: {problem}" for problem in bad[:shown]]
      skipped += len(bad)
    nothing = check_examples.find_none_left(len(part), bad, len(good.no_reply)) if whole else ""
    if nothing and (skips or len(bad) < len(part)):
      yield f"{split}: {nothing}"
    if good.no_reply:
      lines.append(data_stage.no_reply_line(split, len(good.no_reply)))
    lengths += good.lengths
  if skipped > SHOWN:
    lines.append(f"would be skipped: {skipped - SHOWN} more (config.data.on_bad)")
  _add_short_clips(config, lengths, lines)


def _add_short_clips(
  config: ml_collections.ConfigDict, lengths: Sequence[int], lines: list[str]
) -> None:
  """Adds a line about clips with fewer frames than the recipe asks for, if there are any."""
  usual = sampling.usual_frames(paths.sampling_rule(config.data))
  if short := [length for length in lengths if length < usual]:
    lines.append(
      f"data: {len(short)} of {len(lengths)} clips have fewer stored frames than the {usual} of a "
      f"clip; they show fewer, at least {min(short)} (config.data.required_frames, "
      "config.data.fps)"
    )


def _make_checks(
  config: ml_collections.ConfigDict,
  workdir: Path,
  training: Iterable[records.Example],
  *,
  model_is_good: bool,
) -> check_examples.ReferenceChecks:
  """The checks of examples; those that need no tokenizer, if the model has problems.

  training: examples on whose texts the tokenizer is trained, as the data stage would, if the recipe
    asks for that and it has yet to be done.
  """
  if not model_is_good:
    return check_examples.ReferenceChecks(
      config=config, environment=registry.make_environment(config)
    )
  tokenizer = None
  if (
    config.model.tokenizer == paths.TRAINED and not paths.tokenizer_path(config, workdir).is_file()
  ):
    tokenizer = data_stage.train_tokenizer(config, itertools.islice(training, TRAINED_ON))
  return run_context.make_example_checks(config, workdir, tokenizer=tokenizer)


def _first_ones(found: list[str], what: str) -> Iterator[str]:
  yield from found[:SHOWN]
  if len(found) > SHOWN:
    yield f"{len(found) - SHOWN} more {what} have problems; mend these first, then check again"


def _disk_problems(
  config: ml_collections.ConfigDict, workdir: Path, lines: list[str], taken: int
) -> Iterator[str]:
  for place in dict.fromkeys((workdir, paths.data_directory(config, workdir))):
    there = _existing(place)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
      yield f"{place}: {there} can't be written"
  free = shutil.disk_usage(_existing(workdir)).free
  needed, there = machine_check.size_text(taken), machine_check.size_text(free)
  lines.append(f"disk: about {needed} in all, {there} are free")
  if taken > free:
    yield f"{workdir}: has {there} of free disk, and the run takes about {needed}"


def _existing(path: Path) -> Path:
  """The path itself, or the nearest directory above it that exists."""
  return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
