"""A judge's model that runs in this process, loaded from a Hugging Face directory.

It may be of any family that this project has, and is asked with text alone.

The whole model is on this process's first device. Two threads must not start programs that span
several devices, since each device might see another order; a program of one device is safe. It and
the training step may delay each other.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, cast

from flax import nnx
import jax
import ml_collections
import numpy as np

from vr_jax import errors, model_endpoint, records
from vr_jax.models import registry
from vr_jax.models.common import checkpoint, conversation
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.rollout import sampler

_ROWS = 16  # questions answered at once
# Lengths that questions are padded to, in tokens; a program is compiled for each that occurs.
_LENGTHS = (512, 1024, 2048, 4096)
# Options of the processor; no system text, since questions have a system turn of their own.
_SECTION = ml_collections.ConfigDict(
  {
    "min_pixels": 1,
    "max_pixels": 1,
    "min_video_pixels": 0,
    "max_video_pixels": 0,
    "system": "",
    "resize_backend": "torchvision",
  }
)


def check(directory: Path, *, flag: str = "config.judge.model") -> None:
  """Raises InputError if the directory, its config or its tokenizer can't be read.

  The weights are not checked. flag: that named the directory.
  """
  registry.check_directory(directory, flag)
  family = registry.family_in(directory)
  family.read_config(directory / "config.json")
  family.load_tokenizer(directory)


def describe_weights(directory: Path) -> tuple[str, ...]:
  """Name, size and time of change of each file of weights: what is known of them unread.

  Raises InputError if one can't be looked at.
  """
  try:
    return tuple(
      f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}"
      for path in sorted(directory.glob("*.safetensors"))
    )
  except OSError as error:
    raise errors.InputError(f"{directory}: cannot be read: {error.strerror}") from error


class LocalModel:
  """A `judge_text.JudgeModel`. Replies are greedy, so a question is never asked twice."""

  def __init__(
    self,
    directory: Path,
    *,
    max_tokens: int,
    dtype: str = "bfloat16",
    flag: str = "config.judge.model",
  ):
    """Loads the model.

    max_tokens: of a reply.
    dtype: of weights and activations.
    flag: that named the directory.

    Raises:
      InputError: the directory, its checkpoint or its tokenizer can't be read; it names the file.
    """
    check(directory, flag=flag)
    family = registry.family_in(directory)
    config, self._params = checkpoint.from_pretrained(directory, dtype=dtype, family=family)
    # A cast, since the protocol does not say that a ModelConfig is a dataclass.
    config = dataclasses.replace(cast(Any, config), dtype=dtype)
    tokenizer = family.load_tokenizer(directory)
    self._processor = family.make_processor(config, tokenizer, _SECTION)
    model = nnx.eval_shape(lambda: family.make_model(config, rngs=nnx.Rngs(0)))
    self._graph = nnx.split(model)[0]
    allowed_tokens = np.arange(config.vocab_size) < tokenizer.get_vocab_size()
    allowed_tokens[list(self._processor.media_tokens)] = False
    self._allowed = jax.device_put(allowed_tokens, jax.local_devices()[0])
    context = config.max_position_embeddings - max_tokens
    self._lengths = sorted({min(length, context) for length in _LENGTHS})
    self._decoding = sampler.Decoding(
      group=1,
      max_new_tokens=max_tokens,
      temperature=0.0,
      top_p=1.0,
      stop_tokens=self._processor.stop_tokens,
      slot_fractions=(0.25,),
    )
    self._too_long = 0

  def ask(self, questions: Sequence[model_endpoint.EndpointQuestion]) -> list[Any]:
    """Returns what each question reads in its reply; None if it reads nothing or is too long."""
    encoded = [self._encoded(question) for question in questions]
    fitting = [i for i, one in enumerate(encoded) if self._fits(one)]
    fitting.sort(key=lambda i: len(encoded[i].tokens))
    self._too_long += len(questions) - len(fitting)
    verdicts: list[Any] = [None] * len(questions)
    for start in range(0, len(fitting), _ROWS):
      rows = fitting[start : start + _ROWS]
      for i, reply in zip(rows, self._replies([encoded[i] for i in rows]), strict=True):
        verdicts[i] = questions[i].read(reply)
    return verdicts

  def is_too_long(self, question: model_endpoint.EndpointQuestion) -> bool:
    """Whether a question has more tokens than the model takes, so that `ask` leaves it out."""
    return not self._fits(self._encoded(question))

  def counts(self) -> Mapping[str, float]:
    """too_long: questions since the last call that were too long to ask."""
    too_long, self._too_long = self._too_long, 0
    return {"too_long": float(too_long)}

  def close(self) -> None:
    """Frees the weights."""
    del self._params

  def _fits(self, prompt: prompts_lib.EncodedPrompt) -> bool:
    return len(prompt.tokens) <= self._lengths[-1]

  def _encoded(self, question: model_endpoint.EndpointQuestion) -> prompts_lib.EncodedPrompt:
    turns = [
      conversation.Message(role="system", parts=(question.system,)),
      conversation.Message(role="user", parts=(question.text,)),
    ]
    return self._processor.encode_conversation(turns, name="a judge's question")

  def _replies(self, encoded: Sequence[prompts_lib.EncodedPrompt]) -> list[str]:
    """Replies to at most `_ROWS` questions. Rows that are left over repeat the first question."""
    rows = [*encoded, *[encoded[0]] * (_ROWS - len(encoded))]
    prompt = self._processor.collate(
      rows, prefix_buckets=self._lengths, frame_buckets=(0,), patch_buckets=(0,)
    )
    nothing = self._processor.config.vision_shapes.features(np.zeros, _ROWS, 0)
    prompt = dataclasses.replace(prompt, vision=None, media=nothing)
    rollout = sampler.sample(
      self._graph, self._params, prompt, self._allowed, jax.random.key(0), decoding=self._decoding
    )
    tokens, kind = jax.device_get((rollout.tokens, rollout.kind))
    return [
      self._processor.decode(tokens[row, 0][kind[row, 0] == records.Kind.MODEL])
      for row in range(len(encoded))
    ]
