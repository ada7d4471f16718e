"""A plan as text for people and as JSON for programs."""

from typing import Any

from launch import analysis, chips, roofline, topology

LEFT_OUT = (
  "left out: the host's work (clips, rewards, dispatch), collectives that wait for their operands, "
  "delays between slices, vector work of kernels, moves between lanes in sorts"
)
_LOAD = ("prompts", "group", "time", "prefix", "frames", "patches", "microbatches")


def as_json(plan: analysis.SlicePlan) -> dict[str, Any]:
  """All numbers: bytes, FLOPs and seconds of one device; model_flops of all devices together.

  fits: null where what was compiled has room, but is not all of the step; then step is null, too.
  """
  return {
    "topology": plan.slice.name,
    "quick": topology.is_quick(),
    "slices": plan.slice.count,
    "chip": plan.slice.chip.name,
    "chips": plan.slice.chips,
    "devices": len(plan.slice.devices),
    "memory": plan.slice.chip.memory,
    "mesh": plan.mesh,
    "load": _load(plan),
    "programs": [_program(plan, one) for one in plan.analyses],
    "layers": plan.layers[0],
    "all_layers": plan.layers[1],
    "not_compiled": list(plan.left_out),
    "fits": None if plan.fits and not plan.is_whole else plan.fits,
    "step": {
      "seconds": plan.seconds,
      "chip_hours": plan.chip_hours,
      "schedule": plan.seconds_of("schedule"),
      "network": plan.seconds_of("network"),
      "dcn": plan.seconds_of("dcn"),
    }
    if plan.fits and plan.is_whole
    else None,
    "left_out": LEFT_OUT,
  }


def _load(plan: analysis.SlicePlan) -> dict[str, int]:
  step_shapes = {name: getattr(plan.step_shapes, name) for name in _LOAD}
  later = vars(plan.step_shapes.later) if plan.step_shapes.later else {}
  return step_shapes | {f"later_{name}": size for name, size in later.items()}


def _program(plan: analysis.SlicePlan, one: analysis.Analysis) -> dict[str, Any]:
  return {
    "name": one.name,
    "runs": one.runs,
    "fits": one.fits,
    "compiled": one.compiled,
    "memory": vars(one.memory),
    "leaf": vars(one.leaf),
    "largest": [
      {"shape": str(t.shape), "bytes": t.shape.bytes, "from": t.op_name} for t in one.largest
    ],
    "parts": [_part(plan, part) for part in one.parts],
  }


def _part(plan: analysis.SlicePlan, part: analysis.ProgramPart) -> dict[str, Any]:
  line = part.roofline
  return {
    "name": part.name,
    "flops": part.costs.flops,
    "model_flops": part.work.model,
    "over_count": over_count(plan, part),
    "bytes": part.costs.bytes,
    "collectives": part.costs.collectives(),
    "between_slices": part.costs.collectives(between_slices=True),
    "exchanges": part.costs.exchanges,
    "seconds": {name: getattr(line, name) for name in roofline.RESOURCES},
    "beside": {name: getattr(line, name) for name in ("schedule", "vector", "latency")},
    "bound": line.bound,
    "utilisation": utilisation(plan, part),
  }


def utilisation(plan: analysis.SlicePlan, part: analysis.ProgramPart) -> float:
  """Model FLOPs over what the chips could do in the part's time."""
  able = len(plan.slice.devices) * plan.slice.chip.peak * part.roofline.seconds
  return part.work.model / able if able else 0.0


def over_count(plan: analysis.SlicePlan, part: analysis.ProgramPart) -> float:
  """Compiled FLOPs over those counted from the model's sizes, rematerialisation included."""
  return part.costs.flops * len(plan.slice.devices) / part.work.executed


