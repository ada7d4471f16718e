"""The command `vr-jax ask`: a trained policy answers a question about a video.

    vr-jax ask match.mp4 "Who falls?" --checkpoint=runs/mine --options="the thief,the guard"

Each turn is printed when it is complete. A recipe with one turn prints one.

`--checkpoint` is the workdir of a run. Its config is used, and its last checkpoint: that of rl if
there is one, else that of sft. With `--config=video_mtr:3b`, `--checkpoint` is a directory of
weights in the Hugging Face layout; the default is config.model.pretrained. `--options` makes the
question multiple choice. Without it, `--problem_type` applies, by default free-form. Any field of
the config can be overridden, as in `--config.eval.temperature=0.7`.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from absl import flags
import ml_collections
from ml_collections import config_flags

from vr_jax import errors, main, recipe_config, records
from vr_jax.train import paths
from vr_jax.train import workdir as workdir_lib

if TYPE_CHECKING:
  from jaxtyping import PyTree

  from vr_jax.data import video_clip
  from vr_jax.rollout import dialogue
  from vr_jax.rollout import session as session_lib
  from vr_jax.train import run_context

_MISSING = 'needs a video and a question: vr-jax ask match.mp4 "Who falls?" --checkpoint=runs/mine'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskArguments:
  """A parsed command line.

  workdir: of the run whose checkpoint answers; None if config.model.pretrained is used.
  """

  video: Path
  question: str
  options: tuple[str, ...]
  problem_type: str
  seed: int
  config: ml_collections.ConfigDict
  workdir: Path | None


def ask(argv: Sequence[str]) -> None:
  """Plays and prints an episode. `argv` is ["ask", video, question, *flags].

  Raises:
    InputError: the video, the question or a flag is wrong; names it.
  """
  arguments = parse(argv)
  # As in main.run: a mistyped flag should not wait until JAX has been imported.
  from rich import console as rich_console

  from vr_jax.data import sampling, video_clip
  from vr_jax.train import config_checks, run_context

  config, data = arguments.config, arguments.config.data
  config_checks.check(config)
  video = video_clip.load(
    arguments.video,
    fps=data.fps,
    quality=data.quality,
    max_side=data.max_side,
    rule=paths.sampling_rule(data),
    limits=paths.decode_limits(data),
  )
  context = run_context.make_run_context(
    config, arguments.workdir or Path(), judged=False, read=False
  )
  params, policy = _load_policy(context, arguments.workdir)
  out = rich_console.Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
  frames = f"{len(video)} frame{'s' if len(video) > 1 else ''}"
  usual = sampling.usual_frames(paths.sampling_rule(data))
  if len(video) < usual and video.duration:
    frames += f", fewer than the {usual} of a clip"
  out.print(f"{policy} · {arguments.video}: {video.duration:g} s, {frames}", style="dim")
  _print_episode(context, params, video, arguments, out)


def session(
  context: "run_context.RunContext", params: "PyTree", pool: "dialogue.FramePool"
) -> "session_lib.Session":
  """Makes a session about a pool of frames, with the recipe's settings for evaluation."""
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
  """Parses a command line; raises InputError naming the word, flag or file at fault."""
  values = flags.FlagValues()
  flags.DEFINE_string("checkpoint", None, "Workdir of a run, or a directory.", flag_values=values)
  flags.DEFINE_list("options", [], "Answers to choose from.", flag_values=values)
  kinds = [kind for kind in records.PROBLEM_TYPES if kind != "multiple choice"]
  flags.DEFINE_enum("problem_type", "free-form", kinds, "Of the question.", flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of sampling.", flag_values=values)
  values.set_gnu_getopt()
  if any(word in ("-h", "--help", "-help") for word in argv):
    print(__doc__, values.get_help(), sep="\n")
    raise SystemExit(0)
  words = main.read_flags(values, argv, known_only=True)
  overrides = [word for word in words if word.startswith("--config")]
  rest = [word for word in words if word not in overrides]
  if unknown := [word for word in rest if word.startswith("--")]:
    raise errors.InputError(
      f"{unknown[0]}: not a flag; fields are overridden as --config.field=value"
    )
  if len(rest) != 2:
    raise errors.InputError(_MISSING)
  checkpoint = None if values.checkpoint is None else Path(values.checkpoint)
  config, workdir = _load_config(checkpoint, overrides)
  return AskArguments(
    video=Path(rest[0]),
    question=rest[1],
    options=_add_letters(values.options),
    problem_type="multiple choice" if values.options else values.problem_type,
    seed=values.seed,
    config=config,
    workdir=workdir,
  )


def _load_config(
  checkpoint: Path | None, words: Sequence[str]
) -> tuple[ml_collections.ConfigDict, Path | None]:
  """Loads the config and overrides the fields that `words` set.

  Returns (config, workdir of the run that the config belongs to, or None).
  """
  recipe = any(word.startswith("--config=") for word in words)
  if checkpoint and not checkpoint.is_dir():
    raise errors.InputError(f"--checkpoint={checkpoint}: no such directory")
  if recipe:
    if checkpoint and (checkpoint / "checkpoints").is_dir():
      raise errors.InputError(f"--checkpoint={checkpoint}: a run has a config; leave out --config")
    config = main.config_value(main.parse_recipe(["ask", *words]))
    if checkpoint:
      config.model.pretrained = str(checkpoint)
    if config.model.tokenizer == paths.TRAINED:
      config.model.tokenizer = ""  # without a run there is no trained tokenizer
    if not config.model.pretrained:
      raise errors.InputError("--config: a recipe without pretrained weights; give --checkpoint")
    return config, None
  if checkpoint is None:
    raise errors.InputError("needs --checkpoint=<workdir of a run>, or --config=<recipe>:<size>")
  config = workdir_lib.config_of(checkpoint)
  main.check_fields(words, config)
  values = flags.FlagValues()
  argv = ["ask", *words]
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  main.read_flags(values, argv)
  config = main.config_value(values)
  recipe_config.complete(config, (Path.cwd(),))
  return config, checkpoint


def _add_letters(options: Sequence[str]) -> tuple[str, ...]:
  """Puts A, B, C, … before the options, unless each of them starts with a letter of its own."""
  from vr_jax.rewards import accuracy

  if not all(map(str.strip, options)) or len(options) > 26:
    raise errors.InputError(
      f"--options={','.join(options)}: needs at most 26 answers with commas between, "
      "none of them empty; one with a comma in it stands in double quotes"
    )
  letters = [accuracy.option_letter(option) for option in options]
  if None not in letters and len(set(letters)) == len(letters):
    return tuple(options)
  return tuple(f"{chr(ord('A') + number)}. {option}" for number, option in enumerate(options))


def _load_policy(context: "run_context.RunContext", workdir: Path | None) -> tuple["PyTree", str]:
  """Returns the parameters, and a name to print for them."""
  from vr_jax.train import compilations, export_stage, initialization

  if workdir is None:
    return initialization.fresh_params(context), str(context.config.model.pretrained)
  compilations.use_cache(workdir)
  where, step = export_stage.find_checkpoint(context, workdir, context.config.eval.checkpoint)
  return initialization.load_params(context, where), f"{workdir}, {where.name} step {step}"


def _print_episode(
  context: "run_context.RunContext",
  params: "PyTree",
  video: "video_clip.VideoClip",
  arguments: AskArguments,
  out: Any,
) -> None:
  """Plays an episode and prints it."""
  from vr_jax.rollout import session as session_lib

  max_turns = context.environment.turns
  pool = cast("dialogue.FramePool", video)  # whose timestamps are read-only
  for event in session(context, params, pool).ask(
    arguments.question,
    arguments.options,
    problem_type=arguments.problem_type,
    seed=arguments.seed,
  ):
    if isinstance(event, session_lib.SessionOutcome):
      _print_answer(event.answer, arguments, out)
      return
    title = f"Turn {event.number} of {max_turns}" if max_turns > 1 else "One turn"
    _print_turn(title, event.frames, event.reply, video, out)
    action = event.action
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
  out.print(errors.printable(reply))


def _print_answer(answer: str | None, arguments: AskArguments, out: Any) -> None:
  from vr_jax.rewards import accuracy

  if answer is None:
    out.print("\nNo answer.", style="bold")
    return
  options = arguments.options
  letter = accuracy.option_letter(answer, options) if options else None
  chosen = [o for o in options if letter and accuracy.option_letter(o, options) == letter]
  out.print(f"\nAnswer: {errors.printable(chosen[0] if chosen else answer)}", style="bold green")
