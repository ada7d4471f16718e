"""Which distance of steps pays for what is true, and which for its wording?

    python -m benchmarks.step_distances [--seed=901] [--scenes=120] [--pretrained=DIR]

Traces about simulated scenes are written from the scene's states in one of eight wordings, and
spoiled: values replaced by wrong ones, steps padded, repeated or swapped. Others know nothing of
the scene: they say that every value holds all the time, or at each time. Each is scored by the
process reward against the reference, in another or in the same wording, with each distance of
config.env.step_distance and both alignments. The truth is `trace_consistency`, which reads the
claims of a trace and compares them with the states. It shares its parser with the distance
`claims`, so what the parser misreads neither would notice.

--pretrained: a Hugging Face directory whose text layers embed steps, beside a random network of the
  recipe's tiny size.

Prints a Markdown table a metric: means over scenes ± half their 95 % interval.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
from pathlib import Path
import sys

import jax.numpy as jnp
from jaxtyping import Float
import ml_collections
import numpy as np
from scipy import stats

from vr_jax import errors, recipe_config
from vr_jax.rewards import claim_distance, process, step_distance
from vr_jax.train import data_stage, initialization, model_setup, run_context
from vr_jax.train import step_embedder as step_embedder_lib
from vr_jax.worlds import claims, consistency, questions, truth, wording, write
from vr_jax.worlds import config as config_lib

WORLD = config_lib.WorldConfig(
  wordings=config_lib.MOST_WORDINGS,
  objects_max=3,
  behaviours=("cycle", "grow", "move", "hide", "box"),
  families=("choice", "name", "look"),
)
PADDING = ("I look at the video again.", "Let me think about this.", "Nothing else matters here.")
ALIGNMENTS = ("subsequence", "naive")
TRAINING_SEED = 1  # of the texts that train the tokenizer and give the centre of embeddings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
  """A reference, and replies about the same scene by name.

  truth: trace consistency of each reply.
  """

  reference: tuple[str, ...]
  traces: Mapping[str, tuple[str, ...]]
  truth: Mapping[str, float]


def make_scenario(seed: int, index: int) -> Scenario:
  """Writes the reference of a scene, and right and wrong traces about it."""
  rng = np.random.default_rng([seed, index])
  scene, (question,) = questions.sample(rng, WORLD, 1)
  own, *others = (int(number) for number in rng.permutation(WORLD.wordings))
  plan = question.plan
  assert plan.cell is not None  # the families of WORLD ask about one cell
  cells = list(range(plan.cell + 1))
  right = [[truth.make_fact(scene, *pair, cell) for pair in plan.asked] for cell in cells]
  wrong_cells = {int(cell) for cell in rng.permutation(cells)[: len(cells) // 2]}
  one = min(wrong_cells)
  spoiled = [_spoil(rng, facts) for facts in right]

  def tell(number: int, wrong: set[int]) -> list[str]:
    chosen = [spoiled[cell] if cell in wrong else right[cell] for cell in cells]
    return [
      wording.step(number, cell * scene.dwell, facts, future=cell >= WORLD.shown_cells)
      for cell, facts in enumerate(chosen)
    ]

  reference = tell(own, set())
  # Two wordings may share a sentence; a paraphrase here has none of the reference's.
  other = next(number for number in others if set(tell(number, set())).isdisjoint(reference))
  half, rest = tell(own, wrong_cells), [cell for cell in cells if cell not in wrong_cells]
  traces = {
    "copy": reference,
    "paraphrase": tell(other, set()),
    "one wrong": tell(own, {one}),
    "one wrong, paraphrased": tell(other, {one}),
    "half wrong": half,
    "half wrong, paraphrased": tell(other, wrong_cells),
    "all wrong": tell(own, set(cells)),
    "all wrong, paraphrased": tell(other, set(cells)),
    "copy, padded": _pad(reference),
    "paraphrase, padded": _pad(tell(other, set())),
    "half wrong, padded": _pad(half),
    "half wrong, right steps three times": [
      step for cell, step in enumerate(half) for _ in range(3 if cell in rest else 1)
    ],
    "copy, each step twice": [step for step in reference for _ in range(2)],
    "copy, reversed": reference[::-1],
    "padding alone": [PADDING[cell % len(PADDING)] for cell in cells],
    **_ignorant(plan.asked, [cell * scene.dwell for cell in cells]),
  }
  states = truth.states(scene)
  return Scenario(
    reference=tuple(reference),
    traces={name: tuple(trace) for name, trace in traces.items()},
    truth={
      name: consistency.trace_consistency(trace, states, reference=reference).score
      for name, trace in traces.items()
    },
  )


def _spoil(rng: np.random.Generator, facts: Sequence[wording.Fact]) -> list[wording.Fact]:
  """Gives each fact another value of its attribute."""
  return [
    dataclasses.replace(
      fact, value=str(rng.choice([v for v in WORLD.values(fact.attribute) if v != fact.value]))
    )
    for fact in facts
  ]


def _ignorant(asked: truth.Asked, times: Sequence[float]) -> dict[str, list[str]]:
  """Traces that say every value of what is asked about, so that one of them is right at each time.

  One value a step, for the whole video or for each time alone; or all in one step for each time.
  """
  facts = [
    [wording.Fact(object=name, attribute=attribute, value=v) for v in WORLD.values(attribute)]
    for name, attribute in asked
  ]
  each_time = [
    wording.step(0, time, told, future=False)
    for time in times
    for told in itertools.product(*facts)
  ]
  always = f"From {times[0]:g}s to {times[-1]:g}s,"
  return {
    "every value, all the time": [f"{always}{step.partition(',')[2]}" for step in each_time],
    "every value at each time": each_time,
    "every value in one step": [
      wording.step(0, time, [*itertools.chain(*facts)], future=False) for time in times
    ],
  }


def _pad(steps: Sequence[str]) -> list[str]:
  """Puts a sentence that says nothing behind each step."""
  pairs = zip(steps, PADDING * len(steps), strict=False)
  return [text for pair in pairs for text in pair]


def score(
  scenarios: Sequence[Scenario], distance: step_distance.StepDistance, alignment: str
) -> list[dict[str, float]]:
  """The process reward of each reply, by name."""
  replies = ["\n".join(trace) for each in scenarios for trace in each.traces.values()]
  references = [each.reference for each in scenarios for _ in each.traces]
  rewards = iter(
    process.process_reward(
      [f"<think>{reply}</think>" for reply in replies],
      references,
      alignment=alignment,
      distance=distance,
    ).reward.tolist()
  )
  return [{name: next(rewards) for name in each.traces} for each in scenarios]


def _auc(reward: Mapping[str, float], right: Sequence[str], wrong: Sequence[str]) -> float:
  """How often a right trace earns more than a wrong one about the same scene; ties count half."""
  pairs = [(reward[a], reward[b]) for a in right for b in wrong]
  return float(np.mean([0.5 if abs(a - b) < 1e-6 else a > b for a, b in pairs]))


# Traces whose order and length are those of the reference.
_PLAIN = ("copy", "paraphrase", "one wrong", "one wrong, paraphrased", "half wrong")
_PLAIN = (*_PLAIN, "half wrong, paraphrased", "all wrong", "all wrong, paraphrased")
_RIGHT = _PLAIN[:2]


def _correlation(truth: Mapping[str, float], reward: Mapping[str, float]) -> float:
  names = [name for name in _PLAIN if name != "copy"]  # which is the reference itself
  found = stats.spearmanr([truth[name] for name in names], [reward[name] for name in names])
  return float(np.asarray(found)[0])


METRICS: Mapping[str, Callable[[Scenario, Mapping[str, float]], float]] = {
  "rank correlation with truth": lambda each, r: _correlation(each.truth, r),
  "AUC, right or wrong": lambda _, r: _auc(r, _RIGHT, [n for n in _PLAIN if n not in _RIGHT]),
  "AUC, right paraphrase or wrong in the reference's words": lambda _, r: _auc(
    r, ("paraphrase",), ("one wrong", "half wrong", "all wrong")
  ),
  "right paraphrase": lambda _, r: r["paraphrase"],
  "one step wrong": lambda _, r: r["one wrong"],
  "half wrong": lambda _, r: r["half wrong"],
  "all wrong": lambda _, r: r["all wrong"],
  "copy, padded": lambda _, r: r["copy, padded"],
  "copy, each step twice": lambda _, r: r["copy, each step twice"],
  "copy, reversed": lambda _, r: r["copy, reversed"],
  "padding alone": lambda _, r: r["padding alone"],
  "every value, all the time": lambda _, r: r["every value, all the time"],
  "every value at each time": lambda _, r: r["every value at each time"],
  "every value in one step": lambda _, r: r["every value in one step"],
  "gain of half wrong by padding": lambda _, r: r["half wrong, padded"] - r["half wrong"],
  "gain of half wrong by right steps three times": lambda _, r: (
    r["half wrong, right steps three times"] - r["half wrong"]
  ),
}


def tiny_embedder(layers: float) -> step_embedder_lib.FrozenStepEmbedder:
  """An embedder with the random network of moss_chatv:tiny."""
  return _embedder(recipe_config.load("moss_chatv:tiny"), layers)


def pretrained_embedder(directory: str, layers: float) -> step_embedder_lib.FrozenStepEmbedder:
  """An embedder with the network of a Hugging Face directory."""
  config = recipe_config.load("moss_chatv:3b")
  with config.unlocked():
    config.model.pretrained = directory
  return _embedder(config, layers)


def _embedder(
  config: ml_collections.ConfigDict, layers: float
) -> step_embedder_lib.FrozenStepEmbedder:
  examples = [
    example
    for index in range(256)
    for example in write.sample_video(WORLD, seed=TRAINING_SEED, index=index, questions=1)[1]
  ]
  trained = None
  if not config.model.pretrained:
    trained = data_stage.train_tokenizer(config, examples)
  processor = run_context.make_processor(config, Path(), trained)
  net = model_setup.ModelSetup(
    config=config,
    mesh=model_setup.make_mesh(config),
    model=processor.config,
    allowed_tokens=jnp.ones(processor.config.vocab_size, bool),
    stop_tokens=processor.stop_tokens,
  )
  embedder = step_embedder_lib.FrozenStepEmbedder(processor, processor.config, layers=layers)
  embedder.freeze(net, initialization.fresh_params(net), examples)
  return embedder


def measure(
  scenarios: Sequence[Scenario], distances: Mapping[str, step_distance.StepDistance]
) -> dict[str, dict[str, Float[np.ndarray, "scenes"]]]:
  """Each metric of each distance, "name, alignment", in each scene."""
  table: dict[str, dict[str, np.ndarray]] = {metric: {} for metric in METRICS}
  for name, distance in distances.items():
    for alignment in ALIGNMENTS:
      rewards = score(scenarios, distance, alignment)
      for metric, compute in METRICS.items():
        values = [compute(each, r) for each, r in zip(scenarios, rewards, strict=True)]
        table[metric][f"{name}, {alignment}"] = np.array(values)
  return table


def _cell(values: Float[np.ndarray, "scenes"]) -> str:
  half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
  return f"{values.mean():.2f} ± {half:.2f}"


def main(argv: Sequence[str]) -> int:
  """Measures and prints."""
  options = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
  seed, scenes = int(options.pop("seed", 901)), int(options.pop("scenes", 120))
  pretrained = options.pop("pretrained", "")
  if options or len(argv) > 3:
    print("usage: python -m benchmarks.step_distances [--seed=901] [--scenes=120] "
          "[--pretrained=DIR]", file=sys.stderr)  # fmt: skip
    return 2
  distances: dict[str, step_distance.StepDistance] = {
    "rouge": process.ROUGE,
    "claims": claim_distance.ClaimDistance(read=claims.read_step_claims, seconds=2.0),
    "embeddings (random)": step_distance.EmbeddingDistance(tiny_embedder(0.5)),
  }
  if pretrained:
    try:
      embedder = pretrained_embedder(pretrained, 0.5)
    except errors.InputError as error:
      print(error, file=sys.stderr)
      return 2
    distances["embeddings (pretrained)"] = step_distance.EmbeddingDistance(embedder)
  scenarios = [make_scenario(seed, index) for index in range(scenes)]
  table = measure(scenarios, distances)
  names = list(table["AUC, right or wrong"])
  print("| | " + " | ".join(names) + " |")
  print("|---" * (len(names) + 1) + "|")
  for metric, values in table.items():
    print(f"| {metric} | " + " | ".join(_cell(values[name]) for name in names) + " |")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
