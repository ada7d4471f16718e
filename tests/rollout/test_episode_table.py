"""The table of episodes, against one Python object an episode: equal to the bit."""

import pytest

from benchmarks import episode_host
from vr_jax.rollout import episodes, slot_layout

# Devices, blocks of prompts, prompts, group; devices of a block may have slots that stay empty.
SHAPES = [(1, 1, 1, 1), (2, 2, 4, 3), (4, 1, 1, 5), (4, 2, 6, 3), (8, 2, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("turns", "window"), [(3, 1), (4, 0), (2, None), (4, 2)])
def test_a_table_tells_devices_what_objects_would_and_joins_the_same_rollout(shape, turns, window):
  devices, blocks, prompts, group = shape
  replies = prompts // blocks * group
  places = slot_layout.SlotLayout(
    devices=devices, blocks=blocks, replies=replies, slots=-(-replies // (devices // blocks))
  )
  schedule = episodes.Schedule(
    turns=turns,
    patches=0,
    window=window,
    episode_buckets=(16, 100, 700),
    decode_chunk=7,
    append_batch_size=2,
  )
  found = episode_host.play(
    places, prompt_count=prompts, group=group, schedule=schedule, max_new_tokens=40, seed=turns
  )
  assert found["chunks"] >= 2
