"""Prompts of benchmarks' items: the frames, their size, the subtitles and the texts around them."""

from concurrent import futures
import dataclasses
import json

import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from tests.train import nano
from vr_jax import records
from vr_jax.data import benchmark_item, guarded_reader, video_file
from vr_jax.eval.benchmarks import (
  asked_items,
  frame_cache,
  frame_choice,
  play_items,
  protocols,
)

ITEM = benchmark_item.Item(
  id="1",
  benchmark="mvbench",
  split="test",
  video="v.mp4",
  question="?",
  scorer="choice",
  answer="A",
  options=("a", "b"),
)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
  """A tiny Qwen2.5-VL, whose run stores frames of at most 448 pixels."""
  return nano.build(nano.make_data(tmp_path_factory.mktemp("data")))


def _asker(context, root, protocol: protocols.Protocol) -> asked_items.ItemAsker:
  cache = frame_cache.FrameCache(
    videos=root, cache=root / "frames", limits=guarded_reader.DecodeLimits(processes=1)
  )
  return asked_items.ItemAsker(context=context, protocol=protocol, cache=cache, root=root)


def _images(encoded) -> np.ndarray:
  """The second image of each temporal patch of a Qwen2.5-VL prompt, put together from patches."""
  (grid,) = encoded.grids
  patches = np.stack([frame.vision.patches for frame in encoded.frames])
  rows, columns = grid.height // 2, grid.width // 2  # media tokens of 2 x 2 patches
  parts = patches.reshape(len(patches), rows, columns, 2, 2, 3, 2, 14, 14)[:, :, :, :, :, :, 1]
  return parts.transpose(0, 1, 3, 6, 2, 4, 7, 5).reshape(-1, grid.height * 14, grid.width * 14, 3)


@pytest.mark.parametrize(
  ("name", "size"),
  [
    ("video_mme@official", (728, 1288)),
    ("tempcompass@official", (532, 952)),
    ("mvbench@official", (168, 280)),
  ],
)
def test_a_protocol_shows_frames_at_its_own_size_not_at_that_of_the_runs_data(
  context, tmp_path, name, size
):
  """Lines of 4 pixels are grey in frames of 448. Reference: Pillow, from the frames in full."""
  across = np.arange(1280) // 2 % 2 * 160
  pictures = [np.zeros((720, 1280, 3), np.uint8) for _ in range(4)]
  for place, picture in enumerate(pictures):
    picture[:] = (across + 20 * place)[None, :, None]
  videos.write(tmp_path / "v.mp4", frames=4, fps=2, pictures=pictures)
  protocol = protocols.get(name)
  benchmark = protocol.benchmark
  item = dataclasses.replace(ITEM, benchmark=benchmark)
  asked = _asker(context, tmp_path, protocol).ask(item)
  found = _images(asked.encoded).astype(int)
  (grid,) = asked.encoded.grids
  assert (grid.height * 14, grid.width * 14) == size
  assert play_items.shown_media(context, asked) == (4, *size)
  decoded = [
    timed.frame.to_ndarray(format="rgb24") for timed in video_file.decode(tmp_path / "v.mp4")
  ]
  expected = np.stack(
    [
      np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BICUBIC))
      for frame in decoded[1::2]
    ]
  ).astype(int)
  assert found.shape == expected.shape
  assert np.abs(found - expected).mean() < 2
  if size[1] > 600:
    assert expected[:, :, 100:-100].std(axis=2).min() > 25 and found.std(axis=2).min() > 25


def test_a_recipe_shows_frames_as_its_own_data_has_them(context, tmp_path):
  videos.write(tmp_path / "v.mp4", frames=8, fps=2, size=640)
  item = dataclasses.replace(ITEM, benchmark="moss_video")
  asked = _asker(context, tmp_path, protocols.get("moss_video@recipe")).ask(item)
  assert asked.clip.shape[1:] == (448, 448)
  assert play_items.shown_media(context, asked)[1:] == (56, 56)


def _text(context, encoded) -> str:
  """The text tokens of a prompt."""
  ids = encoded.tokens[encoded.kind == records.Kind.TEXT]
  return context.processor.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


_SRT = "".join(
  f"{n}\n00:00:{n:02d},000 --> 00:00:{n:02d},900\nsaid at {n}\n\n" for n in range(1, 20)
)


@pytest.mark.parametrize(
  ("clip", "placement", "said"),
  [
    (None, "ends", [6, 13, 19]),  # frames at 0, 6.6, 13.3 and 19.9 s; nothing is said at 0
    (None, "middles", [2, 7, 12, 17]),  # at 2.4, 7.4, 12.4 and 17.4 s
    (records.Span(start=8.0, end=12.0), "middles", [8, 9, 10, 11]),
  ],
)
def test_the_subtitles_are_those_at_the_times_of_the_shown_frames(
  context, tmp_path, clip, placement, said
):
  videos.write(tmp_path / "v.mp4", frames=160, fps=8)
  (tmp_path / "v.srt").write_text(_SRT)
  official = protocols.get("video_mme@subtitles")
  choice = frame_choice.FrameChoice(count=4, placement=placement)
  protocol = dataclasses.replace(official, frames=choice)
  item = dataclasses.replace(ITEM, benchmark="video_mme", subtitles="v.srt", clip=clip)
  asked = _asker(context, tmp_path, protocol).ask(item)
  assert len(asked.clip) == 4
  lines = "\n".join(f"said at {second}" for second in said)
  assert _text(context, asked.encoded) == (
    "<|im_start|>user\n<|vision_start|><|vision_end|>This video's subtitles are listed below:\n"
    f"{lines}\nSelect the best answer to the following multiple-choice question based on the "
    "video. Respond with only the letter (A, B, C, or D) of the correct option.\n?\nA. a\nB. b\n"
    "The best answer is:<|im_end|>\n<|im_start|>assistant\n"
  )


