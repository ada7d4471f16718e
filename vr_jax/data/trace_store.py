"""Supervised traces on disk: outcomes chunk by chunk, and the final dataset.

The files, in one directory:

    about.json        what the traces depend on
    chunks/           one file a chunk: a line for each question, with its reply and outcome
    shards/           in the format of ingestion: examples with observation and reasoning, and the
                      source's frames
    traces.jsonl      accepted traces, in the fields of the released sets
    rejected.jsonl    rejected traces, each with the reason
    summary.json      counts; written last

All files are written atomically.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any

from vr_jax import atomic, buckets, plain_json, records
from vr_jax.data import examples, frame_store, ingest
from vr_jax.errors import InputError

SPLITS = ("train", "validation")  # get traces; the examples of `test` stay as they are
REASONS = ("no reply", "template", "answer", "insufficient", "no verdict")
_ABOUT, _SUMMARY = "about.json", "summary.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceChunk:
  """Questions that are asked, decided and written together. indices: in a split of the source."""

  split: str
  number: int
  indices: tuple[int, ...]

  @property
  def name(self) -> str:
    """The name of its file."""
    return f"{self.split}-{self.number:06d}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceOutcome:
  """The outcome of one question.

  index: of the example, in its split.
  reason: why the trace was rejected, one of REASONS; "" if it was accepted.
  score: of its answer, in [0, 1]; None if the reply could not be parsed.
  """

  index: int
  reply: str | None
  reason: str
  score: float | None = None
  observation: str = ""
  reasoning: str = ""


def claim(
  output: Path,
  about: Mapping[str, Any],
  *,
  field: str = "config.traces.directory",
  what: str = "traces",
) -> None:
  """Creates the directory for traces that depend on `about`, or checks that it already is theirs.

  about: JSON-able.
  field: of the config that gives the directory; what: is in it; for messages.

  Raises:
    InputError: the directory holds traces that depend on something else, or other files.
  """
  # Hosts may have their mounts of buckets in different places.
  path, wanted = output / _ABOUT, json.loads(buckets.as_addresses(json.dumps(about)))
  if path.is_file():
    written = json.loads(buckets.as_addresses(json.dumps(_read_json(path))))
    differ = sorted(key for key in {*written, *wanted} if written.get(key) != wanted.get(key))
    if differ:
      raise InputError(
        f"{path}: its {what} were written with another {', '.join(differ)}; choose another {field}"
      )
  elif output.is_dir() and any(path.suffix != atomic.PARTIAL for path in output.iterdir()):
    raise InputError(f"{output}: is not empty and holds no {what}; choose another directory")
  else:
    output.mkdir(parents=True, exist_ok=True)
    atomic.write_json_lines(path, [wanted])
  (output / "chunks").mkdir(exist_ok=True)


def plan(kept: Mapping[str, Sequence[int]], size: int) -> list[TraceChunk]:
  """Splits the indices of each split into chunks of at most `size`, in order."""
  return [
    TraceChunk(split=split, number=start // size, indices=tuple(indices[start : start + size]))
    for split, indices in kept.items()
    for start in range(0, len(indices), size)
  ]


def open_chunks(output: Path, chunks: Iterable[TraceChunk]) -> list[TraceChunk]:
  """Returns the chunks that are not decided yet."""
  return [chunk for chunk in chunks if not (output / "chunks" / chunk.name).is_file()]


def write_chunk(output: Path, chunk: TraceChunk, outcomes: Sequence[TraceOutcome]) -> None:
  """Writes the outcomes of a chunk's questions."""
  atomic.write_json_lines(output / "chunks" / chunk.name, map(dataclasses.asdict, outcomes))


def summary(output: Path) -> Mapping[str, Mapping[str, int]] | None:
  """Returns each split's counts: questions, accepted, each reason. None: traces are incomplete."""
  return _read_json(output / _SUMMARY) if (output / _SUMMARY).is_file() else None


