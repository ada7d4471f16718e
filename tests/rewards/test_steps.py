import pytest

from vr_jax.rewards import steps


@pytest.mark.parametrize(
  ("reply", "think"),
  [
    ("<think>a</think><answer>B</answer>", "a"),
    ("so <think> a\nb </think> <think>c</think>", " a\nb "),
    ("<think>a<think>b</think>", "a<think>b"),
    ("<think>cut short", "cut short"),
    ("<think>never closed<answer>B</answer>", "never closed"),
    ("a</think><answer>B</answer>", ""),
    ("<THINK>a</THINK>", ""),
    ("", ""),
  ],
)
def test_the_trace_is_what_the_first_think_block_holds(reply, think):
  assert steps.think_text(reply) == think


@pytest.mark.parametrize(
  ("think", "expected"),
  [
    ("", []),
    (" \n\n. \n--- ", []),
    ("One thing. Another!  And a third? Yes", ["One thing.", "Another!", "And a third?", "Yes"]),
    ('He said "stop." Then left.', ['He said "stop."', "Then left."]),
    ("It is 2.5 wide, i.e. small", ["It is 2.5 wide, i.e.", "small"]),
    ("圆是红色的。然后变绿。", ["圆是红色的。", "然后变绿。"]),
    ("1. The ball is red. It moves.\n2) It stops.", ["The ball is red. It moves.", "It stops."]),
    ("Step 1: look.\nSTEP 2 - wait.\n- done", ["look.", "- wait.", "done"]),
    (
      "At 0s, the ball is red.\nAt 2s, it is green. It stays.",
      ["At 0s, the ball is red.", "At 2s, it is green. It stays."],
    ),
    (
      "At 0s, the ball is red. At 2.5 s, it is green. It stays. So at 4s it is blue.",
      ["At 0s, the ball is red.", "At 2.5 s, it is green. It stays.", "So at 4s it is blue."],
    ),
    (
      "[0:02] It opens. It shuts.\nFrom 2 to 4 s, rest.",
      ["[0:02] It opens. It shuts.", "From 2 to 4 s, rest."],
    ),
    (
      "Let me see. Fine.\n1. The ball is red.\nSo B. Or C.",
      ["Let me see.", "Fine.", "The ball is red.", "So B.", "Or C."],
    ),
    ("2 balls are red. 3 are blue.", ["2 balls are red.", "3 are blue."]),
    ("At first it is red. It moves.", ["At first it is red.", "It moves."]),
  ],
)
def test_traces_are_split(think, expected):
  assert steps.split_steps(think) == expected


@pytest.mark.parametrize(
  ("reply", "rest"),
  [
    ("<think>a</think>\n b ", "b"),
    ("a</think>b", "b"),
    ("<think>a</think>b</think>c", "c"),
    (" <think>never ends", ""),
    ("a <think> is a tag", "a <think> is a tag"),
    ("<think>a</think>", ""),
    ("", ""),
  ],
)
def test_a_reply_without_its_thoughts_is_what_follows_them(reply, rest):
  assert steps.without_thoughts(reply) == rest
