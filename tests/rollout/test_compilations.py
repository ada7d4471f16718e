"""No program is compiled twice: batches of all lengths compile one program for each bucket."""

import logging
import random

import jax
import pytest

from tests.train import nano
from vr_jax.rewards import process
from vr_jax.train import batching, metrics, rl_loop

BUCKETS = (42, 64)  # prompts have 37 to 53 tokens


class Compilations(logging.Handler):
  """Names of what JAX says that it compiles."""

  def __init__(self):
    super().__init__()
    self.names = []

  def emit(self, record):
    message = record.getMessage()
    if message.startswith("Compiling "):
      self.names.append(message.split(" with ")[0])


@pytest.fixture
def compilations():
  handler = Compilations()
  logger = logging.getLogger("jax")
  logger.addHandler(handler)
  with jax.log_compiles(True):
    yield handler
  logger.removeHandler(handler)


def test_after_its_first_batch_of_a_length_the_loop_compiles_nothing(
  data, tmp_path, compilations, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  config = nano.config(
    data__directory=str(data),
    model__prefix_buckets=BUCKETS,
    sft__steps=0,
    rl__steps=12,
    rl__batch_size=2,
    rl__checkpoint_every=100,
  )
  batches = []
  prompt_of, write = batching.BatchBuilder.prompt, metrics.MetricsLog.write

  def note_bucket(context, items):
    prompt = prompt_of(context, items)
    batches.append(prompt.tokens.shape[1])
    compilations.names.clear()
    return prompt

  late = []

  def note_compilations(log, step, values):
    if batches[-1] in batches[:-1]:
      late.extend((step, name) for name in compilations.names)
    write(log, step, values)

  monkeypatch.setattr(batching.BatchBuilder, "prompt", note_bucket)
  monkeypatch.setattr(metrics.MetricsLog, "write", note_compilations)
  rl_loop.train(config, tmp_path)
  assert set(batches) == set(BUCKETS)
  assert len(batches) == 12
  assert not late


def test_the_process_reward_of_new_texts_compiles_nothing(compilations):
  rng = random.Random(0)
  words = [
    "at",
    "0s",
    "the",
    "circle",
    "square",
    "turns",
    "is",
    "red",
    "green",
    "blue",
    "yellow",
    "grows",
    "stays",
  ]

  def texts(count):
    return [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count)]

  def score():
    traces = ["\n".join(texts(rng.randint(1, 9))) for _ in range(16)]
    replies = [f"<think>{trace}</think>" for trace in traces]
    return process.process_reward(replies, [texts(rng.randint(1, 6)) for _ in range(16)])

  for _ in range(3):
    score()
  compilations.names.clear()
  rewards = [score().reward for _ in range(20)]
  assert not compilations.names
  assert len({float(value) for reward in rewards for value in reward}) > 100
