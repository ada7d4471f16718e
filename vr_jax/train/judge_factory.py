"""Makes the judge of config.judge and checks that it answers (docs/judges.md)."""

from collections.abc import Callable, Sequence
import contextlib
from pathlib import Path

import ml_collections

from vr_jax import atomic, errors, model_endpoint, records
from vr_jax.data import annotations, examples
from vr_jax.rewards import judge, judge_cache, judge_text
from vr_jax.train import judge_local, paths
from vr_jax.worlds import sufficiency

# One variable for each vendor, so that no key is sent to the wrong one.
KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


def make_judge(section: ml_collections.ConfigDict, cache: Path) -> judge.Judge:
  """Makes the judge of a run; the caller closes it.

  section: config.judge.
  cache: file for its verdicts; the rule has none.

  Raises:
    InputError: the kind is unknown; the model, a key or a package is missing; the endpoint is down
      or refuses; the model can't be read; or the file is not a cache. All of these are found here,
      before anything runs.
  """
  if section.kind == "rule":
    new = judge.RuleJudge(_exact)
  elif section.kind in MODELS:
    new = _text_judge(section, cache)
  else:
    kinds = ", ".join(("rule", *MODELS))
    raise errors.InputError(f"config.judge.kind={section.kind}: not one of {kinds}")
  return judge.LeakFilter(new) if section.leak_filter else new


def check(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Checks the judge before a run does anything else.

  Raises InputError as `make_judge` does, but it does not load a local model's weights; and if the
  rule can't judge the run's data.
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
  """The first example of the run's data; empty if the data are not simulated or named yet."""
  shards = paths.shards_directory(config, workdir)
  if atomic.is_whole(shards):
    source = examples.ExampleSource(shards, "train")
    return [source[0]] if len(source) else []
  if config.data.simulate.videos or not config.data.annotations:
    return []
  return [annotations.read_first(Path(config.data.annotations))]


def _exact(example: records.Example, observation: str) -> bool:
  """The rule's verdict. Raises InputError for an example without true states."""
  _check_states(example)
  return sufficiency.sufficient(example, observation)


def _check_states(example: records.Example) -> None:
  if not example.states:
    raise errors.InputError(
      f"example {example.id}: has no true states, by which config.judge.kind=rule judges; "
      "choose another judge"
    )


def check_model(section: ml_collections.ConfigDict) -> None:
  """Raises InputError if no model is named."""
  if not section.model:
    raise errors.InputError(
      "config.judge.model: is empty; name the model that judges, "
      f"as config.judge.kind={section.kind} knows it"
    )


def split_limits(section: ml_collections.ConfigDict, workers: int) -> ml_collections.ConfigDict:
  """Divides the limits of requests among workers that judge at the same time.

  Returns the section for one worker: in_flight and requests_per_minute are its share.

  Raises:
    InputError: with several workers, a budget is set (verdicts would depend on their number), the
      model is local (each would load it), or there are more workers than requests in flight.
  """
  if section.kind == "rule":
    return section
  if workers > 1 and section.budget:
    raise errors.InputError(
      f"config.judge.budget={section.budget}: is that of one process; "
      f"with config.traces.workers={workers} set it to 0"
    )
  if workers > 1 and section.kind == "local":
    raise errors.InputError(
      f"config.judge.kind=local: each of config.traces.workers={workers} would load the model; "
      "set them to 1 or 0"
    )
  if workers > section.in_flight:
    raise errors.InputError(
      f"config.judge.in_flight={section.in_flight}: is less than "
      f"config.traces.workers={workers}; raise it, or take fewer"
    )
  part = ml_collections.ConfigDict(section.to_dict())
  part.in_flight //= workers
  part.requests_per_minute /= workers
  return part


def _text_judge(section: ml_collections.ConfigDict, cache: Path) -> judge_text.TextJudge:
  check_model(section)
  with contextlib.ExitStack() as on_failure:
    verdicts = judge_cache.VerdictCache(cache)
    on_failure.callback(verdicts.close)
    model = MODELS[section.kind](section)
    on_failure.pop_all()
  identity = (section.kind, section.model, section.base_url)
  threshold = section.threshold if section.blinded else None
  return judge_text.TextJudge(model, verdicts, identity=identity, threshold=threshold)


def _local(section: ml_collections.ConfigDict) -> judge_text.JudgeModel:
  return judge_local.LocalModel(Path(section.model), max_tokens=section.max_tokens)


def make_endpoint(section: ml_collections.ConfigDict) -> model_endpoint.Endpoint:
  """Connects to the model's endpoint and checks that it answers.

  Raises InputError as `make_judge` does.
  """
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
