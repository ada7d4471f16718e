"""A fake workdir: two evaluations of three questions, both stages' metrics, a hostile reply."""

import base64
import io
import json
import math

import numpy as np
from PIL import Image, ImageDraw
import pytest

from vr_jax.envs import moss_chatv
from vr_jax.eval import evaluated_episode
from vr_jax.rewards import accuracy

HOSTILE = (
  "<think>At 0s, the circle is red."
  "</textarea></pre></script><script>document.title='owned'</script>\n"
  "<img src=x onerror=\"document.title='owned'\"> 'single' \"double\" & &amp; &#60;\n"
  "\u202ereversed\u202c 日本語 🎉 \x00 \ud800 ]]> <!-- <style>*{display:none}</style>\n"
  "</think>\n<answer>B</answer><svg/onload=document.title='owned'>" + "very long " * 1000
)
COLOURS = ("red", "green", "blue", "yellow")
SHADES = {"red": "#d9483b", "green": "#3f9b57", "blue": "#3c6fd1", "yellow": "#e3b23c"}


def frame(colour: str, across: float) -> str:
  """A base64 JPEG of 56 x 56 pixels with a circle."""
  image = Image.new("RGB", (56, 56), "#f1efe9")
  centre = 12 + 32 * across
  ImageDraw.Draw(image).ellipse((centre - 9, 19, centre + 9, 37), fill=SHADES[colour])
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=92)
  return base64.b64encode(buffer.getvalue()).decode()


def rollout(identity: str, steps: list[str], reply: str, correct: bool) -> dict:
  """A rollout whose reference has four steps; aligned if the reply has enough steps."""
  reference = [f"At {2 * index}s, the circle is {colour}." for index, colour in enumerate(COLOURS)]
  rng = np.random.default_rng(len(steps))
  cost = [
    [0.02 if step == wanted else round(rng.uniform(0.5, 0.95), 3) for step in steps]
    for wanted in reference
  ]
  feasible = len(steps) >= len(reference)
  path = [[index, index + len(steps) - len(reference)] for index in range(len(reference))]
  distance = sum(cost[row][column] for row, column in path) / 4 if feasible else None
  return {
    "id": identity,
    "video": f"{identity}.mp4",
    "question": "Which colour will the circle have at 9s?",
    "options": ["A. red", "B. green", "C. blue", "D. yellow"],
    "answer": "B",
    "problem_type": "multiple choice",
    "shown": [0.0, 8.0],
    "times": [float(index) for index in range(8)],
    "reply": reply,
    "parsed_answer": accuracy.answer_text(reply),
    "accuracy": float(correct),
    "tokens": 40 + len(steps),
    "truncated": False,
    "reference": [
      {"text": text, "start": 2.0 * index, "end": 2.0 * index + 2}
      for index, text in enumerate(reference)
    ],
    "steps": steps,
    "alignment": {"cost": cost, "path": path if feasible else [], "distance": distance},
    "rewards": {
      "accuracy": float(correct),
      "format": 1.0,
      "process": math.exp(-distance) if feasible else 0.0,
    },
    "metrics": {
      "accuracy": float(correct),
      "accuracy/multiple choice": float(correct),
      "process_reward": math.exp(-distance) if feasible else 0.0,
      "trace_consistency": 0.75 if feasible else 0.2,
      "completions/mean_length": 40.0 + len(steps),
    },
  }


