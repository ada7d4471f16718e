"""Evaluated replies get the advantages that an update would give: same estimator, same group."""

import pytest

from tests.eval import rigged
from tests.train import nano
from vr_jax.envs import videop2r
from vr_jax.eval import evaluate

ASKED = {"data__simulate__questions_per_video": 1, "data__simulate__world__families": ("choice",)}
WRONG = videop2r.format_reply("Nothing.", "Who knows.", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return nano.make_data(tmp_path_factory.mktemp("nano"), "configs/videop2r.py", **ASKED)


def rig(monkeypatch, context):
  """Right for single replies and the first of each group; wrong for others and shuffled frames."""
  wrong, shuffled = (
    context.processor.encode_reply(WRONG),
    context.config.rl.num_shuffled_generations,
  )

  def reply_to(item, group_index, group, **_):
    return item.reply if group_index == 0 and group != shuffled else wrong

  rigged.rig(monkeypatch, reply_to)
  monkeypatch.setattr(evaluate.encoder, "encode", lambda graphdef, params, prompt: prompt)


# Right replies earn 2 for each segment, wrong ones 1 (their format). Evaluated replies join a group
# of one right and two wrong replies. T-GRPO adds 0.3 to the reasoning of right ones.
CASES = {
  "by the std": ({}, 1.0, 1.0),
  "not by the std": ({"rl__normalize_by_std": False}, 0.5, 0.5),
  "T-GRPO": ({"rl__normalize_by_std": False, "rl__num_shuffled_generations": 2}, 0.5, 0.65),
  "all tokens alike": (
    {"rl__normalize_by_std": False, "rl__advantage_estimator": "episode"},
    1.0,
    1.0,
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_evaluated_reply_has_the_advantages_of_an_update(data, monkeypatch, name):
  overrides, perception, reasoning = CASES[name]
  context = nano.build(
    data,
    recipe="configs/videop2r.py",
    **{
      **ASKED,
      "env__weights__length": 0.0,
      "rl__num_generations": 3,
      "rl__max_new_tokens": 200,
      "eval__blind": False,
      "eval__shuffled_frames": False,
      **overrides,
    },
  )
  rig(monkeypatch, context)
  replies = evaluate.evaluate(context, {}, name="test")["replies"]
  assert ["segment_advantages" in reply for reply in replies] == [True, True, False]
  for reply in replies[:2]:
    made = reply["segment_advantages"]
    assert made == pytest.approx({"perception": perception, "reasoning": reasoning}, abs=1e-5)
