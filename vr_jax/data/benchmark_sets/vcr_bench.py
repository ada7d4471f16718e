"""VCR-Bench: open questions and questions with options, with the steps of the reference reasoning.

Fields of meta_info_video.json: `id`, `video_path`, `dimension`, `question` (with options, they
stand at its end, too), `multiple-choice`, `choices` (by letter, empty texts where there are none),
`answer`, `reasoning`: sentences such as "1. 0:07-0:55, …". VCR-Bench.tsv has the same as a table.

Not to be mixed up with VCRBench (order of clips) or VCR (pictures).

Source: zhishuifeiqian/VCR-Bench, eval_code/input.json; VLMEvalKit, vlmeval/dataset/vcrbench.py.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
import re
import string

from vr_jax.data import benchmark_item
from vr_jax.data.benchmark_sets import benchmark_set, media_files, options, released_files

_FILES = (
  *("v1/videos/meta_info_video.json", "v1/meta_info_video.json", "meta_info_video.json"),
  "VCR-Bench.tsv",
)
_NUMBER = re.compile(r"\s*\d+\s*[.)]\s*")
_CLOCK = r"(?:(\d{1,2}):)?(\d{1,3}):(\d{2})(?:\.\d+)?"
# "0:07-0:55, …", "From 0:33 to 0:36, …", "Between 1:00 and 1:02, …"
_TIMES = re.compile(rf"(?:From |Between |At |In )?{_CLOCK}\s*(?:-|–|~|to|and)\s*{_CLOCK}\b", re.I)


def read(root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the questions. `root` has v1/videos/, with meta_info_video.json in it or above."""
  files = media_files.MediaFiles(root=root)
  for path in released_files.find_files(root, *_FILES):
    for record in released_files.read_records(path):
      name = record.name("id" if record.has("id") else "index")
      yield record.where, _item(record.named(name), name, split, files)


def _item(
  record: released_files.ReleasedRecord, name: str, split: str, files: media_files.MediaFiles
) -> benchmark_item.Item:
  video, question, choices = record.text("video_path"), record.text("question"), ()
  is_choice = record.value("multiple-choice")
  if not isinstance(is_choice, bool):
    raise record.wrong("multiple-choice", "true or false")
  answer = record.name("answer")
  if is_choice:
    choices = _choices(record)
    answer = options.check_letter(answer, choices, record.where)
    question = _without_options(question, choices)
  return benchmark_item.Item(
    id=name,
    benchmark="vcr_bench",
    split=split,
    video=files.find(record.where, f"v1/videos/{video}", f"videos/{video}", video),
    question=question,
    scorer="reasoning_steps",
    answer=answer,
    options=choices,
    strata={
      "dimension": (record.text("dimension"),),
      "format": ("multiple-choice" if is_choice else "open-ended",),
    },
    cluster=PurePosixPath(video).with_suffix("").as_posix(),
    steps=tuple(map(parse_step, record.texts("reasoning"))),
    source_record=record.source(),
  )


def parse_step(text: str) -> benchmark_item.ItemStep:
  """A sentence of the reasoning without its number, and the seconds that it begins with.

  Times that run backwards, as some released ones do, are no times; the text stays as it is.
  """
  sentence = _NUMBER.sub("", text, count=1) if _NUMBER.match(text) else text.strip()
  match = _TIMES.match(sentence)
  if match is None:
    return benchmark_item.ItemStep(text=sentence)
  start, end = _seconds(*match.group(1, 2, 3)), _seconds(*match.group(4, 5, 6))
  return benchmark_item.ItemStep(text=sentence, times=(start, end) if start <= end else None)


def _seconds(hours: str | None, minutes: str, seconds: str) -> float:
  return float(int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds))


def _choices(record: released_files.ReleasedRecord) -> tuple[str, ...]:
  choices = record.object("choices")
  letters = string.ascii_uppercase[: len(choices.fields)]
  if sorted(choices.fields) != list(letters):
    raise record.wrong("choices", "the letters A, B, … as names")
  texts = ["" if choices.fields[each] in (None, "") else choices.text(each) for each in letters]
  kept = options.drop_empty(texts, ("",), record.where)
  if len(kept) < 2:
    raise record.wrong("choices", "two or more choices")
  return kept


def _without_options(question: str, choices: tuple[str, ...]) -> str:
  """A question without the options at its end; as it is if they do not stand there."""
  squeezed = "".join(question.split())
  for template in ("{}.{}", "({}){}", "{}){}", "{}:{}"):
    lettered = zip(string.ascii_uppercase, choices, strict=False)
    end = "".join("".join(template.format(*each).split()) for each in lettered)
    if squeezed.endswith(end) and len(squeezed) > len(end):
      return _first_signs(question, len(squeezed) - len(end))
  return question


def _first_signs(text: str, count: int) -> str:
  """The start of a text that has so many signs which are not blank."""
  for place, sign in enumerate(text):
    if not sign.isspace():
      count -= 1
    if count == 0:
      return text[: place + 1].strip()
  return text


BENCHMARK = benchmark_set.BenchmarkSet(
  name="vcr_bench",
  title="VCR-Bench",
  read=read,
  splits=("test",),
  published={"test": benchmark_set.in_all(1034, videos=859)},
  source="https://huggingface.co/datasets/VLM-Reasoning/VCR-Bench",
  licence="not stated",
)
