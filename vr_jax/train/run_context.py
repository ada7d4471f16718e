"""The objects that all stages of a run share, built once from its config."""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree
import ml_collections
import numpy as np
import tokenizers

from vr_jax import atomic, errors
from vr_jax.data import examples, frame_store, ingest
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import registry
from vr_jax.models import family as family_lib
from vr_jax.models import interface
from vr_jax.parallel import compiler_options, cpu_memory
from vr_jax.rewards import judge as judge_lib
from vr_jax.train import (
  batching,
  check_examples,
  judge_factory,
  model_setup,
  paths,
)
from vr_jax.train import step_embedder as step_embedder_lib

# Values of config.env.step_distance with which steps are embedded; "": it has no such field.
_EMBEDDED = ("", "embeddings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext(model_setup.ModelSetup):
  """The model setup of a run, with its data, its processor and its environment.

  data: the directory with the frames and examples of the run.
  processor: turns texts and frames into prompts.
  environment: says what a prompt shows, and scores replies.
  step_embedder: embeds reasoning steps where the environment wants that; has no parameters before
    `freeze_step_embedder`.
  """

  data: Path
  processor: interface.Processor
  environment: environment_lib.Environment
  step_embedder: step_embedder_lib.FrozenStepEmbedder | None = None

  @functools.cached_property
  def builder(self) -> batching.BatchBuilder:
    """The builder of this run's batches."""
    return batching.BatchBuilder(
      config=self.config,
      data=self.data,
      mesh=self.mesh,
      processor=self.processor,
      environment=self.environment,
    )

  def processor_with_limits(self, least: int, most: int, frames: int) -> interface.Processor:
    """A processor that shows images and frames of `least` to `most` pixels.

    frames: of the video that it is for; some families limit all frames together.
    """
    section = self.config.model.copy_and_resolve_references().unlock()
    self.family.limit_pixels(section, least, most, frames)
    return self.family.make_processor(self.model, self.processor.tokenizer, section)


def freeze_step_embedder(context: RunContext, params: Callable[[], PyTree]) -> None:
  """Gives the step embedder its parameters, if the run has one and it has none yet.

  params: gives those that RL starts from.

  All processes must call this together, before replies are scored.
  """
  if context.step_embedder is not None and not context.step_embedder.is_frozen:
    source = examples.ExampleSource(context.data, "train")
    context.step_embedder.freeze(context, params(), source)


def make_run_context(
  config: ml_collections.ConfigDict, workdir: Path, *, judged: bool = True, read: bool = True
) -> RunContext:
  """Makes the context of a run whose data stage is complete. It holds no parameters.

  judged: whether replies will be scored; False makes no judge.
  read: whether examples will be read; with False the data may be missing.

  Raises:
    InputError: the data, or a section that the recipe needs, is missing; the annotations were
      edited since the data stage; or the longest prompt and reply could exceed the model's context.
  """
  data = paths.shards_directory(config, workdir)
  if read and not atomic.is_whole(data):
    raise errors.InputError(f"{data}: no such data; run --mode=data first")
  if read:
    ingest.check_annotations(data, paths.annotation_file(config, workdir))
  processor = make_processor(config, workdir)
  model, tokenizer = processor.config, processor.tokenizer
  model_setup.check_context(config, model)
  allowed_tokens = np.arange(model.vocab_size) < tokenizer.get_vocab_size()
  allowed_tokens[list(processor.media_tokens)] = False
  configure_compiler(config)
  mesh = model_setup.make_mesh(config)
  needs = registry.environment_class(config.recipe).needs
  services: dict[str, Any] = {"box_scale": processor.box_scale}
  if "judge" in needs and judged:
    services["judge"] = _make_judge(config, workdir)
  if "frame_reader" in needs and judged and read:
    services["frame_reader"] = frame_store.FrameStore(data / "frames")
  # With another step distance nothing would ask it.
  embedder = None
  if "step_embedder" in needs and judged and config.env.get("step_distance", "") in _EMBEDDED:
    layers = config.env.get("embedding_layers", 0.5)
    embedder = step_embedder_lib.FrozenStepEmbedder(processor, model, layers=layers)
    services["step_embedder"] = embedder
  return RunContext(
    config=model_setup.clamp_microbatches(config, mesh),
    data=data,
    mesh=mesh,
    model=model,
    processor=processor,
    environment=registry.make_environment(config, **services),
    allowed_tokens=jnp.asarray(allowed_tokens),
    stop_tokens=processor.stop_tokens,
    step_embedder=embedder,
  )


def configure_compiler(config: ml_collections.ConfigDict) -> None:
  """Sets flags of XLA that the config asks for. They have no effect once JAX has started."""
  compiler_options.set_for_machine(config.compiler_options)
  if config.model.lora.rank:
    cpu_memory.keep_narrow_weights()


def make_example_checks(
  config: ml_collections.ConfigDict,
  workdir: Path,
  *,
  tokenizer: tokenizers.Tokenizer | None = None,
) -> check_examples.Checks:
  """Makes the checks of a run's examples. The machine needn't have the devices of the mesh.

  tokenizer: None: that of the run.
  """
  processor = make_processor(config, workdir, tokenizer)
  return check_examples.Checks(
    config=config,
    shards=paths.shards_directory(config, workdir),
    processor=processor,
    environment=registry.make_environment(config, box_scale=processor.box_scale),
  )


def make_processor(
  config: ml_collections.ConfigDict, workdir: Path, tokenizer: tokenizers.Tokenizer | None = None
) -> interface.Processor:
  """Makes the processor of a run's model. tokenizer: None: that of the run."""
  family = model_setup.family_of(config)
  tokenizer = tokenizer or family.load_tokenizer(paths.tokenizer_path(config, workdir))
  return family.make_processor(
    _model_config(config.model, family, tokenizer), tokenizer, config.model
  )


def _make_judge(config: ml_collections.ConfigDict, workdir: Path) -> judge_lib.Judge:
  if "judge" not in config:
    raise errors.InputError(
      f"config.judge: is missing, and {config.recipe} needs a judge; "
      "call base_config.judge(config) in the config"
    )
  return judge_factory.make_judge(
    config.judge, paths.data_directory(config, workdir) / "judge.sqlite"
  )


def _model_config(
  section: ml_collections.ConfigDict,
  family: family_lib.ModelFamily,
  tokenizer: tokenizers.Tokenizer,
) -> interface.ModelConfig:
  if section.pretrained:
    config = family.read_config(Path(section.pretrained) / "config.json")
  else:
    special = family.tokenizer_fields(tokenizer)
    special.pop("vocab_size", None)  # rows of the embedding may be more than the tokenizer has
    config = family.make_config({**section.architecture.to_dict(), **special})
  return family.with_options(config, section)
