"""Small runs of the trace stage, with writers that say what a test wants."""

from collections.abc import Callable, Iterator, Sequence
import json
from pathlib import Path
from typing import Any

import ml_collections
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.data import examples, trace_store
from vr_jax.envs import registry, videop2r
from vr_jax.rewards import judge
from vr_jax.train import data_stage

INSTRUCTION = "Write <observation></observation><think></think><answer></answer>."
OVERRIDES = {
  "data.validation_fraction": 0.25,
  "sft.steps": 0,
  "env.instruction": INSTRUCTION,
  "model.system": "You watch videos.",
  "model.prefix_buckets": (192,),
  "traces.batch_size": 4,
  "traces.max_tokens": 16,
  "traces.retries": 1,
}


def config(data: Path | None = None, **overrides: Any) -> ml_collections.ConfigDict:
  """The nano run of VideoP2R over such data; an override's dots are two underscores."""
  made = nano.recipe("tiny", "configs/videop2r.py")
  dotted = {name.replace("__", "."): value for name, value in overrides.items()}
  given = {"data.directory": str(data)} if data else {}
  made.update_from_flattened_dict({**nano.OVERRIDES, **OVERRIDES, **given, **dotted})
  return made


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
  """Of a test file that names it; nobody writes to it."""
  directory = tmp_path_factory.mktemp("traces")
  data_stage.prepare(config(directory), directory)
  return directory


def reference(example: records.Example) -> str:
  """The reply that the simulator gives."""
  return videop2r.format_reply(*_reference(example), example.answer)


def _reference(example: records.Example) -> tuple[str, str]:
  texts = [step.text for step in example.steps]
  return "\n".join(texts), f"So it is {example.answer}."


class Told:
  """A writer with fixed replies. Its judge rejects vague observations, or has no verdict."""

  def __init__(self, config: ml_collections.ConfigDict, say: Callable[[records.Example], Any]):
    self.environment = registry.make_environment(config, judge=judge.RuleJudge(_suffices))
    self.source = Path(config.data.directory) / "shards"
    self.say = say
    self.asked: list[trace_store.TraceChunk] = []

  def identity(self) -> dict[str, str]:
    return {"writer": "told"}

  def close(self) -> None:
    self.environment.judge.close()

  def left_out(self) -> dict[str, frozenset[int]]:
    return {}

  def proposals(
    self, chunks: Sequence[trace_store.TraceChunk]
  ) -> Iterator[tuple[trace_store.TraceChunk, Callable]]:
    for chunk in chunks:
      self.asked.append(chunk)
      source = examples.ExampleSource(self.source, chunk.split)
      replies = [self.say(source[index]) for index in chunk.indices]
      yield chunk, lambda replies=replies: replies


def _suffices(example: records.Example, observation: str) -> bool | None:
  return None if "dumb" in observation else "vague" not in observation


def lines(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def all_examples(shards: Path, split: str) -> list[records.Example]:
  source = examples.ExampleSource(shards, split)
  return [source[index] for index in range(len(source))]
