"""A served policy as a judge: it gets the judge's prompt alone, and its reply is what is read."""

import contextlib
import dataclasses

import pytest

from tests.eval import benchmark_items
from tests.serve import live_server
from vr_jax import model_endpoint
from vr_jax.eval.benchmarks import judge_questions
from vr_jax.models.common import conversation

words, about = live_server.words, live_server.about
ITEM = benchmark_items.question("blue", "judge", benchmark="mmvu")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  where = tmp_path_factory.mktemp("judge") / "run"
  told = "Think between <think> tags, then answer between <answer> tags."
  run = live_server.make_run(
    where, rl__max_new_tokens=8, model__prefix_buckets=(1920,), env__instruction=told
  )
  with live_server.serving(run) as server:
    yield server


@dataclasses.dataclass(frozen=True, kw_only=True)
class _AsItCame:
  """A judge's question whose verdict is all of the reply. Implements EndpointQuestion."""

  system: str
  text: str

  def read(self, reply: str) -> str:
    return reply


def count_tokens(served, *messages):
  turns = [conversation.Message(role=role, parts=(text,)) for role, text in messages]
  processor = served.server.preparer._context.processor
  return len(processor.encode_conversation(turns, name="x").tokens)


def test_a_judges_prompt_gets_no_instruction_of_the_recipe(served, monkeypatch):
  monkeypatch.setenv("A_KEY", "none")
  asked = judge_questions.about_answer(ITEM, "It is red.")
  messages = [
    {"role": "system", "content": asked.system},
    {"role": "user", "content": asked.text},
  ]
  plain = served.ask(None, messages=messages, temperature=0.0, max_tokens=8)
  expected = count_tokens(served, ("system", asked.system), ("user", asked.text))
  assert plain.usage.prompt_tokens == expected
  told = served.ask(None, messages=messages, temperature=0.0, max_tokens=8, recipe_instruction=True)
  assert told.usage.prompt_tokens > expected
  assert told.vr_jax["prompt_hash"] != plain.vr_jax["prompt_hash"]
  # The judge's client reads what the server said to this prompt.
  limits = model_endpoint.Limits(max_tokens=8)
  judge = model_endpoint.connect(
    "judge",
    "openai",
    model="run",
    base_url=f"{served.url}/v1",
    key_variable="A_KEY",
    limits=limits,
    temperature=0.0,
  )
  with contextlib.closing(judge):
    (verdict,) = judge.ask([_AsItCame(system=asked.system, text=asked.text)])
  assert verdict.strip() == live_server.text(plain).strip()


def test_the_instruction_is_added_or_left_out_as_the_client_says(served):
  one = served.ask("Which colour?", max_tokens=1)
  none = served.ask("Which colour?", max_tokens=1, recipe_instruction=False)
  assert none.usage.prompt_tokens == count_tokens(served, ("user", "Which colour?"))
  assert none.usage.prompt_tokens < one.usage.prompt_tokens
  error = served.refused("Which colour?", recipe_instruction="no")
  assert "recipe_instruction: needs true or false" in error.message
