"""MOSS-Video: states of objects over time, in our own format of annotations.

The set of MOSS-ChatV is not released. Who has it writes its questions as docs/data.md says, to
test.jsonl beside videos/.
"""

from collections.abc import Iterator, Mapping
import math
from pathlib import Path, PurePosixPath

from vr_jax import records
from vr_jax.data import annotations, benchmark_item, record_files
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_SCORERS: Mapping[str, benchmark_item.Scorer] = {
  "multiple choice": "choice",
  "numerical": "open_rule",
  "OCR": "open_rule",
  "free-form": "judge",
  "regression": "mra",
}


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads a split. `root` has test.jsonl (or train.jsonl) and videos/."""
  files = media_files.MediaFiles(root=root)
  for path in released_files.find_files(root, f"{split}.jsonl", f"{split}.json"):
    # The videos need not be there: what is absent is listed, as of every benchmark.
    values = [parse() for _, parse in record_files.entries(path)]
    named = [value.get("video") for value in values if isinstance(value, dict)]
    videos = {PurePosixPath(name).as_posix() for name in named if isinstance(name, str) and name}
    for each in annotations.read(path, videos, on_bad=_refuse):
      yield each.where, _item(each, split, files)


def _refuse(where: str, error: InputError) -> None:
  del where  # the error names it
  raise error


def _item(
  annotation: annotations.Annotation, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  where, example = annotation.where, annotation.example
  if example.problem_type not in _SCORERS:
    raise InputError(f"{where}: a {example.problem_type} question is none of MOSS-Video's")
  is_whole = math.isinf(example.shown.end)
  return benchmark_item.Item(
    id=example.id,
    benchmark="moss_video",
    split=split,
    video=files.find(where, f"videos/{example.video}"),
    question=example.question,
    scorer=_SCORERS[example.problem_type],
    answer=example.answer,
    options=options.strip_letters(example.options, where, required=bool(example.options)),
    clip=None if is_whole else example.shown,
    strata={"task": (example.problem_type,)},
    cluster=PurePosixPath(example.video).with_suffix("").as_posix(),
    steps=tuple(map(_step, example.steps)),
    source_record=_source(example),
  )


def _step(step: records.Step) -> benchmark_item.ItemStep:
  times = None if math.isinf(step.end) else (step.start, step.end)
  return benchmark_item.ItemStep(text=step.text, times=times)


def _source(example: records.Example) -> dict[str, object]:
  """What of the annotation has no field in an item."""
  masked = example.masked
  source: dict[str, object] = {"problem_type": example.problem_type, **example.extra}
  return source | ({"masked": [masked.start, masked.end]} if masked else {})


BENCHMARK = benchmark_set.BenchmarkSet(
  name="moss_video",
  title="MOSS-Video",
  read=read,
  splits=("test", "train"),
  published={"test": benchmark_set.in_all(2836, videos=479)},
  source="not released; write its questions in our format (docs/data.md)",
  licence="of the clips, ShareGPT4Video: CC BY-NC 4.0",
)
