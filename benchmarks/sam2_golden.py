"""Compares released SAM2 weights with the numbers that transformers publishes for them.

    python -m benchmarks.sam2_golden --weights=DIR [--image=car.png] [--video=bedroom.mp4]

- image: car.png of the Hub repository ybelkada/segment-anything (assets/car.png). The IoU of three
  masks of the point (1000, 600); tolerance 0.01.
- video: bedroom.mp4 of the Hub data set hf-internal-testing/sam2-fixtures. SAM2.1 tiny alone: the
  logits of four pixels on the first two frames, given the box 300, 0, 500, 400; tolerance 0.01.

Prints one line a check; exit code 1 if one fails.
"""

import argparse
from collections.abc import Sequence
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vr_jax import errors
from vr_jax.data import video_file
from vr_jax.models import sam2
from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import (
  image_encoder,
  layers,
  mask_decoder,
  parameters,
  prompt_encoder,
  propagation,
  tracker,
)

# Source: transformers, models/sam2_video/convert_sam2_video_to_hf.py.
IMAGE_SCORES = {
  ("tiny", "2.1"): (0.0316, 0.9647, 0.1029),
  ("small", "2.1"): (0.9664, 0.1494, 0.0456),
  ("base_plus", "2.1"): (0.0361, 0.9775, 0.1307),
  ("large", "2.1"): (0.9648, 0.0371, 0.1898),
  ("tiny", "2.0"): (0.0439, 0.9567, 0.1415),
  ("small", "2.0"): (0.9593, 0.1633, 0.0392),
  ("base_plus", "2.0"): (0.0423, 0.9815, 0.0897),
  ("large", "2.0"): (0.9514, 0.0535, 0.1787),
}
POINT = (1000.0, 600.0)
TOLERANCE = 0.01
# Source: transformers, tests/models/sam2_video/test_modeling_sam2_video.py.
VIDEO_BOX = (300.0, 0.0, 500.0, 400.0)
VIDEO_LOGITS = (
  ((-13.1427, -13.1427), (-13.7753, -13.7753)),
  ((-14.9998, -14.9998), (-15.7086, -15.7086)),
)


def release_of(config: config_lib.Sam2Config) -> tuple[str, str]:
  """The size and version of a released model. Raises InputError for others."""
  for size, version in IMAGE_SCORES:
    if config_lib.released(size, version) == config:
      return size, version
  raise errors.InputError("--weights: is no released SAM2")


def image_scores(
  segmenter: sam2.Segmenter, image: np.ndarray, point: tuple[float, float]
) -> np.ndarray:
  """Predicted IoU of the three masks for one point on an image [height, width, 3]."""
  config = segmenter.config
  prompt = sam2.PointPrompt(object=0, frame=0, points=(point,), inside=(True,))
  (track,) = propagation.prepare(config, [image[None]], [[prompt]])
  pixels = tracker.resize_frames(image[None], config.image_size)

  def run(params, pixels, points, labels):
    weights = parameters.Weights(params)
    constants = tracker.make_constants(params, config)
    features = image_encoder.encode(
      weights, config, image_encoder.normalise(pixels), constants.patches
    )
    coarse = features.coarse.reshape(1, -1, config.width) + weights["no_memory_embedding"]
    embedded = prompt_encoder.embed_points(weights, config, points, labels)
    decoded = mask_decoder.decode(weights, config, coarse, features, embedded, constants.positions)
    return decoded.qualities[0, 1:]

  given = track.inputs[0]
  return np.asarray(jax.jit(run)(segmenter.params, pixels, given.points[None], given.labels[None]))


def video_logits(segmenter: sam2.Segmenter, frames: np.ndarray) -> np.ndarray:
  """Logits of the four pixels in the first corner on the first two frames."""
  config = segmenter.config
  prompt = sam2.BoxPrompt(object=0, frame=0, box=VIDEO_BOX)
  tracks = propagation.prepare(config, [frames[:2]], [[prompt]])
  passes = propagation.passes(tracks, fresh_reverse=False)
  (part,) = propagation.run(segmenter.params, config, tracks, passes, chunk=2)
  resized = layers.resize(jnp.asarray(part.logits[:, 0]), *frames.shape[1:3])
  return np.asarray(resized[:, :2, :2])


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the checks."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.sam2_golden", description=__doc__)
  parser.add_argument("--weights", required=True)
  parser.add_argument("--image", type=pathlib.Path)
  parser.add_argument("--video", type=pathlib.Path)
  options = parser.parse_args(argv)
  failed = False
  try:
    if options.image is None and options.video is None:
      raise errors.InputError("needs --image, --video or both")
    segmenter = sam2.load(options.weights)
    release = release_of(segmenter.config)
    if options.image is not None:
      image = np.asarray(Image.open(options.image).convert("RGB"))
      found = image_scores(segmenter, image, POINT)
      failed |= _report("image", found, np.array(IMAGE_SCORES[release]))
    if options.video is not None:
      if release != ("tiny", "2.1"):
        raise errors.InputError("--video: its numbers are those of SAM2.1 tiny")
      found = video_logits(segmenter, _frames(options.video))
      failed |= _report("video", found, np.array(VIDEO_LOGITS))
  except (errors.InputError, OSError) as error:
    print(f"sam2_golden: {error}", file=sys.stderr)
    return 2
  return int(failed)


def _frames(path: pathlib.Path) -> np.ndarray:
  """The first two frames of a video."""
  decoded = itertools.islice(video_file.decode(path), 2)
  return np.stack([timed.frame.to_ndarray(format="rgb24") for timed in decoded])


def _report(name: str, found: np.ndarray, expected: np.ndarray) -> bool:
  """Prints a check; returns whether it failed."""
  failed = bool(np.any(np.abs(found - expected) > TOLERANCE))
  verdict = "differs from" if failed else "is"
  print(f"{name}: {np.round(found, 4).tolist()} {verdict} {expected.tolist()}")
  return failed


if __name__ == "__main__":
  sys.exit(main())