def as_text(plan: analysis.SlicePlan) -> str:
  """The text that the command line prints."""
  mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
  step_shapes = ", ".join(f"{name} {size}" for name, size in _load(plan).items())
  chip = plan.slice.chip
  lines = [
    f"{plan.slice.name}: {_slices(plan)}{plan.slice.chips} chips, {len(plan.slice.devices)} "
    f"devices of {chip.name}; mesh {mesh}",
    f"one RL step: {step_shapes}",
    *([] if plan.is_whole else [f"compiled: {_part_of_step(plan)}"]),
    "",
    f"GiB on each device, of {chip.memory / chips.GIB:.2f} that a program may use",
    _row("program", "arguments", "temporaries", "output", "held", "peak", "fits", widths=_MEMORY),
  ]
  for one in plan.analyses:
    memory = one.memory
    sizes = (memory.arguments, memory.temporaries, memory.output, memory.resident, memory.peak)
    cells = [f"{size / chips.GIB:.2f}" for size in sizes]
    lines.append(_row(one.name, *cells, "yes" if one.fits else "NO", widths=_MEMORY))
  lines += ["", *_time_table(plan), ""]
  lines += [_largest(one) for one in plan.analyses]
  lines += ["", *_verdict(plan)]
  return "\n".join(lines)


_MEMORY = (22, 10, 12, 8, 8, 8, 5)
_TIME = (22, 6, 9, 9, 9, 10, 9, 9, 9, 9, 6, 9, 9)
_TIME_OF_SLICES = (*_TIME[:6], 9, *_TIME[6:9], 9, *_TIME[9:])


def _slices(plan: analysis.SlicePlan) -> str:
  return f"{plan.slice.count} slices, " if plan.slice.count > 1 else ""


def _part_of_step(plan: analysis.SlicePlan) -> str:
  """Which layers and programs were compiled."""
  compiled, every = plan.layers
  parts = [f"{compiled} of {every} text layers"] if compiled != every else []
  names = ", ".join(one.name for one in plan.analyses)
  without = f" without {', '.join(plan.left_out)}" if plan.left_out else ""
  return f"{', '.join([*parts, names])}{without}"


def _row(*cells: str, widths: tuple[int, ...]) -> str:
  first, *rest = (
    cell.ljust(width) if i == 0 else cell.rjust(width)
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
  )
  return "".join([first, *rest])


def _time_table(plan: analysis.SlicePlan) -> list[str]:
  several = plan.slice.count > 1
  widths = _TIME_OF_SLICES if several else _TIME
  times = roofline.RESOURCES if several else roofline.RESOURCES[:-1]
  counts = ("TFLOP", "x count", "GB", "GB links", *["GB DCN"] * several)
  heads = ("part", "runs", *counts, *times, "bound", "MFU", "XLA", "vector")
  lines = [
    "one run on each device; seconds by the roofline; XLA: by the compiler's own schedule without "
    "collectives,",
    "kernels at peak FLOPs or bandwidth; vector: of these, instructions without a matrix product",
    _row(*heads, widths=widths),
  ]
  for one in plan.analyses:
    for part in one.parts:
      line, moved = part.roofline, part.costs.collectives()
      between = part.costs.collectives(between_slices=True)
      cells = [
        part.name,
        str(one.runs),
        f"{part.costs.flops / chips.TERA:.2f}",
        f"{over_count(plan, part):.2f}",
        f"{part.costs.bytes / chips.GIGA:.1f}",
        f"{sum(moved.values()) / chips.GIGA:.2f}",
        *[f"{sum(between.values()) / chips.GIGA:.3f}"] * several,
        *(f"{getattr(line, name):.3f}" for name in times),
        line.bound,
        f"{utilisation(plan, part):.0%}",
        f"{line.schedule:.3f}",
        f"{line.vector:.3f}",
      ]
      lines.append(_row(*cells, widths=widths))
      lines += [f"    {kind}: {size / chips.GIGA:.3f} GB" for kind, size in moved.items()]
      lines += [
        f"    {kind} between slices: {size / chips.GIGA:.3f} GB" for kind, size in between.items()
      ]
      lines += [f"    exchanges between slices: {part.costs.exchanges}"] * bool(between)
  return lines


def _largest(one: analysis.Analysis) -> str:
  names = [f"{t.shape} ({t.shape.bytes / chips.GIB:.2f} GiB)" for t in one.largest]
  which = "largest temporaries" if one.compiled else "has no room"
  return f"{one.name}: {which}: {', '.join(names) or 'not known'}"


