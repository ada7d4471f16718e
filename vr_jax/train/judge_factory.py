"""From config.judge to a judge that is known to answer (docs/judges.md)."""

from collections.abc import Callable, Sequence
import contextlib
from pathlib import Path

import ml_collections

from vr_jax import errors, model_endpoint, records
from vr_jax.data import annotations, examples
from vr_jax.rewards import judge, judge_cache, judge_text
from vr_jax.train import judge_local, paths
from vr_jax.worlds import sufficiency

# Each vendor's own, so that no key goes to the other one.
KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


def make_judge(section: ml_collections.ConfigDict, cache: Path) -> judge.Judge:
  """The judge of a run. Whoever builds it closes it.

  section: config.judge. cache: the file of its verdicts; the rule needs none and makes none.

  Raises:
    InputError: an unknown kind, no model, a key or a package missing, an endpoint that is down or refuses, a model that can't be
      read, a file that is no cache. All of it is found here, before anything runs.
  """
  if section.kind == "rule":
    made = judge.RuleJudge(_exact)
  elif section.kind in MODELS:
    made = _text_judge(section, cache)
  else:
    kinds = ", ".join(("rule", *MODELS))
    raise errors.InputError(f"config.judge.kind={section.kind}: not one of {kinds}")
  return judge.LeakFilter(made) if section.leak_filter else made


def check(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Raises InputError as `build` does, but for a local model's weights, and where the rule knows nothing of the run's data.

  A run asks before it does anything else.
  """
  section = config.judge
  if section.kind == "rule":
    for example in _first_example(config, workdir):
      _check_states(example)
    return
  check_model(section)
  if MODELS[section.kind] is make_endpoint:
    make_endpoint(section).close()
  else:
    judge_local.check(Path(section.model))


def _first_example(config: ml_collections.ConfigDict, workdir: Path) -> Sequence[records.Example]:
  """The first of what a run trains on; none where that is still to be simulated, or named."""
  shards = paths.shards_directory(config, workdir)
  if shards.is_dir():
    source = examples.ExampleSource(shards, "train")
    return [source[0]] if len(source) else []
  if config.data.simulate.videos or not config.data.annotations:
    return []
  return [annotations.read_first(Path(config.data.annotations))]


def _exact(example: records.Example, observation: str) -> bool:
  """What the rule knows. Raises InputError for an example of which nothing is known: it would never suffice."""
  _check_states(example)
  return sufficiency.sufficient(example, observation)


def _check_states(example: records.Example) -> None:
  if not example.states:
    raise errors.InputError(
      f"example {example.id}: has no true states, by which config.judge.kind=rule judges; choose another judge"
    )


def check_model(section: ml_collections.ConfigDict) -> None:
  """Raises InputError where no model is named."""
  if not section.model:
    raise errors.InputError(
      f"config.judge.model: is empty; name the model that judges, as config.judge.kind={section.kind} knows it"
    )


def split_limits(section: ml_collections.ConfigDict, workers: int) -> ml_collections.ConfigDict:
  """What each of several workers that judge at the same time is given: its part of what may be asked at a time and a minute.

  Raises:
    InputError: of several, where a budget would make verdicts depend on their number, each would load a local model of its own,
      or there are more of them than requests at the same time.
  """
  if section.kind == "rule":
    return section
  if workers > 1 and section.budget:
    raise errors.InputError(
      f"config.judge.budget={section.budget}: is that of one process; with config.traces.workers={workers} set it to 0"
    )
  if workers > 1 and section.kind == "local":
    raise errors.InputError(
      f"config.judge.kind=local: each of config.traces.workers={workers} would load the model; set them to 1 or 0"
    )
  if workers > section.in_flight:
    raise errors.InputError(
      f"config.judge.in_flight={section.in_flight}: is less than config.traces.workers={workers}; raise it, or take fewer"
    )
  part = ml_collections.ConfigDict(section.to_dict())
  part.in_flight //= workers
  part.requests_per_minute /= workers
  return part


def _text_judge(section: ml_collections.ConfigDict, cache: Path) -> judge_text.TextJudge:
  check_model(section)
  with contextlib.ExitStack() as on_failure:
    kept = judge_cache.VerdictCache(cache)
    on_failure.callback(kept.close)
    model = MODELS[section.kind](section)
    on_failure.pop_all()
  identity = (section.kind, section.model, section.base_url)
  threshold = section.threshold if section.blinded else None
  return judge_text.TextJudge(model, kept, identity=identity, threshold=threshold)


def _local(section: ml_collections.ConfigDict) -> judge_text.JudgeModel:
  return judge_local.LocalModel(Path(section.model), max_tokens=section.max_tokens)


def make_endpoint(section: ml_collections.ConfigDict) -> model_endpoint.Endpoint:
  """The model behind an endpoint, which has answered. Raises InputError as `build` does."""
  return model_endpoint.connect(
    "config.judge",
    section.kind,
    model=section.model,
    base_url=section.base_url,
    key_variable=section.key_variable or KEY_VARIABLES[section.kind],
    limits=model_endpoint.Limits(
      in_flight=section.in_flight,
      requests_per_minute=section.requests_per_minute,
      timeout=section.timeout,
      retries=section.retries,
      budget=section.budget,
      max_tokens=section.max_tokens,
    ),
  )


MODELS: dict[str, Callable[[ml_collections.ConfigDict], judge_text.JudgeModel]] = {
  "local": _local,
  "openai": make_endpoint,
  "anthropic": make_endpoint,
}
