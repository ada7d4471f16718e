"""Follows what replies have boxed through the videos of a segmentation set.

Masks are written and scored; `expression_masks` says where. Scores are those of the files.
"""

from collections.abc import Callable, Iterator
import dataclasses

import numpy as np

from vr_jax import run_length
from vr_jax.data import (
  benchmark_item,
  guarded_reader,
  image_folder,
  label_sets,
  segmentation_sets,
  segmented_video,
  video_file,
)
from vr_jax.data.benchmark_sets import segmentation
from vr_jax.envs import environment as environment_lib
from vr_jax.errors import InputError
from vr_jax.eval import mask_output, mask_submissions, score_masks
from vr_jax.eval.benchmarks import expression_masks, reply_store
from vr_jax.models import sam2

_TOGETHER = 4  # expressions of a video that SAM2 follows at once


def track(
  store: expression_masks.ExpressionMasks,
  replies: expression_masks.Replies,
  environment: environment_lib.Environment,
  load: Callable[[], sam2.Segmenter],
  *,
  limits: guarded_reader.DecodeLimits,
  fresh_reverse: bool = False,
  share: tuple[int, int] = (0, 1),
  tick: Callable[[int], None] = lambda done: None,
) -> None:
  """Follows, writes and scores the masks of all videos that are not done.

  environment: that the replies were given in.
  load: loads SAM2; is called if a video is left.
  share: this process's index and the number of processes: each tracks some of the videos.
  tick: is called with the number of expressions done by this process.

  Raises InputError if an annotation or a true mask can't be read.
  """
  # Others may have done some by now, so a share is one of all videos.
  mine = {*sorted(store.asked)[share[0] :: share[1]]} & {*store.left(replies, again=True)}
  if not mine:
    return
  segmenter = load()
  layout, split = store.protocol.benchmark, store.items[0].split
  choice = segmented_video.ReadChoice(masks=mine.__contains__, absent=True)
  split, done = segmentation.layout_split(split, layout), 0
  for video in segmentation_sets.read(layout, store.root, split, choice):
    if video.name not in mine:
      continue
    if choice.lacks(video.folder):
      raise InputError(f"{video.folder}: is gone since its expressions were asked; bring it back")
    asked = dataclasses.replace(
      video,
      queries=tuple(
        query
        for query in video.queries
        if segmentation.item_id(layout, video, query) in store.asked[video.name]
      ),
    )
    found = _track_video(store, asked, replies, environment, segmenter, limits, fresh_reverse)
    result = expression_masks.FoundVideo(
      expressions=found, scores=_score(store, asked), annotations=store.annotations
    )
    store.write(video.name, result)
    done += len(found)
    tick(done)


def _track_video(
  store: expression_masks.ExpressionMasks,
  video: segmented_video.SegmentedVideo,
  replies: expression_masks.Replies,
  environment: environment_lib.Environment,
  segmenter: sam2.Segmenter,
  limits: guarded_reader.DecodeLimits,
  fresh_reverse: bool,
) -> tuple[expression_masks.FoundExpression, ...]:
  """Writes the masks of a video's expressions."""
  layout, size = store.protocol.benchmark, (video.height, video.width)
  ids = [segmentation.item_id(layout, video, query) for query in video.queries]
  items = [store.asked[video.name][each] for each in ids]
  rate = segmentation_sets.LAYOUTS[layout].frame_rate
  folder = image_folder.FolderFrames(names=items[0].frames, frame_rate=rate)
  extracted, problem = None, ""
  try:
    extracted = mask_output.read_video(video.folder, limits, folder)
  except InputError as error:
    problem = str(error)
  found = []
  for item in items:
    reply = replies.get(item.id)
    if extracted is None or reply is None or reply.problem:
      why = problem or ("was not asked" if reply is None else reply.problem)
      found.append(_without_box(item, reply, why))
      continue
    found.append(_ground(item, reply, environment, extracted))
  for start in range(0, len(found), _TOGETHER):
    some = found[start : start + _TOGETHER]
    masks: mask_output.Masks = [[None] * len(video.frames)] * len(some)
    if extracted is not None:
      masks = mask_output.track(segmenter, extracted, some, size=size, fresh_reverse=fresh_reverse)
    for query, of_object in zip(video.queries[start : start + _TOGETHER], masks, strict=True):
      mask_submissions.write(
        mask_submissions.folder(layout, store.predictions, video, query),
        video.frames,
        np.stack([run_length.decode(mask, *size) for mask in of_object]),
      )
  return tuple(found)


def _without_box(
  item: benchmark_item.Item, reply: reply_store.StoredReply | None, problem: str
) -> expression_masks.FoundExpression:
  return expression_masks.FoundExpression(
    id=item.id,
    query=item.question,
    replies=expression_masks.said(reply),
    frame=None,
    description="",
    box=None,
    problem=problem,
    failed=True,
  )


def _ground(
  item: benchmark_item.Item,
  reply: reply_store.StoredReply,
  environment: environment_lib.Environment,
  video: video_file.ExtractedVideo,
) -> expression_masks.FoundExpression:
  """The key frame and the box of an expression's replies, in the video's frames and pixels."""
  said, size = expression_masks.said(reply), (video.height, video.width)
  grounding = environment.grounding(said, len(reply.times), size)
  frame = None
  if grounding.key_frame is not None:
    frame = mask_output.frame_at(video.timestamps, reply.times[grounding.key_frame])
  return expression_masks.FoundExpression(
    id=item.id,
    query=item.question,
    replies=said,
    frame=frame,
    description=grounding.description,
    box=grounding.box,
    problem=grounding.problem,
    truncated=reply.truncated,
  )


def _score(
  store: expression_masks.ExpressionMasks, video: segmented_video.SegmentedVideo
) -> tuple[expression_masks.ScoredMasks, ...] | None:
  """Scores the masks that were written; None if the true ones were not released."""
  if video.instances is None:
    return None
  if store.protocol.merges_objects:
    return tuple(_score_objects(store, video))
  scores = score_masks.measures(store.protocol.benchmark, [video], store.root, store.predictions)
  rows = []
  for query, measures in zip(video.queries, scores, strict=True):
    item = store.asked[video.name][segmentation.item_id(store.protocol.benchmark, video, query)]
    rows.append(expression_masks.ScoredMasks(id=item.id, strata=item.strata, measures=measures))
  return tuple(rows)


def _score_objects(
  store: expression_masks.ExpressionMasks, video: segmented_video.SegmentedVideo
) -> Iterator[expression_masks.ScoredMasks]:
  """Merges each annotator's masks, and scores the objects of DAVIS, also those nobody describes."""
  merged = store.directory / "merged"
  mask_submissions.merge_davis(store.predictions, merged, [video])
  for annotator, scores in enumerate(score_masks.davis_objects(video, store.root, merged)):
    queries = video.queries[annotator :: len(label_sets.ANNOTATORS)]
    described = {
      query.instances[0]: segmentation.item_id("ref_davis17", video, query) for query in queries
    }
    for number, score in enumerate(scores, 1):
      own = f"{video.name}/annotator {annotator}/object {number}"
      yield expression_masks.ScoredMasks(
        id=described.get(str(number), own),
        strata={"annotator": (str(annotator),)},
        measures={"J": score.j, "F": score.f},
      )
