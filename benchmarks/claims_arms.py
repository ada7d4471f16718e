"""The arms that benchmarks.claims trains for each recipe, and the metrics that it reports."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way to train: overrides of the recipe, or None for the warm start alone.

  start: shared, the warm start that the arms of a seed share; own, one trained with the same
    overrides; none, random weights; or the name of an arm whose own one it starts from.
  rl: whether RL follows; if not, the result is that of the warm start.
  views: further evaluations of the trained model, (name, overrides); their accuracy is reported as
    accuracy@name.
  """

  name: str
  title: str
  overrides: tuple[str, ...] | None
  start: str = "shared"
  rl: bool = True
  views: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims:
  """The arms and metrics of a recipe's report.

  config: the recipe and its size, as `--config` takes it.
  seeds: of its runs.
  columns: (title, metric).
  pairs: arms whose differences are reported.
  curves: (title, metric of training), reported for each tenth of training.
  evaluation: overrides of all evaluations.
  tracks: whether what evaluated replies find is followed by a SAM2 as well, which the command
    trains (claims_tracker.py).
  """

  config: str
  seeds: tuple[int, ...]
  arms: tuple[Arm, ...]
  columns: tuple[tuple[str, str], ...]
  pairs: tuple[tuple[str, str], ...]
  curves: tuple[tuple[str, str], ...] = ()
  evaluation: tuple[str, ...] = ()
  tracks: bool = False


