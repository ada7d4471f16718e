"""What is done with a chunk of captioned videos: states, questions, filters, one file on disk.

Chunks depend on nothing else, so any number of processes may do them, in any order.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from vr_jax import atomic, errors, plain_json
from vr_jax.traces.construct import asker as asker_lib
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.traces.construct import future_questions, quality, reviewers, state_requests
from vr_jax.traces.construct import states as states_lib
from vr_jax.worlds import write as worlds_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionChunk:
  """Videos whose captions are read, asked about and written together."""

  number: int
  videos: tuple[captions_lib.CaptionedVideo, ...]

  @property
  def name(self) -> str:
    """The name of its file."""
    return f"{self.number:06d}.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstructedVideo:
  """What came of a video.

  problem: why its captions could not be used; "" if they could.
  states: number of states that were told; dropped: of those that their caption doesn't have.
  skipped: how often each of `future_questions.NOT_ASKED` kept a pair from being asked about.
  questions: {"record", "reason", "detail", "attribute"}; "record" in our annotation fields.
  """

  id: str
  video: str
  where: str
  problem: str = ""
  states: int = 0
  dropped: int = 0
  skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  questions: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkWorker:
  """Does chunks. Only one thread at a time may use it.

  asker: of a model; None: captions are read by the simulator's rules.
  skips: whether a video whose captions the model can't read is left out; else it stops the run.
  """

  output: Path
  asker: asker_lib.Asker | None
  reviewer: reviewers.Reviewer
  question_rules: future_questions.QuestionRules
  quality_rules: quality.QualityRules
  skips: bool

  def work(self, chunk: CaptionChunk) -> None:
    """Does a chunk and writes its file.

    Raises:
      InputError: the model doesn't answer, or not as it is asked to.
    """
    atomic.write_json_lines(
      self.output / "chunks" / chunk.name,
      [vars(video) for video in self.construct(chunk.videos)],
    )

  def close(self) -> None:
    """Closes the model, if there is one."""
    if self.asker is not None:
      self.asker.close()

  def construct(self, videos: Sequence[captions_lib.CaptionedVideo]) -> list[ConstructedVideo]:
    """Makes and filters the questions about videos."""
    outcomes, open_questions = [], []
    for video, (told, dropped, problem) in zip(videos, self._read_states(videos), strict=True):
      questions, skipped = future_questions.make(video, told, self.question_rules)
      faults = [quality.find_fault(question, self.quality_rules) for question in questions]
      rows = [_row(question, *fault) for question, fault in zip(questions, faults, strict=True)]
      open_questions += [
        (row, question) for row, question in zip(rows, questions, strict=True) if not row["reason"]
      ]
      outcomes.append(
        ConstructedVideo(
          id=video.id,
          video=video.video,
          where=video.where,
          problem=problem,
          states=len(told),
          dropped=dropped,
          skipped=dict(skipped),
          questions=tuple(rows),
        )
      )
    verdicts = self.reviewer.review([question for _, question in open_questions])
    for (row, question), (reason, detail) in zip(open_questions, verdicts, strict=True):
      if reason == "no verdict" and not self.skips:
        raise errors.InputError(
          f"{question.video.where}: {detail} of the model about {question.example.question!r}; "
          "config.construct.on_bad=skip leaves such questions out"
        )
      row |= {"reason": reason, "detail": detail}
    return outcomes

  def _read_states(
    self, videos: Sequence[captions_lib.CaptionedVideo]
  ) -> Iterator[tuple[tuple[states_lib.ToldState, ...], int, str]]:
    """Yields (states, number of dropped ones, problem) of each video."""
    if self.asker is None:
      for video in videos:
        told = states_lib.read_by_rule(video)
        problem = "" if told else "tells no state in the simulator's words"
        if problem and not self.skips:
          raise errors.InputError(
            f"{video.where}: {problem}; captions in other words need a model "
            "(config.construct.reader=openai), or config.construct.on_bad=skip leaves them out"
          )
        yield told, 0, problem
      return
    requests = [state_requests.StateRequest(video=video) for video in videos]
    replies = self.asker.ask(requests)
    for request, reply in zip(requests, replies, strict=True):
      if reply is None and not self.skips:
        raise errors.InputError(
          f"{request.video.where}: no states from the model, retries included: "
          f"{request.problem}; config.construct.on_bad=skip leaves such videos out"
        )
      if reply is None:
        yield (), 0, request.problem
      else:
        told, dropped = state_requests.told_states(reply, request.video)
        yield told, dropped, ""


def make_worker(section: ml_collections.ConfigDict, output: Path) -> ChunkWorker:
  """Makes a worker of config.construct; the caller closes it. Raises as `asker.connect` does."""
  asker, reviewer = None, reviewers.RuleReviewer()
  if section.reader != "rule":
    asker = asker_lib.connect(section, output / "replies")
    reviewer = reviewers.ModelReviewer(
      asker=asker,
      guesses=section.guesses,
      blind_right=section.blind_right,
      trace_right=section.trace_right,
    )
  return ChunkWorker(
    output=output,
    asker=asker,
    reviewer=reviewer,
    question_rules=future_questions.QuestionRules(
      style="simulator" if section.reader == "rule" else "general",
      per_video=section.questions_per_video,
      most_options=section.options,
      least_options=section.least_options,
      seed=section.seed,
    ),
    quality_rules=quality.QualityRules(
      shown_seconds=section.shown_seconds,
      masked_seconds=section.masked_seconds,
      least_steps=section.least_steps,
      most_steps=section.most_steps,
      most_words=section.most_words,
    ),
    skips=section.on_bad == "skip",
  )


def plan(videos: Sequence[captions_lib.CaptionedVideo], size: int) -> list[CaptionChunk]:
  """Splits videos into chunks of at most `size`, in order."""
  return [
    CaptionChunk(number=start // size, videos=tuple(videos[start : start + size]))
    for start in range(0, len(videos), size)
  ]


def open_chunks(output: Path, chunks: Sequence[CaptionChunk]) -> list[CaptionChunk]:
  """Returns the chunks that are not done yet.

  One that was done with other videos is not: a file that was missing or bad at an earlier start
  moves the videos behind it to other places.

  Raises InputError if a file is damaged.
  """
  return [
    chunk
    for chunk in chunks
    if not (output / "chunks" / chunk.name).is_file()
    or _videos(load(output, chunk)) != _videos(chunk.videos)
  ]


def _videos(
  videos: Sequence[ConstructedVideo] | Sequence[captions_lib.CaptionedVideo],
) -> list[tuple[str, str, str]]:
  return [(video.id, video.video, video.where) for video in videos]


def load(output: Path, chunk: CaptionChunk) -> list[ConstructedVideo]:
  """Reads a chunk's file. Raises InputError if it is damaged."""
  path = output / "chunks" / chunk.name
  try:
    lines = [plain_json.parse(line) for line in path.read_bytes().split(b"\n") if line]
    found = [_from_json(line) for line in lines]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f"{path}: is damaged; remove it, and the same command goes on"
    ) from error
  return found


def count_skipped(videos: Sequence[ConstructedVideo]) -> Counter[str]:
  """How often each reason kept a pair of object and attribute from being asked about."""
  total: Counter[str] = Counter()
  for video in videos:
    total.update(video.skipped)
  return total


def _from_json(value: Any) -> ConstructedVideo:
  questions = value["questions"]
  if any({"record", "reason", "detail", "attribute"} != set(row) for row in questions):
    raise ValueError("a question lacks a field")
  return plain_json.build(ConstructedVideo, value)


def _row(question: future_questions.FutureQuestion, reason: str, detail: str) -> dict[str, Any]:
  return {
    "record": worlds_write.to_json(question.example),
    "reason": reason,
    "detail": detail,
    "attribute": question.pair[1],
  }
