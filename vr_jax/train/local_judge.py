"""A judge's model loaded here: Qwen2.5-VL from a Hugging Face directory, asked without frames.

It lives whole on this process's first device. A program that spans several devices must not be started from two threads, whose
orders may differ between devices; this one may run beside the training step, which it waits for or delays.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path

from flax import nnx
import jax
import numpy as np

from vr_jax import errors, records
from vr_jax.models.common import checkpoint, conversation, tokenizer
from vr_jax.models.common import prompts as prompts_lib
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import model as model_lib
from vr_jax.models.qwen2_5_vl import processor
from vr_jax.rewards import judge_prompt
from vr_jax.rollout import sampler

_ROWS = 16  # questions answered at once
# Tokens of a question, padded; a program is compiled for each that occurs.
_LENGTHS = (512, 1024, 2048, 4096)


def check(directory: Path) -> None:
  """Raises InputError where it is no directory, or its config or tokenizer can't be read; weights are not looked at."""
  if not directory.is_dir():
    raise errors.InputError(
      f"config.judge.model={directory}: no such directory; a local judge is a Hugging Face directory of Qwen2.5-VL"
    )
  model_config.Config.from_json(directory / "config.json")
  tokenizer.load_tokenizer(directory)


class LocalModel:
  """See judge_text.Model. Replies are greedy, so that nothing would come of asking again."""

  def __init__(self, directory: Path, *, max_tokens: int, dtype: str = "bfloat16"):
    """Loads it. max_tokens: of a reply; dtype: of weights and activations.

    Raises:
      InputError: no such directory, or what the readers of checkpoint and tokenizer raise; the message names the file.
    """
    check(directory)
    config, self._params = checkpoint.from_pretrained(directory, dtype=dtype)
    config = dataclasses.replace(config, dtype=dtype)
    words = tokenizer.load_tokenizer(directory)
    self._processor = processor.Processor(config, words, min_pixels=1, max_pixels=1, system="")
    model = nnx.eval_shape(lambda: model_lib.Qwen2_5_VL(config, rngs=nnx.Rngs(0)))
    self._graph = nnx.split(model)[0]
    allowed = np.arange(config.text.vocab_size) < words.get_vocab_size()
    allowed[list(self._processor.media_tokens)] = False
    self._allowed = jax.device_put(allowed, jax.local_devices()[0])
    context = config.text.max_position_embeddings - max_tokens
    self._lengths = sorted({min(length, context) for length in _LENGTHS})
    self._decoding = sampler.Decoding(
      group=1,
      max_new_tokens=max_tokens,
      temperature=0.0,
      top_p=1.0,
      stop_tokens=self._processor.stop_tokens,
      rungs=(0.25,),
    )
    self._too_long = 0

  def ask(self, questions: Sequence[judge_prompt.Question]) -> list[bool | None]:
    """The verdicts; None where a reply cannot be read, or a question is longer than the model takes."""
    encoded = [self._encoded(question) for question in questions]
    fitting = [i for i, one in enumerate(encoded) if len(one.tokens) <= self._lengths[-1]]
    fitting.sort(key=lambda i: len(encoded[i].tokens))
    self._too_long += len(questions) - len(fitting)
    verdicts: list[bool | None] = [None] * len(questions)
    for start in range(0, len(fitting), _ROWS):
      rows = fitting[start : start + _ROWS]
      for i, reply in zip(rows, self._replies([encoded[i] for i in rows]), strict=True):
        verdicts[i] = questions[i].read(reply)
    return verdicts

  def counts(self) -> Mapping[str, float]:
    """too_long: questions that were not put for it."""
    too_long, self._too_long = self._too_long, 0
    return {"too_long": float(too_long)}

  def close(self) -> None:
    """Lets the weights go."""
    del self._params

  def _encoded(self, question: judge_prompt.Question) -> prompts_lib.Encoded:
    turns = [
      conversation.Turn(role="system", parts=(question.system,)),
      conversation.Turn(role="user", parts=(question.text,)),
    ]
    return self._processor.encode_conversation(turns, name="a judge's question")

  def _replies(self, encoded: Sequence[prompts_lib.Encoded]) -> list[str]:
    """Replies to at most `_ROWS` questions; the rest of the rows repeats the first, and is thrown away."""
    rows = [*encoded, *[encoded[0]] * (_ROWS - len(encoded))]
    prompt = self._processor.collate(
      rows, prefix_buckets=self._lengths, frame_buckets=(0,), patch_buckets=(0,)
    )
    nothing = np.zeros((_ROWS, 0, self._processor.config.vision.out_hidden_size), np.float32)
    prompt = dataclasses.replace(prompt, vision=None, media=nothing)
    rollout = sampler.sample(
      self._graph, self._params, prompt, self._allowed, jax.random.key(0), decoding=self._decoding
    )
    tokens, kind = jax.device_get((rollout.tokens, rollout.kind))
    return [
      self._processor.decode(tokens[row, 0][kind[row, 0] == records.Kind.MODEL])
      for row in range(len(encoded))
    ]
