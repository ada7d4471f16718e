"""The plan of the memory bank against its rules, written out frame by frame."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import memory

CONFIG = dataclasses.replace(config_lib.smallest(), memories=4, pointers=6)


def rules(frame, *, reverse, prompted, tracked, count):
  """What an object attends to on a frame: memories with their age, and pointers with theirs."""
  step = -1 if reverse else 1
  memories = {(f, CONFIG.memories - 1) for f in prompted}
  memories |= {(frame - step * d, d - 1) for d in (1, 2, 3) if frame - step * d in tracked}
  pointers = {(f, (frame - f) * step) for f in prompted if (frame - f) * step >= 0}
  most = min(count, CONFIG.pointers)
  pointers |= {(frame - step * d, d) for d in range(1, most) if frame - step * d in tracked}
  return memories, {(f, round(age / max(most - 1, 1), 4)) for f, age in pointers}


@given(
  count=st.integers(1, 30),
  data=st.data(),
  fresh=st.booleans(),
)
def test_each_frame_attends_to_what_the_rules_say(count, data, fresh):
  frames = st.sets(st.integers(0, count - 1), min_size=1, max_size=3)
  prompted = [sorted(data.draw(frames)) for _ in range(2)]
  start = min(min(each) for each in prompted)
  slots, pointer_slots = memory.ring_sizes(CONFIG)
  holds = [[{}, {}] for _ in prompted]  # what is in each slot, for memories and pointers
  tracked = [set() for _ in prompted]
  for number, one in enumerate(memory.passes(start, count, fresh_reverse=fresh)):
    if number and fresh:
      tracked = [set() for _ in prompted]
    plan = memory.plan(one, prompted, count, CONFIG, most_prompted=3)
    for step, frame in enumerate(one.frames):
      for index, own in enumerate(prompted):
        expected = rules(
          frame, reverse=number == 1, prompted=own, tracked=tracked[index], count=count
        )
        names = (("slot", "valid", "age"), ("pointer_slot", "pointer_valid", "pointer_age"))
        for kind, (slot, valid, age) in enumerate(names):
          found = [
            (own[s] if s < 3 else holds[index][kind][s - 3], round(float(a), 4))
            for s, v, a in zip(
              getattr(plan, slot)[step, index],
              getattr(plan, valid)[step, index],
              getattr(plan, age)[step, index],
              strict=True,
            )
            if v
          ]
          assert len(found) == len(expected[kind])
          assert set(found) == expected[kind]
        position = plan.prompted[step, index]
        write = plan.write[step, index], plan.pointer_write[step, index]
        if frame in own:
          assert own[position] == frame
          assert write == (slots - 1, pointer_slots - 1)
        else:
          assert position == -1
          assert write[0] < slots - 1
          assert write[1] < pointer_slots - 1
          holds[index][0][write[0]] = holds[index][1][write[1]] = frame
          tracked[index].add(frame)


def test_the_first_frame_has_no_backward_pass():
  assert [p.frames for p in memory.passes(0, 5, fresh_reverse=False)] == [range(5)]
  forward, backward = memory.passes(3, 5, fresh_reverse=False)
  assert list(forward.frames) == [3, 4]
  assert list(backward.frames) == [3, 2, 1, 0]


def test_padding_of_videos_attends_to_nothing_and_writes_where_nobody_reads():
  plans = [
    memory.plan(memory.NO_PASS, [[0]], 3, CONFIG, most_prompted=1),
    memory.plan(
      memory.passes(0, 3, fresh_reverse=False)[0], [[0], [1]], 3, CONFIG, most_prompted=1
    ),
  ]
  joined = memory.join(plans, CONFIG, objects=2, steps=4)
  slots, pointer_slots = memory.ring_sizes(CONFIG)
  padding = np.ones((4, 4), bool)
  padding[:3, 2:] = False
  assert not joined.valid[padding].any()
  assert not joined.pointer_valid[padding].any()
  assert (joined.write[padding] == slots - 1).all()
  assert (joined.pointer_write[padding] == pointer_slots - 1).all()
  assert (joined.prompted[padding] == -1).all()