def assemble(output: Path, source: Path, chunks: Sequence[TraceChunk]) -> Mapping[str, Any]:
  """Writes the dataset, both lists and the summary, once all chunks are decided.

  source: what ingestion wrote; has the examples.

  Returns the summary.

  Raises:
    InputError: a chunk is damaged, or writing fails.
  """
  splits = {split: [] for split in SPLITS}
  counts = {
    split: Counter(questions=0, accepted=0, **dict.fromkeys(REASONS, 0)) for split in splits
  }

  def accepted() -> Iterator[dict[str, Any]]:
    for split, example, outcome in _read_outcomes(output, source, chunks):
      counts[split].update(["questions", outcome.reason or "accepted"])
      if not outcome.reason:
        trace = {"observation": outcome.observation, "reasoning": outcome.reasoning}
        splits[split].append(dataclasses.replace(example, **trace))
        yield to_released_format(splits[split][-1], outcome.reply or "")

  def rejected() -> Iterator[dict[str, Any]]:
    for split, example, outcome in _read_outcomes(output, source, chunks):
      if outcome.reason:
        fields = {"reason": outcome.reason, "score": outcome.score, "output": outcome.reply}
        yield {"problem_id": example.id, "path": example.video, "split": split, **fields}

  atomic.write_json_lines(output / "traces.jsonl", accepted())
  atomic.write_json_lines(output / "rejected.jsonl", rejected())
  _write_shards(output, source, {**splits, "test": examples.ExampleSource(source, "test")})
  atomic.write_json_lines(output / _SUMMARY, [counts])
  return counts


def to_released_format(example: records.Example, reply: str) -> dict[str, Any]:
  """Converts an accepted trace to the fields of the released sets, which ingestion can read."""
  still = example.shown.start == example.shown.end
  return {
    **example.extra,
    "problem_id": example.id,
    "problem": example.question,
    "data_type": "image" if still else "video",
    "problem_type": example.problem_type,
    "options": list(example.options),
    "solution": f"<answer>{example.answer}</answer>",
    "answer": example.answer,
    "path": example.video,
    "data_source": example.source,
    "observation": f"<observation>{example.observation}</observation>",
    "process": f"<think>{example.reasoning}</think>",
    "output": reply,
  }


def _read_outcomes(
  output: Path, source: Path, chunks: Sequence[TraceChunk]
) -> Iterator[tuple[str, records.Example, TraceOutcome]]:
  """Yields all decided questions: split, example and outcome, in the order of the source."""
  sources = {split: examples.ExampleSource(source, split) for split in SPLITS}
  for chunk in chunks:
    path = output / "chunks" / chunk.name
    try:
      outcomes = [
        plain_json.build(TraceOutcome, plain_json.parse(line))
        for line in path.read_bytes().split(b"\n")
        if line
      ]
    except (OSError, ValueError, TypeError) as error:
      raise InputError(f"{path}: is damaged; remove it, and the same command goes on") from error
    if tuple(outcome.index for outcome in outcomes) != chunk.indices:
      raise InputError(f"{path}: holds other questions; remove it, and the same command goes on")
    for outcome in outcomes:
      yield chunk.split, sources[chunk.split][outcome.index], outcome


def _write_shards(
  output: Path,
  source: Path,
  splits: Mapping[str, Sequence[records.Example] | examples.ExampleSource],
) -> None:
  shards = output / "shards"
  atomic.finish_move(shards)
  shutil.rmtree(shards, ignore_errors=True)  # left by a run that ended before the summary
  with atomic.directory(shards) as partial:
    shutil.copytree(source / "frames", partial / "frames", copy_function=_link)
    examples.write(partial, splits)
    store = frame_store.FrameStore(partial / "frames")
    about = hashlib.sha256((output / "traces.jsonl").read_bytes()).hexdigest()
    report = ingest.Report(
      videos=len(store.videos),
      frames=sum(len(store.timestamps(video)) for video in store.videos),
      examples={split: len(part) for split, part in splits.items()},
      skipped_videos=0,
      skipped_records=0,
    )
    outcome = {"fingerprint": about, "report": dataclasses.asdict(report)}
    (partial / "ingest.json").write_text(json.dumps(outcome, indent=2) + "\n")


def _link(origin: str, target: str) -> None:
  """Hard-links a file, or copies it if that is impossible, as between disks."""
  try:
    os.link(origin, target)
  except OSError:
    shutil.copy2(origin, target)


def _read_json(path: Path) -> Any:
  try:
    return plain_json.parse(path.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: is damaged; remove it, and the same command goes on") from error
