"""Compares the plan of a recipe with the least that its chips allow, and with what others publish.

    python -m benchmarks.limits [--config=configs/RECIPE.py:SIZE --topology=SLICE] [--layers=N]
      [--floor] [--quick] [--json] [--config.x=y …]

Compiles the programs of an RL step for a slice that is not there, as launch/plan.py does; without
--config it plans MOSS-ChatV 7b with 64 frames on v5p-16. Prints seconds of an RL step:

floor    FLOPs of the model, without rematerialisation, at the chips' peak. Decoding: or every
         weight of the text model once a slice and the prompts' keys once a group for each token,
         at peak bandwidth, if that takes longer. The replies' own keys are left out.
plan     the roofline of the compiled program
XLA      the compiler's own schedule, without collectives
ratio    the longer of plan and XLA, over the floor

and from the longer of both: tokens a second, and the update's share of peak FLOPs (MFU). None of
it is a measurement, and all of it leaves out what a plan leaves out. --layers keeps that many
layers of the text model: quick, but not what the model takes. --floor compiles nothing and prints
the floors alone.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import json
import sys
from typing import Any

import jax.numpy as jnp
import ml_collections

from launch import analysis, programs, report, topology
from vr_jax import errors
from vr_jax import main as vr_jax
from vr_jax.train import config_checks, model_setup, step_shapes

DEFAULT = (
  "--config=configs/moss_chatv.py:7b",
  "--config.data.frames=64",
  "--config.data.max_side=896",
  "--config.model.max_pixels=200704",
  "--config.rl.max_new_tokens=1024",
  "--config.model.prefix_buckets=(8448,)",
  "--config.model.patch_buckets=(1024,)",
  "--config.rl.microbatches=2",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """What others publish of an RL step; all of it measured.

  peak: bfloat16 FLOP/s of a chip, without sparsity; its data sheet.
  rate: tokens a second on a chip, each prompt counted for each of its replies.
  mfu: of the update.
  tokens: a step, counted in the same way.
  """

  name: str
  chips: str
  peak: float
  rate: float
  mfu: float | None
  seconds: float | None
  tokens: float | None
  differs: str


PUBLISHED = (
  Published(
    name="EasyVideoR1: Qwen3-VL-8B, video",
    chips="32 x H200",
    peak=989e12,
    rate=4.93e6 / 131.9 / 32,
    mfu=6 * 8e9 * 4.93e6 / (54 * 32 * 989e12),
    seconds=131.9,
    tokens=4.93e6,
    differs="at most 256 frames; its MFU is 6 x parameters x tokens over the 54 s of the update, "
    "without attention, tower and rematerialisation. Source: arXiv 2604.16893, 4.3",
  ),
  Published(
    name="EasyR1: Qwen2.5-VL-7B, pictures (geo3k)",
    chips="8 x L20",
    peak=119.5e12,
    rate=410,
    mfu=0.265,
    seconds=580,
    tokens=410 * 8 * 580,
    differs="an image a prompt, long replies; MFU as it states it. Source: its baselines.md",
  ),
  Published(
    name="NeMo-RL: Qwen3-30B-A3B, text",
    chips="32 x H100",
    peak=989e12,
    rate=1102,
    mfu=None,
    seconds=None,
    tokens=None,
    differs="text; 3 of 30 billion parameters are active; synchronous. Source: its page on "
    "performance",
  ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """Seconds of one part in an RL step."""

  name: str
  floor: float
  plan: float
  schedule: float

  @property
  def seconds(self) -> float:
    """The longer of plan and schedule: both are bounds from below."""
    return max(self.plan, self.schedule)

  @property
  def ratio(self) -> float:
    """Over the floor."""
    return self.seconds / self.floor


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLimits:
  """What a plan comes to.

  counted: tokens a step as others count them, each prompt for each of its replies.
  computed: tokens a step that the text model computes, each prompt once.
  rates: of both, tokens a second on a chip.
  mfu: of the update, a critic's included, with what it computes of the vision tower, in the encoder
    too.
  mfu_text: of the train step and the critic's, without the FLOPs of a tower in them.
  """

  rows: Sequence[Row]
  counted: int
  computed: int
  rates: tuple[float, float]
  mfu: float
  mfu_text: float

  @property
  def total(self) -> Row:
    """The sum of all parts; where XLA is slower than the plan in one, XLA counts for it."""
    return Row(
      name="step",
      floor=sum(row.floor for row in self.rows),
      plan=sum(row.plan for row in self.rows),
      schedule=sum(row.schedule for row in self.rows),
    )

  @property
  def seconds(self) -> float:
    """Of an RL step: the longer of plan and schedule of each part."""
    return sum(row.seconds for row in self.rows)


def bytes_of_a_token(plan: analysis.SlicePlan) -> float:
  """Bytes that decoding a token for all replies has to read: weights, and keys of the prompts."""
  sizes, shapes = plan.model.text_sizes, plan.step_shapes
  weights = sizes.layers * sizes.layer_weights + plan.model.hidden_size * plan.model.vocab_size
  keys = shapes.prompts * shapes.prefix * sizes.layers * sizes.kv_width
  return (weights + keys) * jnp.dtype(plan.model.dtype).itemsize


def floor_seconds(plan: analysis.SlicePlan, name: str, work: analysis.CountedFlops) -> float:
  """The least that the slice needs for one run of the part of that name."""
  devices, chip = len(plan.slice.devices), plan.slice.chip
  seconds = work.model / devices / chip.peak
  if name != "decode":
    return seconds
  steps = plan.config.turns.decode_chunk if plan.step_shapes.later else plan.step_shapes.time
  return max(seconds, steps * bytes_of_a_token(plan) / devices / chip.bandwidth)


def floors(config: ml_collections.ConfigDict, where: topology.Slice) -> dict[str, float]:
  """Seconds of an RL step that the slice needs at least, by part; nothing is compiled."""
  mesh = model_setup.make_mesh(config, where.devices)
  model = model_setup.model_of(config)
  shapes = step_shapes.make_step_shapes(config, model)
  plan = analysis.SlicePlan(
    config=config,
    model=model,
    slice=where,
    mesh=dict(mesh.shape),
    step_shapes=shapes,
    analyses=(),
  )
  return {
    name: program.runs_per_step * floor_seconds(plan, name, work)
    for program in programs.programs_of_step(config, model, mesh, shapes)
    for name, work in analysis.count_work(program, config, model, shapes).items()
  }


def compute(plan: analysis.SlicePlan) -> StepLimits:
  """Floor, plan and schedule of each part. Raises InputError if the plan doesn't fit."""
  if not plan.fits:
    raise errors.InputError(f"{plan.slice.name}: no room; launch/plan.py says what would help")
  found = [(one.runs, part) for one in plan.analyses for part in one.parts]
  rows = [
    Row(
      name=part.name,
      floor=runs * floor_seconds(plan, part.name, part.work),
      plan=runs * part.roofline.seconds,
      schedule=runs * part.roofline.schedule,
    )
    for runs, part in found
  ]
  shapes, seconds = plan.step_shapes, sum(row.seconds for row in rows)
  counted = shapes.prompts * shapes.group * (shapes.prefix + shapes.time)
  computed = shapes.prompts * (shapes.prefix + shapes.group * shapes.time)
  able = len(plan.slice.devices) * plan.slice.chip.peak
  taken = {row.name: row.seconds for row in rows}
  flops = {part.name: runs * part.work.model for runs, part in found}
  steps = [name for name in ("train step", "critic step") if name in taken]
  update = ["encoder", *steps]
  tower = sum(runs * part.work.vision for runs, part in found if part.name in steps)
  text = sum(flops[name] for name in steps) - tower
  return StepLimits(
    rows=rows,
    counted=counted,
    computed=computed,
    rates=(counted / seconds / plan.slice.chips, computed / seconds / plan.slice.chips),
    mfu=sum(flops[name] for name in update) / sum(taken[name] for name in update) / able,
    mfu_text=text / sum(taken[name] for name in steps) / able,
  )


