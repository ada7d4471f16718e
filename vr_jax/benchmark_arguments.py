"""The command line of `vr-jax eval`."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from absl import flags
import ml_collections

from vr_jax import ask, errors
from vr_jax.eval.benchmarks import protocols
from vr_jax.parallel import cluster_flags

OWN = "benchmarks"  # directory in a run
JUDGES = ("endpoint", "local")
_LISTED = "list"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalArguments:
  """A parsed command line.

  data: below which each benchmark has a directory.
  splits: by benchmark, where it is not the usual one.
  base: the --out of another policy; None if it is not given.
  limit: questions of each benchmark; 0: all.
  sam2: its weights, which follow boxes; None if no mask is to be found.
  fresh_reverse: see `box_tracking.follow`.
  config: None with score_only.
  judge: who grades open answers; "": nobody. judge_model: a name, or a directory of weights.
  judge_base_url, judge_key_variable: of an endpoint.
  """

  protocols: tuple[protocols.Protocol, ...]
  data: Path
  splits: dict[str, str]
  out: Path
  frames: Path
  base: Path | None
  limit: int
  sam2: Path | None
  fresh_reverse: bool
  score_only: bool
  before_rl: bool
  config: ml_collections.ConfigDict | None
  workdir: Path | None
  judge: str
  judge_model: str
  judge_base_url: str
  judge_key_variable: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedArguments:
  """A parsed command line that compares the scores of several training seeds.

  directories: the --out of each. names: of protocols; (): all.
  """

  directories: tuple[Path, ...]
  names: tuple[str, ...]


def parse(argv: Sequence[str], *, help_text: str) -> EvalArguments | SeedArguments | None:
  """Parses a command line; None if it asks for a list of protocols.

  help_text: for --help.

  Raises InputError naming the word, flag or file at fault.
  """
  values = flags.FlagValues()
  flags.DEFINE_string("checkpoint", None, "Workdir of a run, or a directory.", flag_values=values)
  flags.DEFINE_list(
    "benchmarks", [], "Protocols, as mvbench@official; or list.", flag_values=values
  )
  flags.DEFINE_string("benchmark_data", None, "Directory of benchmarks.", flag_values=values)
  flags.DEFINE_list("split", [], "Splits, as mlvu:test.", flag_values=values)
  flags.DEFINE_string("out", None, "Directory for replies and scores.", flag_values=values)
  flags.DEFINE_string("frames", None, "Directory for decoded frames.", flag_values=values)
  flags.DEFINE_string("base", None, "The --out of another policy.", flag_values=values)
  flags.DEFINE_list("seeds", [], "The --out of several training seeds.", flag_values=values)
  flags.DEFINE_integer("limit", 0, "Questions of each benchmark.", 0, flag_values=values)
  flags.DEFINE_string("sam2", None, "SAM2's weights, for masks.", flag_values=values)
  flags.DEFINE_boolean("fresh_reverse", False, "Track back from nothing.", flag_values=values)
  flags.DEFINE_boolean("score_only", False, "Score the replies that are there.", flag_values=values)
  flags.DEFINE_boolean("before_rl", False, "Ask the policy before RL.", flag_values=values)
  flags.DEFINE_enum("judge", "", ["", *JUDGES], "Who grades open answers.", flag_values=values)
  flags.DEFINE_string("judge_model", "", "Its name, or its directory.", flag_values=values)
  flags.DEFINE_string("judge_base_url", "", "Of the endpoint.", flag_values=values)
  flags.DEFINE_string("judge_key_variable", "", "That has its key.", flag_values=values)
  cluster_flags.define_flags(values)
  rest, overrides = ask.read_words("eval", values, argv, help_text=help_text)
  if rest:
    raise errors.InputError(f"{rest[0]}: vr-jax eval takes flags alone (vr-jax eval --help)")
  if values.benchmarks == [_LISTED]:
    return None
  if values.seeds:
    return _parse_seeds(values)
  if not values.benchmarks:
    raise errors.InputError(
      "needs --benchmarks=<benchmark>@<protocol>,…; --benchmarks=list has all"
    )
  if values.benchmark_data is None:
    raise errors.InputError("needs --benchmark_data=<directory>")
  chosen = tuple(protocols.get(name) for name in dict.fromkeys(values.benchmarks))
  _check_judge(values)
  _check_masks(values, chosen)
  data = Path(values.benchmark_data)
  if not data.is_dir():
    raise errors.InputError(f"--benchmark_data={data}: no such directory")
  base = None if values.base is None else Path(values.base)
  if base is not None and not base.is_dir():
    raise errors.InputError(f"--base={base}: no such directory")
  config, workdir = None, None
  checkpoint = None if values.checkpoint is None else Path(values.checkpoint)
  if not values.score_only:
    config, workdir = ask.load_config(checkpoint, overrides)
    if values.before_rl and workdir is None:
      raise errors.InputError("--before_rl: needs --checkpoint=<workdir of a run>")
  if values.out is not None:
    out = Path(values.out)
  elif (run := workdir or checkpoint) is not None and (run / "checkpoints").is_dir():
    out = run / OWN
  else:
    raise errors.InputError("needs --out=<directory>, or --checkpoint=<workdir of a run>")
  return EvalArguments(
    protocols=chosen,
    data=data,
    splits=_parse_splits(values.split, chosen),
    out=out,
    frames=out / "frames" if values.frames is None else Path(values.frames),
    base=base,
    limit=values.limit,
    sam2=None if values.sam2 is None else Path(values.sam2),
    fresh_reverse=values.fresh_reverse,
    score_only=values.score_only,
    before_rl=values.before_rl,
    config=config,
    workdir=workdir,
    judge=values.judge,
    judge_model=values.judge_model,
    judge_base_url=values.judge_base_url,
    judge_key_variable=values.judge_key_variable or "OPENAI_API_KEY",
  )


def _parse_seeds(values: flags.FlagValues) -> SeedArguments:
  for name in ("checkpoint", "benchmark_data", "split", "out", "base", "limit", "judge"):
    if values[name].present:
      raise errors.InputError(f"--{name}: has no effect with --seeds, which reads tables alone")
  directories = tuple(Path(each) for each in values.seeds)
  if len(directories) < 2 or len(set(directories)) < len(directories):
    raise errors.InputError("--seeds: needs the --out of at least two training seeds, each once")
  names = tuple(protocols.get(name).name for name in dict.fromkeys(values.benchmarks))
  return SeedArguments(directories=directories, names=names)


def _check_judge(values: flags.FlagValues) -> None:
  if values.judge and not values.judge_model:
    raise errors.InputError(f"--judge={values.judge}: needs --judge_model")
  of_endpoint = ("judge_base_url", "judge_key_variable")
  for name in ("judge_model", *of_endpoint):
    if values[name].value and (
      not values.judge or (name in of_endpoint and values.judge == "local")
    ):
      raise errors.InputError(f"--{name}: has no effect with --judge={values.judge or 'none'}")


def _check_masks(values: flags.FlagValues, chosen: Sequence[protocols.Protocol]) -> None:
  """Raises InputError unless SAM2 is there where, and only where, boxes are followed."""
  of_masks = [each.name for each in chosen if each.finds_masks]
  merging = [each.name for each in chosen if each.merges_objects]
  if values.limit and merging:
    raise errors.InputError(
      f"--limit: {merging[0]} needs all expressions of a video; leave one of them out"
    )
  for name in ("sam2", "fresh_reverse"):
    if values[name].present and not of_masks:
      raise errors.InputError(f"--{name}: has no effect; none of --benchmarks is about masks")
  if not of_masks or values.score_only:
    return
  if values.sam2 is None:
    raise errors.InputError(
      f"--sam2: {of_masks[0]} needs SAM2's weights; docs/sam2.md says where to get them"
    )
  if not Path(values.sam2).exists():
    raise errors.InputError(
      f"--sam2={values.sam2}: no such file or directory; docs/sam2.md says where to get weights"
    )


def _parse_splits(words: Sequence[str], chosen: Sequence[protocols.Protocol]) -> dict[str, str]:
  splits = {}
  for word in words:
    name, _, split = word.partition(":")
    if not split or name not in {each.benchmark for each in chosen}:
      raise errors.InputError(f"--split={word}: needs a benchmark of --benchmarks, as mlvu:test")
    splits[name] = split
  return splits
