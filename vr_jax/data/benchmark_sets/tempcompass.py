"""TempCompass: five temporal aspects of short videos, asked in four formats.

questions/<format>.json is {video: {aspect: [{"question", "answer"}]}}. Options follow the question
in lines: "A. …" of multi-choice, "Caption A: …", "Sentence A: …" or "Option 1: …" of
caption_matching. A caption is judged by the first multi-choice question about the same video and
aspect: `mc_question` and `mc_answer`, which lmms-eval's copy has in its rows and which are added to
`source_record` here. lmms-eval's copy has a row for each question, with `video_id` and `dim`.

Videos such as 12_reverse are made of others; their answers count as about the same video.

Source: llyx97/TempCompass, questions/ and eval_captioning.py; lmms-eval, tasks/tempcompass.
"""

from collections.abc import Iterator, Mapping
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
_CAPTION = re.compile(r"(?:Caption|Sentence|Option|Description) ?(?:([A-Z])|(\d)): *(.+)")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads a format, or all (test). `root` has questions/ and videos/."""
  files = media_files.MediaFiles(root=root)
  for form in _SCORERS if split == "test" else (split,):
    patterns = (f"questions/{form}.json", f"{form}/test-*.parquet")
    paths = released_files.find_files(root, *patterns)
    first_choices: Mapping[str, Any] = {}
    if paths[0].suffix == ".json":
      found = _released(paths[0])
      beside = paths[0].with_name("multi-choice.json")
      if form == "captioning" and beside.exists():
        first_choices = released_files.read_object(beside)
    else:
      found = (each for path in paths for each in _copied(path))
    for record, video, aspect, number in found:
      if form == "captioning" and not record.has("mc_question"):
        record = _with_first_choice(record, first_choices, video, aspect)
      item = _item(record, form, split, video, aspect, number, files)
      yield record.where, item


Found = tuple[released_files.ReleasedRecord, str, str, int]


def _released(path: Path) -> Iterator[Found]:
  """Records of the released file with video, aspect and number within both."""
  for video, aspects in released_files.read_object(path).items():
    where = f"{path}: video {video!r:.60}"
    if not isinstance(aspects, dict):
      raise InputError(f"{where}: needs an object of aspects, is {aspects!r:.60}")
    for aspect, questions in aspects.items():
      if not isinstance(questions, list) or not all(isinstance(each, dict) for each in questions):
        raise InputError(f"{where}, {aspect!r:.40}: needs a list of objects")
      for number, fields in enumerate(questions):
        place = f"{where}, {aspect!r:.40}, question {number}"
        yield released_files.ReleasedRecord(where=place, fields=fields), video, aspect, number


def _copied(path: Path) -> Iterator[Found]:
  """Records of lmms-eval's copy."""
  seen: dict[tuple[str, str], int] = {}
  for record in released_files.read_records(path):
    video, aspect = record.text("video_id"), record.text("dim")
    number = seen.get((video, aspect), 0)
    seen[video, aspect] = number + 1
    yield record, video, aspect, number


def _with_first_choice(
  record: released_files.ReleasedRecord, choices: Mapping[str, Any], video: str, aspect: str
) -> released_files.ReleasedRecord:
  """A record of captioning with the multi-choice question that its caption has to answer."""
  try:
    first = choices[video][aspect][0]
    added = {"mc_question": first["question"], "mc_answer": first["answer"]}
  except (KeyError, IndexError, TypeError):
    raise InputError(
      f"{record.where}: multi-choice.json, whose first question about this video and aspect judges "
      "the caption, has none"
    ) from None
  return dataclasses.replace(record, fields={**record.fields, **added})


def _item(
  record: released_files.ReleasedRecord,
  form: str,
  split: str,
  video: str,
  aspect: str,
  number: int,
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  if aspect not in ASPECTS:
    raise InputError(f"{record.where}: aspect {aspect!r:.40} is none of {', '.join(ASPECTS)}")
  question, choices, answer = _ask(record, form)
  return benchmark_item.Item(
    id=f"{form}-{video}-{aspect}-{number}",
    benchmark="tempcompass",
    split=split,
    video=files.find(record.where, f"videos/{video}.mp4"),
    question=question,
    scorer=_SCORERS[form],
    answer=answer,
    options=choices,
    strata={"format": (form,), "aspect": (aspect,)},
    cluster=_DERIVED.sub("", video),
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