def as_json(plan: analysis.SlicePlan, limits: StepLimits) -> dict[str, Any]:
  """The numbers of `as_text`, and those of others."""
  return {
    "topology": plan.slice.name,
    "quick": topology.is_quick(),
    "layers": plan.model.text_sizes.layers,
    **dataclasses.asdict(limits),
    "seconds": limits.seconds,
    "published": [dataclasses.asdict(each) for each in PUBLISHED],
  }


def as_text(title: str, plan: analysis.SlicePlan, limits: StepLimits) -> str:
  """Two tables as Markdown: the parts of a step, and the step beside what others publish."""
  mesh, shapes = " x ".join(map(str, plan.mesh.values())), plan.step_shapes
  lines = [
    f"{title}, {plan.slice.name}, mesh {mesh}: {shapes.prompts} prompts of {shapes.prefix} tokens, "
    f"{shapes.group} replies of {shapes.time}; {plan.model.text_sizes.layers} text layers"
    + (", little effort of the compiler" if topology.is_quick() else ""),
    "",
    "| seconds of an RL step | floor | plan | XLA | ratio |",
    "|---|---|---|---|---|",
    *(_row(row, row.ratio) for row in limits.rows),
    _row(limits.total, limits.seconds / limits.total.floor),
    "",
    "| | chips | s a step | tokens a step | tokens/s a chip | tokens/s per PFLOP/s of peak | MFU |",
    "|---|---|---|---|---|---|---|",
    _ours(title, plan, limits),
    *map(_theirs, PUBLISHED),
    "",
    f"Ours is a bound from below for the compiled program; theirs is measured. {report.LEFT_OUT}. "
    "Tokens count each prompt for each of its replies, as theirs do; here the text model computes "
    f"each once: {limits.computed:,} tokens a step, {limits.rates[1]:,.0f} tokens/s a chip. MFU is "
    "of the update, ours with the tower / without it, and with attention.",
    *(f"{each.name}: {each.differs}." for each in PUBLISHED),
  ]
  return "\n".join(lines)


