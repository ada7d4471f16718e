"""EgoSchema: five options about three minutes of a first-person video; answers are public for 500.

Fields of questions.json: `q_uid`, `question`, `option 0` to `option 4`; subset_answers.json has the
index of the right one by `q_uid`. lmms-eval's copy has `video_idx`, `option` (a list), `answer`.

Source: egoschema/EgoSchema; lmms-eval, tasks/egoschema.
"""

from collections.abc import Iterator
from pathlib import Path

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_COUNT = 5  # options of each question
# Of lmms-eval's copy; its other folders have the same questions with other prompts.
_COPIES = {"subset": "Subset/test-*.parquet", "test": "MC/test-*.parquet"}


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads all questions (test) or the 500 with answers (subset).

  `root` has questions.json, subset_answers.json and videos/. The answer of a question of test whose
  answer is not public is "".
  """
  files = media_files.MediaFiles(root=root)
  paths = released_files.find_files(root, "questions.json", _COPIES[split])
  if paths[0].suffix == ".parquet":
    for path in paths:
      for record in released_files.read_records(path):
        name = record.text("video_idx")
        yield record.where, _copied_item(record.named(name), name, split, files)
    return
  answers = _answers(root, required=split == "subset")
  found = set()
  for record in released_files.read_records(paths[0]):
    name = record.text("q_uid")
    found.add(name)
    if split == "test" or name in answers:
      yield record.where, _item(record.named(name), name, split, answers, files)
  if split == "subset" and (absent := sorted(set(answers) - found)):
    raise InputError(f"{paths[0]}: lacks question {absent[0]!r:.60} of subset_answers.json")


def _answers(root: Path, *, required: bool) -> dict[str, int]:
  if not required and not (root / "subset_answers.json").exists():
    return {}
  (path,) = released_files.find_files(root, "subset_answers.json")
  answers = released_files.read_object(path)
  for name, index in answers.items():
    if type(index) is not int or not 0 <= index < _COUNT:
      raise InputError(f"{path}: {name!r:.60} needs an index from 0 to 4, is {index!r:.40}")
  return answers


def _item(
  record: released_files.ReleasedRecord,
  name: str,
  split: str,
  answers: dict[str, int],
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  choices = tuple(record.text(f"option {index}") for index in range(_COUNT))
  answer = ""
  if name in answers:
    answer = options.letter_of_index(answers[name], choices, record.where)
  return _made(record, name, split, choices, answer, files)


def _copied_item(
  record: released_files.ReleasedRecord, name: str, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  """An item of lmms-eval's copy."""
  choices = options.strip_letters(record.texts("option"), record.where)
  if len(choices) != _COUNT:
    raise record.wrong("option", f"{_COUNT} options")
  answer = ""
  if split == "subset" or record.fields.get("answer") not in (None, ""):
    index = record.name("answer")
    if index not in {str(each) for each in range(_COUNT)}:
      raise record.wrong("answer", "an index from 0 to 4")
    answer = options.letter_of_index(int(index), choices, record.where)
  return _made(record, name, split, choices, answer, files)


def _made(
  record: released_files.ReleasedRecord,
  name: str,
  split: str,
  choices: tuple[str, ...],
  answer: str,
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  return benchmark_item.Item(
    id=name,
    benchmark="egoschema",
    split=split,
    video=files.find(record.where, f"videos/{name}.mp4"),
    question=record.text("question"),
    scorer="choice",
    answer=answer,
    options=choices,
    cluster=name,
    source_record=record.source(),
  )


BENCHMARK = benchmark_set.BenchmarkSet(
  name="egoschema",
  title="EgoSchema",
  read=read,
  splits=("subset", "test"),
  published={"subset": benchmark_set.in_all(500), "test": benchmark_set.in_all(5031)},
  source="https://github.com/egoschema/EgoSchema",
  licence="not stated; the videos have Ego4D's",
)
