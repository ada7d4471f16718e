"""A small network, and an environment whose observations are random functions of the replies."""

import dataclasses
import threading
import time
import zlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workload
from vr_jax import errors, records
from vr_jax.models.common import conversation, prompts
from vr_jax.models.qwen2_5_vl import model, processor
from vr_jax.parallel import decoding_layout
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import episodes, sampler

SIZES = dataclasses.replace(
  workload.ISSUE,
  layers=2,
  embed=64,
  mlp=64,
  vocabulary=320,
  vision_layers=2,
  vision_embed=32,
  vision_heads=2,
  vision_mlp=32,
)
CONFIG = workload.model_config(SIZES)
BYTES = workload.byte_tokenizer(SIZES.family)
PROCESSOR = processor.Qwen2_5_VLProcessor(CONFIG, BYTES, 28 * 28, 56 * 56, system="")
END = BYTES.token_to_id("<|im_end|>")
assert END is not None
STOPS = (END, *range(40, 80))  # many, so that replies are ragged
ALLOWED = jnp.arange(SIZES.vocabulary) < 256
ALLOWED = ALLOWED.at[END].set(True)
SCHEDULE = episodes.Schedule(
  turns=3,
  episode_buckets=(224,),
  observation_buckets=(64,),
  frame_buckets=(6,),
  patches=16,
  decode_chunk=5,
  append_batch_size=2,
)


def network(mesh=None, decode_layout="replicated"):
  """(graph, params) of a network with strong opinions."""
  graphdef, params = nnx.split(model.Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0)))
  if mesh is not None:
    layout = decoding_layout.make(mesh, decode_layout, params)
    graphdef = nnx.graphdef(model.Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0), layout=layout))
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, params)
  return graphdef, params if mesh is None else jax.device_put(
    params, mesh_lib.param_shardings(params, mesh)
  )


def family_network(family: str):
  """Arguments of the sampler, except decoding: such a network of a family, and two prompts."""
  shorter = {"frames": 2, "side": 4, "text": 6, "prompts": 2, "family": family}
  work = workload.make(dataclasses.replace(SIZES, **shorter))
  params = jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, work.params)
  return work.graphdef, params, work.prompt, work.allowed_tokens, jax.random.key(7)


def opening(count: int) -> list[prompts.EncodedPrompt]:
  """Prompts of different lengths, each with one picture more than the one before."""
  rng = np.random.default_rng(0)
  made = []
  for number in range(count):
    parts = [_words(rng), *(_picture(rng) for _ in range(number % 3)), "?"]
    turn = conversation.Message(role="user", parts=tuple(parts))
    made.append(PROCESSOR.encode_conversation([turn], name=f"prompt {number}"))
  return made


def batch(encoded) -> records.Prompt:
  sizes = prompts.PromptSizes(prefix=64, frames=2, patches=16)
  return PROCESSOR.pad(encoded, sizes)


def decoding(**changes) -> sampler.Decoding:
  fields = {"group": 3, "max_new_tokens": 12, "temperature": 0.9, "top_p": 1.0}
  return sampler.Decoding(**{**fields, **changes}, stop_tokens=STOPS)


class Pool:
  """`count` frames of one colour each, every one `step` brighter than the one before.

  asked: the frames that were read, a tuple for each call.
  """

  def __init__(self, count: int, step: int):
    self.count, self.step, self.asked = count, step, []
    self.timestamps = np.arange(float(count))

  def __len__(self):
    return self.count

  def read(self, frames):
    self.asked.append(tuple(frames))
    return np.stack([np.full((28, 28, 3), self.step * frame, np.uint8) for frame in frames])


class Chat:
  """Turns that depend on the prompt, the index in the group and the replies, but not on time.

  threads: names of the threads that called `observe`.
  slow: seconds that every third observation takes.
  first: index of the first prompt.
  fails: whether no observation can be made.
  """

  position_axes = PROCESSOR.position_axes

  def __init__(self, *, slow: float = 0.0, first: int = 0, fails: bool = False):
    self.slow, self.first, self.fails, self.threads = slow, first, fails, set()

  def observe(self, row, group_index, replies):
    self.threads.add(threading.current_thread().name)
    if self.fails:
      raise errors.InputError("clip.mp4: cannot be read")
    seed = zlib.crc32(repr((self.first + row, group_index, replies)).encode())
    rng = np.random.default_rng(seed)
    time.sleep(self.slow * (seed % 3 == 0))
    if seed % 5 == 0:
      return None
    parts = (_words(rng), *(_picture(rng) for _ in range(rng.integers(0, 3))), _words(rng))
    turn = conversation.Message(role="user", parts=parts)
    name = f"episode {row}.{group_index}, turn {len(replies) + 1}"
    return PROCESSOR.continue_conversation([turn], after=replies[-1], name=name)

  def pad(self, encoded, sizes):
    return PROCESSOR.pad(encoded, sizes)


def _words(rng) -> str:
  return "".join(rng.choice(list("abc "), rng.integers(1, 8)))


def _picture(rng) -> conversation.Image:
  height, width = rng.choice([28, 56], 2)
  return conversation.Image(pixels=rng.integers(0, 256, (height, width, 3), np.uint8))
