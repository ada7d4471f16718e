"""Stage `construct`: makes questions about masked futures from captions of videos.

captions -> states over time -> masked future -> filters -> chunk on disk -> data set

It builds data as MOSS-ChatV describes those of MOSS-Video, from captions of ShareGPT4Video or of
the simulator. Outcomes are written chunk by chunk, so the same command resumes after any
interruption, in this process or in those of a Beam pipeline. See docs/moss_video.md.
"""

from collections.abc import Mapping, Sequence
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from vr_jax import atomic, errors, plain_json, schema
from vr_jax.data import annotations, ingest, trace_store
from vr_jax.traces import pipeline
from vr_jax.traces.construct import (
  asker,
  assembly,
  beam,
  benchmark_files,
  chunk_work,
  video_files,
)
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.train import console
from vr_jax.worlds import captions as world_captions
from vr_jax.worlds import config as world_config
from vr_jax.worlds import write as worlds_write

_CAPTIONS = "captions.jsonl"  # of the simulator
# Fields that change nothing in what is written.
_HOW = (
  *("directory", "key_variable", "in_flight", "timeout", "retries", "budget", "workers", "beam"),
  "on_bad",  # decides whether a run stops, not what a line gives
)


def write(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Writes config.construct.directory, or resumes an interrupted start.

  Raises:
    InputError: a field contradicts another one, a line or video is bad (unless those are skipped),
      no question is left, a package is missing, the model doesn't work, or the directory holds
      questions that were made otherwise.
  """
  check(config)
  section = config.construct
  output = Path(section.directory) if section.directory else workdir / "construct"
  if section.workers:
    pipeline.Pipeline.load(section, "construct")
  source = _caption_file(config, output)
  trace_store.claim(
    output, _about(config, source), field="config.construct.directory", what="questions"
  )
  if (output / assembly.SUMMARY).is_file():
    summary = _read_summary(output)
    if lost := summary["bad_records"] + summary["rejected"].get("no verdict", 0):
      assembly.check_complete(output, config, f"the captions ({lost} lines, videos or questions)")
    _print_counts(summary, output)
    return
  bad = ingest.BadInputs(section.on_bad)
  videos = captions_lib.read(
    source, keyframe_fps=section.keyframe_fps, even=section.even_times, on_bad=bad
  )
  videos, known = video_files.look(videos, config, output / "frames", bad)
  if not videos:
    raise errors.InputError(_nothing_left(source, bad.entries))
  chunks = chunk_work.plan(videos, section.batch_size)
  decide(chunks, section, output)
  summary = assembly.assemble(output, chunks, config, known, bad.entries)
  _print_counts(summary, output)


def decide(
  chunks: Sequence[chunk_work.CaptionChunk],
  section: ml_collections.ConfigDict,
  output: Path,
) -> None:
  """Does the chunks that are not done yet, here or in the workers of a pipeline."""
  left = chunk_work.open_chunks(output, chunks)
  if section.workers:
    beam.work(left, section, output)
    return
  if not left:
    return
  worker = chunk_work.make_worker(section, output)
  before = len(chunks) - len(left)
  with (
    contextlib.closing(worker),
    console.progress("construct", len(chunks), done=before) as tick,
  ):
    for done, chunk in enumerate(left, start=1):
      worker.work(chunk)
      tick(before + done)


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError if the recipe has no section `construct`, or its fields contradict."""
  if "construct" not in config:
    raise errors.InputError(
      f"config.recipe={config.recipe}: has no section construct; --mode=construct is of moss_chatv"
    )
  section = config.construct
  if not section.captions and not config.data.simulate.videos:
    raise errors.InputError(
      "--config.construct.captions: is empty; give a caption file, or captions are those of "
      "simulated videos (config.data.simulate.videos)"
    )
  if section.benchmarks and not section.videos:
    raise errors.InputError(
      f"--config.construct.benchmarks={section.benchmarks}: needs config.construct.videos, whose "
      "frames are compared with them"
    )
  if section.least_options > section.options:
    raise errors.InputError(
      f"--config.construct.least_options={section.least_options}: is more than "
      f"config.construct.options={section.options}"
    )
  if section.least_steps > section.most_steps:
    raise errors.InputError(
      f"--config.construct.least_steps={section.least_steps}: is more than "
      f"config.construct.most_steps={section.most_steps}"
    )
  for name in ("blind_right", "trace_right"):
    if section[name] > section.guesses:
      raise errors.InputError(
        f"--config.construct.{name}={section[name]}: is more than "
        f"config.construct.guesses={section.guesses}"
      )
  if section.workers > 1 and section.budget:
    raise errors.InputError(
      f"--config.construct.budget={section.budget}: is that of one process; with "
      f"config.construct.workers={section.workers} set it to 0"
    )
  if section.reader == "local" and section.workers > 1:
    raise errors.InputError(
      f"--config.construct.reader=local: each of config.construct.workers={section.workers} would "
      "load the model; set them to 1 or 0"
    )
  if section.reader in ("openai", "anthropic") and section.workers > section.in_flight:
    raise errors.InputError(
      f"--config.construct.in_flight={section.in_flight}: is less than "
      f"config.construct.workers={section.workers}; raise it, or take fewer"
    )


def _caption_file(config: ml_collections.ConfigDict, output: Path) -> Path:
  """The captions: the user's, or those of the simulated videos, which are written here."""
  section = config.construct
  if section.captions:
    return Path(section.captions)
  simulate = config.data.simulate
  world = schema.build(world_config.WorldConfig, simulate.world)
  if world.is_search or world.is_tracking:
    raise errors.InputError(
      "--config.data.simulate.world.behaviours: nothing repeats in such a world, so no future "
      "can be told"
    )
  scenes = worlds_write.distinct_videos(
    world,
    videos=simulate.videos,
    seed=simulate.seed,
    questions=simulate.questions_per_video,
  )
  lines = (
    world_captions.record(
      scene,
      name=Path(examples[0].video).stem,
      video=examples[0].video,
      rng=np.random.default_rng([section.seed, number]),
    )
    for number, (scene, examples) in enumerate(scenes)
  )
  path = output.parent / f"{output.name}-{_CAPTIONS}"
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic.write_json_lines(path, lines)
  return path


def _about(config: ml_collections.ConfigDict, source: Path) -> dict[str, Any]:
  """Returns what the questions depend on, JSON-able."""
  section = config.construct.to_dict()
  data = config.data
  hashes = [_hash(path) for path in annotations.find_files(source)]
  kept = {name: value for name, value in section.items() if name not in _HOW}
  split = (data.validation_fraction, data.test_fraction, data.split_seed)
  about = {**kept, "captions": hashes, "split": list(split)}
  if section["benchmarks"]:
    about["files of benchmarks"] = benchmark_files.describe(Path(section["benchmarks"]))
  if section["reader"] == "local":
    about["weights"] = asker.identity_of(config.construct)
  return about


def _hash(path: Path) -> str:
  try:
    with path.open("rb") as file:
      return hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise errors.InputError(f"{path}: cannot be read: {error.strerror}") from error


def _nothing_left(source: Path, entries: Sequence[Mapping[str, str]]) -> str:
  first = f"; first, {entries[0]['where']}: {entries[0]['problem']}" if entries else ""
  return f"{source}: not one usable line is left{first}"


def _read_summary(output: Path) -> Mapping[str, Any]:
  path = output / assembly.SUMMARY
  try:
    return plain_json.parse(path.read_bytes())
  except (OSError, ValueError) as error:
    raise errors.InputError(
      f"{path}: is damaged; remove it, and the same command goes on"
    ) from error


def _print_counts(summary: Mapping[str, Any], output: Path) -> None:
  reasons = [f"{count} {reason}" for reason, count in summary["rejected"].items() if count]
  rejected = f"; left out: {', '.join(reasons)}" if reasons else ""
  console.print_line(
    f"construct: {summary['kept']} of {summary['questions']} questions about {summary['videos']} "
    f"videos kept{rejected}"
  )
  if summary["bad_records"]:
    console.print_line(
      f"construct: {summary['bad_records']} lines and videos could not be used "
      f"({output / 'bad_records.jsonl'})"
    )
  if left := (summary["benchmarks"] or {}).get("not_compared"):
    console.print_line(
      f"construct: {len(left)} files of benchmarks were not compared, such as {next(iter(left))}"
    )
  console.print_line(
    f"construct: {output / 'statistics.md'}; train on them with "
    f"--config.data.annotations={output / 'annotations.jsonl'} and --config.data.videos"
  )
