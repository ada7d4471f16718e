"""The command `vr-jax ask`: a trained policy answers a question about a video.

    vr-jax ask match.mp4 "Who falls?" --checkpoint=runs/mine --options="the thief,the guard"

Each turn is printed when it is complete. A recipe with one turn prints one.

`--checkpoint` is the workdir of a run. Its config is used, and its last checkpoint: that of rl if
there is one, else that of sft; with `--before_rl`, the policy that RL started from. With
`--config=video_mtr:3b`, `--checkpoint` is a directory of weights in the Hugging Face layout; the
default is config.model.pretrained.

VIDEO is a file, or the name of a video in the run's data. What is shown of a video of the run's
data is what the run's questions show of it; a question of the data gets its options and its span.
`--shown=0,8` shows another span, in seconds. Of other videos, all is shown unless it is given.

`--options` makes the question multiple choice. Without it, `--problem_type` applies, by default
free-form. Any field of the config can be overridden, as in `--config.eval.temperature=0.7`.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import difflib
import math
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

from absl import flags
from jaxtyping import Float
import ml_collections
import numpy as np

from vr_jax import errors, main, records
from vr_jax.train import paths

if TYPE_CHECKING:
  from jaxtyping import PyTree

  from vr_jax.rollout import dialogue
  from vr_jax.rollout import session as session_lib
  from vr_jax.train import asked_clip, run_context

_MISSING = 'needs a video and a question: vr-jax ask match.mp4 "Who falls?" --checkpoint=runs/mine'


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskArguments:
  """A parsed command line.

  options: () if none are given.
  problem_type: "" if none is given.
  shown: in seconds; None if it is not given.
  before_rl: whether the policy answers that RL started from.
  workdir: of the run whose checkpoint answers; None if config.model.pretrained is used.
  """

  video: Path
  question: str
  options: tuple[str, ...]
  problem_type: str
  shown: records.Span | None
  before_rl: bool
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

  from vr_jax.train import asked_clip, compilations, config_checks, console, run_context

  config, workdir = arguments.config, arguments.workdir or Path()
  config_checks.check(config)
  run_context.configure_compiler(config)  # the next line starts JAX
  with console.heartbeat(stream=sys.stderr), contextlib.ExitStack() as waiting:
    with console.doing("reading the video", announce=True):
      clip = asked_clip.open_clip(
        arguments.video,
        arguments.question,
        options=arguments.options,
        problem_type=arguments.problem_type,
        config=config,
        workdir=arguments.workdir,
        shown=arguments.shown,
      )
    context = run_context.make_run_context(config, workdir, judged=False, read=False)
    cache = compilations.use_cache(workdir)
    waiting.enter_context(compilations.announced(cache, compilations.network(config)))
    with console.doing("loading the weights", announce=True):
      params, policy = load_policy(context, arguments.workdir, before_rl=arguments.before_rl)
    out = rich_console.Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    _print_head(clip, policy, arguments, out)
    waiting.enter_context(console.doing("waiting for the reply", announce=True))
    _print_episode(context, params, clip, arguments.seed, out)


def _print_head(
  clip: "asked_clip.AskedClip", policy: str, arguments: AskArguments, out: Any
) -> None:
  """Prints who is asked about what."""
  from vr_jax.data import sampling

  count = len(clip.pool)
  usual = sampling.usual_frames(paths.sampling_rule(arguments.config.data))
  frames = f"{count} frame{'s' if count > 1 else ''}"
  if count < usual and clip.duration:
    frames += f", fewer than the {usual} of a clip"
  out.print(f"{policy} · {arguments.video}: {clip.duration:g} s, {frames}", style="dim")
  out.print(describe(clip), style="dim")


def describe(clip: "asked_clip.AskedClip") -> str:
  """Says in a line which seconds are shown, and why."""
  shown, masked = clip.example.shown, clip.example.masked
  hidden = f"; masked: {masked.start:g} to {masked.end:g} s" if masked else ""
  return f"seconds shown: {shown.start:g} to {shown.end:g}, {clip.origin}{hidden}"


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
    patch_buckets=tuple(context.config.model.patch_buckets),
    pool=pool,
    question_first=context.config.model.question_first,
  )


def parse(argv: Sequence[str]) -> AskArguments:
  """Parses a command line; raises InputError naming the word, flag or file at fault."""
  values = flags.FlagValues()
  flags.DEFINE_string("checkpoint", None, "Workdir of a run, or a directory.", flag_values=values)
  flags.DEFINE_list("options", [], "Answers to choose from.", flag_values=values)
  kinds = [kind for kind in records.PROBLEM_TYPES if kind != "multiple choice"]
  flags.DEFINE_enum("problem_type", None, kinds, "Of the question.", flag_values=values)
  flags.DEFINE_string("shown", None, "Seconds to show, as 0,8.", flag_values=values)
  flags.DEFINE_boolean("before_rl", False, "Ask the policy before RL.", flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of sampling.", flag_values=values)
  rest, overrides = read_words("ask", values, argv, help_text=__doc__)
  if len(rest) != 2:
    raise errors.InputError(_MISSING)
  checkpoint = None if values.checkpoint is None else Path(values.checkpoint)
  config, workdir = load_config(checkpoint, overrides)
  if values.before_rl and workdir is None:
    raise errors.InputError("--before_rl: needs --checkpoint=<workdir of a run>")
  options = values.options
  if values["options"].present and len(options) < 2:
    raise errors.InputError(
      f"--options={','.join(options)}: needs two or more answers, with commas between; without "
      "--options the answer is free"
    )
  return AskArguments(
    video=Path(rest[0]),
    question=rest[1],
    options=_add_letters(options),
    problem_type="multiple choice" if options else values.problem_type or "",
    shown=None if values.shown is None else parse_span(values.shown),
    before_rl=values.before_rl,
    seed=values.seed,
    config=config,
    workdir=workdir,
  )


def read_words(
  command: str, values: flags.FlagValues, argv: Sequence[str], *, help_text: str | None
) -> tuple[list[str], list[str]]:
  """Sets the flags of a command line; returns its other words, and those that override the config.

  command: its name, as in "vr-jax ask".
  help_text: is printed with the flags if the words ask for help; then the program ends.

  Raises InputError naming a flag that the command does not have.
  """
  values.set_gnu_getopt()
  if any(word in ("-h", "--help", "-help") for word in argv):
    print(help_text, values.get_help(), sep="\n")
    raise SystemExit(0)
  words = main.read_flags(values, argv, known_only=True)
  overrides = [word for word in words if word.startswith("--config")]
  rest = [word for word in words if word not in overrides]
  if unknown := [word for word in rest if word.startswith("-")]:
    near = difflib.get_close_matches(unknown[0].partition("=")[0].lstrip("-"), list(values), n=1)
    raise errors.InputError(
      f"{unknown[0]}: not a flag of vr-jax {command}"
      + (f"; is --{near[0]} meant?" if near else f", which are --{', --'.join(sorted(values))}")
      + "; fields of the config are overridden as --config.field=value"
    )
  return rest, overrides


def load_config(
  checkpoint: Path | None, words: Sequence[str]
) -> tuple[ml_collections.ConfigDict, Path | None]:
  """Loads the config of a policy and overrides the fields that `words` set.

  checkpoint: the flag --checkpoint; None if it is not given.
  words: of the command line, those that begin with --config.

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
  values = main.parse_run(["ask", *words], checkpoint, flag="--checkpoint")
  return main.config_value(values), checkpoint


