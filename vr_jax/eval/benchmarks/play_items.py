"""Asks a policy the items of a protocol, batch by batch, and keeps each reply as it comes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
import dataclasses
import functools
import itertools
from typing import Any, ClassVar

import jax
from jaxtyping import Bool, Int, PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax.data import benchmark_item
from vr_jax.envs import environment as environment_lib
from vr_jax.eval.benchmarks import asked_items, protocols, reply_store
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import preemption, processes
from vr_jax.rollout import decode_replies
from vr_jax.rollout import play as play_lib
from vr_jax.train import batching, experience, run_context, vision_features

# Prompts of benchmarks are longer and shorter than those that a recipe's programs are compiled for.
_LENGTHS = tuple(size for power in range(9, 18) for size in (1 << power, 3 << (power - 1)))
_FRAMES = (16, 64, 128, 256, 384)  # temporal patches
_PATCHES = (1024, 2048, 4096, 8192)  # of a frame


class WholeReply(environment_lib.Defaults):
  """One reply, without markup: what a protocol with a prompt of its own gets."""

  tags: ClassVar[tuple[str, ...]] = ()

  def question(self, example: records.Example) -> str:
    """The question; prompts of protocols are made elsewhere."""
    return example.question

  def score(
    self, examples: Sequence[records.Example], replies: environment_lib.Replies
  ) -> records.Scores:
    """Rules of the protocol score replies."""
    raise NotImplementedError

  def accuracy(self, example: records.Example, reply: str) -> float:
    """Rules of the protocol score replies."""
    raise NotImplementedError

  def trace(self, reply: str) -> str:
    """There is no reasoning apart from the reply."""
    return reply

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """Nothing."""
    del example, reply
    return {}


def with_protocol(
  context: run_context.RunContext, protocol: protocols.Protocol
) -> run_context.RunContext:
  """The context in which a protocol is played: its environment, and buckets for any length.

  Raises InputError if the model has no room for a prompt beside the longest reply.
  """
  config = context.config.copy_and_resolve_references().unlock()
  model = config.model
  reply = _reply_limit(context, protocol)
  if protocol.prompt is None and context.environment.turns > 1:
    reply = max(config.turns.episode_buckets)  # replies of all turns, and what they are shown
    # Later turns are padded to the largest, and show frames as the recipe does.
    config.turns.patch_buckets = play_lib.later_patch_buckets(config)
  room = context.model.max_position_embeddings - reply
  if room < 1:
    raise errors.InputError(
      f"--benchmarks={protocol.name}: replies have up to {reply} tokens, and the model's context "
      f"ends at {context.model.max_position_embeddings}; choose another"
    )
  lengths = {*model.prefix_buckets, *_LENGTHS}
  model.prefix_buckets = tuple(sorted(size for size in lengths if size <= room)) or (room,)
  model.frame_buckets = tuple(sorted({*model.frame_buckets, *_FRAMES}))
  model.patch_buckets = tuple(sorted({*model.patch_buckets, *_PATCHES}))
  environment = context.environment if protocol.prompt is None else WholeReply()
  return dataclasses.replace(context, config=config.lock(), environment=environment)


def play(
  context: run_context.RunContext,
  params: PyTree,
  asker: asked_items.ItemAsker,
  items: Sequence[benchmark_item.Item],
  store: reply_store.ReplyStore,
  *,
  absent: Collection[str] = (),
  tick: Callable[[int], None] = lambda done: None,
) -> None:
  """Asks all items that have no reply yet.

  context: as `with_protocol` makes it. All processes must call this together; each asks some items.
  absent: ids of items that are not asked: their videos are not there.
  tick: is called with the number of questions done.

  An item whose prompt can't be made, or whose next turn does not fit, gets a reply with a problem.
  What is sampled depends on the
  seed and eval.batch_size: the draws of an item are those of its place among all items, whichever
  process asks it, whatever was asked before, and whichever items are absent.
  """
  share, shares = mesh_lib.process_shard(context.mesh)
  if shares != jax.process_count():
    raise errors.InputError(
      f"config.mesh={tuple(context.config.mesh)}: {jax.process_count()} processes share {shares} "
      "parts of a batch; give each a part of its own (data or fsdp), or use fewer processes"
    )
  size = context.config.eval.batch_size // shares
  # Sorted by video, so that each is opened once, and prompts of a batch are about as long.
  ordered = sorted(items, key=item_order)
  rows_of = [None if item.id in absent else item for item in ordered]
  present = [item for item in rows_of if item is not None]
  chunks = [rows_of[start : start + size] for start in range(0, len(rows_of), size)]
  known = {name for name, reply in store.read().items() if not reply.problem}
  # In round r the processes play the chunks from r * shares on, one each. A round of which any
  # process lacks a reply is played by all, with the same key: its draws are always the same.
  own = chunks[share::shares]
  own += [[]] * (-(-len(chunks) // shares) - len(own))
  lacks = np.array(
    [any(item is not None and item.id not in known for item in chunk) for chunk in own], np.int32
  )
  rounds = np.flatnonzero(processes.all_gather(lacks).any(axis=0)).tolist()
  counts = [sum(item is not None for item in chunk) for chunk in chunks]
  done = len(present) - sum(counts[place] for place in _places(rounds, shares, len(chunks)))
  filler: batching.BatchItem | None = None
  threads = max(1, context.config.data.threads)
  with (
    store.writer(share) as writer,
    futures.ThreadPoolExecutor(threads) as pool,
    futures.ThreadPoolExecutor(1) as thread,
    futures.ThreadPoolExecutor(1) as writing,  # it ends before the file is closed
    preemption.stops_between_batches(),
  ):
    prompts = _read_ahead(thread, pool, asker, [own[number] for number in rounds], size)
    written: futures.Future[None] | None = None
    for number, chunk in zip(rounds, prompts, strict=True):
      played: PlayedChunk | None = None
      if processes.all_gather(np.array([int(chunk.batch is not None)])).any():
        batch = chunk.batch
        if batch is None:
          filler = filler or _first_that_fits(asker, present)
          batch = context.builder.batch([filler], size=size)
        filler = batch.items[0]
        played = sample_chunk(context, params, asker.protocol, batch, number)
      if written is not None:
        written.result()
        tick(done)
      # The devices sample the next chunk while these are decoded and written.
      written = writing.submit(_write, context, asker.protocol, writer, chunk, played, known)
      done += sum(counts[place] for place in _places([number], shares, len(chunks)))
      if processes.count_joined() > 1 and preemption.stops_after():
        written.result()
        raise errors.Preempted(preemption.OUTSIDE)
    if written is not None:
      written.result()
      tick(done)


def _places(rounds: Sequence[int], shares: int, chunks: int) -> list[int]:
  """The numbers of the chunks that are played in some rounds."""
  return [
    place
    for number in rounds
    for place in range(number * shares, (number + 1) * shares)
    if place < chunks
  ]


def item_order(item: benchmark_item.Item) -> tuple[str, float, str]:
  """The key by which items are sorted: those about one video follow each other."""
  # The path of a video may depend on whether it is there; the source's name doesn't.
  return item.cluster, item.clip.start if item.clip else 0.0, item.id


# For each item its prompt, or None if it is absent or none can be made; then why of the latter.
_Asked = tuple[list[batching.BatchItem | None], list[reply_store.StoredReply]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedChunk:
  """The prompts of a chunk.

  asked: whether each item has one, in order: not if it is absent or none can be made.
  failed: why, of those of which none can be made.
  batch: a row for each item, of another one if it has no prompt; None if no item has one.
  """

  asked: tuple[bool, ...]
  failed: list[reply_store.StoredReply]
  batch: batching.Batch | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayedChunk:
  """The prompts of a chunk, and what was sampled.

  failed: why an episode ended before its next turn, which is too large, by row.
  """

  batch: batching.Batch
  rollout: records.Rollout
  failed: Mapping[int, str] = dataclasses.field(default_factory=dict)


def _read_ahead(
  thread: futures.Executor,
  pool: futures.Executor,
  asker: asked_items.ItemAsker,
  chunks: Sequence[Sequence[benchmark_item.Item | None]],
  size: int,
) -> Iterator[AskedChunk]:
  """The prompts of one chunk after the other; the next are made while some are played."""
  later = [thread.submit(make_batch, asker, chunk, size, pool) for chunk in chunks[:2]]
  for chunk in itertools.chain(chunks[2:], [None, None]):
    if later:
      yield later.pop(0).result()
    if chunk is not None:
      later.append(thread.submit(make_batch, asker, chunk, size, pool))


def make_batch(
  asker: asked_items.ItemAsker,
  items: Sequence[benchmark_item.Item | None],
  size: int,
  pool: futures.Executor | None = None,
) -> AskedChunk:
  """Makes the prompts of a chunk, and stacks them to a batch of `size` rows. pool: of `ask_chunk`.

  Each item keeps its row, on which its draws depend, also where one before it failed or is absent.
  """
  asked, failed = ask_chunk(asker, items, pool)
  made = [each for each in asked if each is not None]
  batch = None
  if made:
    batch = asker.context.builder.batch([each or made[0] for each in asked], size=size)
    if jax.process_count() == 1:  # else they may have to be stacked again, to others' buckets
      batch = _without_frames(batch)
  return AskedChunk(asked=tuple(each is not None for each in asked), failed=failed, batch=batch)


def _without_frames(batch: batching.Batch) -> batching.Batch:
  """The batch, whose items don't hold a second copy of their frames' patches."""
  items = [
    dataclasses.replace(item, encoded=dataclasses.replace(item.encoded, frames=()))
    for item in batch.items
  ]
  return dataclasses.replace(batch, items=items)


def ask_chunk(
  asker: asked_items.ItemAsker,
  items: Sequence[benchmark_item.Item | None],
  pool: futures.Executor | None = None,
) -> _Asked:
  """Makes the prompts of a chunk. Of those that can't be made (None), it says why.

  items: None for one that is absent.
  pool: threads that make several at a time; None: this one makes all.
  """
  run = map if pool is None else pool.map
  # The first question about a video decodes it; others about it wait for that.
  there = {number: item for number, item in enumerate(items) if item is not None}
  first = {item.video: number for number, item in reversed(there.items())}
  parts = [*first.values()], [n for n, item in there.items() if first[item.video] != n]
  made: dict[int, batching.BatchItem | reply_store.StoredReply] = {}
  for numbers in parts:
    made |= zip(
      numbers, run(functools.partial(_ask, asker), [there[n] for n in numbers]), strict=True
    )
  results = [made.get(number) for number in range(len(items))]
  return (
    [each if isinstance(each, batching.BatchItem) else None for each in results],
    [each for each in results if isinstance(each, reply_store.StoredReply)],
  )


def _ask(
  asker: asked_items.ItemAsker, item: benchmark_item.Item
) -> batching.BatchItem | reply_store.StoredReply:
  """The prompt of an item, or why there is none."""
  try:
    made = asker.ask(item)
    _check_fits(asker.context, made)
    return made
  except errors.InputError as error:
    return reply_store.StoredReply(id=item.id, problem=str(error))


def _check_fits(context: run_context.RunContext, item: batching.BatchItem) -> None:
  """Raises InputError if a prompt is larger than the largest buckets."""
  model = context.config.model
  context.processor.sizes(
    [item.encoded],
    prefix_buckets=model.prefix_buckets,
    frame_buckets=model.frame_buckets,
    patch_buckets=play_lib.prompt_patch_buckets(context.config),
  )


def _first_that_fits(
  asker: asked_items.ItemAsker, items: Sequence[benchmark_item.Item]
) -> batching.BatchItem:
  """A prompt with which a process takes part that has none of its own.

  Raises InputError if none can be made, though another process has made one.
  """
  for item in items:
    (asked,), _ = ask_chunk(asker, [item])
    if asked is not None:
      return asked
  raise errors.InputError(
    f"--benchmarks={asker.protocol.name}: process {jax.process_index()} can read no video, and "
    "another can; make --benchmark_data and --frames the same on all hosts"
  )


def sample_chunk(
  context: run_context.RunContext,
  params: PyTree,
  protocol: protocols.Protocol,
  batch: batching.Batch,
  number: int,
) -> PlayedChunk:
  """Samples a reply to each prompt. number: of the round, for the random key of all processes."""
  featurized = vision_features.prompt_with_features(context, params, batch, None)
  played = experience.play_batch(
    context,
    params,
    featurized.batch,
    featurized.prompt,
    jax.random.fold_in(jax.random.key(context.config.seed), number),
    group=1,
    ends_outgrown=True,
    **_decoding(context, protocol),
  )
  failed = {row: why for (row, _), why in played.outgrown.items()}
  return PlayedChunk(batch=featurized.batch, rollout=played.rollout, failed=failed)


def _write(
  context: run_context.RunContext,
  protocol: protocols.Protocol,
  writer: reply_store.ReplyWriter,
  chunk: AskedChunk,
  played: PlayedChunk | None,
  known: Collection[str],
) -> None:
  """Writes the replies to a chunk's questions.

  played: None if no process has a prompt. known: ids of questions that have a reply.
  """
  replies = [each for each in chunk.failed if each.id not in known]
  if played is not None and any(chunk.asked):
    found = read_replies(context, protocol, played)
    replies += [reply for reply, asked in zip(found, chunk.asked, strict=True) if asked]
  if replies:
    writer.add(replies)


def read_replies(
  context: run_context.RunContext, protocol: protocols.Protocol, played: PlayedChunk
) -> list[reply_store.StoredReply]:
  """Decodes the reply to each item of a chunk; says of each that failed why."""
  items, rows = played.batch.items, len(played.batch.items)
  dialogue = context.builder.dialogue(played.batch)
  replies = decode_replies.decode_replies(dialogue, played.rollout, rows=rows)
  tokens, kind, turn = (
    mesh_lib.local_rows(each)[:rows, 0]
    for each in (played.rollout.tokens, played.rollout.kind, played.rollout.turn)
  )
  sampled, limit = kind == records.Kind.MODEL, _reply_limit(context, protocol)
  shown = [shown_media(context, item) for item in items]
  if context.config.rl.repetition_window:
    limit = 1  # any reply without an end was cut
  return [
    reply_store.StoredReply(id=item.example.id, problem=played.failed[row])
    if row in played.failed
    else reply_store.StoredReply(
      id=item.example.id,
      reply=episode.replies[-1],
      earlier=tuple(episode.replies[:-1]),
      tokens=int(sampled[row].sum()),
      turns=len(episode.replies),
      truncated=_is_cut(context, tokens[row], sampled[row], turn[row], limit),
      frames=frames,
      height=height,
      width=width,
      times=tuple(float(time) for time in item.clip.timestamps),
    )
    for row, (item, (episode,), (frames, height, width)) in enumerate(
      zip(items, replies.episodes, shown, strict=True)
    )
  ]


def shown_media(context: run_context.RunContext, item: batching.BatchItem) -> tuple[int, int, int]:
  """How many frames a prompt shows, and their height and width in pixels, as the model sees them.

  An opening that shows frames one by one may show some of the clip only.
  """
  grids = item.encoded.grids
  if not grids:
    return 0, 0, 0
  pictures = sum(grid.kind == records.Kind.IMAGE for grid in grids)
  return (pictures or len(item.clip), *context.processor.frame_size(grids[0]))


def _is_cut(
  context: run_context.RunContext,
  tokens: Int[np.ndarray, "time"],
  sampled: Bool[np.ndarray, "time"],
  turn: Int[np.ndarray, "time"],
  limit: int,
) -> bool:
  """Whether a reply of an episode has at least as many tokens as `limit`, and no end."""
  replies = (tokens[sampled & (turn == number)] for number in range(int(turn.max()) + 1))
  return any(len(ids) >= limit and ids[-1] not in context.stop_tokens for ids in replies)


def _decoding(context: run_context.RunContext, protocol: protocols.Protocol) -> dict[str, Any]:
  """The sampling options of a protocol; those of evaluation where it has none."""
  settings = protocol.decoding
  if settings is None:
    return {"temperature": context.config.eval.temperature}
  return {
    "temperature": settings.temperature,
    "top_p": settings.top_p,
    "top_k": settings.top_k,
    "min_p": 0.0,
    "presence_penalty": settings.presence_penalty,
    "max_new_tokens": settings.max_tokens,
  }


def _reply_limit(context: run_context.RunContext, protocol: protocols.Protocol) -> int:
  """The most tokens of a reply."""
  return protocol.decoding.max_tokens if protocol.decoding else context.config.rl.max_new_tokens
