"""SAM2 against transformers' Sam2VideoModel, all of whose parameters are noise.

Reference: transformers 5.24, float32 on CPU. Tolerance: 1e-3 on logits (up to 10), scores, pointers
and features, one bfloat16 digit on stored memories; stage by stage with the reference's own
memories, and free over 12 frames each way.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.sam2.conftest import HAS_REFERENCE
from vr_jax.models import sam2
from vr_jax.models.sam2 import (
  image_encoder,
  layers,
  memory,
  memory_encoder,
  parameters,
  propagation,
  tracker,
)

from tests.models.sam2.conftest import FRAMES, PROMPTS, START, make_frames, prompt_session  # isort: skip

TOLERANCE = 1e-3
ROUNDING = 2.0**-7  # of bfloat16, relative
PROMPTED = ((12, 16), (14,))


def close(actual, expected, tolerance=TOLERANCE):
  np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=0, atol=tolerance)


def logits_of(segmenter, frames, prompts, *, chunk=1, fresh_reverse=False):
  """Logits and scores of each frame, one dict a pass."""
  tracks = propagation.prepare(segmenter.config, [frames], [prompts])
  passes = propagation.passes(tracks, fresh_reverse=fresh_reverse)
  found = [{} for _ in passes[0]]
  for part in propagation.run(segmenter.params, segmenter.config, tracks, passes, chunk=chunk):
    forwards = part.frames.step > 0
    for index, frame in enumerate(part.frames):
      found[0 if forwards else 1][frame] = part.logits[index], part.scores[index]
  return found


@functools.partial(jax.jit, static_argnames="config")
def features_of(params, config, pixels):
  constants = tracker.make_constants(params, config)
  weights = parameters.Weights(params)
  return image_encoder.encode(weights, config, image_encoder.normalise(pixels), constants.patches)


def test_features_are_those_of_the_reference(reference):
  import sam2_reference
  import torch

  frames = reference.frames[:1]
  mine = features_of(reference.segmenter.params, reference.case.config, frames)
  with torch.no_grad():
    found = reference.model.get_image_features(sam2_reference.pixel_values(frames))
  assert len(mine) == len(found.fpn_hidden_states)
  for actual, expected in zip(mine, found.fpn_hidden_states, strict=True):
    close(actual, expected[:, 0].numpy().reshape(actual.shape))


def test_prompted_frames_are_those_of_the_reference(reference):
  config, params = reference.case.config, reference.segmenter.params
  tracks = propagation.prepare(config, [reference.frames], [PROMPTS])
  assert tracks[0].prompted == PROMPTED
  found = propagation.look_at_prompts(params, config, tracks, 2, 2)
  for number, frames in enumerate(PROMPTED):
    for slot, frame in enumerate(frames):
      expected = reference.after_backward[number]["cond_frame_outputs"][frame]
      close(found.logits[number, slot], expected["pred_masks"][0, 0])
      close(found.score[number, slot], expected["object_score_logits"][0, 0, 0])
      close(found.pointer[number, slot], expected["object_pointer"][0, 0])
      check_memory(found.memory[number, slot], expected["maskmem_features"][:, 0])


def test_objects_and_clear_prompts_take_both_sides_of_their_thresholds_far_from_them(reference):
  case = reference.case
  outputs = [*reference.forward.values(), *reference.backward.values()]
  scores = np.array([scores for _, scores in outputs])
  assert np.abs(scores).min() > 10 * TOLERANCE
  for number in range(2):
    assert {*(scores[:, number] > 0).ravel().tolist()} == case.signs
  # The prompts of object 0 are clear.
  for frame, stability in zip(PROMPTED[0], reference.stabilities, strict=True):
    kept = reference.after_backward[0]["cond_frame_outputs"][frame]
    in_sight = kept["object_score_logits"].item() > 0
    assert in_sight == (True in case.signs)
    assert not in_sight or (stability > 0.99 if case.clear > 1 else stability < 0.978)


def check_memory(actual, expected):
  actual = np.asarray(actual, np.float32)
  assert np.all(np.abs(actual - expected) <= TOLERANCE + ROUNDING * np.abs(expected))


def test_the_memory_encoder_is_that_of_the_reference(reference):
  config, params = reference.case.config, reference.segmenter.params
  encode = jax.jit(
    lambda coarse, masks: memory_encoder.encode(
      parameters.Weights(params), config, coarse, masks, jnp.ones(1, bool)
    )
  )
  for coarse, masks, expected in reference.encoded[:3]:
    mine = encode(coarse[:1].transpose(0, 2, 3, 1), masks[:1, 0])
    close(mine[0], expected[0].reshape(expected.shape[1], -1).T)


def test_each_tracked_frame_is_that_of_the_reference_given_its_memories(reference):
  config, params, case = reference.case.config, reference.segmenter.params, reference.case
  tracks = propagation.prepare(config, [reference.frames], [PROMPTS])
  prompted = propagation.look_at_prompts(params, config, tracks, 2, 2)
  ring = jax.tree.map(np.array, tracker.empty_ring(config, 2, jnp.float32))
  sides = (
    (reference.after_forward, reference.forward),
    (reference.after_backward, reference.backward),
  )
  seen = 0
  for one, (kept, outputs) in zip(
    memory.passes(START, FRAMES, fresh_reverse=False), sides, strict=True
  ):
    plan = memory.plan(one, PROMPTED, FRAMES, config, most_prompted=2)
    for step, frame in enumerate(one.frames):
      pixels = reference.frames[frame][None, None]
      own = memory.slice_plan(plan, step, step + 1)
      given = jax.tree.map(jnp.array, ring)
      new, logits, scores = tracker.follow(params, config, pixels, own, prompted, given)
      close(logits[0], outputs[frame][0])
      close(scores[0], outputs[frame][1])
      for number in range(2):
        expected = kept[number]["non_cond_frame_outputs"].get(frame)
        if frame in PROMPTED[number]:
          continue
        seen += 1
        slot, pointer_slot = own.write[0, number], own.pointer_write[0, number]
        close(new.pointers[number, pointer_slot], expected["object_pointer"][0, 0])
        check_memory(new.memories[number, slot], expected["maskmem_features"][:, 0])
        ring.memories[number, slot] = expected["maskmem_features"][:, 0]
        ring.pointers[number, pointer_slot] = expected["object_pointer"][0, 0]
  assert seen == 2 * (FRAMES + 1) - 2 - 1 - 1, case.name


def test_both_passes_run_free_are_those_of_the_reference(reference):
  found = logits_of(reference.segmenter, reference.frames, PROMPTS)
  for mine, theirs in zip(found, (reference.forward, reference.backward), strict=True):
    assert sorted(mine) == sorted(theirs)
    for frame, (logits, scores) in theirs.items():
      close(mine[frame][0], logits)
      close(mine[frame][1], scores)


def test_a_fresh_backward_pass_is_that_of_a_new_session(first):
  import sam2_reference

  session = sam2_reference.Session(first.model, first.frames)
  prompt_session(session)
  # The reference looked at objects where others were prompted; a new session has not.
  for outputs in session.state.output_dict_per_obj.values():
    outputs["non_cond_frame_outputs"].clear()
  expected = session.run(START, reverse=True)
  _, mine = logits_of(first.segmenter, first.frames, PROMPTS, fresh_reverse=True)
  for frame, (logits, scores) in expected.items():
    close(mine[frame][0], logits)
    close(mine[frame][1], scores)
  # And it is not the backward pass after a forward one.
  assert np.abs(expected[START - 1][0] - first.backward[START - 1][0]).max() > 0.01


def test_masks_as_prompts_are_those_of_the_reference(first):
  import sam2_reference

  mask = np.zeros((128, 128), bool)
  mask[33:90, 20:77] = True
  session = sam2_reference.Session(first.model, first.frames[:16])
  session.prompt(8, {0: ([[20, 30], [90, 100]], [2, 3])})
  session.prompt(10, {}, {1: mask})
  session.prompt(11, {0: ([[50, 60], [100, 20]], [1, 0])})
  expected = session.run(8, reverse=False), session.run(8, reverse=True)
  prompts = [
    sam2.BoxPrompt(object=0, frame=8, box=(20, 30, 90, 100)),
    sam2.MaskPrompt(object=1, frame=10, mask=mask),
    sam2.PointPrompt(object=0, frame=11, points=((50, 60), (100, 20)), inside=(True, False)),
  ]
  found = logits_of(first.segmenter, first.frames[:16], prompts)
  for mine, theirs in zip(found, expected, strict=True):
    for frame, (logits, scores) in theirs.items():
      close(mine[frame][0], logits)
      close(mine[frame][1], scores)


def test_several_videos_at_once_are_tracked_as_each_alone(first):
  videos = [first.frames[:20], make_frames(144, 9, seed=5)[:, :96]]
  other = [
    sam2.BoxPrompt(object=7, frame=3, box=(10, 20, 100, 90)),
    sam2.PointPrompt(object=3, frame=4, points=((60, 70),), inside=(True,)),
    sam2.PointPrompt(object=7, frame=5, points=((30, 40),), inside=(True,)),
  ]
  alone = [
    sam2.track(first.segmenter, frames, prompts, chunk=1)
    for frames, prompts in zip(videos, (PROMPTS, other), strict=True)
  ]
  said = []
  together = sam2.track_videos(
    first.segmenter, videos, [PROMPTS, other], chunk=5, on_progress=lambda *x: said.append(x)
  )
  assert [t.objects for t in together] == [(0, 1), (3, 7)]
  assert [t.masks.shape for t in together] == [(2, 20, 128, 128), (2, 9, 96, 144)]
  for one, each in zip(alone, together, strict=True):
    close(each.object_scores, one.object_scores)
    assert np.mean(each.masks != one.masks) < 1e-4
    assert 0.05 < each.masks.mean() < 0.95
  assert said[-1] == (20 + 1 + 9 + 1, 20 + 1 + 9 + 1)


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch not installed: it is the reference")
@pytest.mark.parametrize("size", [(20, 24), (96, 80)])
def test_masks_get_the_size_of_the_video_as_in_the_reference(size):
  import torch

  logits = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(logits), size, mode="bilinear", align_corners=False
  )
  mine = layers.resize(jnp.asarray(logits), *size)
  close(mine, expected.numpy(), 1e-5)
  masks = tracker.masks_at(jnp.asarray(logits), *size)
  np.testing.assert_array_equal(masks, np.asarray(mine).swapaxes(0, 1) > 0)


@pytest.mark.skipif(not HAS_REFERENCE, reason="torch not installed: it is the reference")
@pytest.mark.parametrize("shape", [(97, 150), (40, 60)])
def test_frames_are_resized_as_the_reference_does_but_for_rounding(shape):
  import torch

  frames = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), np.uint8)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(frames.transpose(0, 3, 1, 2)), (64, 64), mode="bilinear", antialias=True
  )
  difference = np.abs(
    np.asarray(tracker.resize_frames(frames, 64), int)
    - expected.numpy().transpose(0, 2, 3, 1).astype(int)
  )
  assert difference.max() <= 1
  assert difference.mean() < 0.01
