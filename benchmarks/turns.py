"""Times episodes of three turns, against a new prefill of the whole conversation each turn.

    python -m benchmarks.turns [--family=qwen3_vl|tinyllava]

8 prompts x 4 episodes, float32: 16 frames of 64 tokens each, a reply of 128 tokens, 8 frames of a
pool of 128, a reply, 8 more, the last reply. There is no stop token, so that all sides compute all
tokens; the frames shown depend on the episode and its turn alone. Three sides, on the same weights
and frames:

- ours: `rollout.multi_turn_sampler.play`, one prefill a prompt, each turn appended to its cache
- again: `rollout.sampler.sample`, turn by turn: in the first the group shares its prompt, in later
  ones each episode is a prompt
- torch: transformers' `generate` (sdpa attention), turn by turn, each episode a row

Frames come as pixels. All sides make patches; the sides that prefill again make those of new frames
only. Both of our sides split their rows over two CPU devices, one a core, as the tiny recipes do
(`cpu_devices.set_number`); PyTorch has a thread for each. Times are of sampling at temperature 1.
Before timing, greedy replies are compared, as in `benchmarks.rollout`. Prints one JSON line.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import itertools
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
import numpy as np

from benchmarks import measure, rollout, workload
from vr_jax import records
from vr_jax.models import registry
from vr_jax.models.common import conversation, prompts
from vr_jax.parallel import cpu_devices
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import episodes, forward, multi_turn_sampler, sampler

REPEATS = 3
GOALS = {"over_again": 3.0, "over_torch": 5.0}
SIZES = dataclasses.replace(workload.ISSUE, prompts=8, group=4)
POOL, SHOWN, TURNS = 128, 8, 3
SIDES = ("ours", "again", "torch")
TurnTokens = Int[np.ndarray, "prompts group turns time"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clips:
  """A frame pool for each prompt, and the prompts that show frames of it.

  sizes.frames: of the first turn.
  shown: frames of each later turn.
  """

  sizes: workload.WorkloadSizes
  own: Any
  pool: np.ndarray
  shown: int

  def opening(self, row: int) -> prompts.EncodedPrompt:
    """The first turn."""
    frames = np.linspace(0, len(self.pool[row]) - 1, self.sizes.frames).astype(int)
    return self.own.encode_conversation([self._turn(row, frames)], name=f"prompt {row}")

  def observe(
    self, row: int, group_index: int, replies: episodes.ReplyTokens
  ) -> prompts.EncodedPrompt:
    """The turn after these replies."""
    rng = np.random.default_rng([row, group_index, len(replies)])
    frames = np.sort(rng.choice(len(self.pool[row]), self.shown, replace=False))
    return self.own.continue_conversation([self._turn(row, frames)], after=replies[-1])

  def pad(
    self, encoded: Sequence[prompts.EncodedPrompt], sizes: prompts.PromptSizes
  ) -> records.Prompt:
    """Pads prompts to a batch."""
    return self.own.pad(encoded, sizes)

  @property
  def position_axes(self) -> int:
    """Number of position axes."""
    return self.own.position_axes

  def whole(self, encoded: Sequence[prompts.EncodedPrompt]) -> records.Prompt:
    """A batch of prompts of equal length, without padding."""
    frames = max(len(one.frames) for one in encoded)
    sizes = prompts.PromptSizes(
      prefix=max(len(one.tokens) for one in encoded), frames=frames, patches=self.sizes.side**2
    )
    return self.pad(encoded, sizes)

  def _turn(self, row: int, frames: Int[np.ndarray, "frames"]) -> conversation.Message:
    images = tuple(conversation.Image(pixels=self.pool[row, frame]) for frame in frames)
    return conversation.Message(role="user", parts=(*images, "Which? Retrieve or answer."))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """A random model on a mesh, the clips, and the first prompts of all episodes."""

  work: workload.Work
  mesh: Mesh
  clips: Clips
  turns: int

  def decoding(self, temperature: float, group: int) -> sampler.Decoding:
    """Decoding options for replies of full length."""
    sizes = dataclasses.replace(self.work.sizes, group=group)
    return rollout.decoding_of(sizes, temperature)

  def each(self) -> list[tuple[int, int]]:
    """(prompt, index in the group) of each episode."""
    return list(np.ndindex(self.work.sizes.prompts, self.work.sizes.group))

  def schedule(self) -> episodes.Schedule:
    """Buckets without padding."""
    sizes = self.work.sizes
    shown = len(self.clips.observe(0, 0, ((0,),)).tokens)
    frames = self.clips.shown * max(1, self.turns - 1)
    return episodes.Schedule(
      turns=self.turns,
      episode_buckets=tuple((n + 1) * sizes.time + n * shown for n in range(self.turns)),
      observation_buckets=(shown,),
      frame_buckets=tuple(sorted({self.clips.shown, frames})),
      patches=sizes.side**2,
    )


def make(
  sizes: workload.WorkloadSizes,
  *,
  pool: int,
  shown: int,
  turns: int,
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] a C++ class
) -> Setting:
  """Weights and pixels at random, from one seed. devices: None for JAX's first device."""
  # Frames come one by one: a resampler has as many queries as one of them has tokens.
  config = workload.model_config(dataclasses.replace(sizes, frames=1))
  devices = devices or jax.devices()[:1]
  mesh = mesh_lib.make_mesh((len(devices), 1, 1, 1), devices)
  layout = mesh_lib.MeshLayout(mesh)
  make_model = registry.family_of(config).make_model
  graphdef, params = nnx.split(make_model(config, rngs=nnx.Rngs(0), layout=layout))
  side = sizes.side * config.vision.patch_size
  own = workload.make_processor(config, side**2, side**2, system="")
  shape = (sizes.prompts, pool, side, side, 3)
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  clips = Clips(sizes=sizes, own=own, pool=pixels, shown=shown)
  encoded = tuple(clips.opening(row) for row in range(sizes.prompts))
  work = workload.Work(
    sizes=sizes,
    config=config,
    own=own,
    graphdef=graphdef,
    params=jax.device_put(params, mesh_lib.replicated(mesh)),
    encoded=encoded,
    prompt=mesh_lib.put_batch(clips.whole(encoded), mesh),
  )
  return Setting(work=work, mesh=mesh, clips=clips, turns=turns)


