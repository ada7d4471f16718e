"""TempCompass: five temporal aspects of short videos, asked in four formats.

questions/<format>.json is {video: {aspect: [{"question", "answer"}]}}. Options follow the question
in lines: "A. …" of multi-choice, "Caption A: …", "Sentence A: …" or "Option 1: …" of
caption_matching. A caption is judged by the first multi-choice question about the same video and
aspect: `mc_question` and `mc_answer`, which lmms-eval's copy has in its rows and which are added to
`source_record` here. lmms-eval's copy has a row for each question, with `video_id` and `dim`.

Videos such as 12_reverse, 12_concat_0 and 12_34_1 are made of others, the last one of two. What is
made of a common source, directly or by way of others, is one cluster.

Source: llyx97/TempCompass, questions/ and eval_captioning.py; lmms-eval, tasks/tempcompass.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_SCORERS: Mapping[str, benchmark_item.Scorer] = {
  "multi-choice": "choice",
  "yes_no": "yes_no",
  "caption_matching": "caption_match",
  "captioning": "caption_judge",
}
_PUBLISHED = {
  "multi-choice": 1580,
  "yes_no": 2453,
  "caption_matching": 1503,
  "captioning": 2004,
}
ASPECTS = ("action", "speed", "direction", "order", "attribute_change")
_DERIVED = re.compile(r"(?:_reverse|_concat(?:_\d+)?)+$")
_OF_TWO = re.compile(r"(\d+)_(\d+)_\d+")
_CAPTION = re.compile(r"(?:Caption|Sentence|Option|Description) ?(?:([A-Z])|(\d)): *(.+)")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads a format, or all (test). `root` has questions/ and videos/."""
  files = media_files.MediaFiles(root=root)
  found = [
    each for form in (_SCORERS if split == "test" else (split,)) for each in _find(root, form)
  ]
  clusters = find_clusters(each.video for each in found)
  for each in found:
    yield each.record.where, _item(each, split, clusters[each.video], files)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AspectQuestion:
  """A record with its format, video, aspect, and number among those of all three."""

  record: released_files.ReleasedRecord
  form: str
  video: str
  aspect: str
  number: int


def find_clusters(videos: Iterable[str]) -> dict[str, str]:
  """The cluster of each video: the first, in the order of names, of the sources that it shares."""
  parents: dict[str, str] = {}

  def root_of(source: str) -> str:
    while parents.setdefault(source, source) != source:
      parents[source] = source = parents[parents[source]]
    return source

  sources = {video: find_sources(video) for video in videos}
  for first, *others in sources.values():
    for other in others:
      low, high = sorted((root_of(first), root_of(other)))
      parents[high] = low
  return {video: root_of(first) for video, (first, *_) in sources.items()}


def find_sources(video: str) -> tuple[str, ...]:
  """The source videos that a video is made of, by its name."""
  base = _DERIVED.sub("", video) or video
  match = _OF_TWO.fullmatch(base)
  return match.groups() if match else (base,)


def _find(root: Path, form: str) -> Iterator[AspectQuestion]:
  """The records of a format, of the release or of lmms-eval's copy."""
  paths = released_files.find_files(root, f"questions/{form}.json", f"{form}/test-*.parquet")
  if paths[0].suffix == ".parquet":
    yield from _copied(paths, form)
    return
  beside = paths[0].with_name("multi-choice.json")
  choices = None
  for each in _released(paths[0], form):
    if form == "captioning" and not each.record.has("mc_question"):
      if choices is None:
        choices = released_files.read_object(beside) if beside.exists() else {}
      each = dataclasses.replace(each, record=_with_first_choice(each, choices))
    yield each


