"""Writers propose traces: this project's sampler, or a model behind an OpenAI-compatible endpoint.

A proposal is a chunk of questions and a function that waits for the replies. So one chunk can be
filtered while the next one is being written.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import jax
from jaxtyping import PyTree
import ml_collections
import numpy as np

from vr_jax import errors, model_endpoint, records
from vr_jax.data import batches, examples, frame_store, trace_store
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import registry
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rewards import judge as judge_lib
from vr_jax.rollout import sampler
from vr_jax.traces import vlm_client
from vr_jax.train import (
  batching,
  check_examples,
  initialization,
  judge_factory,
  paths,
  run_context,
  vision_features,
)

Replies = Callable[[], Sequence[str | None]]
_AHEAD = 2  # most chunks that wait to be processed


@runtime_checkable
class Writer(Protocol):
  """Proposes one reply to each question, at temperature 0."""

  @property
  def environment(self) -> environment_lib.Environment:
    """The recipe's environment, with its judge."""
    ...

  def identity(self) -> Mapping[str, Any]:
    """Returns what the replies depend on, JSON-able."""
    ...

  def left_out(self) -> Mapping[str, frozenset[int]]:
    """Returns the indices of unusable examples, by split."""
    ...

  def proposals(
    self, chunks: Sequence[trace_store.TraceChunk]
  ) -> Iterator[tuple[trace_store.TraceChunk, Replies]]:
    """Yields each chunk, in order, with a function that waits for its replies.

    Later chunks are already being written meanwhile.
    """
    ...

  def close(self) -> None:
    """Closes the environment's judge, and the endpoint if there is one."""


def each(
  writer: Writer,
  chunks: Sequence[trace_store.TraceChunk],
  work: Callable[[trace_store.TraceChunk, Sequence[str | None]], None],
  tick: Callable[[int], None],
) -> None:
  """Calls `work(chunk, replies)` for each chunk, in order, on another thread.

  tick: called with the number of chunks that are done.

  The writer goes on with later chunks meanwhile. After an interruption, chunks whose replies are
  complete are still processed.
  """

  def process(number: int, chunk: trace_store.TraceChunk, replies: Replies) -> None:
    work(chunk, replies())
    tick(number)

  with (
    futures.ThreadPoolExecutor(1, thread_name_prefix="filter") as pool,
    contextlib.closing(cast(Generator, writer.proposals(chunks))) as proposals,
  ):
    waiting = deque()
    for number, (chunk, replies) in enumerate(proposals, start=1):
      waiting.append(pool.submit(process, number, chunk, replies))
      if len(waiting) > _AHEAD:
        waiting.popleft().result()
    for future in waiting:
      future.result()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
  """Samples from the weights that RL would start from.

  These are config.rl.init_checkpoint, the workdir's warm start, or config.model.pretrained.
  """

  context: run_context.RunContext
  workdir: Path

  @property
  def environment(self) -> environment_lib.Environment:
    """The environment of the run."""
    return self.context.environment

  def identity(self) -> Mapping[str, Any]:
    """The model and its checkpoint."""
    model = self.context.config.model.to_dict()
    del model["feature_cache_gib"]
    return {"model": model, "start": initialization.describe_start(self.context, self.workdir)}

  def left_out(self) -> Mapping[str, frozenset[int]]:
    """Returns examples whose prompts don't fit. They need no trace, because none exists yet."""
    config = self.context.config.copy_and_resolve_references()
    config.sft.steps = 0  # checks only the prompts
    checks = dataclasses.replace(
      self.context.builder.checks, config=config, splits=check_examples.SPLITS
    )
    return checks.find_unusable()

  def proposals(
    self, chunks: Sequence[trace_store.TraceChunk]
  ) -> Iterator[tuple[trace_store.TraceChunk, Replies]]:
    """Samples one batch for each chunk."""
    with vision_features.open_cache(self.context, self.params, self.workdir) as cache:
      for split in trace_store.SPLITS:
        selected = [chunk for chunk in chunks if chunk.split == split]
        for chunk, batch in zip(selected, self.batches(split, selected, cache), strict=True):
          prompt = vision_features.prompt_with_features(
            self.context, self.params, batch, cache
          ).prompt
          rollout = self.sample(prompt)
          yield chunk, functools.partial(_decode, self.context, rollout, len(chunk.indices))

  def close(self) -> None:
    """Closes the judge."""
    judge_of(self.environment).close()

  @functools.cached_property
  def params(self) -> PyTree:
    """The weights, loaded at first use."""
    return initialization.initial_params(self.context, self.workdir)

  def sample(self, prompt: records.Prompt) -> records.Rollout:
    """Samples one reply to each prompt."""
    context = self.context
    budget = context.config.traces.max_tokens
    decoding = context.decoding(group=1, temperature=0.0, max_new_tokens=budget)
    key = jax.random.key(0)  # not used at temperature 0
    return sampler.sample(
      context.graphdef, self.params, prompt, context.allowed_tokens, key, decoding=decoding
    )

  def batches(
    self, split: str, chunks: Sequence[trace_store.TraceChunk], cache: vision_features.Cache = None
  ) -> Iterator[batching.Batch]:
    """Reads one batch for each chunk, ahead of time. All chunks must be of `split`."""
    if not chunks:
      return iter(())
    config, size = self.context.config, self.context.config.traces.batch_size
    indices = [index for chunk in chunks for index in chunk.indices]
    return batches.batches(
      examples.ExampleSubset(examples.ExampleSource(self.context.data, split), indices),
      frame_store.FrameStore(self.context.data / "frames"),
      seed=config.seed,
      batch_size=size,
      frame_rule=paths.sampling_rule(config.data),
      transform=functools.partial(self.context.builder.item, cache=cache),
      collate=cast(
        Callable[[Sequence[Any]], Any], functools.partial(self.context.builder.batch, size=size)
      ),
      shuffle=False,
      repeat=False,
      threads=config.data.threads,
    )


