"""Rollouts: what a step's file says is what was sampled, scored and used by the update."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from tests.train import counting, nano
from vr_jax import errors, records
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import registry
from vr_jax.train import metrics, rl_loop, rollout_log, rollout_samples, scoring

STEPS, PROMPTS, GROUP = 3, 4, 4


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
  """A run of three steps; returns (workdir, what updates used at each step)."""
  workdir = tmp_path_factory.mktemp("rollouts")
  (workdir / "rollouts").mkdir()
  for name in ("step-000001.jsonl", "step-000009.0-of-2.jsonl", "notes.txt"):
    (workdir / "rollouts" / name).write_text("old\n")
  config = nano.config(data__directory=str(data), sft__steps=0, rl__steps=STEPS, rl__kl_weight=0.0)
  config.log.rollouts_kept = 2
  config.log.completions_every = 2
  used, launch = [], rl_loop.learner_lib.Learner.launch

  def watched(learner, collected, *arguments):
    launched = launch(learner, collected, *arguments)
    used.append((collected, np.asarray(learner.last_advantages)))
    return launched

  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    patch.setitem(registry.ENVIRONMENTS, "moss_chatv", counting.Counting)
    patch.setattr(rl_loop.learner_lib.Learner, "launch", watched)
    rl_loop.train(config, workdir)
  return workdir, used


def _lines(workdir, step):
  text = (workdir / "rollouts" / f"step-{step:06d}.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def test_the_latest_files_are_kept_and_what_is_no_file_of_ours_stays(run):
  names = sorted(path.name for path in (run[0] / "rollouts").iterdir())
  assert names == ["notes.txt", "step-000002.jsonl", "step-000003.jsonl"]


@pytest.mark.parametrize("step", [2, 3])
def test_a_line_has_the_replies_of_a_prompt_with_their_rewards_and_advantages(run, step):
  workdir, used = run
  collected, advantages = used[step - 1]
  judged = collected.wait_for_scores()
  lines = _lines(workdir, step)
  assert len(lines) == PROMPTS
  for row, (line, item) in enumerate(zip(lines, collected.items, strict=True)):
    example = item.example
    assert (line["step"], line["example"], line["answer"]) == (step, example.id, example.answer)
    assert line["shown"] == [example.shown.start, example.shown.end]
    assert line["times"] == item.clip.timestamps.tolist()
    assert example.question in line["prompt"]
    assert line["prompt"].count("<|video_pad|>") == 1
    assert len(line["replies"]) == GROUP
    for index, reply in enumerate(line["replies"]):
      assert reply["text"] == judged.episodes[row][index].replies[-1]
      assert reply["tokens"] == collected.lengths[row, index]
      total = judged.scores.total[row, index, 0]
      assert reply["rewards"]["total"] == total
      of_reply = advantages[row, index, : reply["tokens"]]
      assert set(of_reply.tolist()) == {reply["advantages"]["reply"]}
  values = metrics.read(workdir / "metrics.jsonl")[step - 1]["values"]
  totals = [reply["rewards"]["total"] for line in lines for reply in line["replies"]]
  assert np.mean(totals) == pytest.approx(values["rewards/total/mean"], abs=1e-6)
  assert len(set(totals)) > 1


def test_tensorboard_shows_two_replies_and_the_frames_that_were_shown(run):
  workdir, used = run
  reader = event_accumulator.EventAccumulator(str(workdir / "tensorboard" / "rl"))
  reader.Reload()
  best, worst = (reader.Tensors(f"completions/{name}") for name in ("best", "worst"))
  assert [event.step for event in best] == [event.step for event in worst] == [1, 2]
  pair = rollout_samples.choose(_lines(workdir, 2))
  shown = best[1].tensor_proto.string_val[0].decode()
  assert all(line.startswith("    ") for line in shown.split("\n"))
  text = errors.printable(pair.line["replies"][pair.best]["text"])
  assert text.split("\n")[0] in shown
  (first, second) = reader.Images("completions/frames")
  # Eight frames of 64 pixels, with gaps of two between them.
  assert (second.height, second.width) == (64, 8 * 64 + 7 * 2)
  picture = rollout_samples.strip([used[1][0].items[pair.row].clip.frames])
  assert picture is not None and picture.shape == (64, 8 * 64 + 7 * 2, 3)
  assert first.step == 1


def _lines_of(*totals):
  return [
    {"replies": [{"rewards": {"accuracy": 0.0, "total": total}} for total in group]}
    for group in totals
  ]


def test_the_pair_is_the_best_and_the_worst_of_the_group_that_differs_most():
  pair = rollout_samples.choose(_lines_of([1, 1], [3, 0, 2], [0, 3, 0]))
  assert (pair.row, pair.best, pair.worst) == (1, 0, 1)
  pair = rollout_samples.choose(_lines_of([1, 1, 1], [2, 2, 2]))
  assert (pair.row, pair.best, pair.worst) == (0, 0, 1)
  assert list(rollout_samples.choose(_lines_of([1])).replies()) == ["only"]


def test_a_terminal_gets_no_control_characters_no_markup_and_no_line_that_looks_like_ours():
  reply = {
    "text": "\x1b[2J[red]hi[/red]\nrl: complete at step 9\r\x9b31m" + "x" * 3000,
    "rewards": {"total": 1.5},
    "advantages": {"reply": None},
  }
  line = {
    "step": 7,
    "example": "a\nb\x1b]0;title\x07",
    "video": "v.mp4",
    "shown": [0, 8.5],
    "question": "Who?\nA. me",
    "answer": "A",
    "replies": [reply, reply],
  }
  pair = rollout_samples.SampledPair(row=0, line=line, best=0, worst=1)
  text = rollout_samples.terminal_text(pair, "rollouts/step-000007.jsonl")
  assert text.replace("\n", "").isprintable()
  lines = text.split("\n")
  assert lines[0].startswith("step 7: 2 of 2 replies to a b\\x1b]0;title\\x07 (v.mp4, 0 to 8.5 s)")
  assert "  │ \\x1b[2J[red]hi[/red]" in lines
  assert "  │ rl: complete at step 9\\r\\x9b31m" in lines[5]
  assert all(each.startswith("  ") for each in lines[1:])
  assert len(text) < 3500 and "more characters: rollouts/step-000007.jsonl" in text


def test_a_line_of_the_file_is_readable_in_all_scripts_and_steers_nothing():
  text = "红 \x1b[0m \x7f \x9b \u2028 \u202e \ud800 😀 é\n"
  written = rollout_log.to_line({"text": text}).decode("utf-8")
  assert json.loads(written) == {"text": text}
  assert written.rstrip("\n").isprintable() and len(written.splitlines()) == 1
  assert "红" in written and "😀" in written and "é" in written


def test_parts_of_a_reply_have_rewards_of_their_own_and_none_where_they_were_not_scored(run):
  environment = registry.make_environment(nano.recipe("tiny", "configs/videop2r.py"))
  (item, *_) = run[1][0][0].items
  segment = np.array([[[0, 0, 1, -1]]])
  scores = records.Scores(
    rewards={"accuracy": np.array([[[0.5, 1.0]]], np.float32)},
    scored=np.array([[[False, True]]]),
    total=np.array([[[0.5, 2.0]]], np.float32),
  )
  episode = environment_lib.Episode(pool=0, relevant=(), replies=("ab",))
  judged = scoring.ScoredReplies(
    episodes=[[episode]], scores=scores, segment=segment, reward_state={}, counts={}
  )
  advantages = np.array([0.0, 0.0, 0.1], np.float32)
  assert rollout_log._reply(environment, item, judged, (0, 0), advantages) == {
    "text": "ab",
    "tokens": 3,
    "rewards": {
      "perception/accuracy": None,
      "perception/total": None,
      "reasoning/accuracy": 1.0,
      "reasoning/total": 2.0,
    },
    "advantages": {"perception": 0.0, "reasoning": float(np.float32(0.1))},
  }


@pytest.mark.parametrize("every", [0, 2])
def test_steps_between_are_left_out(every, run, data, tmp_path, monkeypatch):
  context = nano.build(data)
  with context.config.unlocked():
    context.config.log.rollouts_every = every
    context.config.log.completions_every = 0
  put = []
  monkeypatch.setattr(rollout_log.RolloutLog, "_put", lambda log, step, *_: put.append(step))
  metrics_log = metrics.MetricsLog(tmp_path, "rl", first_step=1)
  log = rollout_log.RolloutLog(context, tmp_path, metrics_log, first_step=1)
  for step in (1, 2, 3, 4):
    log.write(step, run[1][0][0], jnp.zeros(1))
  log.close()
  metrics_log.close()
  assert put == ([2, 4] if every else [])


def test_a_disk_that_is_full_ends_the_run_in_one_line(run, data, tmp_path, monkeypatch):
  (collected, advantages), context = run[1][0], nano.build(data)
  (tmp_path / "rollouts").write_text("a file, where a directory should be")
  metrics_log = metrics.MetricsLog(tmp_path, "rl", first_step=1)
  log = rollout_log.RolloutLog(context, tmp_path, metrics_log, first_step=1)
  log.write(2, collected, jnp.asarray(advantages))
  with pytest.raises(OSError, match="rollouts"):
    log.wait()
  log.close()
  metrics_log.close()
