"""ReVSeg: the model chooses the frame that shows an object best, then gives the object's box in it.

    turn 1   the whole clip, the query     <think>…</think> <answer>[{"frame_idx": 7,
                                           "object description": "the red car"}]</answer>
    turn 2   that frame, larger            <think>…</think> <answer>[{"bbox_2d": [39, 289, 608,
                                           773]}]</answer>

A tracker follows the object from there (models/sam2). An episode ends after turn 1 if no key frame
can be read from it. Both turns are one conversation. Without `decompose`, for comparison, the first
reply has to give the box as well, in the frames of the first turn, and ends the episode.

Source: arXiv 2512.02835, sections 3.2 and 3.3, appendix C. `Reconstruction:` the code is not
public; the wording of the prompts, the keys of the box's JSON and the longest description are ours.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, ClassVar

import jax
from jaxtyping import Float
import numpy as np

from vr_jax import errors, records, schema
from vr_jax.envs import environment, grounding_replies, json_answers, metric
from vr_jax.envs import grounding as grounding_lib
from vr_jax.envs import retrieval_actions as retrieval_actions_lib
from vr_jax.rewards import boxes, steps
from vr_jax.rewards import format as format_lib


@dataclasses.dataclass(kw_only=True)
class ReVSeg(environment.Defaults):
  """The environment.

  Raises InputError if a size of frames is not two numbers.
  """

  instruction: str = schema.field(
    help="Stands below the query; it has to ask for all tags. {frames}, {last} and {seconds} "
    "become the number of frames, the last one's index, and the frames divided by described_fps."
  )
  box_instruction: str = schema.field(
    help="Stands below the key frame; {description} becomes the description of the object."
  )
  frame_size: tuple[int, ...] = schema.field(
    (448, 448), "Height and width in pixels of the frames of the first turn.", "[1, inf)", length=2
  )
  key_frame_size: tuple[int, ...] = schema.field(
    (840, 840), "Height and width in pixels of the key frame.", "[1, inf)", length=2
  )
  described_fps: float = schema.field(
    2.0, "Frames a second that {seconds} assumes, whatever the video's length.", "(0, inf)"
  )
  description_bytes: int = schema.field(
    400,
    "Bytes of the longest description that is accepted; the second turn repeats it.",
    "[1, inf)",
  )
  decompose: bool = schema.field(
    True,
    "Whether the box is asked for in a second turn, which shows the key frame; else the first "
    "reply has to give it too, as bbox_2d beside frame_idx, and there is no second.",
  )
  reward: boxes.BoxRule = boxes.BoxRule()
  box_scale: grounding_lib.BoxScale | None = None

  turns: ClassVar[int] = 2
  finds_objects: ClassVar[bool] = True
  segments: tuple[str, ...] = ("turn 1", "turn 2")
  needs: ClassVar[tuple[str, ...]] = ("box_scale",)
  answer_reward: ClassVar[str] = "spatial"
  # The punctuation of the JSON, so that a trained tokenizer has a token for each of its parts.
  tags: ClassVar[tuple[str, ...]] = (
    "<think>",
    grounding_replies.HALF,
    "</answer>",
    '[{"frame_idx": ',
    ', "object description": "',
    '"}]',
    '[{"bbox_2d": [',
    "]}]",
  )
  metrics: ClassVar[metric.Metrics] = {
    "accuracy": metric.Metric(
      title="Object found", note="boxes in the key frame with an IoU above 0.5", headline=True
    ),
    "key_frame_visible": metric.Metric(
      title="Key frame visible", note="key frames that show the object", headline=True
    ),
    "box_iou": metric.Metric(
      title="Box IoU", note="with the true box of the key frame; 0 without a box", headline=True
    ),
    "key_frame_value": metric.Metric(
      title="Key frame value",
      note="size of the object in the key frame, between its smallest and its largest",
    ),
    "format": metric.Metric(title="Right format", note="of the tags and the JSON of both replies"),
    "turns": metric.Metric(title="Turns", note="of an episode", unit="", digits=2, better=0),
  }

  def __post_init__(self):
    for name in ("frame_size", "key_frame_size"):
      if len(getattr(self, name)) != 2:
        raise errors.InputError(
          f"--config.env.{name}={getattr(self, name)}: needs a height and a width in pixels"
        )

  @classmethod
  def check_config(cls, config: Any) -> None:
    """Raises InputError if frames can't be shown at their size, or turns don't fit the buckets."""
    model = config.model
    shown = ("frame_size", "key_frame_size") if config.env.decompose else ("frame_size",)
    for name in shown:
      if not model.min_pixels <= math.prod(config.env[name]) <= model.max_pixels:
        raise errors.InputError(
          f"--config.env.{name}={tuple(config.env[name])}: must have model.min_pixels="
          f"{model.min_pixels} to model.max_pixels={model.max_pixels} pixels; change one of them"
        )
    data, size = config.data, tuple(config.env.frame_size)
    most = "max_frames" if data.sampling == "fps" else "frames"
    for name in ("required_frames", most):
      asked = data[name] * math.prod(size)
      if not model.min_video_pixels <= asked <= (model.max_video_pixels or asked):
        raise errors.InputError(
          f"--config.env.frame_size={size}: data.{name}={data[name]} frames of that size have "
          f"{asked} pixels, outside model.min_video_pixels={model.min_video_pixels} to "
          f"model.max_video_pixels={model.max_video_pixels}, so that they would be shown at "
          "another size; change one of them"
        )
    largest = max(max(config.env[name]) for name in shown)
    if data.max_side < largest:
      raise errors.InputError(
        f"--config.data.max_side={data.max_side}: frames are shown at up to {largest} pixels; "
        "store frames that are as large"
      )
    instruction = config.env.instruction
    if not config.env.decompose and instruction and "bbox_2d" not in instruction:
      raise errors.InputError(
        "--config.env.instruction: does not ask for bbox_2d, which the first reply has to give "
        "without env.decompose; add it"
      )
    section = config.turns
    needed = cls.turns * config.rl.max_new_tokens + max(section.observation_buckets)
    if max(section.episode_buckets) < needed:
      raise errors.InputError(
        f"--config.turns.episode_buckets={section.episode_buckets}: {cls.turns} turns need up to "
        f"{needed}; add a bucket of at least {needed}"
      )

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> environment.Observation | None:
    """The clip and the query, then the key frame; None after that, or without a key frame."""
    if not replies:
      clip = environment.WholeClip(self._size("frame_size"))
      return environment.Observation(parts=(clip, self._query(example, pool)))
    if not self.decompose:
      return None
    key = json_answers.read_key_frame(replies[0], pool, self.description_bytes)
    if key.problem or len(replies) >= self.turns:
      return None
    frame = environment.ShownFrame(key.index, self._size("key_frame_size"))
    return environment.Observation(parts=(frame, self._ask_box(key.description)))

  def question(self, example: records.Example) -> str:
    """The query, as it is shown with frames whose number is not known."""
    return environment.question_text(example, self.instruction)

  def longest_replies(self, pool: int) -> tuple[str, ...]:
    """A key frame with the longest description: digits, each of which is a token."""
    if not self.decompose:
      return ()
    digits = "".join(str(number % 10) for number in range(self.description_bytes))
    return (grounding_replies.key_frame_reply("", pool - 1, digits),)

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """The frame in which the object's box is largest, and that box; () if it is in none.

    Without `decompose`, both in one reply.

    The thoughts go through the clip, then through the quarters of the key frame, as an untrained
    network learns sooner to look at a given place than to say where something is. The box has
    whole numbers. Without a description in the annotation ("description"), the query stands for it.
    """
    if example.object_track is None:
      return ()
    track, truth = example.object_track, grounding_lib.boxes_at(example, times)
    areas = np.nan_to_num((truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1]))
    if not areas.any():
      return ()
    key_frame = int(np.argmax(areas))
    true_box = truth[key_frame].astype(float)
    left, top, right, bottom = true_box.tolist()
    place = (top + bottom > track.height, left + right > track.width)
    box = grounding_lib.round_to_reply(true_box, self._scale(), (track.height, track.width))
    thoughts, description = grounding_replies.describe_clip(areas), self._describe(example)
    if not self.decompose:
      thoughts += f" {grounding_replies.describe_place(place)}"
      return (grounding_replies.key_frame_reply(thoughts, key_frame, description, box),)
    return (
      grounding_replies.key_frame_reply(thoughts, key_frame, description),
      grounding_replies.box_reply(grounding_replies.describe_place(place), box),
    )

  def reference_problem(self, example: records.Example) -> str:
    """The true boxes if they are missing; else ""."""
    if example.object_track is not None:
      return ""
    return "field 'masks': is missing; references need masks of the queried object (docs/data.md)"

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """Indices of the frames in which the object is visible; () without a track.

    Raises InputError if a frame has no annotation.
    """
    if example.object_track is None:
      return ()
    return tuple(np.flatnonzero(~np.isnan(grounding_lib.boxes_at(example, times)[:, 0])).tolist())

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """The rewards of each turn, [prompts, group, turns]; a turn that is missing is not scored.

    `temporal` belongs to the first turn, `spatial` to the one that gives the box, `format` to each.
    The total is their weighted sum (boxes.BoxRule).
    """
    earned = self._rewards(examples, replies.episodes)
    nothing = np.zeros_like(earned.temporal)
    spatial = (nothing, earned.spatial) if self.decompose else (earned.spatial, nothing)
    parts = {
      "format": np.asarray(earned.format),
      "temporal": np.stack([earned.temporal, nothing], axis=-1),
      "spatial": np.stack(spatial, axis=-1),
    }
    taken = np.array([[len(each.replies) for each in group] for group in replies.episodes])
    total = sum(np.float32(getattr(self.reward, name)) * part for name, part in parts.items())
    return records.Scores(
      rewards=parts, scored=np.arange(self.turns) < taken[..., None], total=np.asarray(total)
    )

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: environment.Replies,
    scores: records.Scores,
    *,
    sum_processes: environment.SumAcrossProcesses = np.asarray,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """Scores as they are, and means over the episodes: the `episode_metrics`.

    The accuracy is called `episode_accuracy`, the format `episode_format`.
    """
    values = self._episode_values(examples, replies.episodes)
    sums = sum_processes(
      np.array([np.size(values["turns"]), *(each.sum() for each in values.values())], np.float32)
    ).tolist()
    means = {name: each / sums[0] for name, each in zip(values, sums[1:], strict=True)}
    renamed = {"accuracy": "episode_accuracy", "format": "episode_format"}
    return scores, {renamed.get(name, name): mean for name, mean in means.items()}

  def episode_metrics(
    self, example: records.Example, episode: environment.Episode
  ) -> dict[str, float]:
    """Metrics of one episode.

    accuracy: 1 if the IoU of the box with the true one of the key frame is above 0.5.
    key_frame_visible: 1 if the key frame shows the object.
    box_iou: that IoU; 0 without a box, or where the object isn't visible.
    key_frame_value: the soft temporal reward, whatever the recipe's.
    format: fraction of the checks of tags and JSON that the replies pass.
    turns: how many there were.
    """
    values = self._episode_values([example], [[episode]])
    return {name: float(each[0, 0]) for name, each in values.items()}

  def accuracy(self, example: records.Example, reply: str) -> float:
    """0: only episodes are scored, since the key frame and the box are in two replies."""
    del example, reply
    return 0.0

  def parse_action(
    self, example: records.Example, pool: int, reply: str, turn: int
  ) -> retrieval_actions_lib.Action:
    """The key frame as a retrieval of one frame, or the box as an answer, as the reply gives it."""
    if turn == 0:
      key = json_answers.read_key_frame(reply, pool, self.description_bytes)
      if key.problem:
        problem = "range" if key.problem == "range" else "format"
        return retrieval_actions_lib.Action(kind="invalid", problem=problem)
      if self.decompose:
        return retrieval_actions_lib.Action(kind="retrieve", start=key.index, end=key.index)
    box = json_answers.read_box(reply)
    if box.problem:
      problem = "answer" if box.problem == "box" else "format"
      return retrieval_actions_lib.Action(kind="invalid", problem=problem)
    answer = ", ".join(f"{number:g}" for number in box.corners)
    return retrieval_actions_lib.Action(kind="answer", answer=f"[{answer}]")

  def grounding(
    self, replies: Sequence[str], pool: int, size: environment.Size
  ) -> grounding_lib.Grounding:
    """What an episode found.

    pool: how many frames the first turn showed.
    size: height and width of the video, in whose pixels the box is.
    """
    key = json_answers.read_key_frame(replies[0], pool, self.description_bytes)
    if key.problem:
      return grounding_lib.Grounding(problem=key.problem)
    found = grounding_lib.Grounding(key_frame=key.index, description=key.description)
    last = int(self.decompose)
    if len(replies) <= last:
      return dataclasses.replace(found, problem="turns")
    box = json_answers.read_box(replies[last])
    if box.problem:
      return dataclasses.replace(found, problem=box.problem)
    inside = grounding_lib.to_video(box.corners, self._scale(), size)
    return dataclasses.replace(found, box=inside, problem="" if inside else "outside")

  def tokenizer_texts(self, example: records.Example, pool: int) -> tuple[str, ...]:
    """All texts of both turns, the reference's description, and thoughts of references."""
    description, areas = self._describe(example), (np.arange(float(pool)) % 3) ** 2
    thoughts = (grounding_replies.describe_clip(np.roll(areas, shift)) for shift in range(3))
    texts = (self._query(example, pool), self._ask_box(description), description)
    return (*texts, *thoughts, grounding_replies.describe_place((False, False)))

  def trace(self, reply: str) -> str:
    """The text between the think tags."""
    return steps.think_text(reply)

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps": the reasoning steps} of the reply of one turn."""
    return {"steps": steps.split_steps(self.trace(reply))}

  def _size(self, name: str) -> environment.Size:
    height, width = getattr(self, name)
    return height, width

  def _scale(self) -> tuple[float, float]:
    """The numbers of the lower and the right edge in a box; pixels of the frame without a model."""
    height, width = self._size("key_frame_size" if self.decompose else "frame_size")
    return self.box_scale((height, width)) if self.box_scale else (float(height), float(width))

  def _query(self, example: records.Example, pool: int) -> str:
    names = {
      "{frames}": f"{pool}",
      "{last}": f"{pool - 1}",
      "{seconds}": f"{pool / self.described_fps:g}",
    }
    return environment.question_text(example, _fill(self.instruction, names))

  def _describe(self, example: records.Example) -> str:
    """The annotation's description of the object, or else the query; cut off if it is too long."""
    text = str(example.extra.get("description") or example.question)
    return text.encode()[: self.description_bytes].decode(errors="ignore")

  def _ask_box(self, description: str) -> str:
    return _fill(self.box_instruction, {"{description}": description})

  def _rewards(
    self, examples: Sequence[records.Example], episodes: Sequence[Sequence[environment.Episode]]
  ) -> boxes.BoxRewards:
    arrays = self._arrays(examples, episodes)
    return jax.tree.map(np.asarray, boxes.rewards(arrays, self.reward))

  def _episode_values(
    self, examples: Sequence[records.Example], episodes: Sequence[Sequence[environment.Episode]]
  ) -> dict[str, Float[np.ndarray, "prompts group"]]:
    """The metrics of each episode, by name; they don't depend on the rule of the rewards."""
    arrays = self._arrays(examples, episodes)
    earned = jax.tree.map(np.asarray, boxes.rewards(arrays, boxes.BoxRule()))
    return {
      "accuracy": earned.spatial,
      "key_frame_visible": earned.visible.astype(np.float32),
      "box_iou": earned.iou,
      "key_frame_value": earned.temporal,
      "format": earned.format.sum(-1),
      "turns": np.array([[len(each.replies) for each in group] for group in episodes], np.float32),
    }

  def _arrays(
    self, examples: Sequence[records.Example], episodes: Sequence[Sequence[environment.Episode]]
  ) -> boxes.GroundedEpisodes:
    shape, pool = (len(examples), len(episodes[0])), max(group[0].pool for group in episodes)
    checks = np.zeros((*shape, self.turns), np.float32)
    key_frame, box = np.zeros(shape, np.int32), np.zeros((*shape, 4), np.float32)
    has_key_frame, has_box = np.zeros(shape, bool), np.zeros(shape, bool)
    truth = np.full((len(examples), pool, 4), np.nan, np.float32)
    for row, (example, group) in enumerate(zip(examples, episodes, strict=True)):
      truth[row, : group[0].pool] = grounding_lib.boxes_at(example, np.array(group[0].times))
      track = example.object_track
      assert track is not None  # grounding_lib.boxes_at has used it
      for number, episode in enumerate(group):
        found = self.grounding(episode.replies, episode.pool, (track.height, track.width))
        checks[row, number] = self._checks(episode)
        if found.key_frame is not None:
          key_frame[row, number], has_key_frame[row, number] = found.key_frame, True
        if found.box is not None:
          box[row, number], has_box[row, number] = found.box, True
    return boxes.GroundedEpisodes(
      checks=checks,
      key_frame=key_frame,
      has_key_frame=has_key_frame,
      box=box,
      has_box=has_box,
      truth=truth,
      shown=np.arange(pool) < np.array([group[0].pool for group in episodes])[:, None],
    )

  def _checks(self, episode: environment.Episode) -> list[float]:
    """By turn, how many of the four checks (tags and JSON of each reply) are passed, over four.

    Without `decompose` there are three of one reply: tags, key frame and box.
    """
    first, *second = episode.replies
    key = json_answers.read_key_frame(first, episode.pool, self.description_bytes)
    if not self.decompose:
      has_box = not json_answers.read_box(first).problem
      return [(format_lib.format_reward(first) + (key.problem in ("", "range")) + has_box) / 3, 0.0]
    passed = [format_lib.format_reward(first) + (key.problem in ("", "range"))]
    for reply in second or [""]:
      passed.append(format_lib.format_reward(reply) + (not json_answers.read_box(reply).problem))
    return [each / 4 for each in passed]


def _fill(text: str, values: Mapping[str, str]) -> str:
  """Replaces names in braces; other braces, as of JSON, stay."""
  for name, value in values.items():
    text = text.replace(name, value)
  return text
