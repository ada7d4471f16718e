"""MMVU: questions of experts about videos of 27 subjects, with options or open.

Fields: `id`, `video` (an address, of which the path after videos/ is the file) or lmms-eval's
`video_path`, `question_type`, `question`, `choices` (by letter, empty ones for open questions),
`answer`. The test split is hidden.

Source: yale-nlp/MMVU, README; the discipline of each subject: lmms-eval, tasks/mmvu.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
import string

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_SUBJECTS = {
  "Science": (
    *("Astronomy", "Biology", "Chemistry", "Electromagnetism", "Geography", "Materials_Science"),
    *("Mechanics", "Modern_Physics", "Neurobiology", "Thermodynamics"),
  ),
  "Engineering": (
    *("Biomedical_Engineering", "Civil_Engineering", "Computer_Science", "Electrical_Engineering"),
    *("Electronics_and_Communication", "Mechanical_Engineering"),
  ),
  "Healthcare": (
    *("Basic_Medicine", "Clinical_Medicine", "Dentistry", "Pharmacy", "Preventive_Medicine"),
  ),
  "Humanities and Social Science": (
    *("Art", "Economics", "History", "Law", "Literature", "Management"),
  ),
}
_DISCIPLINES = {subject: name for name, subjects in _SUBJECTS.items() for subject in subjects}
_FORMATS = ("multiple-choice", "open-ended")


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the validation questions. `root` has validation.json and videos/."""
  patterns = (
    f"{split}.json",
    f"data/{split}.json",
    f"{split}-*.parquet",
    f"data/{split}-*.parquet",
  )
  files = media_files.MediaFiles(root=root)
  for path in released_files.find_files(root, *patterns):
    for record in released_files.read_records(path):
      name = record.name("id")
      yield record.where, _item(record.named(name), name, split, files)


def _item(
  record: released_files.ReleasedRecord, name: str, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  form = record.text("question_type")
  if form not in _FORMATS:
    raise record.wrong("question_type", " or ".join(_FORMATS))
  address = record.text("video" if record.has("video") else "video_path")
  _, found, below = f"/{address}".rpartition("/videos/")
  if not found or "/" not in below:
    raise InputError(f"{record.where}: {address!r:.80} has no path after videos/")
  subject = PurePosixPath(below).parts[0]
  if subject not in _DISCIPLINES:
    raise InputError(f"{record.where}: subject {subject!r:.60} is none of MMVU's 27")
  choices = _choices(record) if form == "multiple-choice" else ()
  answer = record.name("answer")
  if choices:
    answer = options.check_letter(answer, choices, record.where)
  return benchmark_item.Item(
    id=name,
    benchmark="mmvu",
    split=split,
    video=files.find(record.where, f"videos/{below}"),
    question=record.text("question"),
    scorer="choice" if choices else "judge",
    answer=answer,
    options=choices,
    strata={"discipline": (_DISCIPLINES[subject],), "subject": (subject,), "format": (form,)},
    cluster=PurePosixPath(below).with_suffix("").as_posix(),
    source_record=record.source(),
  )


def _choices(record: released_files.ReleasedRecord) -> tuple[str, ...]:
  """The choices in the order of their letters."""
  choices = record.object("choices")
  letters = string.ascii_uppercase[: len(choices.fields)]
  if sorted(choices.fields) != list(letters):
    raise record.wrong("choices", "the letters A, B, … as names")
  texts = ["" if choices.fields[each] in (None, "") else choices.text(each) for each in letters]
  kept = options.drop_empty(texts, ("",), record.where)
  if len(kept) < 2:
    raise record.wrong("choices", "two or more choices")
  return kept


BENCHMARK = benchmark_set.BenchmarkSet(
  name="mmvu",
  title="MMVU",
  read=read,
  splits=("validation",),
  published={
    "validation": {
      **benchmark_set.in_all(1000),
      "format": {"multiple-choice": 625, "open-ended": 375},
    }
  },
  source="https://huggingface.co/datasets/yale-nlp/MMVU",
  licence="not stated",
)
