"""Where models come from that judge: an endpoint or a directory of weights."""

from collections.abc import Callable
import dataclasses
from pathlib import Path

from vr_jax import model_endpoint
from vr_jax.eval.trace_judging import asking


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
  """A model that may be needed.

  connect: connects to it or loads it. Raises InputError as `model_endpoint.connect` or
    `judge_local.LocalModel` does.
  identity: all that a verdict depends on beside prompt and run. The limit of a reply's tokens is
    part of it, since a verdict that was cut off is asked for again once there is more room.
  """

  connect: Callable[[], asking.GradingModel]
  identity: tuple[str, ...]


def endpoint(
  model: str,
  *,
  base_url: str,
  key_variable: str,
  temperature: float,
  limits: model_endpoint.Limits,
  max_tokens: int,
) -> ModelSource:
  """A model behind OpenAI's chat completions.

  base_url: empty for OpenAI's own. max_tokens: as in `asking.EndpointGrader`.
  """

  def connect() -> asking.GradingModel:
    connected = model_endpoint.connect(
      "judge",
      "openai",
      model=model,
      base_url=base_url,
      key_variable=key_variable,
      limits=limits,
      temperature=temperature,
    )
    return asking.EndpointGrader(connected, limits=limits, max_tokens=max_tokens)

  settings = (str(temperature), f"{limits.max_tokens} tokens")
  return ModelSource(connect=connect, identity=("endpoint", model, base_url, *settings))


def local(directory: Path, *, reply_tokens: int, flag: str = "--model") -> ModelSource:
  """A model in a directory of any family that this project has; other weights are asked anew.

  flag: that names the directory.

  Raises InputError if it lacks a config or tokenizer.
  """
  from vr_jax.train import judge_local  # imports JAX, which endpoints don't need

  judge_local.check(directory, flag=flag)

  def load() -> asking.GradingModel:
    model = judge_local.LocalModel(directory, max_tokens=reply_tokens, flag=flag)
    return asking.LocalGrader(model)

  weights = judge_local.describe_weights(directory)
  return ModelSource(
    connect=load, identity=("local", str(directory.resolve()), f"{reply_tokens} tokens", *weights)
  )