def floors_as_text(title: str, where: topology.Slice, least: Mapping[str, float]) -> str:
  """One row of a table, as Markdown, with its head."""
  cells = [f"{title}, {where.name}", *(f"{x:.2f}" for x in (*least.values(), sum(least.values())))]
  heads = ["floor, s of an RL step", *least, "step"]
  return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), cells))


def _row(row: Row, ratio: float) -> str:
  return f"| {row.name} | {row.floor:.3f} | {row.plan:.3f} | {row.schedule:.3f} | {ratio:.2f} |"


def _ours(title: str, plan: analysis.SlicePlan, limits: StepLimits) -> str:
  rate = limits.rates[0]
  peak = plan.slice.chip.peak * plan.slice.chip.devices_per_chip
  return (
    f"| {title} | {plan.slice.chips} x {plan.slice.chip.name} | {limits.seconds:.1f} | "
    f"{limits.counted:,} | {rate:,.0f} | {rate / peak * 1e15:,.0f} | "
    f"{limits.mfu:.0%} / {limits.mfu_text:.0%} |"
  )


def _theirs(each: Published) -> str:
  seconds = f"{each.seconds:.1f}" if each.seconds else ""
  tokens = f"{each.tokens:,.0f}" if each.tokens else ""
  mfu = f"{each.mfu:.0%}" if each.mfu else ""
  return (
    f"| {each.name} | {each.chips} | {seconds} | {tokens} | {each.rate:,.0f} | "
    f"{each.rate / each.peak * 1e15:,.0f} | {mfu} |"
  )


def main(argv: Sequence[str]) -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(prog="benchmarks.limits", allow_abbrev=False)
  parser.add_argument("--topology", default="v5p-16", help=topology.known())
  parser.add_argument("--layers", type=int, default=0, help="text layers; 0: all")
  parser.add_argument("--floor", action="store_true", help="compile nothing; floors alone")
  parser.add_argument("--quick", action="store_true", help="compile with little effort")
  parser.add_argument("--json", action="store_true", help="print one JSON line")
  options, rest = parser.parse_known_args(argv)
  chosen = [word for word in rest if word.startswith("--config=")]
  flags = rest if chosen else [*DEFAULT, *rest]
  config, _, _ = vr_jax.parse_flags(["benchmarks.limits", "--workdir=.", *flags])
  topology.prepare(quick=options.quick)
  config_checks.check(config)
  where = topology.find(options.topology)
  config = model_setup.clamp_microbatches(config, model_setup.make_mesh(config, where.devices))
  title = (chosen or DEFAULT)[0].removeprefix("--config=").removeprefix("configs/")
  if options.floor:
    least = floors(config, where)
    print(json.dumps(least) if options.json else floors_as_text(title, where, least))
    return
  plan = analysis.analyse(
    config,
    where,
    layers=options.layers,
    progress=lambda line: print(line, file=sys.stderr, flush=True),
  )
  limits = compute(plan)
  print(json.dumps(as_json(plan, limits)) if options.json else as_text(title, plan, limits))


if __name__ == "__main__":
  try:
    main(sys.argv[1:])
  except errors.InputError as error:
    sys.exit(f"limits: {error}")
