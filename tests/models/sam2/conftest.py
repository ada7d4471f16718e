"""The reference's runs, made once for all tests of a model."""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vr_jax.models import sam2
from vr_jax.models.sam2 import config as config_lib

FRAMES, START = 25, 12
HAS_REFERENCE = all(map(importlib.util.find_spec, ("torch", "transformers")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A tiny model.

  object_score: bias of its logit; with 3 objects are in sight, with -3 not.
  spread: factor of that logit's other part, which hardly depends on the frame without it.
  clear: factor of the logits of the mask for clear prompts. With 1 the mask is not stable, so that
    another one is taken; with 20 it is.
  """

  name: str
  config: config_lib.Sam2Config
  object_score: float = 3.0
  spread: float = 1.0
  clear: float = 1.0
  seed: int = 0

  @property
  def signs(self) -> set[bool]:
    """Whether objects are in sight in this case: always, never, or now and then."""
    return {True, False} if self.spread > 1 else {self.object_score > 0}


SMALLEST = config_lib.smallest()
CASES = (
  Case(name="2.1", config=SMALLEST),
  Case(
    name="2.0",
    config=dataclasses.replace(SMALLEST, occlusion_embedding=False, pointer_positions=False),
    object_score=6.5,
    spread=30.0,
    seed=1,
  ),
  # 160 pixels: 10 x 10 and 5 x 5 patches do not divide into windows of 4 and 2.
  Case(name="window remainders", config=config_lib.smallest(160), clear=20.0, seed=2),
  Case(name="out of sight", config=SMALLEST, object_score=-3.0, seed=3),
  Case(name="in and out", config=SMALLEST, object_score=15.0, spread=30.0, seed=4),
)
# Object 0 is prompted twice, object 1 later than the start, by one point (the ambiguous prompt).
PROMPTS = (
  sam2.BoxPrompt(object=0, frame=12, box=(20, 30, 90, 100)),
  sam2.PointPrompt(object=1, frame=14, points=((60, 70),), inside=(True,)),
  sam2.PointPrompt(object=0, frame=16, points=((50, 60), (100, 20)), inside=(True, False)),
)


def make_frames(side: int, count: int = FRAMES, seed: int = 0) -> np.ndarray:
  """Squares of random colours, uint8."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, side // 16, side // 16, 3), np.uint8)
  return coarse.repeat(16, axis=1).repeat(16, axis=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """A model in both implementations, and the reference's run over one video.

  forward, backward: mask logits and scores of each frame.
  after_forward, after_backward: all that the reference keeps: [object][kind][frame][name].
  encoded: inputs and outputs of the memory encoder.
  stabilities: of the masks for clear prompts.
  """

  case: Case
  model: Any
  segmenter: sam2.Segmenter
  frames: np.ndarray
  forward: dict[int, tuple[np.ndarray, np.ndarray]]
  backward: dict[int, tuple[np.ndarray, np.ndarray]]
  after_forward: Any
  after_backward: Any
  encoded: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
  stabilities: list[float]


@pytest.fixture(scope="session")
def reference_of(tmp_path_factory) -> Callable[[Case], Reference]:
  """Makes the reference's run of a case, once."""

  @functools.cache
  def make(case: Case) -> Reference:
    return _make(case, tmp_path_factory.mktemp("sam2") / "weights")

  return make


@pytest.fixture(params=CASES, ids=[case.name for case in CASES])
def reference(request, reference_of) -> Reference:
  """Each case in turn."""
  if not HAS_REFERENCE:
    pytest.skip("torch and transformers not installed: they are the reference")
  return reference_of(request.param)


@pytest.fixture
def first(reference_of) -> Reference:
  """The first case."""
  if not HAS_REFERENCE:
    pytest.skip("torch and transformers not installed: they are the reference")
  return reference_of(CASES[0])


def _make(case: Case, directory: Path) -> Reference:
  import sam2_reference
  import torch

  torch.set_num_threads(1)  # its threads would wait for each other at every small step
  model = sam2_reference.make(
    case.config,
    seed=case.seed,
    object_score=case.object_score,
    spread=case.spread,
    clear=case.clear,
  )
  model.save_pretrained(directory)
  frames = make_frames(case.config.image_size)
  encoded, stabilities = [], []

  def note(module, inputs, output):
    del module
    encoded.append(tuple(x.numpy().copy() for x in (*inputs, output[0])))

  stability_of = model.mask_decoder._get_stability_scores

  def note_stability(logits):
    found = stability_of(logits)
    stabilities.extend(found.flatten().tolist())
    return found

  hook = model.memory_encoder.register_forward_hook(note)
  model.mask_decoder._get_stability_scores = note_stability
  session = sam2_reference.Session(model, frames)
  prompt_session(session)
  forward = session.run(START, reverse=False)
  after_forward = session.kept()
  backward = session.run(START, reverse=True)
  hook.remove()
  return Reference(
    case=case,
    model=model,
    segmenter=sam2.load(directory),
    frames=frames,
    forward=forward,
    backward=backward,
    after_forward=after_forward,
    after_backward=session.kept(),
    encoded=encoded,
    stabilities=stabilities,
  )


def prompt_session(session) -> None:
  """Gives PROMPTS to the reference."""
  session.prompt(12, {0: ([[20, 30], [90, 100]], [2, 3])})
  session.prompt(14, {1: ([[60, 70]], [1])})
  session.prompt(16, {0: ([[50, 60], [100, 20]], [1, 0])})