# One turn shows the whole frame budget, and the thoughts describe each frame.
SINGLE = (
  "--config.env.turns=1",
  "--config.env.history_turns=0",
  "--config.rl.max_new_tokens=112",
  "--config.sft.max_reply_tokens=112",
)
# A model trained with three turns is evaluated with other numbers. Prompts then name numbers of
# turns that it has not seen, and five turns show more frames.
TURNS = (
  ("1 turns", SINGLE),
  *(
    (f"{turns} turns", (f"--config.env.turns={turns}", f"--config.env.history_turns={turns - 1}"))
    for turns in (2, 5)
  ),
)
# One reply names the key frame and the box, from the frames of the first turn.
DIRECT = (
  "--config.env.decompose=False",
  "--config.rl.max_new_tokens=112",
  "--config.sft.max_reply_tokens=112",
  "--config.turns.episode_buckets=(160, 304)",
)
CLAIMS = {
  "moss_chatv": Claims(
    config="configs/moss_chatv.py:tiny",
    seeds=(21, 22, 23, 24, 25),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(
        name="grpo",
        title="GRPO, accuracy + format",
        overrides=("--config.env.weights.process=0.0",),
      ),
      Arm(name="prr", title="the same + PRR (jump)", overrides=()),
      Arm(
        name="naive",
        title="the same + PRR, naive whole-sequence DTW",
        overrides=("--config.env.dtw_alignment=naive",),
      ),
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("PRR", "process_reward"),
      ("true trace consistency", "trace_consistency"),
      ("think-answer mismatch", "think_answer_mismatch"),
      ("reply tokens", "completions/mean_length"),
    ),
    pairs=(("grpo", "sft"), ("prr", "sft"), ("prr", "grpo"), ("prr", "naive")),
  ),
  "videop2r": Claims(
    config="configs/videop2r.py:tiny",
    seeds=(31, 32, 33),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(name="rl", title="RL only, from random weights", overrides=(), start="none"),
      Arm(
        name="grpo",
        title="GRPO, one reward (reasoning's: answer, format, length)",
        overrides=("--config.rl.advantage_estimator=outcome",),
      ),
      Arm(name="pa", title="PA-GRPO", overrides=()),
      Arm(
        name="no_perception",
        title="PA-GRPO without the reward of perception",
        overrides=("--config.env.weights.perception=0.0",),
      ),
      Arm(
        name="no_reasoning",
        title="PA-GRPO without the reward of reasoning",
        overrides=("--config.env.weights.reasoning=0.0",),
      ),
      Arm(
        name="joint",
        title="both rewards on all tokens",
        overrides=("--config.rl.advantage_estimator=joint",),
      ),
      Arm(
        name="t_grpo",
        title="T-GRPO (the same one reward, and that of temporal order)",
        overrides=(
          "--config.rl.advantage_estimator=outcome",
          "--config.rl.num_shuffled_generations=4",
        ),
      ),
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("observation suffices", "observation_sufficiency"),
      ("think-answer mismatch", "think_answer_mismatch"),
      ("true trace consistency", "trace_consistency"),
      ("perception without signal", "training/frac_reward_zero_std/perception"),
      ("reasoning without signal", "training/frac_reward_zero_std/reasoning"),
      ("reply tokens", "completions/mean_length"),
    ),
    pairs=(
      ("pa", "sft"),
      ("grpo", "sft"),
      ("pa", "rl"),
      ("pa", "grpo"),
      ("pa", "no_perception"),
      ("pa", "no_reasoning"),
      ("pa", "joint"),
      ("pa", "t_grpo"),
    ),
  ),
  "video_mtr": Claims(
    config="configs/video_mtr.py:tiny",
    seeds=(41, 42, 43),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(
        name="single",
        title="one turn that shows the whole budget",
        overrides=SINGLE,
        start="own",
      ),
      Arm(
        name="no_turn_rewards",
        title="several turns, rewarded for answer and format alone",
        overrides=("--config.env.relevance.relevance=0.0", "--config.env.exploration.stages=()"),
      ),
      Arm(
        name="no_gate",
        title="rewards of turns without the gate",
        overrides=("--config.env.relevance.gate=False",),
      ),
      Arm(
        name="no_bootstrapping",
        title="without exploration bootstrapping",
        overrides=("--config.env.exploration.stages=()",),
      ),
      Arm(name="full", title="full (PPO)", overrides=(), views=TURNS),
      Arm(name="grpo", title="GRPO credit", overrides=("--config.rl.advantage_estimator=episode",)),
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("frame recall", "frame_recall"),
      ("turns", "turns"),
      ("retrieval rate at first", "first/retrieval_rate"),
      ("and at last", "last/retrieval_rate"),
      ("accuracy with 1 turn", "accuracy@1 turns"),
      ("2", "accuracy@2 turns"),
      ("5", "accuracy@5 turns"),
      ("bonus ended", "last/exploration/ended"),
    ),
    curves=(
      ("Turns that retrieve", "retrieval_rate"),
      ("Frame recall", "frame_recall"),
      ("Episodes that are right", "episode_accuracy"),
      ("Turns of an episode", "turns"),
    ),
    pairs=(
      ("full", "sft"),
      ("full", "single"),
      ("full", "no_turn_rewards"),
      ("full", "no_gate"),
      ("full", "no_bootstrapping"),
      ("full", "grpo"),
      ("no_bootstrapping", "no_turn_rewards"),
    ),
  ),
  "revseg": Claims(
    config="configs/revseg.py:tiny",
    seeds=(54, 55, 56),
    arms=(
      Arm(name="sft", title="decomposition alone: two turns, before RL", overrides=None),
      Arm(name="full", title="both: two turns, RL with the soft temporal reward", overrides=()),
      Arm(
        name="direct_sft",
        title="neither: one reply gives frame and box, before RL",
        overrides=DIRECT,
        start="own",
        rl=False,
      ),
      Arm(name="direct", title="RL alone", overrides=DIRECT, start="direct_sft"),
      Arm(
        name="visible",
        title="the same, temporal reward 0 or 1 (visible)",
        overrides=("--config.env.reward.temporal_kind=visible",),
      ),
      Arm(
        name="none",
        title="the same, no temporal reward",
        overrides=("--config.env.reward.temporal_kind=none",),
      ),
    ),
    columns=(
      ("J&F, exact tracker", "j_and_f"),
      ("J&F, our small SAM2", "j_and_f@sam2"),
      ("key frame visible", "key_frame_visible"),
      ("key frame value", "key_frame_value"),
      ("box IoU", "box_iou"),
      ("IoU above 0.5", "accuracy"),
      ("right format", "format"),
    ),
    pairs=(
      ("direct", "direct_sft"),
      ("full", "sft"),
      ("sft", "direct_sft"),
      ("full", "direct"),
      ("full", "visible"),
      ("full", "none"),
      ("visible", "none"),
    ),
    curves=(
      ("Boxes with an IoU above 0.5", "episode_accuracy"),
      ("Key frame value", "key_frame_value"),
    ),
    evaluation=("--config.eval.tracker=exact",),
    tracks=True,
  ),
}
# The same on other networks: are the gains the same? Of Qwen3-VL, the warm start and the recipe.
CLAIMS |= {
  "moss_chatv_phi2": dataclasses.replace(
    CLAIMS["moss_chatv"], config="configs/moss_chatv.py:tiny_phi2", seeds=(61, 62, 63)
  ),
  "moss_chatv_qwen3vl": dataclasses.replace(
    CLAIMS["moss_chatv"],
    config="configs/moss_chatv.py:tiny_qwen3vl",
    seeds=(64, 65, 66),
    arms=tuple(arm for arm in CLAIMS["moss_chatv"].arms if arm.name in ("sft", "prr")),
    pairs=(("prr", "sft"),),
  ),
}
_ANSWER_AND_TRACE = (
  ("accuracy", "accuracy"),
  ("true trace consistency", "trace_consistency"),
  ("think-answer mismatch", "think_answer_mismatch"),
  ("PRR", "process_reward"),
  ("own process reward at first", "first/rewards/process/mean"),
  ("and at last", "last/rewards/process/mean"),
  ("reply tokens", "completions/mean_length"),
)
_GRPO = Arm(
  name="grpo",
  title="GRPO, accuracy + format",
  overrides=("--config.env.weights.process=0.0",),
)
# What docs/claims/<name>/notes.md expects of these was written before any run.
CLAIMS |= {
  "moss_chatv_wording": Claims(
    config="configs/moss_chatv.py:tiny_wordings",
    seeds=(71, 72, 73),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      _GRPO,
      Arm(name="rouge", title="the same + PRR, steps compared by ROUGE", overrides=()),
      Arm(
        name="claims",
        title="the same + PRR, steps compared by claims",
        overrides=("--config.env.step_distance=claims",),
      ),
      Arm(
        name="embeddings",
        title="the same + PRR, steps compared by embeddings",
        overrides=("--config.env.step_distance=embeddings",),
      ),
    ),
    columns=_ANSWER_AND_TRACE,
    pairs=(
      ("rouge", "grpo"),
      ("claims", "grpo"),
      ("embeddings", "grpo"),
      ("claims", "rouge"),
      ("embeddings", "rouge"),
    ),
    curves=(("Process reward, each arm by its own distance", "rewards/process/mean"),),
  ),
  "moss_chatv_steps": Claims(
    config="configs/moss_chatv.py:tiny_steps",
    seeds=(74, 75, 76),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      _GRPO,
      Arm(name="prr", title="the same + PRR (jump)", overrides=()),
      Arm(
        name="naive",
        title="the same + PRR, naive whole-sequence DTW",
        overrides=("--config.env.dtw_alignment=naive",),
      ),
    ),
    columns=_ANSWER_AND_TRACE,
    pairs=(("prr", "grpo"), ("naive", "grpo"), ("prr", "naive")),
    curves=(("Process reward, each arm by its own alignment", "rewards/process/mean"),),
  ),
  "moss_chatv_int8": Claims(
    config="configs/moss_chatv.py:tiny",
    seeds=(77, 78, 79, 80, 81),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(name="floats", title="sampled with the weights as trained", overrides=()),
      Arm(
        name="int8",
        title="sampled with int8 weights",
        overrides=("--config.rl.sampler_weights=int8",),
      ),
    ),
    columns=(
      ("accuracy", "accuracy"),
      ("PRR", "process_reward"),
      ("true trace consistency", "trace_consistency"),
      ("reward of training", "training/rewards/total/mean"),
      ("at last", "last/rewards/total/mean"),
      ("abs(Δ log p) of replies, nats", "training/sampling/reply_logp_difference/mean"),
      ("p99 of tokens", "training/sampling/sampling_logp_difference/p99"),
      ("weights cut", "training/sampling/tis_capped_fraction"),
      ("reply tokens", "completions/mean_length"),
    ),
    pairs=(("int8", "floats"), ("floats", "sft"), ("int8", "sft")),
    curves=(
      ("Total reward", "rewards/total/mean"),
      ("Process reward", "rewards/process/mean"),
    ),
  ),
  # Objects are out of sight in many frames: is a key frame that shows more worth a reward?
  "revseg_hidden": dataclasses.replace(
    CLAIMS["revseg"],
    config="configs/revseg.py:tiny_hidden",
    seeds=(84, 85, 86),
    arms=(
      Arm(name="sft", title="SFT only", overrides=None),
      Arm(name="soft", title="RL, soft temporal reward", overrides=()),
      *(arm for arm in CLAIMS["revseg"].arms if arm.name in ("visible", "none")),
    ),
    columns=tuple(column for column in CLAIMS["revseg"].columns if "@sam2" not in column[1]),
    pairs=(
      ("soft", "sft"),
      ("visible", "sft"),
      ("none", "sft"),
      ("soft", "visible"),
      ("soft", "none"),
      ("visible", "none"),
    ),
    curves=(*CLAIMS["revseg"].curves, ("Key frames that show the object", "key_frame_visible")),
    tracks=False,
  ),
}