def _released(path: Path, form: str) -> Iterator[AspectQuestion]:
  for video, aspects in released_files.read_object(path).items():
    where = f"{path}: video {video!r:.60}"
    if not isinstance(aspects, dict):
      raise InputError(f"{where}: needs an object of aspects, is {aspects!r:.60}")
    for aspect, questions in aspects.items():
      if not isinstance(questions, list) or not all(isinstance(each, dict) for each in questions):
        raise InputError(f"{where}, {aspect!r:.40}: needs a list of objects")
      for number, fields in enumerate(questions):
        place = f"{where}, {aspect!r:.40}, question {number}"
        yield AspectQuestion(
          record=released_files.ReleasedRecord(where=place, fields=fields),
          form=form,
          video=video,
          aspect=aspect,
          number=number,
        )


def _copied(paths: Iterable[Path], form: str) -> Iterator[AspectQuestion]:
  seen: dict[tuple[str, str], int] = {}
  for record in (each for path in paths for each in released_files.read_records(path)):
    video, aspect = record.text("video_id"), record.text("dim")
    number = seen.get((video, aspect), 0)
    seen[video, aspect] = number + 1
    yield AspectQuestion(record=record, form=form, video=video, aspect=aspect, number=number)


def _with_first_choice(
  question: AspectQuestion, choices: Mapping[str, Any]
) -> released_files.ReleasedRecord:
  """A record of captioning with the multi-choice question that its caption has to answer."""
  try:
    first = choices[question.video][question.aspect][0]
    added = {"mc_question": first["question"], "mc_answer": first["answer"]}
  except (KeyError, IndexError, TypeError):
    raise InputError(
      f"{question.record.where}: multi-choice.json has no question about this video and aspect, "
      "by which its captions are judged"
    ) from None
  return dataclasses.replace(question.record, fields={**question.record.fields, **added})


def _item(
  found: AspectQuestion, split: str, cluster: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  record, form, video, aspect = found.record, found.form, found.video, found.aspect
  if aspect not in ASPECTS:
    raise InputError(f"{record.where}: aspect {aspect!r:.40} is none of {', '.join(ASPECTS)}")
  question, choices, answer = _ask(record, form)
  return benchmark_item.Item(
    id=f"{form}-{video}-{aspect}-{found.number}",
    benchmark="tempcompass",
    split=split,
    video=files.find(record.where, f"videos/{video}.mp4"),
    question=question,
    scorer=_SCORERS[form],
    answer=answer,
    options=choices,
    strata={"format": (form,), "aspect": (aspect,)},
    cluster=cluster,
    source_record=record.source(),
  )


def _ask(record: released_files.ReleasedRecord, form: str) -> tuple[str, tuple[str, ...], str]:
  """Question, options and answer of a record."""
  if form == "captioning":
    mc_question, choices = options.split_question(record.text("mc_question"), record.where)
    del mc_question
    options.check_letter(record.text("mc_answer"), choices, record.where)
    return record.text("question"), (), record.text("mc_answer")
  if form == "yes_no":
    answer = record.text("answer").lower()
    if answer not in ("yes", "no"):
      raise record.wrong("answer", "yes or no")
    return record.text("question"), (), answer
  if form == "multi-choice":
    question, choices = options.split_question(record.text("question"), record.where)
    return question, choices, options.check_letter(record.text("answer"), choices, record.where)
  question, *lines = record.text("question").split("\n")
  captions = [_CAPTION.fullmatch(line.strip()) for line in lines if line.strip()]
  if len(captions) < 2 or not all(captions):
    raise record.wrong("question", "a line and then captions such as 'Caption A: …'")
  stripped = [caption[0] for caption in captions if caption]
  letter = options.letter_of_text(record.text("answer"), stripped, record.where)
  return question.strip(), tuple(caption[3] for caption in captions if caption), letter


BENCHMARK = benchmark_set.BenchmarkSet(
  name="tempcompass",
  title="TempCompass",
  read=read,
  splits=("test", *_SCORERS),
  published={
    "test": {**benchmark_set.in_all(7540, videos=410), "format": _PUBLISHED},
    **{form: benchmark_set.in_all(count) for form, count in _PUBLISHED.items()},
  },
  source="https://github.com/llyx97/TempCompass",
  licence="CC BY-NC 4.0",
)
