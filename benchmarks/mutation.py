"""Mutation testing: which small changes of the code do its own unit tests notice?

    python -m benchmarks.mutation [--sample=6] [--seed=0] [--seconds=60] [--minutes=0] \\
      [--log=FILE] [FILE …]

Cosmic Ray makes mutants of the files in `TESTS` (or of the named ones): other operators,
comparisons, numbers, conditions, loops. A random sample of each file's mutants runs (--sample=0:
all), in random order over the files, until --minutes have passed (0: until the end). Mutants that
differ in annotations alone are left out. A mutant is killed where one of the file's tests fails or
takes more than --seconds of processor time.

Starting Python and JAX takes longer than most tests. So each mutant runs in a fork of this process,
which has imported the libraries but not the project, on a copy of the tree in a temporary
directory. Prints each survivor with its line, then a table; --log gets one JSON line for each
mutant as it ends.
"""

import argparse
import ast
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import difflib
import itertools
import json
import os
from pathlib import Path
import random
import resource
import shutil
import sys
import tempfile
import time

# As tests/conftest.py sets it, which is too late where JAX has been imported.
os.environ["JAX_PLATFORMS"] = "cpu"

import beartype  # noqa: F401  (imported once, for all forks)
from cosmic_ray import mutating, plugins
import cosmic_ray.ast
import hypothesis  # noqa: F401
import jax  # noqa: F401
import jaxtyping  # noqa: F401
import numpy  # noqa: F401
import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("vr_jax", "tests", "configs", "benchmarks", "pyproject.toml")

