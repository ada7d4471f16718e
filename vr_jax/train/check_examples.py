"""Finds examples that would fail in mid-training, before training, or that nothing can win.

Prompts and replies may be too long, and a reference may be one that earns less than 1 when it is
the reply. Only tokens are counted; no frame is read. It also counts those with fewer frames than
the recipe asks for. The result is written next to the shards, one file for each set of inputs
(`left-out-<fingerprint>.json`), and read from there the next time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

from jaxtyping import Float, UInt8
import ml_collections
import numpy as np

from vr_jax import atomic, errors, plain_json, records
from vr_jax.data import annotations, batches, examples, frame_store, sampling
from vr_jax.envs import environment as environment_lib
from vr_jax.models import interface
from vr_jax.parallel import processes
from vr_jax.rollout import dialogue, episodes, play
from vr_jax.train import console, mask_filter, paths

SPLITS = ("train", "validation", "test")
_NO_REPLY = (
  "it has no reference reply (steps, or observation and reasoning; for a query, an object that is "
  "visible in a frame shown); add one, let the warm start leave it out "
  "(--config.sft.skip_without_reply), or train without a warm start (--config.sft.steps=0)"
)


def read_splits(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The splits that a run of all stages reads: all, or all but validation."""
  sft, rl = config.sft, config.rl
  validates = sft.steps and sft.validate_every
  validates = validates or (rl.steps and rl.eval_every and rl.eval_split == "validation")
  return tuple(split for split in SPLITS if split != "validation" or validates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
  """What the checks found.

  left_out: indices of each split's examples that can't be used.
  no_reply: indices of each split's usable examples that the warm start leaves out, as they have no
    reference reply (config.sft.skip_without_reply).
  short: number of usable examples that show fewer frames than the recipe asks for.
  fewest_frames: of these examples; 0 if there are none.
  """

  left_out: Mapping[str, frozenset[int]]
  no_reply: Mapping[str, frozenset[int]]
  short: int
  fewest_frames: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoodExamples:
  """What is counted of a split's examples that can be used.

  lengths: numbers of frames of the clips, of examples about videos.
  no_reply: indices of those that the warm start leaves out.
  """

  lengths: list[int] = dataclasses.field(default_factory=list)
  no_reply: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceChecks:
  """The checks that need no tokenizer.

  The reference must be a right reply, some frame must be shown, and an example of the warm start
  needs a reference reply.
  """

  config: ml_collections.ConfigDict
  environment: environment_lib.Environment

  def problems(
    self,
    source: Iterable[records.Example],
    store: frame_store.FrameStore,
    split: str,
    good: GoodExamples,
    tick: Callable[[int], object] = lambda done: None,
  ) -> Iterator[tuple[int, records.Example, str]]:
    """Yields (index, example, problem) of each that can't be used; nothing is raised or written.

    good: gets what is counted of the others.
    tick: gets the number of examples that are checked, at each.
    """
    sft, supervised_count = self.config.sft, 0
    dropped = self._dropped() if split == "train" else frozenset()
    learns = sft.steps and {"train": True, "validation": sft.validate_every}.get(split, False)
    for index, example in enumerate(source):
      tick(index)
      where = batches.example_name(example)
      beyond = split == "train" and sft.examples and supervised_count >= sft.examples
      supervised = bool(learns) and not beyond
      try:
        frames, has_reply = self._check(example, store, where, supervised=supervised)
      except errors.InputError as error:
        yield index, example, str(error).removeprefix(f"{where}: ").removeprefix(f"{example.id}: ")
        continue
      supervised_count += has_reply and example.video not in dropped
      if supervised and not has_reply:
        good.no_reply.append(index)
      if example.shown.start < example.shown.end:
        good.lengths.append(frames)

  def _dropped(self) -> frozenset[str]:
    """Videos whose examples are not trained on, so that the first `sft.examples` are others."""
    return frozenset()

  def _check(
    self, example: records.Example, store: frame_store.FrameStore, where: str, *, supervised: bool
  ) -> tuple[int, bool]:
    """Checks an example; returns the number of its clip's frames, and whether it is supervised."""
    times, replies = self._clip(example, store, where, supervised=supervised)
    return len(times), bool(replies)

  def _clip(
    self, example: records.Example, store: frame_store.FrameStore, where: str, *, supervised: bool
  ) -> tuple[Float[np.ndarray, "frames"], tuple[str, ...]]:
    """Times of the frames that are shown, and the replies that the warm start trains on.

    There are none if `supervised` is False, or if the warm start leaves the example out.
    """
    if problem := self.environment.reference_problem(example):
      raise errors.InputError(f"{where}: {problem}")
    rule = paths.sampling_rule(self.config.data)
    times, ends = store.timestamps(example.video), store.ends(example.video)
    chosen = sampling.choose(times, ends, example.shown, rule, where=where)
    times = sampling.shown_times(times, chosen, example.shown)
    self.environment.relevant(example, times)  # raises InputError if frames lack their annotation
    replies = self.environment.reference_replies(example, times) if supervised else ()
    if supervised and not any(replies):
      if not self.config.sft.skip_without_reply:
        raise errors.InputError(f"{where}: {_NO_REPLY}")
      replies = ()
    return times, replies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checks(ReferenceChecks):
  """All checks that examples must pass: prompts and replies must fit the recipe's buckets, too.

  shards: the directory with the examples and frames.
  splits: those that are checked; None: `read_splits` of the config.
  """

  shards: Path
  processor: interface.Processor
  splits: tuple[str, ...] | None = None

  def find_unusable(self, *, supervised: bool = False) -> Mapping[str, frozenset[int]]:
    """Finds the indices of each split's examples that can't be used; see `run`.

    For training, those about videos that --mode=filter found can't be used, either.

    supervised: for the warm start, with those that it leaves out.

    All processes call this together: the first one checks what has to be checked. Where the others
    don't see its file, as the data directory is not on shared storage, they check it after that.

    Raises:
      InputError: also if the config asks for that filter, and it has not run, or it leaves nothing.
    """
    processes.first_for_all("checks of examples", self.run)
    found = self.run()
    left_out = found.left_out
    if supervised:
      left_out = {s: found.left_out[s] | found.no_reply.get(s, frozenset()) for s in left_out}
    dropped = mask_filter.dropped_videos(self.config, self.shards)
    if dropped is None:
      raise errors.InputError(
        f"--config.mask_filter.sam2={self.config.mask_filter.sam2}: run --mode=filter first, to "
        'find the videos that are left out; or set it to "" to train on all of them'
      )
    if not dropped:
      return left_out
    source = examples.ExampleSource(self.shards, "train")
    filtered = {index for index, each in enumerate(source.outlines()) if each.video in dropped}
    left_out = {**left_out, "train": left_out.get("train", frozenset()) | filtered}
    if len(left_out["train"]) == len(source):
      raise errors.InputError(
        f"{source}: the filter of --mode=filter leaves no query; lower "
        "--config.mask_filter.threshold"
      )
    return left_out

  def run(self) -> CheckResult:
    """Checks all examples, unless a file with the result exists.

    With on_bad "skip" each unusable example is listed in bad_records.jsonl, once.

    Raises:
      InputError: on_bad is "stop" and an example can't be used; or no example of a split can.
    """
    path = self.result_file
    if not path.is_file():
      self._write(path)
    try:
      found = plain_json.parse(path.read_bytes())
      indices = {
        kind: {split: frozenset(each) for split, each in found.pop(kind).items()}
        for kind in ("left_out", "no_reply")
      }
      return CheckResult(**indices, **found)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
      raise errors.InputError(f"{path}: is damaged; remove it") from error

  @property
  def result_file(self) -> Path:
    """The file that says which examples can't be used with this recipe."""
    return self.shards / f"left-out-{self._fingerprint()}.json"

  def _write(self, path: Path) -> None:
    store = frame_store.FrameStore(self.shards / "frames")
    self.environment.check_examples(examples.ExampleSource(self.shards, "train"))
    found, good = {}, {}
    for split in self.splits or read_splits(self.config):
      good[split] = GoodExamples()
      found[split] = self._find_bad(split, store, good[split])
    bad = [entry for entries in found.values() for entry in entries.values()]
    try:
      _list_bad(self.shards / "bad_records.jsonl", bad)
    except OSError as error:
      raise errors.InputError(f"{path}: cannot be written ({error.strerror})") from error
    usual = sampling.usual_frames(paths.sampling_rule(self.config.data))
    short = [length for each in good.values() for length in each.lengths if length < usual]
    result = {
      "left_out": {split: list(entries) for split, entries in found.items()},
      "no_reply": {split: each.no_reply for split, each in good.items()},
      "short": len(short),
      "fewest_frames": min(short, default=0),
    }
    atomic.write_json_lines(path, [result])

  def _find_bad(
    self, split: str, store: frame_store.FrameStore, good: GoodExamples
  ) -> dict[int, dict[str, str]]:
    """Checks a split; returns entries of bad_records.jsonl, by index of the example.

    good: gets what is counted of the others.
    """
    source, bad = examples.ExampleSource(self.shards, split), {}
    with console.progress(f"check {split}", len(source)) as tick:
      for index, example, problem in self.problems(source, store, split, good, tick):
        where = batches.example_name(example)
        problem += f" ({self._lines[example.id]})" if example.id in self._lines else ""
        if self.config.data.on_bad == "stop":
          raise errors.InputError(f"{where}: {problem}")
        bad[index] = {"where": where, "problem": problem}
    lines = [f"{entry['where']}: {entry['problem']}" for entry in bad.values()]
    if problem := find_none_left(len(source), lines, len(good.no_reply)):
      raise errors.InputError(f"{source}: {problem}")
    return bad

  def _dropped(self) -> frozenset[str]:
    return mask_filter.dropped_videos(self.config, self.shards) or frozenset()

  @functools.cached_property
  def _lines(self) -> Mapping[str, str]:
    """File and line of the examples by id, as far as the annotation file is there."""
    try:
      path = self.config.data.annotations
      return annotations.find_lines(Path(path)) if path else {}
    except errors.InputError:
      return {}

  def _check(
    self, example: records.Example, store: frame_store.FrameStore, where: str, *, supervised: bool
  ) -> tuple[int, bool]:
    """Checks an example; returns the number of its clip's frames, and whether it is supervised."""
    times, replies = self._clip(example, store, where, supervised=supervised)
    model, size = self.config.model, store.size(example.video)
    count, environment = len(times), self.environment
    pool = _Blank(times, self.processor, size)
    host = dialogue.Dialogue(
      environment=environment,
      processor=self.processor,
      scenes=(dialogue.EpisodeScene(example=example, pool=pool),),
      question_first=model.question_first,
    )
    self._check_later_turns(host, count)
    buckets = {
      "prefix_buckets": model.prefix_buckets,
      "frame_buckets": model.frame_buckets,
      "patch_buckets": play.prompt_patch_buckets(self.config),
    }
    opening = first_observation(environment, example, count)
    conversations = {(), replies[:-1]}
    if opening.clip is not None:  # counted without making frames
      conversations.remove(())
      (text,) = opening.texts
      self.processor.check_prompt(
        text,
        (count, *(opening.clip.size or size)),
        times,
        question_first=model.question_first,
        name=where,
        **buckets,
      )
    for conversation in conversations:
      self.processor.sizes([host.prompt(0, conversation)], **buckets)
    if replies:
      longest = self.config.sft.max_reply_tokens
      lengths = [self.processor.reply_length(reply, longest) for reply in replies]
      check_reply(max(lengths), longest, where)
    return count, bool(replies)

  def _check_later_turns(self, host: dialogue.Dialogue, pool: int) -> None:
    """Raises InputError if a later turn may show more than the largest buckets hold."""
    environment, (scene,) = self.environment, host.scenes
    probes, size = environment.longest_replies(pool), scene.pool.read((0,)).shape
    # The second turn and the last one, whose texts may differ.
    for before in {0, environment.turns - 2} if environment.turns > 1 else ():
      for reply in probes:
        replies = tuple(map(self._encode_reply, (*probes[:1] * before, reply)))
        texts = [self.processor.decode(each) for each in replies]
        observation = environment.observe(scene.example, pool, texts)
        if observation is None or (observation, size) in self._fitting:
          continue
        shown = host.observe(0, 0, replies)
        if shown is not None:
          schedule = play.make_schedule(self.config, environment, self.processor)
          episodes.check_observation_fits(shown, written=0, frames=0, reply=0, schedule=schedule)
          self._fitting.add((observation, size))

  @functools.cached_property
  def _fitting(self) -> set[tuple[environment_lib.Observation, tuple[int, ...]]]:
    """Observations of later turns that fit the buckets, with the size of their frames."""
    return set()

  def _encode_reply(self, reply: str) -> tuple[int, ...]:
    return tuple(self.processor.encode_reply(reply))

  def _fingerprint(self) -> str:
    """A hash of everything that the checks depend on."""
    config, model = self.config, self.config.model
    limits = ("system", "question_first")
    buckets = ("prefix_buckets", "frame_buckets", "patch_buckets")
    depends = {
      "ingested": (self.shards / "ingest.json").read_text(),
      "tokenizer": self.processor.tokenizer.to_str(),
      "model_sizes": self.processor.config.architecture,
      "model": {name: model[name] for name in limits + buckets},
      "preprocessing": self.processor.preprocessing,
      "recipe": config.recipe,
      "env": config.env.to_dict(),
      "sft": [
        bool(config.sft.steps),
        config.sft.examples,
        config.sft.max_reply_tokens,
        bool(config.sft.validate_every),
        config.sft.skip_without_reply,
      ],
      "splits": self.splits or read_splits(config),
      "references": "checked",
      "rule": repr(paths.sampling_rule(config.data)),
      "on_bad": config.data.on_bad,
      "turns": config.get("turns", ml_collections.ConfigDict()).to_dict(),
    }
    if config.sft.examples and (dropped := self._dropped()):
      depends["dropped"] = sorted(dropped)
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Blank:
  """A pool of black frames, as large as the processor makes frames of this size.

  size: height and width in pixels, before resizing.
  """

  timestamps: Float[np.ndarray, "frames"]
  processor: interface.Processor
  size: tuple[int, int]

  def __len__(self) -> int:
    return len(self.timestamps)

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    return np.zeros((len(frames), *self.processor.resized(self.size), 3), np.uint8)


def first_observation(
  environment: environment_lib.Environment, example: records.Example, pool: int
) -> environment_lib.Observation:
  """What the first turn of an episode shows. pool: number of frames that turns choose from."""
  observation = environment.observe(example, pool, ())
  assert observation is not None, "every episode has a first turn"
  return observation


def find_none_left(count: int, bad: Sequence[str], no_reply: int) -> str:
  """What is wrong with a split of which nothing is left; "" if something is.

  count: its examples.
  bad: name and problem of those that can't be used.
  no_reply: number of those that the warm start leaves out.
  """
  if bad and len(bad) == count:
    return f"not one good example is left; first, {bad[0]}"
  if no_reply and len(bad) + no_reply == count:
    return (
      "not one good example has a reference reply to train on; add some, or train without a warm "
      "start (--config.sft.steps=0)"
    )
  return ""


def check_reply(length: int, longest: int, where: str) -> None:
  """Raises InputError if a reference reply has no tokens, or too many to train on."""
  if not 0 < length <= longest:
    if length:
      problem = f"its reference reply has {length} tokens; the most is {longest}"
      raise errors.InputError(f"{where}: {problem} (config.sft.max_reply_tokens)")
    raise errors.InputError(f"{where}: {_NO_REPLY}")


def _list_bad(path: Path, entries: list[dict[str, str]]) -> None:
  """Appends the entries that the file doesn't have yet."""
  lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
  there = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
  if new := [line for line in lines if line not in there]:
    with path.open("a", encoding="utf-8") as file:
      file.writelines(f"{line}\n" for line in new)
