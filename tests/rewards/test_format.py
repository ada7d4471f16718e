import pytest

from vr_jax.rewards import format as format_lib


@pytest.mark.parametrize(
  "reply",
  [
    "<think>a</think><answer>B</answer>",
    "<think>a\nb</think> \n\t<answer>\nB</answer>",
    "<think></think><answer></answer>",
    "<think>1 < 2 > 0 <b></think>\n<answer>&amp;</answer>",
  ],
)
def test_one_block_of_each_in_order_is_right(reply):
  assert format_lib.format_reward(reply) == 1


@pytest.mark.parametrize(
  "reply",
  [
    "",
    "B",
    " <think>a</think><answer>B</answer>",
    "<think>a</think><answer>B</answer>\n",
    "<think>a</think>so<answer>B</answer>",
    "<answer>B</answer><think>a</think>",
    "<think>a<answer>B</answer></think>",
    "<think><answer>a</think></answer>",
    "<think>a</think><think>b</think><answer>B</answer>",
    "<think>a<think>b</think><answer>B</answer>",
    "<think>a</think><answer>B</answer></answer>",
    "<Think>a</Think><answer>B</answer>",
    "<think>a</think>",
    "<think>a<answer>B</answer>",
  ],
)
def test_everything_else_is_wrong(reply):
  assert format_lib.format_reward(reply) == 0
