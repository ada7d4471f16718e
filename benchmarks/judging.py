"""Measures what a judge that answers in 300 ms costs a training step, against an instant judge.

    python -m benchmarks.judging

Runs RL steps of the tiny recipe of VideoP2R from random weights, in turn with the `rule` judge and
with `openai` at a local server that answers each question after 300 ms, 32 in flight. After so few
steps hardly any reply has an observation, so the environment here has the judge read whole replies.
The learning rate is 0, so that all runs sample the same replies. A first run compiles for all of
them and is left out. Both modes are run: on policy, and one step off policy
(config.rl.one_step_off_policy), where replies are judged while the next ones are sampled and the
update runs. Prints one JSON line; the goal is a step at most 1.1 times as long, off policy: on
policy the update waits for 128 verdicts, at least 1.2 s.
"""

from collections.abc import Iterator, Sequence
import contextlib
from http import server
import json
import multiprocessing
from multiprocessing import connection
import os
from pathlib import Path
import tempfile
import time

import ml_collections
import numpy as np

from benchmarks import measure
from vr_jax import main as vr_jax
from vr_jax import records
from vr_jax.envs import environment, registry, videop2r
from vr_jax.rewards import judge
from vr_jax.train import metrics, rl_loop

SECONDS = 0.3  # that an answer takes
STEPS = 8
WARM_UP = 2  # steps of each run that are left out
ROUNDS = 2
GOAL = 1.1
KEY = "VR_JAX_BENCHMARK_KEY"
ANSWER = {
  "id": "1",
  "object": "chat.completion",
  "created": 0,
  "model": "slow",
  "choices": [
    {
      "index": 0,
      "finish_reason": "stop",
      "message": {"role": "assistant", "content": "<judgement>Yes</judgement>"},
    }
  ],
}


class Asking(videop2r.VideoP2R):
  """The recipe's environment, but the judge reads every whole reply."""

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """Scores both segments of a reply by its verdict, plus fixed random numbers."""
    cases = [
      judge.JudgeCase(example=example, observation=f"{place} {text}")
      for example, texts in zip(examples, replies.texts, strict=True)
      for place, text in enumerate(texts)
    ]
    verdicts = np.array([bool(verdict) for verdict in self.judge.verdicts(cases)], np.float32)
    luck = np.random.default_rng(0).random(replies.segment.shape[:2], np.float32)
    total = np.repeat((verdicts.reshape(luck.shape) + luck)[..., None], 2, axis=-1)
    return records.Scores(rewards={"luck": total}, scored=np.ones(total.shape, bool), total=total)


class SlowJudgeHandler(server.BaseHTTPRequestHandler):
  """Answers in the OpenAI protocol after `SECONDS`."""

  protocol_version = "HTTP/1.1"

  def do_POST(self) -> None:
    """Gives the same answer to every request."""
    self.rfile.read(int(self.headers["Content-Length"]))
    time.sleep(SECONDS)
    body = json.dumps(ANSWER).encode()
    self.send_response(200)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, *_: object) -> None:
    """Logs nothing."""


class SlowJudgeServer(server.ThreadingHTTPServer):
  """Queues all connections at once: a client that is refused tries again a second later."""

  request_queue_size = 128


def serve(port: connection.Connection) -> None:
  """Serves until the process is ended; sends its port first."""
  judge_server = SlowJudgeServer(("127.0.0.1", 0), SlowJudgeHandler)
  port.send(judge_server.server_port)
  judge_server.serve_forever()


@contextlib.contextmanager
def endpoint() -> Iterator[str]:
  """Runs the server in a process of its own; yields its base URL."""
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=serve, args=(theirs,), daemon=True)
  process.start()
  try:
    yield f"http://127.0.0.1:{ours.recv()}/v1"
  finally:
    process.kill()


def config_of(workdir: Path, **fields: object) -> ml_collections.ConfigDict:
  """The tiny recipe from random weights, over few videos."""
  fixed = {
    "data.simulate.videos": 200,
    "data.directory": workdir.parent / "data",
    "sft.steps": 0,
    "rl.steps": STEPS,
    "rl.checkpoint_every": STEPS,
    "rl.learning_rate": 0.0,
    "judge.key_variable": KEY,
  }
  overrides = [f"--config.{name}={value}" for name, value in {**fixed, **fields}.items()]
  recipe = ["--config=configs/videop2r.py:tiny", f"--workdir={workdir}"]
  return vr_jax.parse_flags(["judging", *recipe, *overrides])[0]


def step_seconds(workdir: Path) -> list[float]:
  """Seconds of the measured steps, from the metrics."""
  lines = metrics.read(workdir / "metrics.jsonl")
  return [line["values"]["perf/time/step"] for line in lines if line["step"] > WARM_UP]


def main() -> None:
  """Runs all modes and prints the JSON line."""
  about = measure.About("openai")
  os.environ[KEY] = "none"
  registry.ENVIRONMENTS["videop2r"] = Asking
  found: dict[str, list[float]] = {}
  with tempfile.TemporaryDirectory() as directory, endpoint() as url:
    slow = {"judge.kind": "openai", "judge.model": "slow", "judge.base_url": url}
    first = Path(directory) / "first"
    for mode in ("data", "rl"):
      vr_jax.run(config_of(first), first, mode)
    for number in range(ROUNDS):
      for off in (False, True):
        for name, judged in (("rule", {}), ("slow", slow)):
          kind = f"{name}{'_off_policy' if off else ''}"
          workdir = Path(directory) / f"{kind}{number}"
          (Path(directory) / "data" / "judge.sqlite").unlink(missing_ok=True)
          rl_loop.train(config_of(workdir, **judged, **{"rl.one_step_off_policy": off}), workdir)
          found.setdefault(kind, []).extend(step_seconds(workdir))
  seconds = {name: round(float(np.median(values)), 3) for name, values in found.items()}
  ratios = {
    "on_policy": round(seconds["slow"] / seconds["rule"], 3),
    "off_policy": round(seconds["slow_off_policy"] / seconds["rule_off_policy"], 3),
  }
  result = {"seconds": seconds, "ratio": ratios, "goal": {"off_policy": GOAL}}
  print(json.dumps({"benchmark": "judging", **result, **about.fields()}))


if __name__ == "__main__":
  main()