def _verdict(plan: analysis.SlicePlan) -> list[str]:
  if not plan.fits:
    return [f"does not fit: {explain(plan, one)}" for one in plan.analyses if not one.fits]
  if not plan.is_whole:
    return [
      f"has room: {_part_of_step(plan)}; this is not all of an RL step, so there is no total, and "
      "whether the step fits is not known",
      LEFT_OUT,
    ]
  lines = [f"fits; {plan.seconds:.2f} s and {plan.chip_hours:.3f} chip-hours an RL step at best"]
  lines.append(
    f"by XLA's own schedule, without collectives: {plan.seconds_of('schedule'):.2f} s; delays of "
    f"small collectives, counted in links: {plan.seconds_of('latency'):.3f} s"
  )
  shares = [f"links {plan.seconds_of('network') / plan.seconds:.0%}"]
  if plan.slice.count > 1:
    shares.append(f"DCN {plan.seconds_of('dcn') / plan.seconds:.0%}")
  lines.append(f"busy with collectives for this share of it: {', '.join(shares)}")
  return [*lines, LEFT_OUT]


def explain(plan: analysis.SlicePlan, one: analysis.Analysis) -> str:
  """Why a program has no room: what needs most memory, its largest array, the fields to change."""
  memory, room = one.memory, plan.slice.chip.memory
  resident = memory.arguments + memory.resident
  temporaries = memory.peak - resident
  leaf = (
    f"{one.leaf.name}, {one.leaf.shape}, with {one.leaf.bytes / chips.GIB:.2f} GiB on each device"
  )
  if resident > temporaries:
    why, remedies = (
      f"{resident / chips.GIB:.1f} are in memory before it runs, the largest array {leaf}",
      _shrink_state,
    )
  else:
    why, remedies = f"{temporaries / chips.GIB:.1f} are made on its way", _shrink_activations
    if one.largest:
      largest = one.largest[0]
      why += f", the largest array {largest.shape}, {largest.shape.bytes / chips.GIB:.2f} GiB"
      why += f", of {largest.op_name}" if largest.op_name else ""
    else:
      why += f", no array of which is known; the largest in memory before it runs is {leaf}"
  return (
    f"{one.name} needs {memory.peak / chips.GIB:.1f} GiB a device, there are "
    f"{room / chips.GIB:.2f}; {why}: {', or '.join(remedies(plan, one))}"
  )


def _shrink_state(plan: analysis.SlicePlan, one: analysis.Analysis) -> list[str]:
  """Remedies that shrink parameters and other state and are not yet taken."""
  model, full = plan.config.model, plan.config.model.lora.rank == 0
  remedies = {
    "give the devices of data to fsdp or tensor in config.mesh": plan.mesh["data"] > 1,
    "set rl.decode_layout=tensor": one.name in ("decode", "append observations")
    and plan.config.rl.decode_layout == "replicated",
    "freeze the vision tower (model.freeze_vision)": full and not model.freeze_vision,
    "set rl.kl_weight=0": full and plan.config.rl.kl_weight > 0,
    "set critic.kl_weight=0": plan.config.rl.advantage_estimator == "gae"
    and plan.config.critic.kl_weight > 0,
    "take more chips": True,
  }
  return [remedy for remedy, possible in remedies.items() if possible]


def _shrink_activations(plan: analysis.SlicePlan, one: analysis.Analysis) -> list[str]:
  """Remedies that shrink activations and are not yet taken."""
  step_shapes, training = plan.step_shapes, one.name in ("train step", "critic step")
  scoring = one.name in ("reference log-probs", "policy log-probs", "values")
  ways = plan.mesh["data"] * plan.mesh["fsdp"]
  fewer = "show fewer frames (data.frames)"
  if step_shapes.later:
    fewer = "lower env.frame_budget, and with it the largest of turns.episode_buckets"
  remedies = {
    "set model.remat=full": training and plan.config.model.remat != "full",
    "raise rl.microbatches": training and ways * step_shapes.microbatches < step_shapes.prompts,
    "raise rl.log_prob_microbatches": scoring
    and ways * plan.config.rl.log_prob_microbatches < step_shapes.prompts,
    "lower rl.batch_size": not training,
    "set rl.decode_layout=tensor": one.name == "rollout"
    and plan.config.rl.decode_layout == "replicated",
    "lower rl.num_generations": one.name != "encoder" and step_shapes.group > 2,
    "raise sequence or tensor in config.mesh": True,
    fewer: True,
  }
  return [remedy for remedy, possible in remedies.items() if possible]