def _decode(context: run_context.RunContext, rollout: records.Rollout, count: int) -> list[str]:
  """Waits for a rollout, and decodes the first `count` replies."""
  arrays = cast(tuple[jax.Array, jax.Array], (rollout.tokens, rollout.kind))  # on the devices
  tokens, kind = (mesh_lib.local_rows(x)[:count, 0] for x in arrays)
  sampled = np.asarray(kind) == records.Kind.MODEL
  return [context.processor.decode(row[mask]) for row, mask in zip(tokens, sampled, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """Asks a model behind an endpoint, with the stored JPEGs of a clip and the recipe's question."""

  config: ml_collections.ConfigDict
  source: Path
  environment: environment_lib.Environment
  model: vlm_client.VideoModel

  def identity(self) -> Mapping[str, Any]:
    """The model and its endpoint."""
    section = self.config.traces
    return {
      "model": section.model,
      "base_url": section.base_url,
      "system": self.config.model.system,
    }

  def left_out(self) -> Mapping[str, frozenset[int]]:
    """Returns nothing: the endpoint decides which prompts fit."""
    return {}

  def proposals(
    self, chunks: Sequence[trace_store.TraceChunk]
  ) -> Iterator[tuple[trace_store.TraceChunk, Replies]]:
    """Asks about several chunks ahead, enough to use all allowed requests at the same time."""
    section = self.config.traces
    store = frame_store.FrameStore(self.source / "frames")
    sources = {split: examples.ExampleSource(self.source, split) for split in trace_store.SPLITS}
    ahead = 1 + -(-section.in_flight // section.batch_size)
    with futures.ThreadPoolExecutor(section.in_flight, thread_name_prefix="traces") as pool:
      waiting = deque()
      try:
        for chunk in chunks:
          questions = [sources[chunk.split][index] for index in chunk.indices]
          replies = [pool.submit(self._reply, example, store) for example in questions]
          waiting.append((chunk, functools.partial(_wait, replies)))
          if len(waiting) > ahead:
            yield waiting.popleft()
        yield from waiting
      except GeneratorExit:  # the caller doesn't need the replies any more
        pool.shutdown(cancel_futures=True)
        raise

  def close(self) -> None:
    """Closes the judge and the endpoint."""
    judge_of(self.environment).close()
    self.model.close()

  def _reply(self, example: records.Example, store: frame_store.FrameStore) -> str | None:
    clip = batches.select_clip(example, store, paths.sampling_rule(self.config.data))
    images = store.jpegs(example.video, clip.frame_indices)
    return self.model.reply(self.environment.question(example), images)


def _wait(replies: Sequence[futures.Future]) -> list[str | None]:
  return [reply.result() for reply in replies]


def make(config: ml_collections.ConfigDict, workdir: Path) -> Writer:
  """Makes the writer of config.traces; raises InputError if it or the judge doesn't work."""
  if config.traces.writer == "sampler":
    return Sampled(context=run_context.make_run_context(config, workdir), workdir=workdir)
  with contextlib.ExitStack() as on_failure:
    model = on_failure.enter_context(contextlib.closing(_connect(config)))
    environment = judged(config, workdir)
    on_failure.pop_all()
  return Asked(
    config=config,
    source=paths.shards_directory(config, workdir),
    environment=environment,
    model=model,
  )


def judged(config: ml_collections.ConfigDict, workdir: Path) -> environment_lib.Environment:
  """Makes the environment with its judge, without loading the policy."""
  judge = judge_factory.make_judge(
    config.judge, paths.data_directory(config, workdir) / "judge.sqlite"
  )
  return registry.make_environment(config, judge=judge)


def judge_of(environment: environment_lib.Environment) -> judge_lib.Judge:
  """Returns the judge of an environment. Those with observations have one, others don't."""
  return cast(Any, environment).judge


def _connect(config: ml_collections.ConfigDict) -> vlm_client.VideoModel:
  """Connects to the model; raises InputError if it has no name or key, or doesn't answer."""
  section = config.traces
  if not section.model:
    raise errors.InputError(
      "config.traces.model: is empty; name the model as the endpoint knows it"
    )
  endpoint = model_endpoint.connect(
    "config.traces",
    "openai",
    model=section.model,
    base_url=section.base_url,
    key_variable=section.key_variable,
    limits=model_endpoint.Limits(
      in_flight=section.in_flight,
      timeout=section.timeout,
      retries=section.retries,
      max_tokens=section.max_tokens,
    ),
  )
  return vlm_client.VideoModel(endpoint=endpoint, system=config.model.system)
