"""Builds batches of prompts from clips, pads them to common buckets and puts them on the mesh."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
import zlib

import jax
from jaxtyping import Array, Bool, Int, Key, PyTree
import ml_collections
import numpy as np

from vr_jax import errors, records
from vr_jax.data import batches, examples, feature_cache, frame_store, sampling
from vr_jax.envs import environment as environment_lib
from vr_jax.models import interface
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rollout import dialogue as dialogue_lib
from vr_jax.rollout import play
from vr_jax.train import check_examples, paths, step_shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchItem:
  """One element of a batch: an example with its prompt, reference reply and clip.

  encoded: the prompt.
  reply: token ids of the reference reply; empty where there is none.
  cache_key: name of the clip's features in the cache. None without a cache, and for prompts that
    don't show the whole clip in order: other views, later turns, openings that choose frames.
  damaged: whether the cache's entry was found damaged.
  """

  example: records.Example
  encoded: prompts_lib.EncodedPrompt
  reply: tuple[int, ...]
  clip: batches.Clip
  cache_key: str | None = None
  damaged: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Items, and their prompts as host arrays, padded to the recipe's buckets.

  The last batch of an epoch may have fewer items than prompts: the first prompt fills the rest.

  sizes: the buckets.
  missing: rows without features; without a cache all rows.
  vision_inputs: input of the vision tower for the missing rows, padded to `bucket_size` rows.
  """

  items: list[BatchItem]
  prompt: records.Prompt
  sizes: prompts_lib.PromptSizes
  missing: tuple[int, ...]
  vision_inputs: PyTree

  @property
  def padded_items(self) -> list[BatchItem]:
    """One item for each prompt: the items, then the first one again for prompts that fill up."""
    return [*self.items, *self.items[:1] * (len(self.prompt.tokens) - len(self.items))]