# Each file, and the tests that are its own.
TESTS = {
  "vr_jax/rl/advantages.py": (
    "tests/rl/test_reward_advantages.py",
    "tests/rl/test_reward_metrics.py",
  ),
  "vr_jax/rl/gae.py": ("tests/rl/test_gae.py", "tests/rl/test_gae_credit.py"),
  "vr_jax/rl/loss.py": ("tests/rl/test_loss.py", "tests/rl/test_loss_options.py"),
  "vr_jax/rl/overlong.py": ("tests/rl/test_overlong.py",),
  "vr_jax/rl/reward_metrics.py": (
    "tests/rl/test_reward_metrics.py",
    "tests/rl/test_reward_advantages.py",
  ),
  "vr_jax/rl/update.py": ("tests/rl/test_update.py",),
  "vr_jax/rewards/accuracy.py": ("tests/rewards/test_accuracy.py",),
  "vr_jax/rewards/alignment.py": ("tests/rewards/test_alignment.py",),
  "vr_jax/rewards/dtw.py": ("tests/rewards/test_dtw.py",),
  "vr_jax/rewards/exploration.py": ("tests/rewards/test_exploration.py",),
  "vr_jax/rewards/format.py": ("tests/rewards/test_format.py",),
  "vr_jax/rewards/process.py": ("tests/rewards/test_process.py",),
  "vr_jax/rewards/relevance.py": ("tests/rewards/test_relevance.py",),
  "vr_jax/rewards/rouge.py": ("tests/rewards/test_rouge.py",),
  "vr_jax/rewards/steps.py": ("tests/rewards/test_steps.py",),
  "vr_jax/envs/environment.py": ("tests/envs/test_moss_chatv.py", "tests/envs/test_videop2r.py"),
  "vr_jax/envs/moss_chatv.py": ("tests/envs/test_moss_chatv.py",),
  "vr_jax/envs/retrieval_actions.py": ("tests/envs/test_retrieval_actions.py",),
  "vr_jax/envs/video_mtr.py": ("tests/envs/test_video_mtr.py",),
  "vr_jax/envs/videop2r.py": ("tests/envs/test_videop2r.py",),
  "vr_jax/data/sampling.py": ("tests/data/test_sampling.py",),
  "vr_jax/rollout/chunked_logprobs.py": ("tests/rollout/test_chunked_logprobs.py",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
  """One change of one file. line: its first changed line in the original; text: the new text."""

  file: str
  operator: str
  line: int
  text: str
  source: str


def places_of(file: str) -> list[tuple[str, int]]:
  """All (operator, index of its occurrence) that could change a file."""
  nodes = list(cosmic_ray.ast.ast_nodes(cosmic_ray.ast.get_ast(_source(file))))
  places = []
  for name in plugins.operator_names():
    if "Variable" in name:  # these operators need the variable's name
      continue
    operator = plugins.get_operator(name)()
    count = sum(len(list(operator.mutation_positions(node))) for node in nodes)
    places += [(name, occurrence) for occurrence in range(count)]
  return places


def mutant_at(file: str, place: tuple[str, int]) -> Mutant | None:
  """The mutant of a file at a place; None if it differs in annotations alone or does not parse."""
  name, occurrence = place
  original = _source(file)
  source = mutating.mutate_code(original, plugins.get_operator(name)(), occurrence)
  if source is None or not _differs(source, _without_annotations(original)):
    return None
  line, text = _change(original, source)
  return Mutant(file=file, operator=name.removeprefix("core/"), line=line, text=text, source=source)


def _source(file: str) -> str:
  return (ROOT / file).read_text(encoding="utf-8")


def _differs(source: str, plain: str) -> bool:
  try:
    return _without_annotations(source) != plain
  except SyntaxError:
    return False


def _without_annotations(source: str) -> str:
  tree = ast.parse(source)
  for node in ast.walk(tree):
    for field in ("annotation", "returns"):
      if getattr(node, field, None) is not None:
        setattr(node, field, ast.Constant(None))
  return ast.dump(tree)


def _change(before: str, after: str) -> tuple[int, str]:
  lines = before.splitlines(), after.splitlines()
  for tag, first, _, at, end in difflib.SequenceMatcher(None, *lines, autojunk=False).get_opcodes():
    if tag != "equal":
      return first + 1, " ".join(line.strip() for line in lines[1][at:end])
  raise ValueError("nothing changed")


@contextlib.contextmanager
def tree_copy() -> Iterator[Path]:
  """A copy of the files that tests need, in a temporary directory."""
  with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
    for name in COPIED:
      source, target = ROOT / name, Path(directory) / name
      if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
      else:
        shutil.copy(source, target)
    yield Path(directory)


def passes(tree: Path, tests: Sequence[str], seconds: int) -> bool:
  """Whether tests pass in a copy of the tree, in a fork with a limit of processor seconds."""
  child = os.fork()
  if not child:
    _run_tests(tree, tests, seconds)
  _, status = os.waitpid(child, 0)
  return os.waitstatus_to_exitcode(status) == 0


def _run_tests(tree: Path, tests: Sequence[str], seconds: int) -> None:
  code = 70
  try:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    os.chdir(tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [
      str(tree),
      *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, tree)),
    ]
    os.environ["PYTHONPATH"] = str(tree)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
  finally:
    os._exit(int(code))


def main(argv: Sequence[str]) -> int:
  """Runs the mutants; 1 where tests fail without any change."""
  args = _arguments(argv)
  draw, end = random.Random(args.seed), time.monotonic() + 60 * (args.minutes or 1e9)
  chosen: list[Mutant] = []
  counts = {}
  for file in args.files or TESTS:
    places = places_of(file)
    counts[file] = len(places)
    draw.shuffle(places)
    mutants = filter(None, (mutant_at(file, place) for place in places))
    chosen += itertools.islice(mutants, args.sample or None)
  draw.shuffle(chosen)
  results: dict[str, list[bool]] = {}
  with tree_copy() as tree:
    for mutant in chosen:
      if time.monotonic() > end:
        break
      if mutant.file not in results:
        if not passes(tree, TESTS[mutant.file], 10 * args.seconds):
          print(f"{mutant.file}: its tests fail as it is", file=sys.stderr)
          return 1
        results[mutant.file] = []
      results[mutant.file].append(_killed(tree, mutant, args))
  _print_table(counts, results)
  return 0


def _killed(tree: Path, mutant: Mutant, args: argparse.Namespace) -> bool:
  path = tree / mutant.file
  original = path.read_text(encoding="utf-8")
  path.write_text(mutant.source, encoding="utf-8")
  try:
    killed = not passes(tree, TESTS[mutant.file], args.seconds)
  finally:
    path.write_text(original, encoding="utf-8")
  fields = {name: value for name, value in vars(mutant).items() if name != "source"}
  if args.log:
    with args.log.open("a", encoding="utf-8") as log:
      log.write(json.dumps({**fields, "killed": killed}) + "\n")
  if not killed:
    print(f"survived  {mutant.file}:{mutant.line}  {mutant.operator}: {mutant.text}", flush=True)
  return killed


def _print_table(counts: dict[str, int], results: dict[str, list[bool]]) -> None:
  print("| file | places | run | killed |\n|---|---|---|---|")
  for file in counts:
    ran = results.get(file, [])
    print(f"| {file} | {counts[file]} | {len(ran)} | {sum(ran)} |")
  ran = [killed for file in results.values() for killed in file]
  share = f"{sum(ran) / len(ran):.0%}" if ran else "none"
  print(f"| all | {sum(counts.values())} | {len(ran)} | {sum(ran)} ({share}) |")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation")
  parser.add_argument("files", nargs="*", metavar="FILE")
  parser.add_argument("--sample", type=int, default=6, help="mutants of each file; 0: all")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--seconds", type=int, default=60, help="processor time of one mutant")
  parser.add_argument("--minutes", type=float, default=0, help="no mutant starts later; 0: any")
  parser.add_argument("--log", type=Path)
  args = parser.parse_args(argv)
  unknown = [file for file in args.files if file not in TESTS]
  if unknown:
    parser.error(f"no tests are named for {', '.join(unknown)}; one of {', '.join(TESTS)}")
  return args


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
