"""Two processes that share the rows of a batch: one asks the judge, both learn the same."""

import shutil
import zlib

import pytest

from tests.faults import runs
from tests.rewards import judge_server
from tests.train import nano, shared_rows
from vr_jax.train import metrics

VARIABLE = "SHARED_ROWS_KEY"
RECIPE = "configs/videop2r.py"
FIELDS = {
  "sft.steps": 0,
  "rl.steps": 2,
  "rl.eval_every": 2,
  "rl.eval_split": "test",
  "rl.eval_examples": 3,
  "judge.kind": "openai",
  "judge.model": "m",
  "judge.key_variable": VARIABLE,
}


def answer(request):
  return judge_server.Reply(
    text=judge_server.YES if zlib.crc32(request.text.encode()) % 2 else judge_server.NO
  )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Of one process with two devices and of two with one: workdir, and how often each asked."""
  root = tmp_path_factory.mktemp("shared")
  data = nano.make_data(root / "data", RECIPE)
  found = []
  with pytest.MonkeyPatch.context() as patch, judge_server.serve(answer) as server:
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setenv(VARIABLE, judge_server.KEY)
    for processes in (1, 2):
      own = shutil.copytree(data, root / f"data-{processes}")  # a judge's cache is with the data
      fields = {**FIELDS, "judge.base_url": server.url("openai"), "data.directory": own}
      flags = [f"--config.{name}={value}" for name, value in fields.items()]
      words = nano.arguments(
        root / str(processes), "--config.mesh=(1,1,2,1)", *flags, mode="rl", recipe=RECIPE
      )
      run = runs.LocalRun.start(
        words,
        root / str(processes),
        processes=processes,
        devices=2 // processes,
        module="tests.train.shared_rows",
      )
      ended = run.finish(200)
      assert set(ended.codes) == {0}, ended.said
      asked = sum("seen " in text for text in server.texts())  # not the words that try the key
      found.append((root / str(processes), asked))
      server.requests.clear()
  return found


def test_processes_with_the_same_rows_ask_a_judge_once(made):
  (_, alone), (workdir, together) = made
  assert together == alone == 2 * 16 + 3
  first, other = shared_rows.read(workdir, "scored").values()
  assert sum(first) == alone and not other


def test_and_all_learn_what_one_process_does(made):
  one, two = (metrics.read(workdir / "metrics.jsonl") for workdir, _ in made)
  assert len(one) == len(two) == FIELDS["rl.steps"]
  for alone, together in zip(one, two, strict=True):
    own = {k: v for k, v in alone["values"].items() if not k.startswith(("perf/", "judge/"))}
    assert {k: together["values"][k] for k in own} == pytest.approx(own, rel=1e-5, abs=1e-7)
  assert one[0]["values"]["rewards/perception/accuracy/std"] > 0.1


def test_the_next_batch_is_on_the_devices_of_all_before_it_is_used(made):
  _, (workdir, _) = made
  shapes = shared_rows.read(workdir, "ahead")
  assert len(shapes[0]) == 1  # before the second of two steps
  assert shapes[0] == shapes[1]
