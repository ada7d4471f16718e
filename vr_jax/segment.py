"""The command `vr-jax segment`: masks of the objects that queries mean, in all frames of a video.

    vr-jax segment street.mp4 "the car that turns last" "the dog" \\
      --checkpoint=runs/mine --sam2=weights/sam2.1-hiera-large --out=street_masks

For each query a policy trained with `configs/revseg.py` reasons about the video, chooses the frame
that shows the object best, and gives its box there. SAM2 follows the box to the video's other
frames. The reasoning is printed; --out gets

    masks.json     what each query found, and its run-length masks (COCO's), one a frame
    000, 001, …    a folder for each query: masks as PNG, 255 in the object, named by frame index
    overlay.mp4    the video with all masks, and the boxes in their key frames

Masks are as large as the video's frames are shown: upright, with square pixels.

`--checkpoint`, `--config`, `--before_rl`, `--seed` and `--shown` are those of `vr-jax ask`; what is
shown says where the policy looks, masks are of the whole video. `--sam2` is a directory or file of
SAM2's weights (docs/sam2.md says where to get them). With `--fresh_reverse`, the tracker forgets
what it saw after the key frame before it goes back to the start.

A query whose reply gives no box has empty masks.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from absl import flags
import ml_collections

from vr_jax import ask, atomic, errors, records
from vr_jax.eval import found_object

if TYPE_CHECKING:
  from jaxtyping import PyTree

  from vr_jax.data import video_file
  from vr_jax.train import run_context

_MISSING = (
  'needs a video and a query: vr-jax segment street.mp4 "the car that turns last" '
  "--checkpoint=runs/mine --sam2=weights/sam2.1-hiera-large --out=masks"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentArguments:
  """A parsed command line.

  shown: seconds that the policy sees; None if it is not given.
  workdir: of the run whose checkpoint answers; None if config.model.pretrained is used.
  sam2: SAM2's weights.
  out: a directory that does not exist yet.
  """

  video: Path
  queries: tuple[str, ...]
  shown: records.Span | None
  before_rl: bool
  seed: int
  config: ml_collections.ConfigDict
  workdir: Path | None
  sam2: Path
  fresh_reverse: bool
  out: Path


def segment(argv: Sequence[str]) -> None:
  """Plays an episode for each query, tracks what they found, and writes the masks.

  argv: ["segment", video, query, …, *flags].

  Raises:
    InputError: the video, a query or a flag is wrong; names it.
  """
  arguments = parse(argv)
  # As in main.run: a mistyped flag should not wait until JAX has been imported.
  from vr_jax.eval import mask_output
  from vr_jax.models import sam2
  from vr_jax.train import asked_clip, compilations, config_checks, console, paths, run_context

  config, workdir = arguments.config, arguments.workdir or Path()
  config_checks.check(config)
  context = run_context.make_run_context(config, workdir, judged=False, read=False)
  if not context.environment.finds_objects:
    raise errors.InputError(
      f"config.recipe={config.recipe}: its replies give no boxes; give a run of configs/revseg.py"
    )
  with console.heartbeat(stream=sys.stderr), contextlib.ExitStack() as waiting:
    with console.doing("loading SAM2", announce=True):
      segmenter = sam2.load(arguments.sam2)
    with console.doing("reading the video", announce=True):
      video = mask_output.read_video(arguments.video, paths.decode_limits(config.data))
      asked = asked_clip.decode(arguments.video, config)
    cache = compilations.use_cache(workdir)
    waiting.enter_context(compilations.announced(cache, compilations.network(config)))
    with console.doing("loading the weights", announce=True):
      params, policy = ask.load_policy(context, arguments.workdir, before_rl=arguments.before_rl)
    print(f"{policy} · {arguments.video}: {video.duration:g} s, {len(video.jpegs)} frames")
    found = [
      _ground(arguments, query, context, params, video, asked) for query in arguments.queries
    ]
    with console.progress("tracking") as tick:
      masks = mask_output.track(
        segmenter, video, found, fresh_reverse=arguments.fresh_reverse, on_progress=tick
      )
    with console.doing("writing masks and overlay"), atomic.directory(arguments.out) as partial:
      mask_output.write(partial, str(arguments.video), video, found, masks)
  print(f"objects with masks in {arguments.out}: {len(found)}")


def parse(argv: Sequence[str]) -> SegmentArguments:
  """Parses a command line; raises InputError naming the word, flag or file at fault."""
  values = flags.FlagValues()
  flags.DEFINE_string("checkpoint", None, "Workdir of a run, or a directory.", flag_values=values)
  flags.DEFINE_string("sam2", None, "SAM2's weights: a directory or file.", flag_values=values)
  flags.DEFINE_string("out", None, "Directory to write; must not exist.", flag_values=values)
  flags.DEFINE_string("shown", None, "Seconds to show, as 0,8.", flag_values=values)
  flags.DEFINE_boolean("before_rl", False, "Use the policy before RL.", flag_values=values)
  flags.DEFINE_boolean("fresh_reverse", False, "Track back from nothing.", flag_values=values)
  flags.DEFINE_integer("seed", 0, "Of sampling.", flag_values=values)
  rest, overrides = ask.read_words("segment", values, argv, help_text=__doc__)
  if len(rest) < 2 or not all(query.strip() for query in rest[1:]):
    raise errors.InputError(_MISSING)
  video = Path(rest[0])
  if not video.is_file():
    raise errors.InputError(f"{video}: no such file")
  if values.sam2 is None:
    raise errors.InputError("--sam2: needs SAM2's weights; docs/sam2.md says where to get them")
  if not Path(values.sam2).exists():
    raise errors.InputError(
      f"--sam2={values.sam2}: no such file or directory; docs/sam2.md says where to get weights"
    )
  out = Path(values.out or f"{video.stem}_masks")
  if out.exists():
    raise errors.InputError(f"--out={out}: exists; choose another, or delete it")
  checkpoint = None if values.checkpoint is None else Path(values.checkpoint)
  config, workdir = ask.load_config(checkpoint, overrides)
  if values.before_rl and workdir is None:
    raise errors.InputError("--before_rl: needs --checkpoint=<workdir of a run>")
  return SegmentArguments(
    video=video,
    queries=tuple(rest[1:]),
    shown=None if values.shown is None else ask.parse_span(values.shown),
    before_rl=values.before_rl,
    seed=values.seed,
    config=config,
    workdir=workdir,
    sam2=Path(values.sam2),
    fresh_reverse=values.fresh_reverse,
    out=out,
  )


def _ground(
  arguments: SegmentArguments,
  query: str,
  context: "run_context.RunContext",
  params: "PyTree",
  video: "video_file.ExtractedVideo",
  asked: "video_file.ExtractedVideo",
) -> found_object.FoundObject:
  """Plays the episode of a query, prints it, and returns what it found.

  video: the file with all of its frames, at their full size.
  asked: the file as the policy's data is stored.
  """
  from vr_jax.eval import mask_output
  from vr_jax.rollout import session as session_lib
  from vr_jax.train import asked_clip, console

  clip = asked_clip.open_clip(
    arguments.video,
    query,
    config=arguments.config,
    workdir=arguments.workdir,
    shown=arguments.shown,
    extracted=asked,
  )
  print(f"\n{query}\n{ask.describe(clip)}")
  session, replies = ask.session(context, params, clip.pool), []
  with console.doing("waiting for the reply", announce=True):
    for event in session.play(clip.example, seed=arguments.seed):
      if isinstance(event, session_lib.SessionTurn):
        replies.append(event.reply)
        print(errors.printable(event.reply))
  size = video.height, video.width
  grounding = context.environment.grounding(replies, len(clip.pool), size)
  frame = None
  if grounding.key_frame is not None:
    time = float(clip.pool.timestamps[grounding.key_frame])
    frame = mask_output.frame_at(video.timestamps, time)
  found = found_object.FoundObject(
    query=query,
    replies=tuple(replies),
    frame=frame,
    description=grounding.description,
    box=grounding.box,
    problem=grounding.problem,
  )
  print(describe(found, video))
  return found


def describe(found: found_object.FoundObject, video: "video_file.ExtractedVideo") -> str:
  """Says in a line what a query found."""
  if found.frame is None:
    return f"→ no key frame ({found.problem}); its masks are empty"
  time = f"frame {found.frame}, {video.timestamps[found.frame]:.2f} s"
  if found.box is None:
    return f"→ {time}, but no box ({found.problem}); its masks are empty"
  box = ", ".join(f"{side:.0f}" for side in found.box)
  return f"→ {time}: {errors.printable(found.description)}, box {box}"
