"""Batches of prompts: built from clips, padded to common buckets, put on the mesh."""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any
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
from vr_jax.train import check_examples, paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """One element of a batch: an example, its prompt, the tokens of its reference reply, and what it shows.

  kept_as: what the features of the clip are called in the cache, where there is one; damaged: they were not whole there.
  """

  example: records.Example
  encoded: prompts_lib.EncodedPrompt
  reply: tuple[int, ...]
  clip: batches.Clip
  kept_as: str | None = None
  damaged: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
  """Items, and their prompts as host arrays, padded to the recipe's buckets.

  A batch that ended an epoch early is filled up: its prompts beyond the items repeat the first one. sizes: the buckets. missing:
  the rows whose features are not known, without a cache all; patches: what these show, as the vision tower reads it, in the rows that `mesh.bucket_size` asks for.
  """

  items: list[Item]
  prompt: records.Prompt
  sizes: prompts_lib.PromptSizes
  missing: tuple[int, ...]
  patches: PyTree

  @property
  def rows(self) -> list[Item]:
    """An item for each prompt."""
    return [*self.items, *self.items[:1] * (len(self.prompt.tokens) - len(self.items))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchBuilder:
  """Builds the batches of a run. data: the directory with its frames and examples."""

  config: ml_collections.ConfigDict
  data: Path
  mesh: jax.sharding.Mesh
  processor: interface.Processor
  environment: environment_lib.Environment

  @property
  def checks(self) -> check_examples.Checks:
    """What examples are held against before they are read."""
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
    """An iterator over `Batch`es (of this process: its share of `batch_size`), as `data.batches` makes it.

    view: `whole`; `blind` leaves the frames out of the prompt; `shuffled` puts them in random order (their times stay);
    `supervised` is whole, with several turns the conversation before the reply that is to be learnt.
    limit: the first examples only; 0: all. repeat=False: one epoch, in order. cache: features of clips seen whole; where it
    has them, no frame is read. by_length: every epoch goes from the shortest clips to the longest, those of one
    length in an order that hangs on the seed; otherwise, where clips are sampled at a rate, those of about one length share a
    batch (`data.windows`).
    """
    store = frame_store.FrameStore(self.data / "frames")
    source = examples.ExampleSource(self.data, split)
    if not len(source):
      fraction = "" if split == "train" else f"; see config.data.{split}_fraction"
      raise errors.InputError(f"{source}: holds no example{fraction}")
    left_out = self.checks.find_unusable().get(split, ())
    kept = [index for index in range(len(source)) if index not in left_out]
    if by_length:
      kept.sort(key=lambda index: _rank(source[index], self.config.seed))
    share, shares = mesh_lib.process_shard(self.mesh)
    size = batch_size // shares
    rule = paths.sampling_rule(self.config.data)
    shuffle = repeat and not by_length
    return batches.batches(
      examples.ExampleSubset(source, kept[: limit or None]),
      store,
      seed=self.config.seed,
      batch_size=size,
      sampling=rule,
      transform=functools.partial(self.item, view=view, cache=cache),
      collate=functools.partial(self.batch, size=size),
      length=self._media_tokens if shuffle and isinstance(rule, sampling.RateRule) else None,
      process_index=share,
      process_count=shares,
      shuffle=shuffle,
      repeat=repeat,
      threads=self.config.data.threads,
    )

  def _media_tokens(self, clip: batches.Clip) -> int:
    """Of its prompt, those that stand for what it shows."""
    return self.processor.count_media_tokens(clip.shape, clip.example.id)

  def item(
    self,
    clip: batches.Clip,
    *,
    view: str = "whole",
    cache: feature_cache.FeatureCache | None = None,
  ) -> Item:
    """The prompt (and reference reply, where there is one) of a clip; `view` and `cache` are those of `read`."""
    replies = self.environment.reference_replies(clip.example, clip.timestamps)
    turn = 0
    if view == "supervised":
      turn = zlib.crc32(f"turn of {clip.example.id}".encode()) % max(1, len(replies))
      view = "whole"
    item = functools.partial(
      Item,
      example=clip.example,
      reply=tuple(self.processor.encode_reply(replies[turn])) if replies else (),
      clip=clip,
    )
    opening = self.environment.observe(clip.example, len(clip), ())
    if turn or not opening.shows_clip:
      scene = dialogue_lib.EpisodeScene(example=clip.example, pool=clip)
      return item(encoded=self._dialogue([scene]).prompt(0, replies[:turn]))
    if cache is None or view != "whole":
      return item(encoded=self._encoded(clip, view))
    name = feature_cache.entry_name(clip)
    shapes = self.processor.config.vision_shapes
    found = cache.get(name, (self._media_tokens(clip), shapes.feature_width))
    if found.features is None:
      return item(encoded=self._encoded(clip, view), kept_as=name, damaged=found.damaged)
    encoded = self.processor.encode_with_features(
      *opening.texts,
      clip.shape,
      clip.timestamps,
      shapes.unpack_features(found.features),
      question_first=self.config.model.question_first,
      name=clip.example.id,
    )
    return item(encoded=encoded, kept_as=name)

  def dialogue(self, batch: Batch) -> dialogue_lib.Dialogue:
    """The host's side of episodes about the clips of a batch."""
    scenes = [
      dialogue_lib.EpisodeScene(example=item.example, pool=item.clip) for item in batch.rows
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
    """The prompt of a first turn that shows the whole clip."""
    opening = self.environment.observe(clip.example, len(clip), ())
    frames, timestamps = (None, None) if view == "blind" else (clip.frames, clip.timestamps)
    if view == "shuffled":
      seed = zlib.crc32(clip.example.id.encode())
      frames = frames[np.random.default_rng(seed).permutation(len(frames))]
    return self.processor.encode(
      *opening.texts,
      frames,
      timestamps,
      question_first=self.config.model.question_first,
      name=clip.example.id,
    )

  def batch(
    self,
    items: list[Item],
    *,
    size: int | None = None,
    sizes: prompts_lib.PromptSizes | None = None,
  ) -> Batch:
    """Items with their prompts side by side, `size` rows of them (as many as items, where it is not given).

    sizes: what they are padded to; where it is not given, the smallest buckets that hold them.
    """
    model, processor = self.config.model, self.processor
    encoded = [item.encoded for item in [*items, *[items[0]] * ((size or len(items)) - len(items))]]
    sizes = sizes or processor.sizes(
      encoded,
      prefix_buckets=model.prefix_buckets,
      frame_buckets=model.frame_buckets,
      patch_buckets=model.patch_buckets,
    )
    prompt = processor.pad(encoded, sizes)
    missing = [row for row, one in enumerate(encoded) if one.features is None]
    patches = prompt.vision
    if patches is None:
      rows = mesh_lib.bucket_size(len(missing), len(encoded), self.mesh)
      shown = [encoded[row] for row in [*missing, *missing[:1] * (rows - len(missing))]]
      patches = processor.stack_frames(shown, sizes)
    return Batch(items=items, prompt=prompt, sizes=sizes, missing=tuple(missing), patches=patches)

  def rebuild(
    self, batch: Batch, *, sizes: prompts_lib.PromptSizes, unknown: Sequence[int] = ()
  ) -> Batch:
    """The batch padded to these buckets. unknown: rows whose features count as not known, so that their frames are read."""
    if sizes == batch.sizes and not len(unknown):
      return batch
    items = list(batch.items)
    for row in {row if row < len(items) else 0 for row in unknown}:
      encoded = self._encoded(items[row].clip, "whole")
      items[row] = dataclasses.replace(items[row], encoded=encoded)
    return self.batch(items, size=len(batch.prompt.tokens), sizes=sizes)

  def pad_to_common_buckets(self, batch: Batch) -> Batch:
    """The batch in the smallest buckets that hold those of all processes; all must call this together."""
    told = processes.all_gather(np.array(bucket_sizes(batch)))
    return self.rebuild(batch, sizes=common_buckets(told))

  def shuffled_index(self, batch: Batch, key: Key[Array, ""]) -> Int[np.ndarray, "prompts prefix"]:
    """The batch's `media_index` with the frames of each prompt in random order."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    encoded = [item.encoded for item in batch.rows]
    return self.processor.shuffle_frames(batch.prompt.media_index, encoded, rng)

  def prompt(self, batch: Batch) -> records.Prompt:
    """The prompts of a batch on the mesh, as they are on the host."""
    return mesh_lib.put_batch(batch.prompt, self.mesh)


def bucket_sizes(batch: Batch) -> tuple[int, ...]:
  """The buckets of a batch as numbers, for `common_buckets`."""
  return tuple(dataclasses.asdict(batch.sizes).values())


def common_buckets(sizes: Int[np.ndarray, "processes buckets"]) -> prompts_lib.PromptSizes:
  """The smallest buckets that hold those of all processes."""
  names = [field.name for field in dataclasses.fields(prompts_lib.PromptSizes)]
  return prompts_lib.PromptSizes(**dict(zip(names, sizes.max(axis=0).tolist(), strict=True)))


def reply_arrays(
  items: list[Item], length: int, *, rows: int | None = None
) -> tuple[Int[np.ndarray, "prompts 1 time"], Bool[np.ndarray, "prompts 1 time"]]:
  """Reference replies padded to `length`: (tokens, valid), in as many rows (None: as items); those beyond hold nothing.

  Raises InputError where one is missing or longer.
  """
  tokens = np.zeros((rows or len(items), 1, length), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for row, item in enumerate(items):
    check_examples.check_reply(len(item.reply), length, f"example {item.example.id}")
    tokens[row, 0, : len(item.reply)] = item.reply
    valid[row, 0, : len(item.reply)] = True
  return tokens, valid


def _seconds(example: records.Example) -> float:
  """How long the model sees its video."""
  return example.shown.end - example.shown.start


def _rank(example: records.Example, seed: int) -> tuple[float, int]:
  """Where it stands in a curriculum. Of one length by chance: as ingested, questions on one video stand side by side."""
  return _seconds(example), zlib.crc32(f"{seed} {example.id}".encode())
