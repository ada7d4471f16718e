"""`vr-jax ask`: a question about a video, answered by a trained policy, its turns printed as they come.

    vr-jax ask match.mp4 "Who falls?" --checkpoint=runs/mine --options="the thief,the guard"

`--checkpoint` is the workdir of a run, whose config and last checkpoint (of rl, or else of sft) are taken. With
`--config=video_mtr:3b` it is a directory as Hugging Face has it, or, left out, config.model.pretrained. `--options` makes
the question one of multiple choice; `--problem_type` is otherwise free-form. Any field of the config is overridden as
`--config.eval.temperature=0.7`. Recipes of a single reply answer in one turn.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any
import unicodedata

from absl import flags
import ml_collections
from ml_collections import config_flags

from vr_jax import errors, main, recipe_config, records
from vr_jax.train import paths
from vr_jax.train import workdir as workdir_lib

if TYPE_CHECKING:
  from jaxtyping import PyTree

  from vr_jax.data import video_clip
  from vr_jax.rollout import dialogue, session
  from vr_jax.train import run_context

_MISSING = 'needs a video and a question: vr-jax ask match.mp4 "Who falls?" --checkpoint=runs/mine'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskArguments:
  """A command line. workdir: of the run whose checkpoint answers; None where config.model.pretrained does."""

  video: Path
  question: str
  options: tuple[str, ...]
  problem_type: str
  seed: int
  config: ml_collections.ConfigDict
  workdir: Path | None


def ask(argv: Sequence[str]) -> None:
  """Answers a command line: ["ask", video, question, flags]. Raises InputError naming what is wrong with it."""
  asked = parse(argv)
  # As in main.run: what is mistyped should not wait for JAX.
  from rich import console as rich_console

  from vr_jax.data import video_clip
  from vr_jax.train import config_checks, run_context

  config, data = asked.config, asked.config.data
  config_checks.check(config)
  video = video_clip.load(
    asked.video,
    fps=data.fps,
    quality=data.quality,
    max_side=data.max_side,
    rule=paths.sampling_rule(data),
  )
  context = run_context.make_run_context(config, asked.workdir or Path(), judged=False, read=False)
  params, policy = _policy(context, asked.workdir)
  out = rich_console.Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
  out.print(f"{policy} · {asked.video}: {video.duration:g} s, {len(video)} frames", style="dim")
  _print_episode(context, params, video, asked, out)


def session(
  context: "run_context.RunContext", params: "PyTree", pool: "dialogue.FramePool"
) -> "session.Session":
  """A session about a pool of frames, as the recipe evaluates."""
  from vr_jax import rollout
  from vr_jax.rollout import play

  return rollout.Session(
    graphdef=context.graphdef,
    params=params,
    allowed_tokens=context.allowed_tokens,
    processor=context.processor,
    environment=context.environment,
    decoding=context.decoding(temperature=context.config.eval.temperature),
    schedule=play.make_schedule(context.config, context.environment, context.processor),
    prefix_buckets=tuple(context.config.model.prefix_buckets),
    pool=pool,
    question_first=context.config.model.question_first,
  )


def parse(argv: Sequence[str]) -> AskArguments:
  """Reads a command line; raises InputError naming the word, flag or file at fault."""
  values = flags.FlagValues()
  flags.DEFINE_string("checkpoint", None, "Workdir of a run, or a directory.", flag_values=values)
  flags.DEFINE_list("options", [], "Answers to choose from.", flag_values=values)
  kinds = [kind for kind in records.PROBLEM_TYPES if kind != "multiple choice"]
  flags.DEFINE_enum("problem_type", "free-form", kinds, "Of what is asked.", flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of what is drawn.", flag_values=values)
  values.set_gnu_getopt()
  if any(word in ("-h", "--help", "-help") for word in argv):
    print(__doc__, values.get_help(), sep="\n")
    raise SystemExit(0)
  words = main.read_flags(values, argv, known_only=True)
  of_config = [word for word in words if word.startswith("--config")]
  rest = [word for word in words if word not in of_config]
  if odd := [word for word in rest if word.startswith("--")]:
    raise errors.InputError(f"{odd[0]}: not a flag; fields are overridden as --config.field=value")
  if len(rest) != 2:
    raise errors.InputError(_MISSING)
  checkpoint = None if values.checkpoint is None else Path(values.checkpoint)
  config, workdir = _config(checkpoint, of_config)
  return AskArguments(
    video=Path(rest[0]),
    question=rest[1],
    options=_lettered(values.options),
    problem_type="multiple choice" if values.options else values.problem_type,
    seed=values.seed,
    config=config,
    workdir=workdir,
  )


def _config(
  checkpoint: Path | None, words: Sequence[str]
) -> tuple[ml_collections.ConfigDict, Path | None]:
  """The config, with what `words` override, and the workdir of its run, if it is that of one."""
  recipe = any(word.startswith("--config=") for word in words)
  if checkpoint is None and not recipe:
    raise errors.InputError("needs --checkpoint=<workdir of a run>, or --config=<recipe>:<size>")
  if checkpoint and not checkpoint.is_dir():
    raise errors.InputError(f"--checkpoint={checkpoint}: no such directory")
  if recipe:
    if checkpoint and (checkpoint / "checkpoints").is_dir():
      raise errors.InputError(f"--checkpoint={checkpoint}: a run has a config; leave out --config")
    config = main.parse_recipe(["ask", *words])["config"].value
    if checkpoint:
      config.model.pretrained = str(checkpoint)
    if config.model.tokenizer == paths.TRAINED:
      config.model.tokenizer = ""  # there is no run that trained one
    if not config.model.pretrained:
      raise errors.InputError("--config: a recipe without pretrained weights; give --checkpoint")
    return config, None
  config = workdir_lib.config_of(checkpoint)
  main.check_fields(words, config)
  values = flags.FlagValues()
  argv = ["ask", *words]
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  main.read_flags(values, argv)
  recipe_config.complete(values["config"].value, (Path.cwd(),))
  return values["config"].value, checkpoint


def _lettered(options: Sequence[str]) -> tuple[str, ...]:
  """Options with the letters that they start with, where all do, or else A, B, C, …."""
  from vr_jax.rewards import accuracy

  if not all(map(str.strip, options)) or len(options) > 26:
    raise errors.InputError(
      f"--options={','.join(options)}: needs at most 26 answers with commas between, none of them empty; one with a "
      "comma in it stands in double quotes"
    )
  letters = [accuracy.option_letter(option) for option in options]
  if None not in letters and len(set(letters)) == len(letters):
    return tuple(options)
  return tuple(f"{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))


def _policy(context: "run_context.RunContext", workdir: Path | None) -> tuple["PyTree", str]:
  """Parameters, and what they are called."""
  import jax

  from vr_jax.train import export_stage, initialization

  if workdir is None:
    return initialization.fresh_params(context), str(context.config.model.pretrained)
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compilations"))
  stage, step = export_stage.last_stage(context, workdir)
  params = initialization.load_params(context, workdir / "checkpoints" / stage)
  return params, f"{workdir}, {stage} step {step}"


def _print_episode(
  context: "run_context.RunContext",
  params: "PyTree",
  video: "video_clip.VideoClip",
  asked: AskArguments,
  out: Any,
) -> None:
  """Plays an episode and prints it."""
  from vr_jax.rollout import session as session_lib

  most = context.environment.turns
  for told in session(context, params, video).ask(
    asked.question, asked.options, problem_type=asked.problem_type, seed=asked.seed
  ):
    if isinstance(told, session_lib.SessionOutcome):
      _print_answer(told.answer, asked, out)
      return
    title = f"Turn {told.number} of {most}" if most > 1 else "One turn"
    _print_turn(title, told.frames, told.reply, video, out)
    action = told.action
    if action.kind == "retrieve":
      start, end = video.timestamps[[action.start, action.end]]
      out.print(f"→ frames {action.start} to {action.end}, {start:g} to {end:g} s", style="cyan")
    elif action.problem:
      out.print(f"→ can't be used: {action.problem}", style="red")


def _print_turn(
  title: str, frames: Sequence[int], reply: str, video: "video_clip.VideoClip", out: Any
) -> None:
  times = ", ".join(f"{frame} ({video.timestamps[frame]:g} s)" for frame in frames)
  out.print(f"\n{title}", style="bold")
  out.print(f"shown: {f'frames {times}' if frames else 'no frames'}", style="dim")
  out.print(printable(reply))


def _print_answer(answer: str | None, asked: AskArguments, out: Any) -> None:
  from vr_jax.rewards import accuracy

  if answer is None:
    out.print("\nNo answer.", style="bold")
    return
  letter = accuracy.option_letter(answer, asked.options) if asked.options else None
  named = [
    o for o in asked.options if letter and accuracy.option_letter(o, asked.options) == letter
  ]
  out.print(f"\nAnswer: {printable(named[0] if named else answer)}", style="bold green")


def printable(text: str) -> str:
  """Model text for a terminal: what would steer it, or turn its lines around, is written as its escape."""
  return "".join(
    c
    if c in "\n\t" or not unicodedata.category(c).startswith("C")
    else c.encode("unicode_escape").decode()
    for c in text
  )
