"""VideoMMMU: three questions about each of 300 lectures: perception, comprehension, adaptation.

A track is a Parquet file: `id` (the lecture's; its second part is the subject), `question`,
`options`, `answer`, `question_type`, and of adaptation the picture of the question in `image 1`,
which is also the last frame of the lecture. The split question_only has the questions of
adaptation about clips of two seconds that show this picture alone: what a model knows before.
knowledge_gain has all four, so that one evaluation says how much a lecture adds.

Pictures are files: `extract_images` writes those of the Parquet files once.

Source: EvolvingLMMs-Lab/VideoMMMU; lmms-eval, tasks/videommmu, for the discipline of each subject.
"""

from collections.abc import Iterator
from pathlib import Path
import re

from vr_jax import atomic, inner_path
from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files
from vr_jax.errors import InputError

_SUBJECTS = {
  "Art": ("Art", "Art_Theory", "Design", "Music"),
  "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
  "Engineering": (
    *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
    *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
  ),
  "Humanities": ("History", "Literature", "Psychology", "Sociology"),
  "Medicine": (
    *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
    *("Pharmacy", "Public_Health"),
  ),
  "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
}
_DISCIPLINES = {subject: name for name, subjects in _SUBJECTS.items() for subject in subjects}
_TRACKS = ("perception", "comprehension", "adaptation")
_QUESTION_ONLY = "question_only"
_TRACKS_OF_SPLITS = {"test": _TRACKS, "knowledge_gain": (*_TRACKS, _QUESTION_ONLY)}
_ID = re.compile(r"[^_]+_(.+)_\d+")
_IMAGE = re.compile(r"image[ _]([1-9])")
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads a track, all three (test), question_only, or all four (knowledge_gain).

  `root` has a folder for each discipline.
  """
  files = media_files.MediaFiles(root=root)
  for track in _TRACKS_OF_SPLITS.get(split, (split,)):
    for record in _records(root, "adaptation" if track == _QUESTION_ONLY else track):
      name = record.text("id")
      yield record.where, _item(record.named(name), name, split, track, files)


def extract_images(root: Path) -> int:
  """Writes the pictures of all tracks to images/, below `root`. Returns how many were written.

  Those that are there stay. Raises InputError if a file can't be read, or a picture is none.
  """
  written = 0
  for track in _TRACKS:
    for record in _records(root, track):
      record = record.named(record.text("id"))
      for field, path in _image_paths(record, track).items():
        if not (root / path).exists():
          (root / path).parent.mkdir(parents=True, exist_ok=True)
          atomic.write_bytes(root / path, [record.fields[field]["bytes"]])
          written += 1
  return written


def _records(root: Path, track: str) -> Iterator[released_files.ReleasedRecord]:
  patterns = (f"{track.capitalize()}/*.parquet", f"{track}/*.parquet")
  for path in released_files.find_files(root, *patterns):
    yield from released_files.read_records(path)


def _item(
  record: released_files.ReleasedRecord,
  name: str,
  split: str,
  track: str,
  files: media_files.MediaFiles,
) -> benchmark_item.Item:
  match = _ID.fullmatch(name)
  subject = match[1] if match else ""
  if subject not in _DISCIPLINES:
    raise record.wrong("id", "a name such as dev_Math_9, with one of VideoMMMU's 30 subjects")
  discipline = _DISCIPLINES[subject]
  choices, answer = (), record.name("answer")
  if record.fields.get("options"):
    choices = options.strip_letters(record.texts("options"), record.where)
    answer = options.check_letter(answer, choices, record.where)
  elif record.text("question_type") == "multiple-choice":
    raise record.wrong("options", "options, as its question_type says")
  video = f"{discipline}/{name}.mp4"
  if track == _QUESTION_ONLY:
    video = f"{_QUESTION_ONLY}/{name}_image.mp4"
  return benchmark_item.Item(
    id=f"{track}-{name}",
    benchmark="video_mmmu",
    split=split,
    video=files.find(record.where, video),
    question=record.text("question"),
    scorer="choice" if choices else "open_rule",
    answer=answer,
    options=choices,
    images=tuple(_image_paths(record, track).values()),
    strata={"track": (track,), "discipline": (discipline,), "subject": (subject,)},
    cluster=name,
    source_record=record.source(),
  )


def _image_paths(record: released_files.ReleasedRecord, track: str) -> dict[str, str]:
  """Where the pictures of a record are written, by the field that holds them, in their order."""
  name, paths = record.text("id"), {}
  if not inner_path.is_plain(name):
    raise record.wrong("id", "a name without slashes")
  track = "adaptation" if track == _QUESTION_ONLY else track
  fields = {int(match[1]): match[0] for each in record.fields if (match := _IMAGE.fullmatch(each))}
  for number, field in sorted(fields.items()):
    if not record.has(field):
      continue
    image = record.fields[field]
    content = image.get("bytes") if isinstance(image, dict) else None
    if not isinstance(content, bytes):
      raise InputError(f"{record.where}: field {field!r} needs the bytes of a picture")
    suffix = next((each for start, each in _SUFFIXES.items() if content.startswith(start)), "")
    if not suffix:
      raise InputError(f"{record.where}: field {field!r} is no PNG, JPEG, WebP or GIF")
    paths[field] = f"images/{track}-{name}-{number}{suffix}"
  return paths


BENCHMARK = benchmark_set.BenchmarkSet(
  name="video_mmmu",
  title="VideoMMMU",
  read=read,
  splits=(*_TRACKS_OF_SPLITS, *_TRACKS, _QUESTION_ONLY),
  published={
    "test": {
      **benchmark_set.in_all(900, videos=300),
      "track": dict.fromkeys(_TRACKS, 300),
    },
    "knowledge_gain": {
      **benchmark_set.in_all(1200, videos=600),
      "track": dict.fromkeys((*_TRACKS, _QUESTION_ONLY), 300),
    },
    **{split: benchmark_set.in_all(300, videos=300) for split in (*_TRACKS, _QUESTION_ONLY)},
  },
  source="https://huggingface.co/datasets/lmms-lab/VideoMMMU",
  licence="not stated",
)
