"""What the stages of a run share, made once from its config."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from vr_jax import errors
from vr_jax.envs import registry
from vr_jax.models.qwen2_5_vl import config as model_config
from vr_jax.models.qwen2_5_vl import processor as processor_lib
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rewards import judge as judge_lib
from vr_jax.train import batching, check_examples, inputs, judges, network


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext(network.Network):
  """A network, the examples that it is trained on, and the environment that scores its replies.

  data: the directory with the frames and examples of the run.
  """

  data: Path
  processor: processor_lib.Processor
  environment: registry.AnyEnvironment

  @functools.cached_property
  def builder(self) -> batching.BatchBuilder:
    """Builds the batches of this run."""
    return batching.BatchBuilder(
      config=self.config,
      data=self.data,
      mesh=self.mesh,
      processor=self.processor,
      environment=self.environment,
    )


def make_run_context(
  config: ml_collections.ConfigDict, workdir: Path, *, judged: bool = True, read: bool = True
) -> RunContext:
  """The context of a run whose data stage is complete; makes no parameters.

  judged=False: replies are not scored. read=False: examples are not read, so the data may be absent.
  """
  data = inputs.shards(config, workdir)
  if read and not data.is_dir():
    raise errors.InputError(f"{data}: no such data; run --mode=data first")
  processor = _make_processor(config, workdir)
  model, tokenizer = processor.config, processor.tokenizer
  network.check_context(config, model)
  allowed = np.arange(model.text.vocab_size) < tokenizer.get_vocab_size()
  allowed[list(processor.media_tokens)] = False
  mesh = mesh_lib.make_mesh(config.mesh)
  judge = _make_judge(config, workdir) if judged else None
  return RunContext(
    config=network.divided(config, mesh),
    data=data,
    mesh=mesh,
    model=model,
    processor=processor,
    environment=registry.make_environment(config, judge=judge),
    allowed=jnp.asarray(allowed),
    stop_tokens=processor.stop_tokens,
  )


def make_example_checks(config: ml_collections.ConfigDict, workdir: Path) -> check_examples.Checks:
  """The checks of a run's examples, on a machine that may have no devices for its mesh."""
  return check_examples.Checks(
    config=config,
    shards=inputs.shards(config, workdir),
    processor=_make_processor(config, workdir),
    environment=registry.make_environment(config),
  )


def _make_processor(config: ml_collections.ConfigDict, workdir: Path) -> processor_lib.Processor:
  tokenizer = tokenizer_lib.load_tokenizer(inputs.tokenizer_path(config, workdir))
  model, section = _model_config(config.model, tokenizer), config.model
  return processor_lib.Processor(
    model,
    tokenizer,
    section.min_pixels,
    section.max_pixels,
    system=section.system,
    library=section.resampling,
  )


def _make_judge(config: ml_collections.ConfigDict, workdir: Path) -> judge_lib.Judge | None:
  if "judge" not in config:
    return None
  return judges.build(config.judge, inputs.directory(config, workdir) / "judge.sqlite")


def _model_config(config: ml_collections.ConfigDict, tokenizer: Any) -> model_config.Config:
  if config.pretrained:
    read = model_config.Config.from_json(Path(config.pretrained) / "config.json")
  else:
    media = tokenizer_lib.config_fields(tokenizer)
    del media["vocab_size"]  # rows of the embedding may be more than the tokenizer has
    read = model_config.Config.from_dict({**config.architecture.to_dict(), **media})
  return network.with_section(read, config)