def frames(identity: str, count: int = 8) -> dict:
  """The frames of a question."""
  return {
    "id": identity,
    "frames": {str(i): frame(COLOURS[4 * i // count], i / count) for i in range(count)},
  }


def write_evaluation(workdir, evaluation: dict, replies: list[dict]) -> None:
  """Writes an evaluation and its replies, as the stage does."""
  path = workdir / "eval" / f"{evaluation['name']}.json"
  path.write_text(json.dumps(evaluation))
  path.with_suffix(".jsonl").write_text("".join(json.dumps(each) + "\n" for each in replies))


def keep_one_reply(workdir, reply: dict, frames: dict) -> None:
  """Leaves one evaluation with one reply, whose frames are shown."""
  evaluation = json.loads((workdir / "eval" / "before_rl.json").read_text())
  for path in (workdir / "eval").iterdir():
    path.unlink()
  write_evaluation(workdir, evaluation, [reply])
  (workdir / "eval" / "frames.jsonl").write_text(json.dumps(frames) + "\n")


def read_replies(path) -> list[dict]:
  """The replies of eval/<name>.jsonl."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def replied(steps: list[str], answer: str) -> str:
  return "<think>" + "\n".join(steps) + f"</think>\n<answer>{answer}</answer>"


def evaluation(name: str, stage: str, step: int, shift: float) -> dict:
  return {
    "name": name,
    "title": name.replace("_", " ").capitalize().replace("rl", "RL"),
    "stage": stage,
    "step": step,
    "examples": 256,
    "metrics": {
      "accuracy": 0.412 + shift,
      "accuracy_interval": 0.06,
      "accuracy/multiple choice": 0.387 + shift,
      "accuracy_interval/multiple choice": 0.081,
      "accuracy/numerical": 0.441 + shift,
      "accuracy_interval/numerical": 0.102,
      "accuracy/free-form": None,
      "process_reward": 0.517 + shift,
      "trace_consistency": 0.583 + shift / 2,
      "think_answer_mismatch": 0.305 - shift / 2,
      "format": 0.962,
      "blind_accuracy": 0.263,
      "shuffled_accuracy": 0.301,
      "completions/mean_length": 61.25,
      "decode_seconds": 1.75,
      "accuracy_chance": 0.25,
    },
    "intervals": {
      "accuracy": {"low": 0.352 + shift, "high": 0.472 + shift},
      "accuracy/multiple choice": {"low": 0.306 + shift, "high": 0.468 + shift},
      "process_reward": {"low": 0.497 + shift, "high": 0.537 + shift},
    },
    "device": "1 x TPU v5e",
    "seconds": 75.0,
    "shown_as": {
      name: each.to_json()
      for name, each in {**moss_chatv.MossChatV.metrics, **evaluated_episode.METRICS}.items()
    },
  }


def metric_lines() -> list[dict]:
  """Both stages; `kl` of rl misses a value at step 7, which a logger wrote as NaN."""
  rng = np.random.default_rng(0)
  lines = [
    {"stage": "sft", "step": step, "values": {"loss": 4 * math.exp(-step / 60) + 0.2}}
    for step in range(0, 300, 10)
  ]
  for step in range(120):
    learnt = 1 - math.exp(-step / 40)
    noise = rng.normal(0, 0.05, 3)
    values = {
      "rewards/total/mean": 1.4 + 1.1 * learnt + noise[0],
      "rewards/accuracy/mean": 0.4 + 0.4 * learnt + noise[1],
      "rewards/process/mean": 0.5 + 0.3 * learnt + noise[2],
      "rewards/process/std": 0.2 - 0.1 * learnt,
      "groups_without_signal": 0.1 + 0.5 * learnt,
      "loss": 0.01 * math.sin(step / 5),
      "kl": math.nan if step == 7 else 0.002 * step,
      "entropy": 1.2 - 0.6 * learnt,
      "completions/mean_length": 62 - 6 * learnt + 20 * noise[0],
      "learning_rate": 2e-6,
      "perf/time/rollout": 0.9,
      "perf/time/step": 1.1 + 0.1 * (step % 2),
      "tokens_per_second": 5200 + 800 * noise[1],
    }
    lines.append({"stage": "rl", "step": step, "values": values})
  return lines


def make_workdir(tmp_path):
  """Makes a complete run."""
  right = [f"At {2 * index}s, the circle is {colour}." for index, colour in enumerate(COLOURS)]
  chatter = ["Let me look at the video.", *right]
  before = [
    rollout("q-001", right[:2], replied(right[:2], "C"), correct=False),
    rollout("q-002", ["At 0s, the circle is red."], HOSTILE, correct=True),
    rollout("q-003", right[::-1], replied(right[::-1], "A"), correct=False),
  ]
  after = [
    rollout("q-001", right, replied(right, "B"), correct=True),
    rollout("q-002", chatter, replied(chatter, "B"), correct=True),
    rollout("q-003", chatter, replied(chatter, "B"), correct=True),
  ]
  config = {
    "versions": {"vr_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
    "git_revision": "3d844ac0f1e2d3c4b5a697887766554433221100-dirty",
    "device": "4 x TPU v6e",
    "history": [{"mode": "all", "device": "4 x TPU v6e"}, {"mode": "eval", "device": "1 x cpu"}],
    "config": {
      "recipe": "moss_chatv",
      "rl": {"learning_rate": 2e-6, "num_generations": 8},
      "note": "</pre><script>1</script>",
    },
  }
  (tmp_path / "config.json").write_text(json.dumps(config))
  lines = [json.dumps(line) for line in metric_lines()]
  (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  (tmp_path / "eval").mkdir()
  write_evaluation(tmp_path, evaluation("after_rl", "rl", 120, 0.31), after)
  write_evaluation(tmp_path, evaluation("before_rl", "sft", 300, 0.0), before)
  shown = [json.dumps(frames(each["id"])) + "\n" for each in after]
  (tmp_path / "eval" / "frames.jsonl").write_text("".join(shown))
  return tmp_path


@pytest.fixture
def workdir(tmp_path):
  """A complete run."""
  return make_workdir(tmp_path)
