"""Embeds reasoning steps with the frozen parameters that RL starts from, for the process reward.

    freeze(…)         main thread, all processes together: copies the parameters that it needs
    embedder(texts)   any thread, each process by itself: unit vectors [texts, width]

The copy is on this process's first device alone, as the model of a local judge is (judge_local):
two threads must not start programs that span several devices, and a program of one device is safe.
So a process embeds the steps of its own replies, on the thread that scores them, without waiting
for another one. Only `freeze` has collectives.

An embedding is centred: the mean embedding of reference steps to train on is subtracted, since the
states of a network share a large part, which would make all texts alike. Then it gets length 1.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import threading
from typing import Any, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models.common import lora
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rewards import ragged_batches
from vr_jax.rollout import text_embeddings
from vr_jax.train import model_setup

_TOKENS = 4096  # of a batch, padding included; a longer text is a batch of its own
_SHORTEST = 16  # texts are padded to this many tokens, 4 times as many, …
_CENTRE_EXAMPLES = 256  # whose reference steps the centre is the mean of
_CACHE_BYTES = 2**28


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frozen:
  """What embedding needs besides texts. centre: [width]."""

  params: PyTree
  prompt: records.Prompt
  centre: Float[np.ndarray, "width"]


class FrozenStepEmbedder:
  """A `step_distance.StepEmbedder`. Vectors are cached by text.

  A vector depends on the parameters, the text and the centre alone: a text's length decides the
  shape of its batch.
  """

  def __init__(
    self, processor: interface.Processor, model: interface.ModelConfig, *, layers: float
  ) -> None:
    """Makes an embedder without parameters. layers: fraction of the text layers, in (0, 1]."""
    # A cast, since the protocol does not say that a ModelConfig is a dataclass.
    changes = {"attention": "xla", "remat": "none"}  # kernels want long sequences; no gradient
    self._model = dataclasses.replace(cast(Any, model), **changes)
    self._processor, self._layers = processor, layers
    self._frozen: _Frozen | None = None
    self._lock = threading.Lock()
    self._cache: collections.OrderedDict[str, Float[np.ndarray, "width"]] = (
      collections.OrderedDict()
    )

  @property
  def is_frozen(self) -> bool:
    """Whether it has parameters."""
    return self._frozen is not None

  def freeze(
    self, net: model_setup.ModelSetup, params: PyTree, examples: Iterable[records.Example]
  ) -> None:
    """Copies the parameters that embed texts; those given may be donated or deleted afterwards.

    examples: to train on. The reference steps of the first ones give the centre.

    All processes must call this together, with the same examples in the same order.
    """
    device = jax.local_devices()[0]
    replicated = mesh_lib.replicated(net.mesh)

    # Layers cast their weights to this dtype anyway, but adapters only after they are scaled.
    dtype = jnp.dtype(self._model.dtype)

    def take(x: jax.Array, count: int | None, is_adapter: bool) -> jax.Array:
      def cut(x: jax.Array) -> jax.Array:
        return x[:count].astype(x.dtype if is_adapter or x.ndim < 2 else dtype)

      whole = jax.jit(cut, out_shardings=replicated)(x)
      return jax.device_put(whole.addressable_data(0), device)

    self._embed = text_embeddings.make_embed_fn(self._graphdef(net))
    selected = text_embeddings.select_params(params, net.family, self._layers, take)
    prompt = jax.device_put(text_embeddings.start_prompt(self._processor), device)
    frozen = _Frozen(params=selected, prompt=prompt, centre=np.zeros(0, np.float32))
    texts = list(
      dict.fromkeys(
        step.text for each in itertools.islice(examples, _CENTRE_EXAMPLES) for step in each.steps
      )
    )
    states = self._states(frozen, texts)
    centre = states.mean(axis=0) if texts else self._states(frozen, [""])[0]
    self._frozen = dataclasses.replace(frozen, centre=centre)

  def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
    """Unit vectors, float32; zeros for a text that equals the centre or has no tokens."""
    with self._lock:
      if self._frozen is None:
        raise ValueError("the step embedder has no parameters; call freeze first")
      new = [text for text in dict.fromkeys(texts) if text not in self._cache]
      states = self._states(self._frozen, new)
      centred = states - self._frozen.centre
      norm = np.linalg.norm(centred, axis=1, keepdims=True)
      # Where a state is the centre up to rounding, its direction would be noise.
      own = norm > 1e-6 * np.linalg.norm(states, axis=1, keepdims=True)
      unit = np.where(own, centred / np.where(own, norm, 1), 0).astype(np.float32)
      self._cache.update(zip(new, unit, strict=True))
      for text in texts:
        self._cache.move_to_end(text)
      vectors = np.array([self._cache[text] for text in texts], np.float32)
      vectors = vectors.reshape(len(texts), len(self._frozen.centre))
      while len(self._cache) * 4 * vectors.shape[1] > _CACHE_BYTES:
        self._cache.popitem(last=False)
      return vectors

  def _graphdef(self, net: model_setup.ModelSetup) -> nnx.GraphDef:
    """The static half of the network on one device."""

    def make() -> nnx.Module:
      rngs = nnx.Rngs(0)
      model = net.family.make_model(self._model, rngs=rngs)
      return lora.add(model, net.adapters, rngs=rngs) if net.adapters else model

    return nnx.split(nnx.eval_shape(make))[0]

  def _states(self, frozen: _Frozen, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
    """The mean hidden state of each text, batch by batch of equal shape."""
    tokens = [self._processor.encode_reply(text)[:-1] for text in texts]  # without the turn's end
    lengths = np.array([len(each) for each in tokens], np.int64)
    padded = ragged_batches.bucket_size(lengths, _SHORTEST)
    rows = ragged_batches.RaggedRows(tokens)
    states: dict[int, np.ndarray] = {}
    for length in np.unique(padded):
      size = max(1, _TOKENS // int(length))
      members = np.flatnonzero(padded == length)
      for start in range(0, len(members), size):
        chosen = members[start : start + size]
        ids = rows.pad(chosen, int(length), size)
        valid = ids != ragged_batches.PAD
        batch = np.where(valid, ids, self._processor.pad_token)
        found = np.asarray(self._embed(frozen.params, frozen.prompt, batch, valid))
        states |= dict(zip(chosen.tolist(), found, strict=False))
    found = [states[index] for index in range(len(texts))]
    return np.stack(found) if found else np.zeros((0, len(frozen.centre)), np.float32)
