"""The masks that a policy's boxes become in the videos of a segmentation set, and their scores.

Below the directory of a protocol's replies:

    predictions/         a PNG a frame, where the set's program or server expects it
                         (`mask_submissions`)
    merged/              Ref-DAVIS17: labels of all objects that an annotator describes
    found/<video>.json   key frame, box and replies of each expression, and the scores of the PNGs
    submission.zip       predictions/, for the server of a set whose masks were not released

Masks have the set's own size, and each frame that the set lists has one. An expression without a
box has empty masks, also if it has no reply: it counts. A video is done once its file is there and
holds the same replies to the same annotations, so an interrupted command goes on with the next
video.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

from vr_jax import atomic, plain_json
from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval import found_object, mask_submissions
from vr_jax.eval.benchmarks import protocols, reply_store, scored_reply

Replies = Mapping[str, reply_store.StoredReply]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundExpression(found_object.FoundObject):
  """What the replies to an expression gave.

  id: of its item.
  frame: the key frame's index among the frames that the set lists.
  failed: whether it has no reply, or its video can't be read; `problem` says why.
  truncated: whether a reply was cut off.
  """

  id: str
  failed: bool = False
  truncated: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredMasks:
  """The scores of an expression's masks, or of an object's where the protocol merges these.

  id: of the expression's item; where nobody describes the object, of its own.
  measures: J, F, … in [0, 1].
  """

  id: str
  strata: Mapping[str, tuple[str, ...]]
  measures: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundVideo:
  """A video that is done.

  scores: None if the set's masks were not released.
  annotations: of the set, see `ExpressionMasks.annotations`.
  """

  expressions: tuple[FoundExpression, ...]
  scores: tuple[ScoredMasks, ...] | None
  annotations: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpressionMasks:
  """The masks of one protocol.

  directory: of its replies. root: of the benchmark.
  items: expressions that are asked, all of one split.
  """

  directory: Path
  root: Path
  protocol: protocols.Protocol
  items: Sequence[benchmark_item.Item]

  @property
  def predictions(self) -> Path:
    """The directory of the masks."""
    return self.directory / "predictions"

  @functools.cached_property
  def asked(self) -> Mapping[str, Mapping[str, benchmark_item.Item]]:
    """The items of each video, by their ids."""
    found: dict[str, dict[str, benchmark_item.Item]] = {}
    for item in self.items:
      found.setdefault(item.cluster, {})[item.id] = item
    return found

  @functools.cached_property
  def annotations(self) -> str:
    """What tells the set's annotations (frames, objects, masks) from other ones, by their files."""
    files = [path for depth in ("*.json", "*/*.json") for path in self.root.glob(depth)]
    stats = [(path.relative_to(self.root).as_posix(), path.stat()) for path in sorted(files)]
    told = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    folders = sorted(path.name for path in self.root.glob("*") if path.is_dir())
    return hashlib.sha256(json.dumps([told, folders]).encode()).hexdigest()

  def read(self, video: str) -> FoundVideo | None:
    """What was found in a video; None if it isn't done.

    Raises InputError if its file is damaged.
    """
    path = self._file(video)
    try:
      value = plain_json.parse(path.read_bytes())
      scores = value["scores"]
      return FoundVideo(
        expressions=tuple(plain_json.build(FoundExpression, each) for each in value["expressions"]),
        scores=scores and tuple(plain_json.build(ScoredMasks, each) for each in scores),
        annotations=value["annotations"],
      )
    except FileNotFoundError:
      return None
    except (OSError, ValueError, TypeError, KeyError) as error:
      raise InputError(f"{path}: is damaged; remove it, and its video is tracked again") from error

  def write(self, video: str, found: FoundVideo) -> None:
    """Notes that a video is done."""
    path = self._file(video)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, [json.dumps(dataclasses.asdict(found), indent=1).encode(), b"\n"])

  def left(self, replies: Replies, *, again: bool = False) -> list[str]:
    """The videos that are not done: not tracked, or of other replies than there are now.

    again: those that could not be read are not done, either.
    """
    return [video for video in sorted(self.asked) if not self._is_done(video, replies, again)]

  def _is_done(self, video: str, replies: Replies, again: bool) -> bool:
    found = self.read(video)
    if found is None or {each.id for each in found.expressions} != {*self.asked[video]}:
      return False
    if found.annotations != self.annotations:
      return False
    return all(
      each.replies == said(replies.get(each.id)) and not (again and each.failed and each.replies)
      for each in found.expressions
    )

  def _file(self, video: str) -> Path:
    return self.directory / "found" / f"{video}.json"


def said(reply: reply_store.StoredReply | None) -> tuple[str, ...]:
  """The replies of all turns; () if there is none."""
  return () if reply is None or reply.problem else (*reply.earlier, reply.reply)


def read_scores(store: ExpressionMasks, replies: Replies) -> list[scored_reply.ScoredReply] | None:
  """The scores of all masks; None if the set's masks were not released.

  Raises InputError if a video is not done.
  """
  if left := store.left(replies):
    raise InputError(
      f"{store.directory}: {len(left)} of {len(store.asked)} videos are not tracked, such as "
      f"{left[0]}; give the same command without --score_only"
    )
  rows: list[scored_reply.ScoredReply] = []
  for name in store.asked:
    video = store.read(name)
    if video is None or video.scores is None:
      return None
    found = {each.id: each for each in video.expressions}
    for score in video.scores:
      rows.append(
        scored_reply.ScoredReply(
          id=score.id,
          cluster=name,
          scorer="masks",
          strata=score.strata,
          score=(score.measures["J"] + score.measures["F"]) / 2,
          status=_status(found.get(score.id)),
          measures=score.measures,
        )
      )
  return rows


def _status(found: FoundExpression | None) -> scored_reply.Status:
  """Whether an expression has a box. found: None of an object that nobody describes."""
  if found is None:
    return "answered"
  if found.failed:
    return "failed"
  if found.truncated:
    return "truncated"
  return "answered" if found.box else "unparsed"


def submit(store: ExpressionMasks, missing: Mapping[str, str]) -> str:
  """Packs the masks for the set's server; returns a line that says what is in the archive.

  missing: the folder that is not there, by the id of each expression that is not asked.
  """
  path = store.directory / "submission.zip"
  files = mask_submissions.pack(store.predictions, path)
  found = [each for name in store.asked for each in _expressions(store.read(name))]
  statuses = [_status(each) for each in found]
  boxes = sum(each.box is not None for each in found)
  said = (
    f"{path}: {files} masks of {len(found)} expressions of {len(store.asked)} videos for the "
    f"server of {store.protocol.benchmark} {store.items[0].split}; {boxes} have a box, "
    f"{statuses.count('failed')} failed, {statuses.count('truncated')} truncated; those without a "
    "box have empty masks"
  )
  if missing:
    folders = sorted({*missing.values()})
    more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    said += (
      f"\n{store.protocol.name}: partial: {len(missing)} expressions left out: "
      f"{', '.join(folders[:3])}{more} missing"
    )
  return said


def _expressions(video: FoundVideo | None) -> tuple[FoundExpression, ...]:
  return () if video is None else video.expressions
