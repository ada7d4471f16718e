"""Video-MTR: the model sees some frames of a long video, asks for others, then answers.

    turn 1    frames of the whole pool, the question    <think>…</think><retrieve>40,55</retrieve>
    turn 2    frames from 40 to 55, the question        <think>…</think><answer>B</answer>

A turn after a retrieval shows frames of the interval, spaced evenly: at most a quarter of the frame
budget.
An episode ends with an answer, or with the last turn. Each turn depends on the example, the size of
the pool and the replies alone. So the engine can ask for any turn at any time, and it reads only
the frames that a turn shows.

Source: arXiv 2508.20478. `Reconstruction:` if there is only one turn, it shows the whole frame
budget, not half of it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, Literal
import zlib

from jaxtyping import Float
import numpy as np

from vr_jax import errors, records, schema
from vr_jax.envs import environment, metric
from vr_jax.envs import retrieval_actions as retrieval_actions_lib
from vr_jax.rewards import exploration as exploration_lib
from vr_jax.rewards import relevance as relevance_lib
from vr_jax.rewards import steps

_RETHINK = "Invalid action. Let me rethink."
_PROBLEMS = {
  "format": (
    "It has to be <think>…</think>, then one <answer>…</answer> "
    "or one <retrieve>first,last</retrieve>."
  ),
  "interval": (
    "Between the retrieve tags belong two whole numbers: the first frame, a comma, the last frame."
  ),
  "range": "There are no such frames.",
  "answer": (
    "Between the answer tags belongs an answer of the kind that was asked for, and nothing else."
  ),
}


@dataclasses.dataclass(kw_only=True)
class VideoMTR(environment.Defaults):
  """The environment.

  Raises:
    InputError: there is less than one turn, or the budget is too small for a frame in each turn.
  """

  instruction: str = schema.field(help="Stands below the question; it has to ask for all tags.")
  last_instruction: str = schema.field(
    help="Stands below the question in the last turn; it has to ask for all tags."
  )
  chooses_frames: ClassVar[bool] = True
  turns: int = schema.field(3, "Replies of an episode, at most.", "[1, inf)")
  history_turns: int = schema.field(2, "How many previous turns stay in the context.", "[0, inf)")
  frame_budget: int = schema.field(
    32,
    "The first turn shows half as many frames as this, and each retrieval at most a quarter. With "
    "a single turn, it shows all of them.",
    "[1, inf)",
  )
  on_invalid_action: Literal["rethink", "explain"] = schema.field(
    "rethink", "What follows a reply that can't be used."
  )
  sft_retrieval_fraction: float = schema.field(
    0.0,
    "Probability that a supervised episode retrieves first, where evidence is annotated and there "
    "are two or more turns; 0: no supervised episodes.",
    "[0, 1]",
  )
  relevance: relevance_lib.RelevanceRule = relevance_lib.RelevanceRule()
  exploration: exploration_lib.ExplorationRule = exploration_lib.ExplorationRule()
  answer_reward: ClassVar[str] = "accuracy"
  tags: ClassVar[tuple[str, ...]] = (
    "<think>",
    "</think>\n<retrieve>",
    "</retrieve>",
    "</think>\n<answer>",
    "</answer>",
  )
  metrics: ClassVar[metric.Metrics] = {
    **environment.Defaults.metrics,
    "turns": metric.Metric(title="Turns", note="of an episode", unit="", digits=2, better=0),
    "retrievals": metric.Metric(
      title="Retrievals", note="of an episode", unit="", digits=2, better=0
    ),
    "frame_recall": metric.Metric(
      title="Frame recall", note="frames with the evidence that were shown, of all", headline=True
    ),
  }

  def __post_init__(self):
    for name, least in (
      ("turns", 1),
      ("history_turns", 0),
      ("frame_budget", 1 if self.turns == 1 else 4),
    ):
      if getattr(self, name) < least:
        raise errors.InputError(
          f"--config.env.{name}={getattr(self, name)}: "
          f"must be {least} or more with {self.turns} turns"
        )
    self.segments = tuple(f"turn {turn}" for turn in range(1, self.turns + 1))
    self._bonus_state = exploration_lib.BonusState()

  @classmethod
  def check_config(cls, config: Any) -> None:
    """Checks that there are supervised episodes for SFT, and that episodes fit the buckets.

    Raises InputError otherwise.
    """
    env, section = config.env, config.turns
    if config.sft.steps and not env.sft_retrieval_fraction:
      raise errors.InputError(
        "--config.sft.steps: needs episodes to learn from, env.sft_retrieval_fraction > 0"
      )
    between, reply = env.turns - 1, config.rl.max_new_tokens
    for name, needed in (
      ("frame_buckets", between * max(1, env.frame_budget // 4)),
      ("episode_buckets", env.turns * reply + between * max(section.observation_buckets)),
    ):
      if max(section[name]) < needed:
        raise errors.InputError(
          f"--config.turns.{name}={section[name]}: {env.turns} turns need up to {needed}; add it"
        )

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> environment.Observation | None:
    """The turn that follows these replies; None if the episode has ended.

    Args:
      example: the question.
      pool: number of frames to choose from, 1 or more.
      replies: of the turns so far; () for the first turn.
    """
    actions = retrieval_actions_lib.actions(example, pool, replies)
    if len(actions) >= self.turns or (actions and actions[-1].kind == "answer"):
      return None
    turn = len(actions)
    head = f"Turn {turn + 1} of {self.turns}."
    if actions and actions[-1].kind == "invalid":
      if self.on_invalid_action == "rethink":
        return environment.Observation(parts=(f"{head}\n{_RETHINK}",))
      why = f"The last reply can't be used. {_PROBLEMS[actions[-1].problem]} Try again."
      return environment.Observation(parts=(f"{head}\n{why}\n{self._ask(example, turn)}",))
    frames = self._retrieved_frames(actions[-1]) if actions else self.first_frames(pool)
    parts: list[str | environment.ShownFrame] = []
    for frame in frames:
      before = "\n" if parts else f"{head} Frames out of 0 to {pool - 1}:\n"
      parts += [f"{before}frame_idx:{frame}, ", environment.ShownFrame(frame)]
    return environment.Observation(parts=(*parts, f"\n{self._ask(example, turn)}"))

  def first_frames(self, pool: int) -> tuple[int, ...]:
    """The frames of the first turn: half of the budget, spaced evenly over the pool."""
    return retrieval_actions_lib.spread(
      0, pool - 1, self.frame_budget if self.turns == 1 else self.frame_budget // 2
    )

  def question(self, example: records.Example) -> str:
    """The text of the first turn: the question, the options and the instruction, line by line."""
    return self._ask(example, 0)

  def longest_replies(self, pool: int) -> tuple[str, ...]:
    """The replies after which the next observation is longest: a retrieval, and invalid replies."""
    intervals = (max(0, pool - 1 - self.frame_budget), pool - 1), (1, 0), (0, pool)
    return (
      *(f"<think></think><retrieve>{start},{end}</retrieve>" for start, end in intervals),
      "<think></think><answer></answer>",
      "",
    )

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """A supervised episode that ends with the right answer; () if `sft_retrieval_fraction` is 0.

    In that fraction of the examples, the annotated evidence is retrieved first. The example's id
    decides which examples do that. The reasoning describes the frames of its own
    turn alone, so without a retrieval the answer is often a guess.
    """
    if not self.sft_retrieval_fraction:
      return ()
    first = f"<think>{_describe_frames(example, times[[*self.first_frames(len(times))]])}</think>"
    answer = f"<answer>{example.answer}</answer>"
    relevant = self.relevant(example, times)
    retrieves_first = zlib.crc32(example.id.encode()) / 2**32 < self.sft_retrieval_fraction
    if self.turns == 1 or not relevant or not retrieves_first:
      return (f"{first}\n{answer}",)
    retrieval = retrieval_actions_lib.Action(kind="retrieve", start=relevant[0], end=relevant[-1])
    seen = times[[*self._retrieved_frames(retrieval)]]
    second = f"<think>{_describe_frames(example, seen)}</think>"
    return (
      f"{first}\n<retrieve>{retrieval.start},{retrieval.end}</retrieve>",
      f"{second}\n{answer}",
    )

  def reference_problem(self, example: records.Example) -> str:
    """Why the right answer, given as a reply, earns less than 1 or is no valid action."""
    problem = super().reference_problem(example)
    if problem or self.accuracy(example, f"<think></think><answer>{example.answer}</answer>") == 1:
      return problem
    return (
      f"field 'answer': no reply can be right, since {example.answer!r:.80} holds tags or more "
      f"than the {retrieval_actions_lib.ANSWER_CHARACTERS} characters that this recipe reads"
    )

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """Indices of the frames within the relevant spans."""
    return retrieval_actions_lib.relevant_frames(example, times)

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """The rewards of each turn, [prompts, group, turns]; turns that were not played are not scored.

    `accuracy`, `format` and `relevance` are the values after the gate (relevance.RelevanceRule);
    the total is their sum.
    """
    batch = self._arrays(examples, replies.episodes)
    earned = relevance_lib.turn_rewards(batch, self.relevance)
    parts = {
      "accuracy": earned.accuracy,
      "format": earned.format,
      "relevance": earned.relevance,
    }
    return records.Scores(rewards=parts, scored=batch.taken, total=earned.total)

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: environment.Replies,
    scores: records.Scores,
    *,
    sum_processes: environment.SumAcrossProcesses = np.asarray,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """Adds the reward `exploration`, a bonus for retrievals that depends on earlier batches.

    Metrics:
      turns, episode_accuracy: mean of the episodes.
      frame_recall: fraction of the relevant frames that were shown, mean of the episodes that have
        relevant frames.
      retrieval_rate, invalid_action_rate: fraction of the turns.
      exploration/bonus_fraction: fraction of the turns that got the bonus.
      relevance/unscored_retrievals: number of retrievals without a relevance score.
      exploration/ended: 1 once the bonus is switched off for good.
    """
    batch = self._arrays(examples, replies.episodes)
    shown_retrievals = batch.retrieved & (np.arange(self.turns) < self.turns - 1)
    step = exploration_lib.compute_bonus(
      self.exploration,
      self._bonus_state,
      retrieved=shown_retrievals,
      taken=batch.taken,
      total=np.asarray(scores.total),
      sum_processes=sum_processes,
    )
    self._bonus_state = step.next_state
    with_bonus = records.Scores(
      rewards={**scores.rewards, "exploration": step.bonus},
      scored=scores.scored,
      total=scores.total + step.bonus,
    )
    return with_bonus, self._counts(batch, step, sum_processes)

  def episode_metrics(
    self, example: records.Example, episode: environment.Episode
  ) -> dict[str, float]:
    """Metrics of one episode.

    accuracy: the task metric.
    format: fraction of the turns with a valid reply.
    turns, retrievals: how many there were.
    frame_recall: fraction of the relevant frames that were shown; left out if they are unknown.
    """
    batch = self._arrays([example], [[episode]])
    taken = int(batch.taken.sum())
    found = {
      "accuracy": float(batch.accuracy.max()),
      "format": float(batch.well_formed.sum()) / taken,
      "turns": float(taken),
      "retrievals": float(batch.retrieved.sum()),
    }
    recall = float(batch.recall()[0, 0])
    return found if np.isnan(recall) else {**found, "frame_recall": recall}

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of the answer in a reply; 0 without an answer."""
    action = self.parse_action(example, 0, reply, 0)
    return environment.task_score(action.answer if action.kind == "answer" else None, example)

  def parse_action(
    self, example: records.Example, pool: int, reply: str, turn: int
  ) -> retrieval_actions_lib.Action:
    """An answer, a retrieval within the pool, or an invalid action with its problem."""
    del turn
    return retrieval_actions_lib.parse(reply, pool, example.problem_type, example.options)

  def tokenizer_texts(self, example: records.Example, pool: int) -> tuple[str, ...]:
    """All texts of the first turn."""
    opening = self.observe(example, pool, ())
    return opening.texts if opening else ()

  def trace(self, reply: str) -> str:
    """The text between the think tags."""
    return steps.think_text(reply)

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps": the reasoning steps} of the reply of one turn."""
    return {"steps": steps.split_steps(self.trace(reply))}

  def state(self) -> Mapping[str, Any]:
    """The state of the exploration bonus."""
    return dataclasses.asdict(self._bonus_state)

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to a state that `state` gave."""
    self._bonus_state = exploration_lib.BonusState(**state)

  def _ask(self, example: records.Example, turn: int) -> str:
    last = turn + 1 == self.turns
    told = self.last_instruction if last else self.instruction
    return environment.question_text(example, told)

  def _retrieved_frames(self, action: retrieval_actions_lib.Action) -> tuple[int, ...]:
    """The frames that an action retrieves."""
    if action.kind != "retrieve":
      return ()
    return retrieval_actions_lib.spread(action.start, action.end, self.frame_budget // 4)

  def _arrays(
    self, examples: Sequence[records.Example], episodes: Sequence[Sequence[environment.Episode]]
  ) -> relevance_lib.EpisodeArrays:
    shape = (len(examples), len(episodes[0]), self.turns)
    pool = max(group[0].pool for group in episodes)
    accuracy, well_formed, taken = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
    retrieved_frames = np.zeros((*shape, pool), bool)
    for prompt, (example, group) in enumerate(zip(examples, episodes, strict=True)):
      for group_index, episode in enumerate(group):
        actions = retrieval_actions_lib.actions(
          example, episode.pool, episode.replies[: self.turns]
        )
        for turn, action in enumerate(actions):
          place = prompt, group_index, turn
          taken[place], well_formed[place] = True, action.kind != "invalid"
          retrieved_frames[place][list(self._retrieved_frames(action))] = True
          if action.kind == "answer":
            accuracy[place] = environment.task_score(action.answer, example)
    return relevance_lib.EpisodeArrays(
      first=_mask([self.first_frames(group[0].pool) for group in episodes], pool),
      truth=_mask([group[0].relevant for group in episodes], pool),
      retrieved_frames=retrieved_frames,
      accuracy=accuracy,
      well_formed=well_formed,
      taken=taken,
    )

  def _counts(
    self,
    batch: relevance_lib.EpisodeArrays,
    step: exploration_lib.BonusStep,
    sum_processes: environment.SumAcrossProcesses,
  ) -> dict[str, float]:
    recall = batch.recall()
    counts = {
      "episodes": batch.taken.any(-1).sum(),
      "turns": batch.taken.sum(),
      "accuracy": batch.accuracy.max(-1).sum(),
      "retrieval_rate": batch.retrieved.sum(),
      "invalid_action_rate": (batch.taken & ~batch.well_formed).sum(),
      "exploration/bonus_fraction": (step.bonus > 0).sum(),
      "unscored": batch.unscored.sum(),
      "recall": np.nansum(recall),
      "known": np.isfinite(recall).sum(),
    }
    over_all = sum_processes(np.array(list(counts.values()), np.float32))
    counted = dict(zip(counts, over_all.tolist(), strict=True))
    per_turn = ("retrieval_rate", "invalid_action_rate", "exploration/bonus_fraction")
    return {
      "turns": counted["turns"] / counted["episodes"],
      "episode_accuracy": counted["accuracy"] / counted["episodes"],
      "relevance/unscored_retrievals": counted["unscored"],
      "exploration/ended": float(self._bonus_state.closed),
      **{name: counted[name] / counted["turns"] for name in per_turn},
      **({"frame_recall": counted["recall"] / counted["known"]} if counted["known"] else {}),
    }


def _describe_frames(example: records.Example, times: Float[np.ndarray, "frames"]) -> str:
  """A description of the frames at these times (seconds).

  It names colours and sizes that change during a simulated video, each with the time since when it
  has had that value, and adds the text of the reasoning steps about these times.
  """
  histories: dict[tuple[str, str], list[records.State]] = {}
  for state in sorted(example.states, key=lambda state: state.time):
    histories.setdefault((state.object, state.attribute), []).append(state)
  sentences = []
  for time in times:
    latest = {
      pair: [s for s in history if s.time <= time][-1:] for pair, history in histories.items()
    }
    values = {pair: state[0].value for pair, state in latest.items() if state}
    sentences += [
      f"At {latest[name, attribute][0].time:g}s, the {name} is {value}."
      for (name, attribute), value in values.items()
      if attribute in ("colour", "size") and values.get((name, "visibility")) != "hidden"
      if len({state.value for state in histories[name, attribute]}) > 1
    ]
    sentences += [step.text for step in example.steps if step.start <= time < step.end]
  return " ".join(dict.fromkeys(sentences))


def _mask(rows: Sequence[Sequence[int]], pool: int) -> np.ndarray:
  """Which frames of the pool each row lists, [rows, pool]; indices outside the pool are ignored."""
  return np.stack([np.isin(np.arange(pool), row) for row in rows])
