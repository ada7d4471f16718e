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

import jax
import ml_collections

from vr_jax import errors, records
from vr_jax.data import (
  annotations,
  examples,
  frame_store,
  ingest,
  ingest_trial,
  sampling,
  trace_store,
)
from vr_jax.envs import registry
from vr_jax.models.common import prompts
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import (
  check_examples,
  config_checks,
  console,
  data_stage,
  estimates,
  judge_factory,
  model_checks,
  model_setup,
  paths,
  run_context,
  step_shapes,
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
  mesh_lib.set_cpu_devices(config.cpu_devices if config else 0)
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
  yield from _machine_problems(config, lines, taken)
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
  if shards.is_dir() or trace_store.summary(directory) is not None:
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
    test = {example.id for example in trial.splits["test"]}
    parts = {
      "test": [each for each in trial.examples if each.id in test],
      "train": [each for each in trial.examples if each.id not in test],
    }
    unusable, lengths = _find_unusable(checks, parts, trial.store)
    if config.data.on_bad == "skip":
      yield from _skipped(unusable, parts if trial.read == trial.videos else {}, lines)
    else:
      found += [problem for split in unusable.values() for problem in split]
    yield from _first_ones(found, "records and videos")
    _add_short_clips(config, lengths, lines)
    count = round(scale * trial.videos)
    stored = trial.stored_bytes * count / max(trial.read, 1)
    taken[0] += round(stored)
    bad = f", and {trial.bad} could not be" if trial.bad else ""
    lines.append(
      f"data: {trial.read - trial.bad} of {count} videos were read{bad}; all of them take about "
      f"{_duration(trial.seconds_per_video * count)} and {_size(stored)} of disk"
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
    sources = {split: examples.ExampleSource(shards, split) for split in check_examples.SPLITS}
    checks = _make_checks(config, workdir, _all(sources["train"]), model_is_good=model_is_good)
  except errors.InputError as error:
    yield str(error)
    return
  parts = {split: list(_all(source)) for split, source in sources.items()}
  unusable, lengths = _find_unusable(checks, parts, store)
  found = []
  if config.data.on_bad == "skip":
    found += _skipped(unusable, parts, lines)
  else:
    found += [problem for split in unusable.values() for problem in split]
  yield from _first_ones(found, "examples")
  _add_short_clips(config, lengths, lines)
  if isinstance(checks, check_examples.Checks) and not found:
    yield from _as_lines(
      config_checks.as_problems(lambda: data_stage.check_before_training(config, workdir, "all"))
    )


def _find_unusable(
  checks: check_examples.ReferenceChecks,
  parts: Mapping[str, Sequence[records.Example]],
  store: frame_store.FrameStore,
) -> tuple[dict[str, list[str]], list[int]]:
  """A line for each example that can't be used, by split; and the frames of the other clips."""
  lengths: list[int] = []
  unusable = {
    split: list(checks.problems(part, store, split, lengths)) for split, part in parts.items()
  }
  return unusable, lengths


def _skipped(
  unusable: Mapping[str, Sequence[str]],
  parts: Mapping[str, Sequence[records.Example]],
  lines: list[str],
) -> Iterator[str]:
  """Adds what a run with on_bad "skip" leaves out to `lines`; a problem if nothing is left.

  parts: the examples by split, where these are all that the run has.
  """
  found = [problem for split in unusable.values() for problem in split]
  lines += [f"would be skipped: {problem}" for problem in found[:SHOWN]]
  if len(found) > SHOWN:
    lines.append(f"would be skipped: {len(found) - SHOWN} more (config.data.on_bad)")
  for split, part in parts.items():
    if part and len(unusable[split]) == len(part):
      yield f"{split}: not one good example is left; first, {unusable[split][0]}"


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


def _all(source: examples.ExampleSource) -> Iterator[records.Example]:
  return (source[index] for index in range(len(source)))


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


def _machine_problems(
  config: ml_collections.ConfigDict, lines: list[str], taken: list[int]
) -> Iterator[str]:
  """Checks the devices; adds estimates to `lines` and to the bytes of disk that are `taken`."""
  try:
    mesh = mesh_lib.make_mesh(config.mesh)
  except errors.InputError as error:
    yield str(error)
    return
  sections = [name for name in ("sft", "rl") if config[name].steps]
  for name in (*sections, "eval"):
    check = functools.partial(
      mesh_lib.check_batch, config[name].batch_size, mesh, f"config.{name}.batch_size"
    )
    yield from _as_lines(config_checks.as_problems(check))
  if list(config_checks.as_problems(lambda: model_setup.model_of(config))):
    lines.append("memory, checkpoints and time: not estimated, as the model's sizes are not known")
    return
  try:
    estimate = estimates.estimate(config, mesh)
  except errors.InputError as error:
    yield str(error)
    return
  lines += _describe_steps(config, model_setup.model_of(config).vision_shapes)
  kind, memory = mesh.devices.flat[0].device_kind, estimate.memory
  known = f" of {_size(memory.available)}" if memory.available else ""
  lines.append(
    f"memory: a device ({kind}, {mesh.size} of them) needs at least {_size(memory.total)}{known}: "
    f"state {_size(memory.state)}, gradient {_size(memory.gradient)}, or sampling "
    f"{_size(memory.sampling)}; activations are not counted"
  )
  if memory.available and memory.total > memory.available:
    yield (
      f"{kind}: a device has {_size(memory.available)} of memory, and the run needs at least "
      f"{_size(memory.total)}; use {_memory_advice(config, mesh, memory)}"
    )
  taken[0] += estimate.checkpoint_bytes
  lines.append(f"disk: {_size(estimate.checkpoint_bytes)} of checkpoints, while one is written")
  if estimate.feature_bytes:
    most = config.model.feature_cache_gib * estimates.GIB
    taken[0] += round(most)
    lines.append(
      f"disk: {_size(estimate.feature_bytes)} of features a clip, at most {_size(most)} "
      "(config.model.feature_cache_gib)"
    )
  for stage, step in (("sft", estimate.sft_step), ("rl", estimate.rl_step)):
    if steps := config[stage].steps:
      lines.append(
        f"time: {stage}: not known for {kind}; the first steps tell"
        if step is None
        else f"time: {stage}: at least {step:.3g} s a step by the device's peak rates, "
        f"{_duration(step * steps)} for {steps} steps"
      )


def _describe_steps(
  config: ml_collections.ConfigDict, shapes: prompts.VisionShapes
) -> Iterator[str]:
  """What the run's steps come to: how many updates, of what size at the most."""
  sft, rl = config.sft, config.rl
  if sft.steps:
    yield (
      f"run: sft: {sft.steps} updates of {sft.batch_size} examples, replies of at most "
      f"{sft.max_reply_tokens} tokens"
    )
  if rl.steps:
    yield (
      f"run: rl: {rl.steps} steps of {rl.num_iterations} update{'s' * (rl.num_iterations != 1)}, "
      f"each of {rl.batch_size} prompts x {rl.num_generations} replies of at most "
      f"{rl.max_new_tokens} tokens"
    )
  frames = max(config.model.patch_buckets) // max(shapes.patches_per_image, 1)
  if shapes.images_per_frame:
    frames = max(config.model.frame_buckets) * shapes.images_per_frame
  pixels = step_shapes.frame_pixels(config.model, frames)
  yield (
    f"run: a prompt shows at most {frames} frames of at most {pixels} pixels, "
    f"and has at most {max(config.model.prefix_buckets)} tokens"
  )


def _memory_advice(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, memory: estimates.DeviceMemory
) -> str:
  """What makes a run fit its devices; each way but the first was estimated to be enough."""
  assert memory.available is not None
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  ways = ["a host with more memory" if on_cpu else "more devices (config.mesh)"]
  if not config.model.lora.rank:
    adapted = ml_collections.ConfigDict(config.to_dict())
    adapted.model.lora.rank = 16
    with contextlib.suppress(errors.InputError):
      if estimates.estimate(adapted, mesh).memory.total <= memory.available:
        ways.append("adapters (config.model.lora.rank=16)")
  room = memory.available - memory.state - (memory.sampling - memory.cache)
  if memory.state + memory.gradient <= memory.available and 0 < room < memory.cache:
    size = config.rl.batch_size * room // memory.cache // mesh.size * mesh.size
    if size:
      ways.append(f"fewer replies (config.rl.batch_size={size})")
  return " or ".join(ways)


def _disk_problems(
  config: ml_collections.ConfigDict, workdir: Path, lines: list[str], taken: int
) -> Iterator[str]:
  for place in dict.fromkeys((workdir, paths.data_directory(config, workdir))):
    there = _existing(place)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
      yield f"{place}: {there} can't be written"
  free = shutil.disk_usage(_existing(workdir)).free
  lines.append(f"disk: about {_size(taken)} in all, {_size(free)} are free")
  if taken > free:
    yield f"{workdir}: has {_size(free)} of free disk, and the run takes about {_size(taken)}"


def _existing(path: Path) -> Path:
  """The path itself, or the nearest directory above it that exists."""
  return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())


def _size(number: float) -> str:
  return f"{number / estimates.GIB:.3g} GiB" if number >= 2**27 else f"{number / 2**20:.3g} MiB"


def _duration(seconds: float) -> str:
  if seconds < 1:
    return "a second"
  if seconds < 100:
    return f"{seconds:.2g} s"
  return f"{seconds / 60:.2g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
