"""The command `vr-jax`: runs the stages of a recipe in a workdir.

    vr-jax --config=moss_chatv:tiny --workdir=runs/demo --mode=all

`--config` is the name of a recipe of this project, or a file with a function get_config; then a
colon and a size. A workdir that has been started has its config, so that
`--workdir=runs/demo --mode=eval` is enough.

`--mode` is one of:

    data      turns videos into a frame store and examples
    sft       supervised warm start
    rl        reinforcement learning
    eval      evaluation on held-out videos, and the report
    all       the four above, in this order
    traces    supervised traces that a model proposes, to train on (docs/traces.md)
    construct questions about masked futures, made from captions of videos (docs/moss_video.md)
    filter    finds videos whose masks SAM2 can't reproduce, to leave them out (docs/data.md)
    export    writes the last checkpoint as a directory that transformers reads
    check     lists all problems of flags, data, model and machine, and estimates what a run takes

A stage that was interrupted resumes, and one that is complete is skipped. Any field of the config
can be overridden, as in `--config.rl.learning_rate=2e-6`. It goes before what the size sets: with
`--config.data.videos`, no videos are simulated. Which fields a workdir that has been started lets
change, docs/config.md says; more steps extend a run: `--workdir=runs/demo --config.rl.steps=200`.

Exit codes: 0 done; 2 bad input (one line on stderr says which); 3 training diverged; 75 the machine
is taken away (SIGTERM), after saving the step; 130 interrupted. After 75 and 130 the same command
goes on.

`vr-jax ask VIDEO "question" --checkpoint=runs/demo` puts a question to a trained policy
(vr_jax/ask.py). `vr-jax segment VIDEO "query" --checkpoint=runs/mine --sam2=WEIGHTS` writes the
masks of what a query means (vr_jax/segment.py). `vr-jax eval --checkpoint=runs/mine
--benchmarks=mvbench@official …` scores a policy on public benchmarks (docs/benchmarks.md).
`vr-jax judge runs/demo` has judges grade the traces of a run's evaluations (docs/judges.md).
`vr-jax serve --checkpoint=runs/demo` answers requests over HTTP (docs/serving.md). `vr-jax status
runs/demo` says where a run is (vr_jax/status.py).
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import difflib
import importlib
import os
from pathlib import Path
import signal
import sys
import threading
import traceback

from absl import flags
import ml_collections
from ml_collections import config_flags

from vr_jax import buckets, errors, goodput, json_lines, overrides, recipe_config
from vr_jax.parallel import cluster_flags

# Commands besides the stages. They import this module, so they are imported when they are called.
_COMMANDS = {
  "ask": "vr_jax.ask:ask",
  "eval": "vr_jax.evaluate_benchmarks:evaluate_benchmarks",
  "judge": "vr_jax.judge_traces:judge",
  "segment": "vr_jax.segment:segment",
  "serve": "vr_jax.serve.command:serve",
  "status": "vr_jax.status:status",
}
MODES = ("data", "sft", "rl", "eval", "all", "traces", "construct", "filter", "export", "check")


def cli(argv: Sequence[str] | None = None) -> int:
  """Runs the command line (default: this process's) and returns its exit code.

  With several processes one that fails ends at once: a normal exit would wait for the others, who
  wait for it.
  """
  words = list(sys.argv if argv is None else argv)
  with json_lines.written(words):
    try:
      code = _interruptible(words)
    except Exception:
      if not _has_joined() and not json_lines.is_asked(words):
        raise
      sys.stderr.write(traceback.format_exc())
      code = 1
    if code and _has_joined():
      from vr_jax.parallel import preemption, processes

      sys.stdout.flush()
      sys.stderr.flush()
      # Bad input and a signal to stop mostly end all of them.
      processes.meet_to_end(10.0 if code in (2, preemption.EXIT_CODE) else 3.0)
      os._exit(code)
    return code


def _has_joined() -> bool:
  """Whether this is one of several processes of a run."""
  processes = sys.modules.get("vr_jax.parallel.processes")
  return processes is not None and processes.count_joined() > 1


def _interruptible(words: Sequence[str]) -> int:
  """Runs a command; Ctrl-C becomes a line and an exit code."""
  with _noted_interrupts() as interrupts:
    try:
      return _run_command(words)
    except KeyboardInterrupt:
      interrupts.append(signal.SIGINT)
    except Exception:
      if not interrupts:
        raise
  print("vr-jax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
  return 130


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
  """Yields a list to which each Ctrl-C is added.

  C++ code that is interrupted while it calls Python may raise an error of its own instead of
  KeyboardInterrupt. During a garbage collection Python drops the exception; then it comes again.
  """
  interrupts: list[int] = []

  def note(number: int, frame: object) -> None:
    interrupts.append(number)
    raise KeyboardInterrupt

  def note_dropped(dropped: "sys.UnraisableHookArgs") -> None:
    if dropped.exc_type is not KeyboardInterrupt:
      hook(dropped)
      return
    main_thread = threading.main_thread().ident or 0
    threading.Timer(0.05, signal.pthread_kill, (main_thread, signal.SIGINT)).start()

  # Another handler is left alone: an interrupt is ignored in the background of a script, say.
  by_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
  if not by_default or threading.current_thread() is not threading.main_thread():
    yield interrupts
    return
  hook, sys.unraisablehook = sys.unraisablehook, note_dropped
  signal.signal(signal.SIGINT, note)
  try:
    yield interrupts
  finally:
    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _run_command(words: Sequence[str]) -> int:
  """Runs a command; what is wrong with its input becomes one line and an exit code."""
  if "--mode" in words[:-1]:
    place = words.index("--mode")
    words = [*words[:place], f"--mode={words[place + 1]}", *words[place + 2 :]]
  try:
    words = buckets.mounted(words)
    if (place := _COMMANDS.get("".join(words[1:2]))) is not None:
      module, _, function = place.partition(":")
      return getattr(importlib.import_module(module), function)(words[1:]) or 0
    if "--mode=check" in words:
      return check(words)
    return _run_in_cluster(words)
  except errors.InputError as error:
    print(errors.printable(f"vr-jax: {buckets.explained(str(error))}"), file=sys.stderr)
    return 1 if isinstance(error, errors.PassingError) else 2
  except errors.Diverged as error:
    print(errors.printable(f"vr-jax: {error}"), file=sys.stderr)
    return 3
  except OSError as error:
    # A full disk or a missing permission: the file and the reason are all that helps.
    where = f"{error.filename}: " if error.filename else ""
    line = buckets.explained(f"vr-jax: {where}{error.strerror or error}")
    print(errors.printable(line), file=sys.stderr)
    return 2


def _run_in_cluster(words: Sequence[str]) -> int:
  """Runs stages, together with the other processes of the run; returns the exit code."""
  config, workdir, mode = parse_flags(words)
  return in_cluster(words, lambda: run(config, workdir, mode))


def in_cluster(words: Sequence[str], work: Callable[[], None]) -> int:
  """Joins the other processes of a run and works with them; returns the exit code."""
  found = cluster_flags.parse(words)
  from vr_jax.parallel import cluster, preemption, processes

  cluster.join(found)
  json_lines.note_process(processes.joined_index())
  try:
    with preemption.noticed():
      work()
    return 0
  except errors.Unready as error:
    print(errors.printable(f"vr-jax: {error}"), file=sys.stderr)
    return preemption.EXIT_CODE
  except errors.Preempted as error:
    saved = str(error)
  except Exception:  # C++ code that is interrupted while it calls Python may raise its own
    if not preemption.came():
      raise
    saved = preemption.OUTSIDE
  print(errors.printable(f"vr-jax: SIGTERM: {saved}; the same command goes on"), file=sys.stderr)
  return preemption.EXIT_CODE


def check(argv: Sequence[str]) -> int:
  """Prints all problems that a run would meet, and what it takes; returns the exit code."""
  from vr_jax.train import dry_run

  found = parse_all_flags(argv)
  return (
    2 if dry_run.report(found.config, found.workdir, found.problems, fallback=found.base) else 0
  )


def run(config: ml_collections.ConfigDict, workdir: Path, mode: str) -> None:
  """Runs the stages of `mode` in a workdir. A notebook calls this instead of the command line."""
  # JAX and the modules that use it import slowly: a mistyped flag should not wait for them.
  from vr_jax.parallel import asked_backend, cpu_devices, processes
  from vr_jax.train import (
    compilations,
    config_checks,
    console,
    health,
    health_endpoint,
    judge_factory,
    lease,
    model_checks,
    preflight,
    run_context,
    shared_cache,
  )
  from vr_jax.train import workdir as workdir_lib

  config_checks.check(config)
  run_context.configure_compiler(config)
  cpu_devices.set_number(config.cpu_devices)
  asked_backend.start()
  if mode != "construct":  # it needs no network
    model_checks.check(config, workdir, mode)
  if mode in ("rl", "eval", "traces", "all") and "judge" in config:
    judge_factory.check(config, workdir)
  with lease.hold(workdir):
    processes.first_alone("claim", lambda: workdir_lib.claim(workdir, config, mode))
    cache = compilations.use_cache(workdir)
    preflight.check(config, workdir, mode, cache)
    with (
      console.heartbeat(),
      health.watched(workdir, config.log.hang_timeout),
      shared_cache.synchronized(cache, workdir),
      health_endpoint.served(workdir, config.log.health_address, config.log.health_port),
      compilations.announced(cache, compilations.network(config)),
    ):
      _run_stages(config, workdir, mode)
  if mode in ("sft", "rl", "all") and processes.is_first() and (times := goodput.read(workdir)):
    console.print_line(f"{times}; {compilations.summary()}")


def _run_stages(config: ml_collections.ConfigDict, workdir: Path, mode: str) -> None:
  from vr_jax.eval import stage as eval_stage
  from vr_jax.parallel import processes
  from vr_jax.traces import stage as traces_stage
  from vr_jax.traces.construct import stage as construct_stage
  from vr_jax.train import data_stage, export_stage, mask_filter, rl_loop, sft_loop

  if mode in ("data", "all"):
    processes.first_alone("data", lambda: data_stage.prepare(config, workdir))
  if mode == "filter" or (mode == "all" and mask_filter.is_wanted(config)):
    processes.first_alone("filter", lambda: mask_filter.write(config, workdir))
  if processes.is_first():
    goodput.note(workdir, "other")
  if mode in ("sft", "all"):
    data_stage.check_before_training(config, workdir, mode)
    sft_loop.train(config, workdir)
  if mode in ("rl", "all"):
    rl_loop.train(config, workdir)
  if mode in ("eval", "all"):
    eval_stage.evaluate(config, workdir)
  if mode == "traces":
    traces_stage.write(config, workdir)
  if mode == "construct":
    processes.first_alone("construct", lambda: construct_stage.write(config, workdir))
  if mode == "export":
    export_stage.export(config, workdir)


def parse_flags(argv: Sequence[str]) -> tuple[ml_collections.ConfigDict, Path, str]:
  """Parses a command line; raises InputError naming the flag at fault.

  Returns (config, workdir, mode).
  """
  if any(word in ("-h", "--help", "-help") for word in argv[1:]):
    print(__doc__, _define().main_module_help(), sep="\n")
    raise SystemExit(0)
  workdir = [word for word in argv if word.startswith("--workdir=")]
  if not workdir:
    raise errors.InputError("needs --config=<recipe>:<size> and --workdir=<directory>")
  errors.check_path("--workdir", workdir[-1].removeprefix("--workdir="))
  if any(word.startswith("--config=") for word in argv):
    values = parse_recipe(argv)
  else:
    values = parse_run(argv, Path(workdir[-1].removeprefix("--workdir=")))
  return config_value(values), Path(str(values["workdir"].value)), str(values["mode"].value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParsedFlags:
  """A command line with all its mistakes.

  config: of the flags that are right; None if they contradict each other.
  base: that of the recipe or workdir, without flags; None if it can't be read.
  problems: a line for each mistake.
  """

  config: ml_collections.ConfigDict | None
  base: ml_collections.ConfigDict | None
  workdir: Path
  problems: tuple[str, ...]


def parse_all_flags(argv: Sequence[str]) -> ParsedFlags:
  """Parses a command line without stopping at its first mistake."""
  names = ("--config=", "--workdir=")
  bare = [word for place, word in enumerate(argv) if place == 0 or word.startswith(names)]
  right, problems = list(bare), []
  try:
    base, workdir, _ = parse_flags(bare)
  except errors.InputError as error:
    return ParsedFlags(config=None, base=None, workdir=Path(), problems=(str(error),))
  config = None
  for word in (word for word in argv if word not in bare):
    try:
      parse_flags([*bare, word])
      right.append(word)
    except errors.InputError as error:
      problems.append(str(error))
  try:
    config = parse_flags(right)[0]
  except errors.InputError as error:
    problems.append(str(error))
  return ParsedFlags(config=config, base=base, workdir=workdir, problems=tuple(problems))


def config_value(values: flags.FlagValues) -> ml_collections.ConfigDict:
  """Returns the value of --config, which `parse_recipe` has made sure is there."""
  config = values["config"].value
  assert config is not None
  return config


def parse_recipe(argv: Sequence[str]) -> flags.FlagValues:
  """Parses a command line with --config=<recipe>; raises InputError naming the flag at fault."""
  recipe = [word for word in argv if word.startswith("--config=")]
  config, path = recipe_config.read(recipe[-1].removeprefix("--config="))
  # The environment's fields are known only once JAX is imported: check all other fields before.
  check_fields([word for word in argv if not word.startswith("--config.env.")], config)
  recipe_config.complete(config, (path.parent, Path.cwd()))
  check_fields(argv, config)
  values = _parse([word for word in argv if word not in recipe], config)
  config = config_value(values)
  recipe_config.complete(config, (Path.cwd(), path.parent))
  overrides.reconcile(config, {*config_flags.get_override_values(values["config"])})
  return values


def parse_run(argv: Sequence[str], workdir: Path, *, flag: str = "--workdir") -> flags.FlagValues:
  """Parses a command line whose config is that of a workdir; InputError names the flag at fault.

  flag: that gave the workdir.
  """
  from vr_jax.train import workdir as workdir_lib

  if not (workdir / "config.json").is_file():
    raise errors.InputError(
      f"{flag}={workdir}: has no config.json yet; give --config=<recipe>:<size> as well"
    )
  config = workdir_lib.config_of(workdir).lock()
  check_fields(argv, config)
  values = _parse(argv, config)
  config = config_value(values)
  recipe_config.complete(config, (Path.cwd(),))
  overrides.reconcile(config, {*config_flags.get_override_values(values["config"])})
  return values


def _define(
  config: ml_collections.ConfigDict | None = None, argv: Sequence[str] = ()
) -> flags.FlagValues:
  """Defines the flags, and one for each field of `config` if it is given."""
  values = flags.FlagValues()
  about = "The recipe and its size: moss_chatv:tiny, or configs/moss_chatv.py:tiny"
  if config is None:
    flags.DEFINE_string("config", None, about, flag_values=values)
  else:
    config_flags.DEFINE_config_dict(
      "config", config, about, flag_values=values, sys_argv=list(argv)
    )
  flags.DEFINE_string("workdir", None, "Directory of this run.", flag_values=values)
  flags.DEFINE_enum("mode", "all", MODES, "Which stages.", flag_values=values)
  cluster_flags.define_flags(values)
  return values


def _parse(argv: Sequence[str], config: ml_collections.ConfigDict) -> flags.FlagValues:
  values = _define(config, argv)
  if rest := read_flags(values, argv):
    raise errors.InputError(f"{rest[0]}: not a flag; fields are overridden as --config.field=value")
  return values


def read_flags(
  values: flags.FlagValues, argv: Sequence[str], *, known_only: bool = False
) -> list[str]:
  """Sets flags from a command line, and returns its words that are no flags.

  known_only: return flags that `values` does not have too, instead of raising.
  """
  try:
    return values(list(argv), known_only=known_only)[1:]
  except flags.UnrecognizedFlagError as error:
    if "." not in error.flagname:
      raise errors.InputError(str(error).strip().splitlines()[-1]) from error
    raise errors.InputError(
      f"--{error.flagname}: not a flag; fields are overridden as --config.field=value"
    ) from error
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.InputError(str(error).strip().splitlines()[-1]) from error


def check_fields(argv: Sequence[str], config: ml_collections.ConfigDict) -> None:
  """Raises InputError for the first --config.field that doesn't exist; names the nearest field."""
  for word in argv:
    if not word.startswith("--config."):
      continue
    section, so_far = config, "config"
    for name in word.removeprefix("--config.").partition("=")[0].split("."):
      names = list(section) if isinstance(section, ml_collections.ConfigDict) else []
      if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0) or ["no field"]
        raise errors.InputError(
          f"--{so_far}.{name}: no such field; the nearest is {so_far}.{near[0]}"
        )
      section, so_far = section[name], f"{so_far}.{name}"


if __name__ == "__main__":
  sys.exit(cli())