def parse_span(text: str) -> records.Span:
  """Parses the flag --shown; raises InputError if it is no span."""
  try:
    start, end = map(float, text.split(","))
  except ValueError as error:
    raise errors.InputError(f"--shown={text}: needs two times in seconds, as 0,8") from error
  if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
    raise errors.InputError(f"--shown={text}: needs 0 or more seconds, and then a later time")
  return records.Span(start=start, end=end)


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


def load_policy(
  context: "run_context.RunContext", workdir: Path | None, *, before_rl: bool = False
) -> tuple["PyTree", str]:
  """Loads the parameters of a run's policy, and returns them with a name to print.

  workdir: of the run; None: config.model.pretrained is the policy.
  before_rl: load what RL started from instead of the last checkpoint.
  """
  from vr_jax.train import compilations, export_stage, initialization

  if workdir is None:
    return initialization.fresh_params(context), str(context.config.model.pretrained)
  compilations.use_cache(workdir)
  if before_rl:
    params = initialization.initial_params(context, workdir)
    return params, f"{workdir}, before RL"
  where, step = export_stage.find_checkpoint(context, workdir, context.config.eval.checkpoint)
  return initialization.load_params(context, where), f"{workdir}, {where.name} step {step}"


def _print_episode(
  context: "run_context.RunContext",
  params: "PyTree",
  clip: "asked_clip.AskedClip",
  seed: int,
  out: Any,
) -> None:
  """Plays an episode and prints it."""
  from vr_jax.rollout import session as session_lib

  max_turns, times = context.environment.turns, clip.pool.timestamps
  for event in session(context, params, clip.pool).play(clip.example, seed=seed):
    if isinstance(event, session_lib.SessionOutcome):
      _print_answer(event.answer, clip.example, out)
      return
    title = f"Turn {event.number} of {max_turns}" if max_turns > 1 else "One turn"
    _print_turn(title, event, times, out)
    action = event.action
    if action.kind == "retrieve":
      start, end = times[[action.start, action.end]]
      if action.start == action.end:
        out.print(f"→ frame {action.start}, {start:g} s", style="cyan")
      else:
        out.print(f"→ frames {action.start} to {action.end}, {start:g} to {end:g} s", style="cyan")
    elif action.problem:
      out.print(f"→ can't be used: {action.problem}", style="red")


def _print_turn(
  title: str,
  turn: "session_lib.SessionTurn",
  times: Float[np.ndarray, "frames"],
  out: Any,
) -> None:
  frames = ", ".join(f"{frame} ({times[frame]:g} s)" for frame in turn.frames)
  out.print(f"\n{title}", style="bold")
  out.print(f"shown: {f'frames {frames}' if frames else 'no frames'}", style="dim")
  out.print(errors.printable(turn.reply))


def _print_answer(answer: str | None, example: records.Example, out: Any) -> None:
  """Prints the answer and, for a question of the run's data, the right one."""
  if answer is None:
    out.print("\nNo answer.", style="bold")
  else:
    text = errors.printable(_with_option(answer, example.options))
    out.print(f"\nAnswer: {text}", style="bold green")
  if example.answer:
    text = errors.printable(_with_option(example.answer, example.options))
    out.print(f"The data's answer: {text}", style="dim")


def _with_option(answer: str, options: Sequence[str]) -> str:
  """The option that an answer chooses; the answer itself if it chooses none."""
  from vr_jax.rewards import accuracy

  letter = accuracy.option_letter(answer, options) if options else None
  chosen = [o for o in options if letter and accuracy.option_letter(o, options) == letter]
  return chosen[0] if chosen else answer
