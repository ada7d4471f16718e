"""Measures how right constructed questions are, against the simulator's truth.

    python -m benchmarks.moss_construct

Scenes are simulated, captioned by rule in several wordings, and go through the whole stage
`construct` with the reader `rule`, which sees the captions alone. Its questions are compared with
the scenes:

    right          the answer is the true state in the masked span, and no other option is
    true_steps     every claim of the reference trace is true
    determined     by the rules of the simulator, the true answer follows from the trace
    states_right   states read in captions that are true

Captions and reader share the simulator's words, so `clean` measures the pipeline, not the reading
of language. `faulty` repeats it with captions of which some tell a wrong value, as a captioner may:
one value of one caption, in each of 30 % of the videos. How many questions are wrong before and
after the filters tells what these notice.

Prints one JSON line with these fractions, what each filter left out, and what guessers without the
video score. The goal is that 0.99 of the questions from clean captions are right. Nothing was tuned
on this seed.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import random
import re
import shutil
import tempfile
import time
from typing import Any

import ml_collections

from benchmarks import measure
from vr_jax import main as vr_jax
from vr_jax import records, schema
from vr_jax.data import annotations
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.traces.construct import stage
from vr_jax.traces.construct import states as states_lib
from vr_jax.worlds import config as world_config
from vr_jax.worlds import consistency, sufficiency, truth
from vr_jax.worlds import scene as scene_lib
from vr_jax.worlds import write as worlds_write

SCENES = 400
SEED = 90_008  # no training set has it, and no test
GOAL = 0.99
FAULTY = 0.3  # of the videos
WORLD: Mapping[str, Any] = {
  "seconds": 12.0,
  "shown": 10.0,
  "behaviours": world_config.BEHAVIOURS + world_config.DISPLAYS,
  "behaviours_per_object": 2,
  "colours": world_config.COLOURS,
}


def make_config(workdir: Path, scenes: int, seed: int) -> ml_collections.ConfigDict:
  """The tiny recipe with scenes of all kinds."""
  words = ["construct", "--config=moss_chatv:tiny", f"--workdir={workdir}"]
  config = vr_jax.parse_flags(words)[0]
  with config.unlocked():
    config.data.simulate.world = ml_collections.ConfigDict(dict(WORLD))
    config.data.simulate.videos = scenes
    config.data.simulate.questions_per_video = 1
    config.data.simulate.seed = seed
  return config


def run(workdir: Path, scenes: int, seed: int, *, faulty: float = 0.0) -> dict[str, Any]:
  """Constructs a set and compares it with its scenes; returns fields of the JSON line.

  faulty: fraction of the videos that have a wrong value in their captions.
  """
  config = make_config(workdir, scenes, seed)
  output, captions = workdir / "construct", workdir / "construct-captions.jsonl"
  begun = time.perf_counter()
  stage.write(config, workdir)
  seconds = time.perf_counter() - begun
  if faulty:
    shutil.rmtree(output)
    captions = _with_faults(captions, faulty, seed)
    config.construct.captions = str(captions)
    stage.write(config, workdir)
  world = schema.build(world_config.WorldConfig, config.data.simulate.world)
  scene_of = {
    examples[0].video: scene
    for scene, examples in worlds_write.distinct_videos(
      world, videos=scenes, seed=seed, questions=1
    )
  }
  read = annotations.read(output / "annotations.jsonl", frozenset(scene_of), on_bad=_raise)
  questions = [annotation.example for annotation in read]
  rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
  whole = workdir / "made.jsonl"
  records_of = [row["record"] for row in rejected]
  whole.write_text("".join(json.dumps(record) + "\n" for record in records_of))
  dropped = (
    [a.example for a in annotations.read(whole, frozenset(scene_of), on_bad=_raise)]
    if records_of
    else []
  )
  summary = json.loads((output / "summary.json").read_text())
  told = _told_states(captions, scene_of)
  kinds = ("rejected", "not_asked", "chance", "most_frequent_answer", "last_seen_answer")
  return {
    "scenes": scenes,
    "seed": seed,
    "made": summary["questions"],
    "kept": summary["kept"],
    "wrong_made": sum(not is_right(q, scene_of[q.video]) for q in (*questions, *dropped)),
    "right": _fraction([is_right(q, scene_of[q.video]) for q in questions]),
    "true_steps": _fraction([has_true_steps(q, scene_of[q.video]) for q in questions]),
    "determined": _fraction([is_determined(q, scene_of[q.video]) for q in questions]),
    "states": len(told),
    "states_right": _fraction(told),
    "construct_seconds": round(seconds, 2),
    **{kind: summary[kind] for kind in kinds},
  }


def is_right(question: records.Example, scene: scene_lib.Scene) -> bool:
  """Whether the answer, and no other option, is true all over the masked span.

  What the question is about is taken from its reference trace, not from the pipeline's own notes.
  """
  history = consistency.build_history(truth.states(scene))
  asked = consistency.find_asked_pairs([step.text for step in question.steps], history)
  if len(asked) != 1 or question.masked is None:
    return False
  ((name, attribute),) = asked
  masked = question.masked
  cells = [
    cell
    for cell in range(scene.cells)
    if masked.start < (cell + 1) * scene.dwell and cell * scene.dwell < masked.end
  ]
  true = {scene.value(scene.object(name), attribute, cell) for cell in cells}
  named = name in question.question
  options = {option[0]: option[3:] for option in question.options}
  return named and true == {options[question.answer]} and _is_unique(options, question.answer)


def _is_unique(options: Mapping[str, str], answer: str) -> bool:
  return sum(value == options[answer] for value in options.values()) == 1


def has_true_steps(question: records.Example, scene: scene_lib.Scene) -> bool:
  """Whether the trace makes claims, and all are true of the scene."""
  steps = [step.text for step in question.steps]
  found = consistency.trace_consistency(steps, truth.states(scene))
  return 0 < len(steps) <= found.claims and not found.contradicted


def is_determined(question: records.Example, scene: scene_lib.Scene) -> bool:
  """Whether the true answer follows from the trace, by the rules of the simulator."""
  example = dataclasses.replace(question, states=truth.states(scene))
  return sufficiency.sufficient(example, "\n".join(step.text for step in question.steps))


def _told_states(path: Path, scene_of: Mapping[str, scene_lib.Scene]) -> list[bool]:
  """Whether each state that is read in the captions is true."""
  videos = captions_lib.read(path, keyframe_fps=0.0, even=False, on_bad=_raise)
  return [
    scene.value(scene.object(state.object), state.attribute, state.caption) == state.value
    for video in videos
    for scene in [scene_of[video.video]]
    for state in states_lib.read_by_rule(video)
  ]


def _with_faults(path: Path, share: float, seed: int) -> Path:
  """Writes captions of which some tell a wrong colour, place or size, and returns their file."""
  rng, lines = random.Random(seed), []
  pools = (WORLD["colours"], world_config.place_names(3, 3), world_config.SIZES)
  for line in path.read_text().splitlines():
    value = json.loads(line)
    if rng.random() < share:
      captions = [each for each in value["captions"] if each["idx"] != "-1"]
      places = [
        (caption, word, pool)
        for caption in captions
        for pool in pools
        for word in pool
        if re.search(rf"\b{word}\b", caption["content"])
      ]
      if places:
        caption, word, pool = rng.choice(places)
        other = rng.choice([each for each in pool if each != word])
        caption["content"] = re.sub(rf"\b{word}\b", other, caption["content"], count=1)
    lines.append(json.dumps(value) + "\n")
  target = path.with_name("faulty.jsonl")
  target.write_text("".join(lines))
  return target


def _fraction(values: Sequence[bool]) -> float:
  return round(sum(values) / max(len(values), 1), 4)


def _raise(where: str, error: Exception) -> None:
  raise error


def main() -> None:
  """Measures and prints the line."""
  about = measure.About()
  with tempfile.TemporaryDirectory() as directory:
    found = {
      "clean": run(Path(directory) / "clean", SCENES, SEED),
      "faulty": run(Path(directory) / "faulty", SCENES, SEED, faulty=FAULTY),
    }
  print(json.dumps({"benchmark": "moss_construct", **found, "goal": GOAL, **about.fields()}))


if __name__ == "__main__":
  main()