def our_side(
  setting: Setting, threads: futures.Executor
) -> Callable[[float], episodes.EpisodeRollout]:
  """Plays at a temperature, with another key at each call."""
  numbers, work, schedule = itertools.count(), setting.work, setting.schedule()

  def run(temperature: float) -> episodes.EpisodeRollout:
    return multi_turn_sampler.play(
      work.graphdef,
      work.params,
      work.prompt,
      work.allowed_tokens,
      jax.random.fold_in(jax.random.key(0), next(numbers)),
      setting.clips,
      decoding=setting.decoding(temperature, work.sizes.group),
      schedule=schedule,
      threads=threads,
    )

  return run


def turn_by_turn(
  setting: Setting,
  first: Callable[[float], Int[np.ndarray, "rows time"]],
  later: Callable[[float, list[prompts.EncodedPrompt]], Int[np.ndarray, "rows time"]],
) -> Callable[[float], TurnTokens]:
  """Plays episodes with two samplers.

  first: replies to the prompts of the batch.
  later: replies to whole conversations, one for each episode.
  """
  sizes, clips = setting.work.sizes, setting.clips

  def run(temperature: float) -> TurnTokens:
    whole = [setting.work.encoded[row] for row, _ in setting.each()]
    sampled = [first(temperature)]
    while len(sampled) < setting.turns:
      for number, (row, group_index) in enumerate(setting.each()):
        replies = tuple(tuple(tokens[number].tolist()) for tokens in sampled)
        reply = clips.own.join(sampled[-1][number], [], [])
        shown = clips.observe(row, group_index, replies)
        whole[number] = prompts.join([whole[number], reply, shown], name=f"{row}.{group_index}")
      sampled.append(later(temperature, whole))
    return np.stack(sampled, axis=1).reshape(sizes.prompts, sizes.group, setting.turns, sizes.time)

  return run


def again_side(setting: Setting) -> Callable[[float], TurnTokens]:
  """This project's sampler on whole conversations."""
  numbers, work = itertools.count(), setting.work

  def reply(temperature: float, prompt: records.Prompt, group: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(0), next(numbers))
    decoding = setting.decoding(temperature, group)
    made = sampler.sample(
      work.graphdef, work.params, prompt, work.allowed_tokens, key, decoding=decoding
    )
    return np.asarray(made.tokens).reshape(-1, work.sizes.time)

  return turn_by_turn(
    setting,
    lambda temperature: reply(temperature, work.prompt, work.sizes.group),
    lambda temperature, whole: reply(
      temperature, mesh_lib.put_batch(setting.clips.whole(whole), setting.mesh), 1
    ),
  )