def test_longvideobench_shows_pictures_with_the_subtitles_between_them(context, tmp_path):
  """Worked by hand with LongVideoBench's loader: frames at 0, 5, 10 and 15 s.

  Of the clip, which starts at 40 s of the subtitles: a from 0 to 1.2 s, around no frame but at its
  end; b from 4 to 6.5 s, its middle behind the frame at 5 s; c from 9 to 12 s; d of 0.4 s about
  14.9 s, counted as from 14.4 to 15.4 s; e behind the last frame, to the end of the clip.
  """
  videos.write(tmp_path / "v.mp4", frames=160, fps=8)
  times = {"a": (40.0, 41.2), "b": (44.0, 46.5), "c": (49.0, 52.0), "d": (54.7, 55.1)}
  lines = [{"timestamp": list(time), "text": text} for text, time in times.items()]
  lines.append({"timestamp": [56.0, None], "text": "e"})
  (tmp_path / "v.json").write_text(json.dumps(lines))
  official = protocols.get("longvideobench@official")
  protocol = dataclasses.replace(official, frames=dataclasses.replace(official.frames, count=4))
  record = {"starting_timestamp_for_subtitles": 40.0, "duration": 20.0}
  item = dataclasses.replace(
    ITEM, benchmark="longvideobench", subtitles="v.json", source_record=record
  )
  asked = _asker(context, tmp_path, protocol).ask(item)
  picture = "<|vision_start|><|vision_end|>\n"
  assert _text(context, asked.encoded) == (
    f"<|im_start|>user\n{picture}{picture}b\n{picture}c\nd\n{picture}Question: ?\nA. a\nB. b\n"
    "Answer with the option's letter from the given choices directly.<|im_end|>\n"
    "<|im_start|>assistant\n"
  )
  assert [grid.kind for grid in asked.encoded.grids] == [records.Kind.IMAGE] * 4
  assert play_items.shown_media(context, asked) == (4, 448, 448)  # at least 256 tokens each
  greys = [np.median(frame.vision.patches) for frame in asked.encoded.frames]
  np.testing.assert_allclose(greys, [10 + 3 * (index % 80) for index in (0, 40, 80, 120)], atol=3)


def test_256_pictures_have_room_in_a_context_of_128_thousand_tokens(context):
  limits = protocols.get("longvideobench@official").pixels
  processor = asked_items.make_processor(context, limits, 256)
  height, width = processor.resized((720, 1280))
  assert 256 * 256 <= 256 * height * width // 28**2 <= 90_000


def test_a_system_turn_comes_first_and_the_reply_is_begun(context, tmp_path):
  videos.write(tmp_path / "v.mp4", frames=16, fps=8)
  asked = _asker(context, tmp_path, protocols.get("mvbench@official")).ask(ITEM)
  found = _text(context, asked.encoded)
  assert found.startswith("<|im_start|>system\nCarefully watch the video and pay attention to")
  assert found.endswith(
    "the question.\n<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>Question: ?\n"
    "Options:\n(A) a\n(B) b\nOnly give the best option.<|im_end|>\n<|im_start|>assistant\n"
    "Best option:("
  )
  after = asked.encoded.positions[-len(context.processor.encode_reply("Best option:(")) + 1 :, 0]
  assert np.diff(after).tolist() == [1] * (len(after) - 1)
  assert asked.encoded.next_position == after[-1] + 1
  media = np.flatnonzero(asked.encoded.kind == records.Kind.VIDEO)
  assert len(media) == sum(grid.frames * grid.patches // 4 for grid in asked.encoded.grids)


@pytest.mark.parametrize("name", ["video_mmmu@official", "video_mmmu@video_r1"])
def test_the_picture_of_a_question_is_shown_by_the_video_alone(context, tmp_path, name):
  """As in lmms-eval and Video-R1: of adaptation it is the last frame of the lecture."""
  videos.write(tmp_path / "v.mp4", frames=80, fps=8)
  item = dataclasses.replace(
    ITEM, benchmark="video_mmmu", images=("absent.png",), strata={"track": ("adaptation",)}
  )
  asked = _asker(context, tmp_path, protocols.get(name)).ask(item)
  assert [grid.kind for grid in asked.encoded.grids] == [records.Kind.VIDEO]
  assert asked.clip.timestamps[-1] > 9.8


def test_threads_make_the_same_prompts_and_decode_each_video_once(context, tmp_path):
  for name in "ab":
    videos.write(tmp_path / f"{name}.mp4", frames=16, fps=8, mark=20 if name == "a" else 200)
  names = ("a.mp4", "a.mp4", "no.mp4", "b.mp4", "a.mp4")
  items = [dataclasses.replace(ITEM, id=str(n), video=name) for n, name in enumerate(names)]
  protocol = protocols.get("mvbench@official")
  asker = _asker(play_items.with_protocol(context, protocol), tmp_path, protocol)
  with futures.ThreadPoolExecutor(3) as pool:
    made, failed = play_items.ask_chunk(asker, items, pool)
  alone, failed_alone = play_items.ask_chunk(asker, items)
  assert len(list((tmp_path / "frames").glob("*/*"))) == 2
  assert failed == failed_alone and [each.id for each in failed] == ["2"]
  assert [each and each.example.id for each in made] == ["0", "1", None, "3", "4"]
  for one, other in zip(made, alone, strict=True):
    assert (one is None) == (other is None)
    if one:
      np.testing.assert_array_equal(_images(one.encoded), _images(other.encoded))
