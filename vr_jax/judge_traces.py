"""The command `vr-jax judge`: judges grade the traces of a run's evaluations (docs/judges.md).

    vr-jax judge runs/demo
    vr-jax judge runs/mine --judge=local --model=weights/some-vlm
    vr-jax judge runs/mine --judge=endpoint --model=gpt-4.1-mini --max_requests=2000
    vr-jax judge runs/mine --judge=endpoint --base_url=http://localhost:8000/v1 \\
      --key_variable=MY_KEY --model=…

A judge sees question, reference steps and trace, but neither frames nor which policy wrote, and
gives integers from 1 to 5 for consistency and stability. It isn't told the right answer, but may
read it in the reference, whose last step states it for simulated videos. `rule` knows the
simulator's states; `local` is a directory in the Hugging Face layout, greedy and asked once;
`endpoint` speaks OpenAI's chat completions. The key is read from the environment variable
--key_variable.

Models get both policies' traces of a question in one prompt, in both orders; with --alone, one
trace a prompt. Everything that was answered is kept in --cache: the same command goes on where it
stopped, and asks nothing twice. Results go to eval/judged.json, eval/judged.jsonl and the report;
those of other judges of the same traces stay.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
from pathlib import Path
import re
import sys
from typing import TYPE_CHECKING

from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from vr_jax import ask, errors, model_endpoint

if TYPE_CHECKING:
  from vr_jax import records
  from vr_jax.eval.trace_judging import asking, grade, judged_files, judged_questions

KINDS = ("rule", "local", "endpoint")
_OF_ENDPOINTS = (
  *("base_url", "key_variable", "runs", "attempts", "temperature", "max_requests", "max_tokens"),
  *("in_flight", "requests_per_minute", "timeout", "retries"),
)
# Flags that would change nothing, and are refused.
_WITHOUT_EFFECT = {
  "rule": ("model", "alone", "reply_tokens", "cache", *_OF_ENDPOINTS),
  "local": _OF_ENDPOINTS,
  "endpoint": (),
}
OPENAI_KEY = "OPENAI_API_KEY"  # is sent to OpenAI alone, unless it is named


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeArguments:
  """A parsed command line.

  name: of the judge in judged.json.
  alone: whether a prompt shows one trace.
  reply_tokens: most tokens of a judge's reply.
  max_tokens: of all prompts and replies of this start; 0 for any number.
  limits: of the endpoint's client.
  """

  workdir: Path
  evaluations: tuple[str, ...]
  judge: str
  name: str
  model: str
  base_url: str
  key_variable: str
  alone: bool
  runs: int
  attempts: int
  temperature: float
  reply_tokens: int
  max_tokens: int
  limits: model_endpoint.Limits
  cache: Path


def judge(argv: Sequence[str]) -> None:
  """Runs the command. Raises errors.InputError with one line about what is wrong or stopped it."""
  arguments = parse(argv)
  from vr_jax.eval import report, report_data, report_json
  from vr_jax.eval.trace_judging import judged_files, judged_questions, judged_table

  judged = judged_questions.read(arguments.workdir, arguments.evaluations)
  verdicts, settings = _verdicts(arguments, judged)
  judged_files.write(arguments.workdir, judged, arguments.name, settings, verdicts)
  path = arguments.workdir / "eval" / report_data.JUDGED
  judged_table.show(judged_table.tables(report_json.read_record(path)))
  print(f"verdicts: {path.with_suffix('.jsonl')}")
  if (arguments.workdir / "report.html").exists():
    print(f"report: {report.write_report(arguments.workdir)}")


def parse(argv: Sequence[str]) -> JudgeArguments:
  """Parses a command line; raises InputError naming the word or flag at fault."""
  values = _define_flags()
  rest, overrides = ask.read_words("judge", values, argv, help_text=__doc__)
  if overrides:
    raise errors.InputError(f"{overrides[0]}: vr-jax judge has no config; see vr-jax judge --help")
  if len(rest) != 1:
    raise errors.InputError("judge: needs one workdir: vr-jax judge runs/demo")
  errors.check_path("judge", rest[0])
  workdir, kind = Path(rest[0]), values.judge
  evaluations = tuple(filter(None, map(str.strip, values.evaluations.split(","))))
  if not evaluations or len({*evaluations}) < len(evaluations):
    raise errors.InputError("--evaluations: needs different names of eval/<name>.json, as after_rl")
  if odd := [name for name in evaluations if not re.fullmatch(r"[\w.-]+", name)]:
    raise errors.InputError(f"--evaluations: {odd[0]!r} is no name of an evaluation")
  if kind != "rule" and not values.alone and len(evaluations) != 2:
    raise errors.InputError(
      f"--evaluations: a prompt shows the traces of two, not {len(evaluations)}; "
      "give two, or add --alone"
    )
  _check_model(values)
  model = values.model if kind == "endpoint" else Path(values.model).resolve().name
  base = "rule" if kind == "rule" else f"{model} (alone)" if values.alone else model
  return JudgeArguments(
    workdir=workdir,
    evaluations=evaluations,
    judge=kind,
    name=values.name or base,
    model=values.model,
    base_url=values.base_url,
    key_variable=values.key_variable or OPENAI_KEY,
    alone=values.alone or kind == "rule",
    # A greedy model says the same each time.
    runs=values.runs if kind == "endpoint" else 1,
    attempts=values.attempts if kind == "endpoint" else 1,
    temperature=values.temperature,
    reply_tokens=values.reply_tokens,
    max_tokens=values.max_tokens,
    limits=model_endpoint.Limits(
      in_flight=values.in_flight,
      requests_per_minute=values.requests_per_minute,
      timeout=values.timeout,
      retries=values.retries,
      budget=values.max_requests,
      max_tokens=values.reply_tokens,
    ),
    cache=Path(values.cache) if values.cache else workdir / "eval" / "judged.sqlite",
  )


def _define_flags() -> flags.FlagValues:
  values = flags.FlagValues()

  def text(name: str, default: str, about: str) -> None:
    flags.DEFINE_string(name, default, about, flag_values=values)

  def count(name: str, default: int, about: str, least: int) -> None:
    flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)

  text("evaluations", "before_rl,after_rl", "Names of eval/<name>.json, in order of training.")
  flags.DEFINE_enum("judge", "rule", KINDS, "Who judges.", flag_values=values)
  text("name", "", "The judge's name in the results; empty: the model's.")
  text("model", "", "Model of the endpoint, or directory of the local one.")
  text("base_url", "", "Address of the endpoint; empty: OpenAI's.")
  text("key_variable", "", "Environment variable with the endpoint's key.")
  flags.DEFINE_boolean("alone", False, "Show one trace a prompt.", flag_values=values)
  count("runs", 3, "How often an endpoint gets each prompt.", 1)
  count("attempts", 3, "Readings of a prompt's replies before it has no verdict.", 1)
  flags.DEFINE_float(
    "temperature", 1.0, "Of an endpoint's sampling.", lower_bound=0.0, flag_values=values
  )
  count("reply_tokens", 1024, "Most tokens of a reply; models that think need thousands.", 1)
  count("max_requests", 0, "Most requests of this start, retries included; 0: any number.", 0)
  count("max_tokens", 0, "Most tokens of this start, prompts and replies; 0: any number.", 0)
  count("in_flight", 16, "Requests at the same time.", 1)
  flags.DEFINE_float(
    "requests_per_minute", 0.0, "Their rate; 0: any.", lower_bound=0.0, flag_values=values
  )
  flags.DEFINE_float(
    "timeout", 60.0, "Seconds of silence of an endpoint.", lower_bound=0.001, flag_values=values
  )
  count("retries", 4, "Further requests after one that failed.", 0)
  text("cache", "", "File with all grades; empty: eval/judged.sqlite in the workdir.")
  return values


def _check_model(values: flags.FlagValues) -> None:
  """Raises InputError if flags of the model are missing, or would have no effect."""
  for flag in _WITHOUT_EFFECT[values.judge]:
    if values[flag].present:
      raise errors.InputError(
        f"--{flag}: has no effect with --judge={values.judge}; leave it out or choose another judge"
      )
  if values.judge != "rule" and not values.model:
    raise errors.InputError(
      "--model: is empty; name the "
      + ("model, as the endpoint does" if values.judge == "endpoint" else "model's directory")
    )
  if values.judge != "endpoint":
    return
  if values.base_url and not values.key_variable:
    raise errors.InputError(
      f"--key_variable: name the environment variable with the key for {values.base_url} "
      "(of any word where the endpoint asks for none)"
    )


def _verdicts(
  arguments: JudgeArguments, judged: "judged_questions.JudgedSet"
) -> "tuple[Sequence[grade.TraceVerdict], judged_files.JudgeSettings]":
  """Has the judge grade all traces."""
  from vr_jax.eval.trace_judging import judge_models, judged_files, verdicts

  if arguments.judge == "rule":
    examples = _examples(arguments.workdir)
    found = verdicts.by_rule(judged, examples, judge=arguments.name)
    return found, judged_files.JudgeSettings(kind="rule")
  plan = verdicts.JudgingPlan(
    judge=arguments.name,
    alone=arguments.alone,
    runs=arguments.runs,
    attempts=arguments.attempts,
  )
  is_local = arguments.judge == "local"
  if is_local:
    source = judge_models.local(Path(arguments.model), reply_tokens=arguments.reply_tokens)
  else:
    source = judge_models.endpoint(
      arguments.model,
      base_url=arguments.base_url,
      key_variable=arguments.key_variable,
      temperature=arguments.temperature,
      limits=arguments.limits,
      max_tokens=arguments.max_tokens,
    )
  with _progress() as tick:
    found = verdicts.by_model(judged, plan, source, arguments.cache, tick=tick)
  settings = judged_files.JudgeSettings(
    kind=arguments.judge,
    model=Path(arguments.model).resolve().name if is_local else arguments.model,
    shown="alone" if arguments.alone else "pair",
    runs=arguments.runs,
    attempts=arguments.attempts,
    temperature=0.0 if is_local else arguments.temperature,
  )
  return found, settings


def _examples(workdir: Path) -> "dict[str, records.Example]":
  """The held-out examples of a run's data, by id."""
  from vr_jax import atomic
  from vr_jax.data import examples
  from vr_jax.train import paths
  from vr_jax.train import workdir as workdir_lib

  shards = paths.shards_directory(workdir_lib.config_of(workdir), workdir)
  if not atomic.is_whole(shards):
    raise errors.InputError(
      f"{shards}: no such directory; --judge=rule needs the run's data, made by --mode=data"
    )
  return {each.id: each for each in examples.ExampleSource(shards, "test")}


@contextlib.contextmanager
def _progress() -> "Iterator[asking.Tick]":
  """Yields `tick(done, total)`, which moves a bar on stderr; nothing without a terminal.

  Not train.console's, which starts JAX: an accelerator may be busy with a training run.
  """
  bar = rich_progress.Progress(
    *rich_progress.Progress.get_default_columns(),
    rich_progress.MofNCompleteColumn(),
    console=rich_console.Console(file=sys.stderr),
    disable=not sys.stderr.isatty(),
  )
  with bar:
    task = bar.add_task("judging")
    yield lambda done, total: bar.update(task, completed=done, total=total)
