"""Within a process of tests, programs with equal settings are made once.

Each run makes its steps anew, and each of them is traced, lowered and compiled or loaded. Most runs
of the tests have the same tiny network and differ in what happens around it. Here they share their
steps, as two runs of one process could that lie next to each other.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any

import jax
import ml_collections

# Fields of a stage that its programs, given the optimizer and the shapes of a batch, don't hold.
OUTSIDE = frozenset(
  (
    *("steps", "learning_rate", "schedule", "warmup_steps", "batch_size", "checkpoint_every"),
    *("eval_every", "eval_examples", "eval_split", "init_checkpoint", "token_bucket_ratio"),
  )
)
MOST = 24  # of one kind that are kept: each holds memory

_replaced: set[tuple[str, str]] = set()


def install() -> None:
  """Shares the programs of the modules that are imported."""
  for name in ("make_sft_step", "make_rl_step", "make_logprob_fn", "make_log_likelihood_fn"):
    _replace("vr_jax.train.train_step", name, functools.partial(_shared, _program_key))
  for name in ("make_value_fn", "make_critic_step"):
    _replace("vr_jax.train.critic", name, functools.partial(_shared, _program_key))
  _replace("vr_jax.rl.gae", "make_advantage_fn", functools.partial(_shared, _program_key))
  for name, key in (
    ("make_optimizer", _optimizer_key),
    ("make_last_learning_rate_fn", _optimizer_key),
  ):
    _replace("vr_jax.train.train_state", name, functools.partial(_shared, key))
  for name in ("graphdef", "abstract_params", "draw_params"):
    _replace("vr_jax.train.model_setup", name, _of_model, cls="ModelSetup")


def _replace(module: str, name: str, change: Callable, cls: str | None = None) -> None:
  owner = sys.modules.get(module)
  if owner is not None and (module, name) not in _replaced:
    owner = getattr(owner, cls) if cls else owner
    setattr(owner, name, change(vars(owner)[name]))
    _replaced.add((module, name))


def _shared(key: Callable[..., Any], make: Callable) -> Callable:
  """Makes what `make` makes, once for each key of its arguments."""
  made: dict[Any, Any] = {}

  @functools.wraps(make)
  def found(*given, **options):
    settings = key(*given, **options)
    if settings not in made:
      made[settings] = make(*given, **options)
      if len(made) > MOST:
        del made[next(iter(made))]  # the oldest
    return made[settings]

  return found


def _of_model(made_by: functools.cached_property) -> property:
  """A property of a model setup that follows from its model, its seed, its mesh and its layout."""

  def key(net: Any) -> Any:
    adapters = net.config.model.lora.to_dict() if net.adapters else {}
    kind = net.config.rl.decode_layout
    layout = net.layout if kind == "tensor" else kind
    settings = net.config.seed, layout, tuple(sorted(adapters.items()))
    return type(net.model), net.model, net.mesh, *settings

  return property(_shared(key, made_by.func))


def _program_key(*given: Any, **options: Any) -> Any:
  return (*map(_value, given), *((name, _value(x)) for name, x in sorted(options.items())))


def _value(given: Any) -> Any:
  """Something hashable that is equal for equal settings."""
  if isinstance(given, ml_collections.ConfigDict):
    return _fields(given, OUTSIDE)
  if isinstance(given, jax.Array):
    return given.shape, given.dtype, given.sharding, jax.device_get(given).tobytes()
  return given


def _fields(section: ml_collections.ConfigDict, without: frozenset[str] = frozenset()) -> Any:
  return tuple(sorted((n, repr(x)) for n, x in section.to_dict().items() if n not in without))


def _optimizer_key(section: ml_collections.ConfigDict, params: Any = None, frozen: Any = ()) -> Any:
  names = [
    *("learning_rate", "warmup_steps", "schedule", "num_iterations", "weight_decay"),
    *("max_grad_norm", "b1", "b2", "moment_dtype"),
    *(("steps",) if section.schedule != "constant" else ()),
  ]
  leaves, structure = jax.tree.flatten(params)
  shapes = tuple((x.shape, x.dtype) for x in leaves)
  return tuple(repr(section.get(name)) for name in names), shapes, structure, frozen
