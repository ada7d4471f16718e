"""`vr-jax judge` asks policies that `vr-jax serve` serves: from the command to cache and table."""

import json

import pytest

from tests import untrained
from tests.eval import conftest as runs
from tests.serve import live_server
from tests.train import fixed_reply, nano
from vr_jax import errors, judge_traces
from vr_jax.eval import report_data
from vr_jax.eval.trace_judging import judged_questions, rubric
from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib

# A judge that says of the trace that it sees first, and of the other one, always the same.
VERDICT = (
  '{"first": {"reason": "one", "consistency": 4, "stability": 2}',
  ', "second": {"reason": "two", "consistency": 2, "stability": 5}}',
)
PROMPT = 1408  # tokens


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  """A run with two evaluations of three questions."""
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setenv("A_KEY", "none")
  return runs.make_workdir(tmp_path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """A tokenizer that knows the words of judges' prompts, and has a token for each of VERDICT."""
  evaluated = runs.make_workdir(tmp_path_factory.mktemp("evaluated"))
  names = ("before_rl", "after_rl")
  asked = [
    rubric.ask_about(question, names)
    for question in judged_questions.read(evaluated, names).questions
  ]
  made = tokenizer_lib.train_tokenizer([each.system + each.text for each in asked], 440)
  made.add_tokens(list(VERDICT))
  return made


def _served(where, tokenizer, change):
  config = nano.config(rl__max_new_tokens=8, model__prefix_buckets=(PROMPT,))
  run = untrained.make_run(where / "run", config, change=change, tokenizer=tokenizer)
  return live_server.serving(run)


@pytest.fixture(scope="module")
def undecided(tokenizer, tmp_path_factory):
  """A server whose policy writes at random."""
  with _served(tmp_path_factory.mktemp("random"), tokenizer, nano.sharpened) as server:
    yield server


@pytest.fixture(scope="module")
def decided(tokenizer, tmp_path_factory):
  """A server whose policy writes VERDICT."""

  def change(params):
    return fixed_reply.rewritten(params, tokenizer, VERDICT)

  with _served(tmp_path_factory.mktemp("fixed"), tokenizer, change) as server:
    yield server


def judge(workdir, server, *words):
  """What judged.json says of the judge, and how many requests it took."""
  before = server.server.decoder.completed
  flags = ["--judge=endpoint", "--model=run", f"--base_url={server.url}/v1", "--key_variable=A_KEY"]
  judge_traces.judge(["judge", str(workdir), *flags, "--reply_tokens=8", *words])
  [found] = json.loads((workdir / "eval" / report_data.JUDGED).read_text())["judges"]
  return found, server.server.decoder.completed - before


def test_replies_of_a_random_policy_are_no_verdicts_and_are_counted(workdir, undecided, capsys):
  """Each of six prompts is asked twice, after a request that sees whether the endpoint works."""
  words = ("--runs=1", "--attempts=2")
  found, asked = judge(workdir, undecided, *words)
  assert (found["verdicts"], found["missing"], asked) == (6, 6, 1 + 6 * 2)
  assert found["problems"] == {"no readable verdict": 6}
  assert all(each["scores"]["after_rl"] is None for each in found["scales"].values())
  said = " ".join(capsys.readouterr().out.split())
  assert "6 of 6 verdicts missing (6 no readable verdict)" in said
  assert judge(workdir, undecided, *words) == (found, 0)
  again, asked = judge(workdir, undecided, "--runs=1", "--attempts=3")
  assert (again["missing"], asked) == (6, 1 + 6)


def test_verdicts_of_a_served_policy_are_read_and_cached_and_go_on(workdir, decided):
  """Twelve prompts are more than the four that are decoded together; a budget stops in between."""
  words = ("--runs=2", "--temperature=0")
  with pytest.raises(errors.InputError, match=r"--max_requests=6: are spent") as stopped:
    judge(workdir, decided, *words, "--max_requests=6")
  assert "5 of 12 verdicts are stored" in str(stopped.value)
  found, asked = judge(workdir, decided, *words)
  assert (found["verdicts"], found["missing"], asked) == (12, 0, 1 + 12 - 5)
  assert judge(workdir, decided, *words) == (found, 0)
  means = {
    scale: {name: score["mean"] for name, score in each["scores"].items()}
    for scale, each in found["scales"].items()
  }
  assert means == {
    "consistency": {"before_rl": 3, "after_rl": 3},
    "stability": {"before_rl": 3.5, "after_rl": 3.5},
  }
  for each in found["scales"].values():
    assert each["position"]["order_decides"]["value"] == 1
  rows = runs.read_replies(workdir / "eval" / "judged.jsonl")
  assert {row["grades"][row["order"][0]]["reason"] for row in rows} == {"one"}


def test_a_prompt_that_the_server_has_no_room_for_is_missing_and_the_others_are_judged(
  workdir, decided
):
  path = workdir / "eval" / "after_rl.jsonl"
  replies = runs.read_replies(path)
  replies[0] |= {"steps": ["0123456789" * 300], "alignment": None}
  path.write_text("".join(json.dumps(each) + "\n" for each in replies))
  found, _ = judge(workdir, decided, "--runs=1", "--temperature=0")
  assert (found["verdicts"], found["missing"]) == (6, 2)
  assert found["problems"] == {"refused (status 400)": 2}


def test_more_reply_tokens_than_the_server_gives_are_one_line(workdir, decided):
  with pytest.raises(errors.InputError, match="replies have at most 8") as refused:
    judge(workdir, decided, "--reply_tokens=9")
  assert "\n" not in str(refused.value)