def torch_side(setting: Setting, directory: Path) -> Callable[[float], TurnTokens]:
  """The same with PyTorch, which is imported only here."""
  from benchmarks import torch_side

  work = setting.work
  work.save(directory)
  model = torch_side.load(directory)

  def reply(temperature: float, whole: Sequence[prompts.EncodedPrompt]) -> np.ndarray:
    batch = torch_side.pictures(whole)
    suppressed = work.forbidden
    tokens = torch_side.generate(
      model, batch, work.sizes.time, temperature=temperature, suppressed=suppressed
    )
    return tokens.astype(np.int32)

  openings = [work.encoded[row] for row, _ in setting.each()]
  return turn_by_turn(setting, lambda temperature: reply(temperature, openings), reply)


def check_greedy(setting: Setting, ours: records.Rollout, theirs: TurnTokens) -> dict[str, float]:
  """Like `rollout.check_greedy`, for the replies of all turns."""
  mine = np.asarray(ours.kind) == records.Kind.MODEL
  other = np.array(ours.tokens)
  other[mine] = theirs.ravel()
  log_probs = [
    _log_probs(setting, dataclasses.replace(ours, tokens=x)) for x in (ours.tokens, other)
  ]
  shape = (*theirs.shape[:2], -1)
  same = np.asarray(ours.tokens)[mine].reshape(shape) == theirs.reshape(shape)
  same = np.cumprod(same, axis=-1).astype(bool)
  first = ~same & np.concatenate([np.ones_like(same[..., :1]), same[..., :-1]], axis=-1)
  difference = (log_probs[0] - log_probs[1])[mine].reshape(shape)
  gap = float(np.abs(np.where(first, difference, 0)).max())
  if gap > rollout.TOLERANCES[setting.work.config.dtype]:
    raise ValueError(f"greedy replies part where log-probs differ by {gap:.1e} nats")
  return {"same_tokens": round(float(same.mean()), 4), "gap_where_they_part": gap}


def _log_probs(setting: Setting, made: records.Rollout) -> Float[np.ndarray, "prompts group time"]:
  work = setting.work

  @jax.jit
  def score(params: Any, prompt: records.Prompt, made: records.Rollout) -> Array:
    return forward.reply_log_probs(
      nnx.merge(work.graphdef, params),
      prompt,
      jnp.asarray(made.tokens),
      jnp.asarray(made.kind) != int(records.Kind.PAD),
      work.allowed_tokens,
      scored=jnp.asarray(made.kind) == int(records.Kind.MODEL),
      episode_inputs=made.episode_inputs,
    )[0]

  return np.asarray(score(work.params, work.prompt, made))


def compare(
  sizes: workload.WorkloadSizes,
  *,
  pool: int = POOL,
  shown: int = SHOWN,
  turns: int = TURNS,
  names: Sequence[str] = SIDES,
  repeats: int = REPEATS,
  devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] a C++ class
) -> dict[str, Any]:
  """The fields of the JSON line without machine and versions. devices: see `make`."""
  setting = make(sizes, pool=pool, shown=shown, turns=turns, devices=devices)
  with tempfile.TemporaryDirectory() as directory, futures.ThreadPoolExecutor(4) as threads:
    builders = {
      "ours": lambda: our_side(setting, threads),
      "again": lambda: again_side(setting),
      "torch": lambda: torch_side(setting, Path(directory) / "model"),
    }
    sides = {name: builders[name]() for name in names}
    greedy = {name: side(0.0) for name, side in sides.items()}
    agreement = {
      name: check_greedy(setting, greedy["ours"].rollout, greedy[name])
      for name in names
      if name != "ours"
    }
    runs = {name: (lambda side=side: side(1.0)) for name, side in sides.items()}
    rounds = measure.in_turn(runs, repeats=repeats)
  seconds, count = measure.medians(rounds), len(setting.each())
  return {
    "seconds": seconds,
    "episodes_per_second": {name: round(count / taken, 3) for name, taken in seconds.items()},
    "ratio": {f"over_{n}": measure.ratio(rounds, n, "ours") for n in names if n != "ours"},
    "greedy": agreement,
    "tolerance": {"gap_where_they_part": rollout.TOLERANCES[setting.work.config.dtype]},
  }


def main(argv: Sequence[str]) -> None:
  """Runs the comparison and prints its line. Other families have our sides alone."""
  cpu_devices.set_number(2)
  about = measure.About("torch", "transformers")
  sizes, names = workload.of_family(SIZES, argv, SIDES)
  result = compare(sizes, devices=jax.devices(), names=names)
  print(json.dumps({"benchmark": "turns", **result, "goal": GOALS, **about.fields()}))


if __name__ == "__main__":
  main(sys.argv[1:])