@runtime_checkable
class BatchIterator(Protocol):
  """An iterator over batches that can be saved and resumed, as `data.batches` makes it."""

  def __next__(self) -> Batch:
    """The next batch."""
    ...

  def get_state(self) -> Mapping[str, Any]:
    """The position after the last batch, as JSON."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchBuilder:
  """Builds the batches of a run.

  data: the directory with the run's frames and examples.
  """

  config: ml_collections.ConfigDict
  data: Path
  mesh: jax.sharding.Mesh
  processor: interface.Processor
  environment: environment_lib.Environment

  @property
  def checks(self) -> check_examples.Checks:
    """The checks that examples must pass before they are read."""
    return check_examples.Checks(
      config=self.config,
      shards=self.data,
      processor=self.processor,
      environment=self.environment,
    )

  def read(
    self,
    split: str,
    batch_size: int,
    *,
    view: str = "whole",
    limit: int = 0,
    repeat: bool = True,
    cache: feature_cache.FeatureCache | None = None,
    by_length: bool = False,
  ) -> Any:
    """Makes an iterator over this process's part of each `Batch`; see `data.batches`.

    split: train, validation or test.
    batch_size: prompts of a batch, over all processes.
    view: what a prompt shows.
      whole: all frames of the clip.
      blind: no frames.
      shuffled: the frames in random order; their times stay in place.
        Blind and shuffled need a first observation that shows the whole clip.
      supervised: as whole; with several turns, the conversation before the reply to learn, which
        is that of another turn in every epoch.
    limit: take only the first examples (supervised: of those with a reference reply); 0: all.
    repeat: False for a single epoch, in order.
    cache: features of whole clips. Frames are read only of clips that it doesn't have.
    by_length: go from the shortest clips to the longest in every epoch; clips of the same length
      come in an order that depends on the seed. Otherwise, where clips are sampled at a rate, the
      clips of a batch have about the same length (`data.length_bucketing`).
    """
    store = frame_store.FrameStore(self.data / "frames")
    source = examples.ExampleSource(self.data, split)
    if not len(source):
      fraction = "" if split == "train" else f"; see config.data.{split}_fraction"
      raise errors.InputError(f"{source}: holds no example{fraction}")
    left_out = self.checks.find_unusable(supervised=view == "supervised").get(split, frozenset())
    order = _curriculum(source, self.config.seed) if by_length else np.arange(len(source))
    kept = order[~np.isin(order, sorted(left_out))]
    process_index, process_count = mesh_lib.process_shard(self.mesh)
    size = batch_size // process_count
    rule = paths.sampling_rule(self.config.data)
    shuffle = repeat and not by_length
    return batches.batches(
      examples.ExampleSubset(source, kept[: limit or None]),
      store,
      seed=self.config.seed,
      batch_size=size,
      frame_rule=rule,
      transform=functools.partial(self.item, view=view, cache=cache),
      collate=functools.partial(self.batch, size=size),
      length_fn=self._media_tokens if shuffle and isinstance(rule, sampling.RateRule) else None,
      process_index=process_index,
      process_count=process_count,
      shuffle=shuffle,
      repeat=repeat,
      threads=self.config.data.threads,
    )

  def _media_tokens(self, clip: batches.Clip) -> int:
    """The number of media tokens in the prompt of a clip that is shown whole."""
    opening = check_examples.first_observation(self.environment, clip.example, len(clip))
    return self.processor.count_media_tokens(_shown_shape(clip, opening), clip.example.id)

  def item(
    self,
    clip: batches.Clip,
    epoch: int = 0,
    *,
    view: str = "whole",
    cache: feature_cache.FeatureCache | None = None,
  ) -> BatchItem:
    """Makes the prompt of a clip, and its reference reply. view, cache: see `read`.

    epoch: a supervised conversation learns another turn in every epoch.

    Raises InputError if the view is blind or shuffled and the first observation does not show the
    whole clip.
    """
    replies = self.environment.reference_replies(clip.example, clip.timestamps)
    turn = 0
    if view == "supervised":
      first = zlib.crc32(f"turn of {clip.example.id}".encode())
      turn = (first + epoch) % max(1, len(replies))
      view = "whole"
    item = functools.partial(
      BatchItem,
      example=clip.example,
      reply=tuple(self.processor.encode_reply(replies[turn])) if replies else (),
      clip=clip,
    )
    opening = check_examples.first_observation(self.environment, clip.example, len(clip))
    if turn or opening.clip is None:
      if view in ("blind", "shuffled"):
        raise errors.InputError(
          f"{view} evaluation needs a first observation that shows the whole clip; "
          "set eval.blind and eval.shuffled_frames to False"
        )
      scene = dialogue_lib.EpisodeScene(example=clip.example, pool=clip)
      return item(encoded=self._dialogue([scene]).prompt(0, replies[:turn]))
    if cache is None or view != "whole":
      return item(encoded=self._encoded(clip, view))
    name = feature_cache.entry_name(clip, opening.clip.size)
    shapes = self.processor.config.vision_shapes
    found = cache.get(name, (self._media_tokens(clip), shapes.feature_width))
    if found.features is None:
      return item(encoded=self._encoded(clip, view), cache_key=name, damaged=found.damaged)
    (text,) = opening.texts
    encoded = self.processor.encode_with_features(
      text,
      _shown_shape(clip, opening),
      clip.timestamps,
      shapes.unpack_features(found.features),
      question_first=self.config.model.question_first,
      name=clip.example.id,
    )
    return item(encoded=encoded, cache_key=name)

  def dialogue(self, batch: Batch) -> dialogue_lib.Dialogue:
    """Makes the host's side of episodes about the clips of a batch."""
    scenes = [
      dialogue_lib.EpisodeScene(example=item.example, pool=item.clip) for item in batch.padded_items
    ]
    return self._dialogue(scenes)

  def _dialogue(self, scenes: Sequence[dialogue_lib.EpisodeScene]) -> dialogue_lib.Dialogue:
    return dialogue_lib.Dialogue(
      environment=self.environment,
      processor=self.processor,
      scenes=scenes,
      question_first=self.config.model.question_first,
    )

  def _encoded(self, clip: batches.Clip, view: str) -> prompts_lib.EncodedPrompt:
    """Encodes the prompt of a first turn that shows the whole clip."""
    if view == "blind":
      frames = timestamps = None
    else:
      frames, timestamps = clip.frames, clip.timestamps
      if view == "shuffled":
        seed = zlib.crc32(clip.example.id.encode())
        frames = frames[np.random.default_rng(seed).permutation(len(frames))]
    opening = check_examples.first_observation(self.environment, clip.example, len(clip))
    (text,) = opening.texts
    return self.processor.encode(
      text,
      frames,
      timestamps,
      size=opening.clip.size if opening.clip else None,
      question_first=self.config.model.question_first,
      name=clip.example.id,
    )

  def batch(
    self,
    items: Sequence[BatchItem],
    *,
    size: int | None = None,
    sizes: prompts_lib.PromptSizes | None = None,
  ) -> Batch:
    """Collates items to a batch.

    size: number of prompts. Default: that of the items.
    sizes: the buckets to pad to. Default: the smallest buckets that hold all prompts.
    """
    model, processor = self.config.model, self.processor
    encoded = [item.encoded for item in [*items, *[items[0]] * ((size or len(items)) - len(items))]]
    sizes = sizes or processor.sizes(
      encoded,
      prefix_buckets=model.prefix_buckets,
      frame_buckets=model.frame_buckets,
      patch_buckets=play.prompt_patch_buckets(self.config),
    )
    sizes = dataclasses.replace(sizes, frames=step_shapes.shared_frames(sizes.frames, self.mesh))
    prompt = processor.pad(encoded, sizes)
    missing = [row for row, each in enumerate(encoded) if each.features is None]
    vision_inputs = prompt.vision
    if vision_inputs is None:
      rows = bucket_size(len(missing), len(encoded), self.mesh)
      shown = [encoded[row] for row in [*missing, *missing[:1] * (rows - len(missing))]]
      vision_inputs = processor.stack_frames(shown, sizes)
    return Batch(
      items=list(items),
      prompt=prompt,
      sizes=sizes,
      missing=tuple(missing),
      vision_inputs=vision_inputs,
    )

  def rebuild(
    self, batch: Batch, *, sizes: prompts_lib.PromptSizes, drop_features_of: Sequence[int] = ()
  ) -> Batch:
    """Pads the batch to other buckets.

    drop_features_of: rows to encode from their frames instead of their features.
    """
    if sizes == batch.sizes and not len(drop_features_of):
      return batch
    items = list(batch.items)
    for row in {row if row < len(items) else 0 for row in drop_features_of}:
      encoded = self._encoded(items[row].clip, "whole")
      items[row] = dataclasses.replace(items[row], encoded=encoded)
    return self.batch(items, size=len(batch.prompt.tokens), sizes=sizes)

  def pad_to_common_buckets(self, batch: Batch) -> Batch:
    """Pads the batch to the largest buckets of any process; all must call this together."""
    gathered = processes.gather_numbers("buckets", np.array(bucket_sizes(batch)))
    return self.rebuild(batch, sizes=common_buckets(gathered))

  def shuffled_index(self, batch: Batch, key: Key[Array, ""]) -> Int[np.ndarray, "prompts prefix"]:
    """Shuffles the frames of each prompt; returns the batch's new `media_index`."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    encoded = [item.encoded for item in batch.padded_items]
    return self.processor.shuffle_frames(np.asarray(batch.prompt.media_index), encoded, rng)

  def prompt(self, batch: Batch) -> records.Prompt:
    """Puts the prompts of a batch on the mesh."""
    return mesh_lib.put_batch(batch.prompt, self.mesh)


def _shown_shape(clip: batches.Clip, opening: environment_lib.Observation) -> tuple[int, int, int]:
  """Frames, height and width (pixels) of a clip that is shown whole, at the size asked for."""
  frames, *stored = clip.shape
  height, width = (opening.clip and opening.clip.size) or stored
  return frames, height, width


def bucket_sizes(batch: Batch) -> tuple[int, ...]:
  """The buckets of a batch as numbers; see `common_buckets`."""
  return tuple(dataclasses.asdict(batch.sizes).values())


def common_buckets(sizes: Int[np.ndarray, "processes buckets"]) -> prompts_lib.PromptSizes:
  """The largest bucket of any process, of each kind; `sizes` are those of `bucket_sizes`."""
  names = [field.name for field in dataclasses.fields(prompts_lib.PromptSizes)]
  return prompts_lib.PromptSizes(**dict(zip(names, sizes.max(axis=0).tolist(), strict=True)))


def mean_prompt_tokens(batch: Batch) -> float:
  """Mean number of tokens of a prompt, over all processes, which must call this together."""
  lengths = (np.asarray(batch.prompt.kind) != records.Kind.PAD).sum(axis=1)
  return float(processes.all_gather(lengths).mean())


def reply_arrays(
  items: list[BatchItem], length: int, *, rows: int | None = None
) -> tuple[Int[np.ndarray, "prompts 1 time"], Bool[np.ndarray, "prompts 1 time"]]:
  """Pads the reference replies of items to `length`; returns (tokens, valid).

  rows: number of rows; those beyond the items are empty. None: as many as items.

  Raises InputError if a reply is missing or longer than `length`.
  """
  tokens = np.zeros((rows or len(items), 1, length), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for row, item in enumerate(items):
    check_examples.check_reply(len(item.reply), length, f"example {item.example.id}")
    tokens[row, 0, : len(item.reply)] = item.reply
    valid[row, 0, : len(item.reply)] = True
  return tokens, valid


def _seconds(outline: examples.ExampleOutline) -> float:
  """The length of the part of the video that is shown, in seconds."""
  return outline.shown.end - outline.shown.start


def _curriculum(source: examples.ExampleSource, seed: int) -> Int[np.ndarray, "examples"]:
  """The indices of a split from the shortest to the longest part of a video that is shown.

  The order of examples of the same length is random, since questions about one video are stored
  next to each other.
  """
  keys = np.fromiter(
    ((_seconds(each), zlib.crc32(f"{seed} {each.id}".encode())) for each in source.outlines()),
    dtype=[("seconds", np.float64), ("random", np.uint32)],
    count=len(source),
  )
  return np.lexsort((keys["random"], keys["seconds"]))


def bucket_size(rows: int, most: int, mesh: jax.sharding.Mesh) -> int:
  """Rounds a number of rows up to a bucket size, so that few programs are compiled.

  Buckets: 0, and the number of data shards of this process times a power of two, at most `most`.

  most: the rows of this process in a whole batch.

  Raises ValueError if there are more rows than that.
  """
  if rows > most:
    raise ValueError(f"{rows} rows, of a batch with {most}")
  _, num_shares = mesh_lib.process_shard(mesh)
  size = max(1, mesh.shape["data"] * mesh.shape["fsdp"] // num_shares)
  while size < rows:
    size *= 2
  return min(size, most) if rows else 0
