"""Rotary scaling: how a config.json lets a model read further than it was trained to.

linear  all frequencies are divided by the factor
yarn    slow frequencies are divided, fast ones stay, those between are mixed, and cosines and sines
        are multiplied by `attention_factor`

Scalings that depend on the length of a prompt ("dynamic", "longrope") are not supported: the keys
of a prompt would depend on the reply that follows.

Source: YaRN, arXiv 2309.00071; Hugging Face transformers for defaults.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from jaxtyping import Array, Float
import numpy as np

from vr_jax import errors
from vr_jax.models.common import layers

KINDS = ("linear", "yarn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
  """The fields of `rope_scaling` in a config.json.

  kind: one of KINDS.
  original_max_position_embeddings: tokens that the model was trained for without scaling.
  attention_factor: of cosines and sines.
  beta_fast, beta_slow: turns over the original context above which a frequency is fast, below
    which it is slow.
  truncate: whether the borders between them are rounded to whole frequencies.
  """

  kind: str
  factor: float
  original_max_position_embeddings: int
  attention_factor: float = 1.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True

  @property
  def fields(self) -> dict[str, Any]:
    """The fields for a new config.json."""
    values = dataclasses.asdict(self)
    kind = values.pop("kind")
    if kind == "linear":
      values = {k: values[k] for k in ("factor", "original_max_position_embeddings")}
    return {"rope_type": kind, **values}


def read(fields: Mapping[str, Any], kind: str, context: int) -> RotaryScaling | None:
  """Reads the scaling of this kind; None, if it is no scaling.

  fields: `rope_scaling` or `rope_parameters` of a config.json.
  context: `max_position_embeddings`, the original context unless the fields say another.

  Raises InputError if the factor is missing, or a field is not a positive number.
  """
  if kind not in KINDS:
    return None
  factor = _number(fields, "factor", None)
  values: dict[str, Any] = {
    "kind": kind,
    "factor": factor,
    "original_max_position_embeddings": int(
      _number(fields, "original_max_position_embeddings", context)
    ),
  }
  if kind == "yarn":
    values |= {
      "attention_factor": _attention_factor(fields, factor),
      "beta_fast": _number(fields, "beta_fast", 32.0),
      "beta_slow": _number(fields, "beta_slow", 1.0),
      "truncate": bool(fields.get("truncate", True)),
    }
  return RotaryScaling(**values)


def context(trained: int, scaling: RotaryScaling | None) -> int:
  """The most tokens of a prompt and its reply together. trained: `max_position_embeddings`."""
  if scaling is None:
    return trained
  return max(trained, int(scaling.factor * scaling.original_max_position_embeddings))


def frequencies(head_dim: int, theta: float, scaling: RotaryScaling | None) -> Float[Array, "half"]:
  """The angle by which each pair of a head's features turns from a position to the next."""
  plain = layers.rotary_frequencies(head_dim, theta)
  if scaling is None:
    return plain
  if scaling.kind == "linear":
    return plain / scaling.factor
  slow = _slow_share(head_dim, theta, scaling)
  return plain / scaling.factor * slow + plain * (1 - slow)


def cosines_and_sines(
  angles: Float[Array, "*batch half"], scaling: RotaryScaling | None
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Like `layers.cosines_and_sines`, times the scaling's attention factor."""
  cos, sin = layers.cosines_and_sines(angles)
  if scaling is None or scaling.attention_factor == 1:
    return cos, sin
  return cos * scaling.attention_factor, sin * scaling.attention_factor


def _slow_share(head_dim: int, theta: float, scaling: RotaryScaling) -> Float[np.ndarray, "half"]:
  """How slow each frequency is: 0 for fast ones, 1 for slow ones, a ramp between them."""

  def index(turns: float) -> float:
    """Where a frequency would lie that turns so often over the original context."""
    length = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
    return head_dim * math.log(length) / (2 * math.log(theta))

  low, high = index(scaling.beta_fast), index(scaling.beta_slow)
  if scaling.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, head_dim - 1)
  if low == high:
    high += 0.001
  ramp = (np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low)
  return np.clip(ramp, 0, 1).astype(np.float32)


def _attention_factor(fields: Mapping[str, Any], factor: float) -> float:
  """The one that is given, or the paper's (section 3.4), as transformers extends it."""
  if fields.get("attention_factor") is not None:
    return _number(fields, "attention_factor", None)

  def scale(by: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

  if fields.get("mscale") and fields.get("mscale_all_dim"):
    return scale(_number(fields, "mscale", None)) / scale(_number(fields, "mscale_all_dim", None))
  return scale(1.0)


def _number(fields: Mapping[str, Any], name: str, default: float | None) -> float:
  value: Any = fields.get(name)
  value = default if value is None else value
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not 0 < value < math.inf:
    raise errors.InputError(f"rope_scaling {name}: is {value!r:.60}, but must be a number above 0")
  return float(value)
