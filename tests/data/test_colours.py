"""Colours of decoded videos: a file says by which matrix and in which range it is meant."""

import io

import av
import numpy as np
from PIL import Image
import pytest

from vr_jax.data import video_file

PATCHES = np.array(
  [[200, 40, 40], [40, 180, 60], [30, 60, 200], [230, 210, 40], [128, 128, 128], [250, 250, 250]]
)
SIDE = 32  # of a patch, in pixels
# The number that a file names a matrix by, and its weights of red and blue (ITU-T H.273, table 4).
MATRICES = {
  "bt709": (1, 0.2126, 0.0722),
  "bt601": (6, 0.299, 0.114),
  "bt2020": (9, 0.2627, 0.0593),
}
LIMITED, FULL = 1, 2  # as FFmpeg numbers ranges


def _to_yuv(red_weight, blue_weight, colour_range, bits):
  """[patch, (Y, Cb, Cr)] of the patches, by ITU-T H.273, section 8.3."""
  red, green, blue = PATCHES.T / 255
  luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
  blue_difference = (blue - luma) / (2 * (1 - blue_weight))
  red_difference = (red - luma) / (2 * (1 - red_weight))
  unit = 2 ** (bits - 8)
  if colour_range == FULL:
    largest = 2**bits - 1
    offset = 128 * unit
    numbers = [
      luma * largest,
      blue_difference * largest + offset,
      red_difference * largest + offset,
    ]
  else:
    numbers = [
      (16 + 219 * luma) * unit,
      (128 + 224 * blue_difference) * unit,
      (128 + 224 * red_difference) * unit,
    ]
  return np.round(np.stack(numbers, axis=1)).astype(np.uint8 if bits == 8 else np.uint16)


def _write_patches(path, matrix, colour_range, bits):
  """A video of patches side by side, encoded without going through anyone's conversion to RGB."""
  number, *weights = MATRICES[matrix]
  pixel_format = "yuv420p" if bits == 8 else "yuv420p10le"
  yuv = _to_yuv(*weights, colour_range, bits)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=4, options={"crf": "0"})
    stream.width, stream.height, stream.pix_fmt = SIDE * len(PATCHES), SIDE, pixel_format
    stream.codec_context.colorspace = number
    stream.codec_context.color_range = colour_range
    for index in range(4):
      frame = av.VideoFrame(stream.width, stream.height, pixel_format)
      frame.pts, frame.colorspace, frame.color_range = index, number, colour_range
      for plane, values in zip(frame.planes, yuv.T, strict=True):
        row = np.repeat(values, plane.width // len(PATCHES)).tobytes()
        plane.update(row.ljust(plane.line_size, b"\0") * plane.height)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.mark.parametrize("max_side", [SIDE * len(PATCHES), SIDE * len(PATCHES) // 2])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_are_those_that_the_file_means(tmp_path, matrix, colour_range, bits, max_side):
  """To 5 of 255: rounding to 8 bits, twice, and JPEG. PyAV below 17 was wrong by 15 to 36."""
  path = tmp_path / "patches.mp4"
  _write_patches(path, matrix, colour_range, bits)
  video = video_file.extract(path, fps=4, quality=95, max_side=max_side)
  image = np.asarray(Image.open(io.BytesIO(video.jpegs[0])), int)
  side = video.width // len(PATCHES)
  middles = image[video.height // 2, side // 2 :: side]
  assert np.abs(middles - PATCHES).max() <= 5, middles.tolist()
