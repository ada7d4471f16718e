"""LoRA adapters on projections of stacked layers; the base weights stay unchanged.

A projection by W becomes x W + (alpha / rank) (x A) B, with A [*inputs, rank] and
B [rank, *outputs]: two thin products, without another matrix of W's size. A starts at random and
B at 0, so fresh adapters don't change the model.

Source: Hu et al., LoRA, arXiv 2106.09685, section 4.1; A is initialised as in PEFT (uniform, bound
1 / sqrt(inputs)).
"""

import dataclasses
import functools
import math
from typing import Any, TypeVar, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PyTree

from vr_jax import errors
from vr_jax.models.common import layers, weight_mapping

Network = TypeVar("Network", bound=nnx.Module)

ENDS = (layers.LORA_A, layers.LORA_B)  # suffixes of the names of an adapter's matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
  """Projections of a family that may get adapters: weights of `text_stack` and `vision_stack`."""

  text: tuple[str, ...] = ("query", "key", "value", "out", "gate", "up", "down")
  vision: tuple[str, ...] = ("qkv", "out", "gate", "up", "down")
  text_stack: str = "text.layers"
  vision_stack: str = "vision.blocks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
  """The projections that get adapters, among the family's `targets`."""

  rank: int
  alpha: float
  text: tuple[str, ...] = Targets.text
  vision: tuple[str, ...] = ()
  targets: Targets = Targets()

  def __post_init__(self) -> None:
    if self.rank < 1:
      raise errors.InputError(f"lora.rank={self.rank}: must be 1 or more")
    targets = self.targets
    for half, chosen, known in (
      ("text", self.text, targets.text),
      ("vision", self.vision, targets.vision),
    ):
      if unknown := sorted(set(chosen) - set(known)):
        raise errors.InputError(f"lora.{half}: {unknown[0]!r} is none of {', '.join(known)}")
    if not self.text and not self.vision:
      raise errors.InputError("lora.text, lora.vision: both are empty; name a projection")

  @property
  def scale(self) -> float:
    """The factor of the low-rank product."""
    return self.alpha / self.rank

  @property
  def parameters(self) -> tuple[str, ...]:
    """Dotted names of the weights that get an adapter."""
    known = self.targets
    text = [f"{known.text_stack}.{name}" for name in known.text if name in self.text]
    vision = [f"{known.vision_stack}.{name}" for name in known.vision if name in self.vision]
    return (*text, *vision)

  @property
  def fields(self) -> dict[str, Any]:
    """Settings by name; adapters of a checkpoint fit a config with the same ones."""
    return {name: getattr(self, name) for name in ("rank", "alpha", "text", "vision")}


def add(network: Network, adapters: Adapters, *, rngs: nnx.Rngs) -> Network:
  """Adds fresh float32 adapters to a network, which do not change its output yet."""
  for parameter in adapters.parameters:
    *path, name = parameter.split(".")
    module = cast(Any, functools.reduce(getattr, path, network))
    weight = getattr(module, name)
    inputs = 1 + layers.input_axes(name)  # with the axis of layers
    axes, shape, rank = weight.get_metadata()["axes"], weight.shape, adapters.rank
    bound = math.prod(shape[1:inputs]) ** -0.5
    drawn = jax.random.uniform(
      rngs.params(), (*shape[:inputs], rank), jnp.float32, minval=-bound, maxval=bound
    )
    zeros = jnp.zeros((shape[0], rank, *shape[inputs:]), jnp.float32)
    setattr(module, name + layers.LORA_A, nnx.Param(drawn, axes=(*axes[:inputs], None)))
    setattr(module, name + layers.LORA_B, nnx.Param(zeros, axes=(axes[0], None, *axes[inputs:])))
    module.lora_scale = adapters.scale
  return network


def is_adapter(parameter: str) -> bool:
  """Whether a dotted name is the name of an adapter's matrix."""
  return parameter.endswith(ENDS)


def strip_adapters(params: PyTree) -> PyTree:
  """Returns the parameters without adapters."""
  flat = weight_mapping.flat(params)
  kept = {name: variable for name, variable in flat.items() if not is_adapter(name)}
  return weight_mapping.unflat(kept)


def merge_adapter(params: PyTree, parameter: str, adapters: Adapters, dtype: DTypeLike) -> Array:
  """Returns one weight in `dtype`, with its adapter, if any, merged in float32."""
  flat = weight_mapping.flat(params)
  weight = flat[parameter].get_value()
  if parameter not in adapters.parameters:
    return weight.astype(dtype)
  a, b = (flat[parameter + end].get_value() for end in ENDS)
  return _merge(weight, a, b, scale=adapters.scale, dtype=jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnames=("scale", "dtype"))
def _merge(
  weight: Float[Array, "layers ..."],
  a: Float[Array, "layers ..."],
  b: Float[Array, "layers ..."],
  *,
  scale: float,
  dtype: jnp.dtype,
) -> Float[Array, "layers ..."]:
  product = jax.vmap(lambda x, y: jnp.tensordot(x, y, 1, precision=jax.lax.Precision.HIGHEST))
  return (weight.astype(jnp.float32) + scale * product(a, b)).astype(dtype)
