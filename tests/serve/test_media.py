"""Images and videos of requests: where they may come from, what is shown of them, and bad ones."""

import base64
from concurrent import futures
import json
import os
import threading
import time

import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from tests.serve import live_server
from tests.train import nano
from vr_jax.data import guarded_reader
from vr_jax.serve import chat_request, media, request_error, shown_media

part, words, about = live_server.part, live_server.words, live_server.about


def _shown(reply):
  return [(each["type"], each["frames"]) for each in reply.vr_jax["media"]]


def test_a_file_and_its_bytes_in_a_data_url_give_the_same_reply(served, root):
  embedded = [part("video", live_server.embedded(root / "clip.mp4")), words("Which colour?")]
  fields = {"temperature": 1.0, "seed": 4}
  one, other = served.ask(about(root / "clip.mp4"), **fields), served.ask(embedded, **fields)
  assert live_server.text(one) == live_server.text(other)
  assert one.vr_jax == other.vr_jax


def test_images_and_several_videos_are_shown_in_the_order_of_the_message(served, root):
  picture = live_server.embedded(root / "picture.png", "image/png")
  content = [
    *(part("video", root / "clip.mp4"), words("and"), part("image", picture)),
    *(part("video", root / "other.mp4"), words("Which is it?")),
  ]
  num_frames = {"video": {"num_frames": 4}}
  reply = served.ask(content, media_io_kwargs=num_frames, temperature=0)
  assert _shown(reply) == [("video", 4), ("image", 1), ("video", 4)]
  swapped = [content[4], content[1], content[2], content[0], content[3]]
  again = served.ask(swapped, media_io_kwargs=num_frames, temperature=0)
  assert live_server.text(again) != live_server.text(reply)
  assert again.usage.prompt_tokens == reply.usage.prompt_tokens


def test_frames_pixels_and_the_span_that_were_shown_are_told(served, root):
  reply = served.ask(
    about(root / "clip.mp4"),
    media_io_kwargs={"video": {"num_frames": 4}},
    mm_processor_kwargs={"min_pixels": 784, "max_pixels": 784},
    video_start=2.0,
    video_end=6.0,
  )
  (shown,) = reply.vr_jax["media"]
  assert shown == {
    "type": "video",
    "frames": 4,
    "times": [2.0, 3.0, 4.0, 5.0],
    "height": 28,
    "width": 28,
  }
  faster = served.ask(
    about(root / "clip.mp4"), media_io_kwargs={"video": {"fps": 2.0}}, video_end=3.0
  )
  assert faster.vr_jax["media"][0]["times"] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_features_are_computed_once_for_what_is_shown_alike(served, root):
  served.ask(about(root / "other.mp4", "Which colour?"))
  cache = served.server.decoder.features
  known = cache.misses
  served.ask(about(root / "other.mp4", "How many?"))
  assert cache.misses == known
  served.ask(about(root / "other.mp4", "How many?"), video_end=7.0)
  assert cache.misses == known + 1


def test_no_path_leads_out_of_the_allowed_root(served, root, tmp_path):
  outside = videos.write(tmp_path / "secret.mp4", frames=8)
  (root / "link.mp4").unlink(missing_ok=True)
  (root / "link.mp4").symlink_to(outside)
  (root / "folder").unlink(missing_ok=True)
  (root / "folder").symlink_to(tmp_path)
  if not (root / "pipe.mp4").exists():
    os.mkfifo(root / "pipe.mp4")
  up = os.path.relpath(outside, root)
  for url in (
    *(f"file://{outside}", f"file://{root}/{up}", f"file://{root}/link.mp4"),
    *(f"file://{root}/folder/secret.mp4", f"file://{root}/%2e%2e/{outside.name}"),
    *(f"file://{root}/{up.replace('/', '%2f')}", f"file://elsewhere{root}/clip.mp4"),
    *(f"file://{root}/no.mp4", f"file://{root}", f"file://{root}/pipe.mp4"),
    *(f"file://{root}/clip.mp4%00.mp4", f"FILE://{outside}", f"file://{root}/clip.mp4?x=1"),
    *("file:///proc/self/environ", "file:clip.mp4", "file://", f"file://localhost{outside}"),
  ):
    error = served.refused([part("video", url), words("Who?")])
    assert error.status_code == 400, url
    assert "no such file below the server's --allowed_root" in error.message, url
    assert error.body["param"] == "messages[0].content[0]"


def test_a_path_may_be_quoted_or_written_as_it_is(served, root):
  strange = root / "50% of #1, or all?.mp4"
  strange.write_bytes((root / "clip.mp4").read_bytes())
  replies = [
    served.ask([part("video", url), words("Which colour?")]).vr_jax
    for url in (f"file://{strange}", strange.as_uri(), f"file://localhost{root}/clip.mp4")
  ]
  assert replies[0] == replies[1] == replies[2]


def test_other_schemes_are_refused(served, root):
  for url in ("https://example.org/a.mp4", "http://127.0.0.1/a.mp4", f"{root}/clip.mp4", "ftp:x"):
    error = served.refused([part("video", url), words("Who?")])
    assert "this server reads data:, file:// only" in error.message


def test_what_is_no_video_is_refused_in_one_sentence_without_a_path(served, root):
  listed = f"ffconcat version 1.0\nfile '{root}/clip.mp4'\n".encode()
  playlist = f"#EXTM3U\n#EXTINF:10.0,\n{root}/clip.mp4\n#EXT-X-ENDLIST\n".encode()
  for content, says in (
    (part("video", root / "damaged.mp4"), "cannot be decoded"),
    (part("video", live_server.embedded(root / "damaged.mp4")), "cannot be decoded"),
    (part("image", live_server.embedded(root / "clip.mp4")), "cannot be read as a picture"),
    (part("image", root / "clip.mp4"), "is a video; send it as video_url"),
    (part("video", "data:video/mp4;base64,????"), "holds no valid base64"),
    (part("video", "data:video/mp4,abc"), "a data URL needs the form"),
    (part("video", "data:video/mp4;base64,"), "messages[0].content[0]"),
    *((part("video", _data_url(text)), "messages[0].content[0]") for text in (listed, playlist)),
  ):
    error = served.refused([content, words("Who?")])
    assert (error.status_code, error.body["code"] or "") in ((400, "unreadable_media"), (400, ""))
    assert says in error.message
    assert "\n" not in error.body["message"]
    assert str(root) not in error.message
    assert "vr_jax_serve" not in error.message


@pytest.mark.parametrize("size", [1 << 20, 3 * (1 << 18), 3 * (1 << 18) + 1, 2_500_001])
def test_a_large_data_url_is_decoded_in_pieces(served, size):
  content = bytes(range(251)) * (size // 251 + 1)
  library = served.server.preparer._media._library
  url = _data_url(content[:size])
  assert b"".join(library._embedded(url, "m")) == content[:size]
  if size == 2_500_001:
    padded = url[:1_000_022] + "==" + url[1_000_024:]
    with pytest.raises(request_error.RequestError, match="holds no valid base64"):
      list(library._embedded(padded, "m"))


def _data_url(content: bytes) -> str:
  return f"data:video/mp4;base64,{base64.b64encode(content).decode()}"


def test_ten_thousand_frames_or_images_are_refused_in_a_sentence(served, root):
  error = served.refused(
    about(root / "clip.mp4"), media_io_kwargs={"video": {"num_frames": 10_000}}
  )
  assert error.status_code == 400
  assert "is 10000; the model's prompts hold 16 frames at most" in error.message
  picture = part("image", live_server.embedded(root / "picture.png", "image/png"))
  error = served.refused([*[picture] * 10_000, words("Which?")])
  assert "10000 images and videos; the model's prompts hold 16 at most" in error.message
  error = served.refused([*[picture] * 9, words("Which?")])
  assert "9 temporal patches, but the largest bucket has 8" in error.message
  error = served.refused(about(root / "clip.mp4", "word " * 500))
  assert "tokens, but the largest bucket has 128" in error.message


def test_a_span_outside_of_the_video_is_refused(served, root):
  for span in ({"video_end": 11.0}, {"video_start": 10.0}, {"video_start": 3.0, "video_end": 99.0}):
    error = served.refused(about(root / "clip.mp4"), **span)
    assert "is no part of the video, which has 10 s" in error.message


def test_a_rate_above_the_run_s_is_bounded_by_the_frames_that_it_gives(served, root, monkeypatch):
  monkeypatch.setattr(media, "_MOST_FRAMES", 40)
  content, fps = about(root / "clip.mp4"), served.server.preparer._context.config.data.fps
  assert 10 * fps < 40 < 80  # of ten seconds, and all frames of the file
  served.ask(content, media_io_kwargs={"video": {"fps": 4.0}}, video_end=2.0)
  error = served.refused(content, media_io_kwargs={"video": {"fps": 1000}}, video_end=2.0)
  assert "messages[0].content[0]: has more than 40 frames at 1000 a second" in error.message


def test_who_waits_for_a_file_that_another_request_has_read_gets_an_error_of_its_own(
  root, monkeypatch
):
  extract, go_on = guarded_reader.extract, threading.Event()

  def slow_extract(*given, **settings):
    assert go_on.wait(30)
    return extract(*given, **settings)

  monkeypatch.setattr(guarded_reader, "extract", slow_extract)
  library = media.MediaLibrary(nano.config(), media.MediaRules())
  url = live_server.embedded(root / "damaged.mp4")
  with futures.ThreadPoolExecutor(2) as pool:
    names = [f"messages[0].content[{place}]" for place in range(2)]
    asked = [pool.submit(library.open, url, "video", name) for name in names]
    while library.cache.hits + library.cache.misses < 2:
      time.sleep(0.01)
    go_on.set()
    for name, each in zip(names, asked, strict=True):
      with pytest.raises(request_error.RequestError, match="cannot be decoded") as caught:
        each.result()
      assert str(caught.value).startswith(f"{name}: ")
      assert caught.value.body["error"]["param"] == name


@pytest.mark.parametrize(
  "url", ["https://127.0.0.1/a.mp4", "https://10.0.0.1/a", "https://[::1]/a", "https://localhost/"]
)
def test_https_is_fetched_from_public_addresses_only(tmp_path, url):
  rules = media.MediaRules(allow_https=True)
  library = media.MediaLibrary(nano.config(), rules)
  with pytest.raises(request_error.RequestError, match="is no public address"):
    library.open(url, "video", "the video")


def test_frames_are_decoded_as_large_as_the_request_shows_them(served, root):
  """Frames of the run's data have 448 pixels; lines of one pixel are lost in them."""
  lines = np.zeros((720, 1280, 3), np.uint8)
  lines[:, ::2] = 200
  videos.write(root / "wide.mp4", frames=4, fps=2, pictures=[lines] * 4)
  Image.fromarray(lines).save(root / "wide.png")
  opener = shown_media.MediaOpener(
    served.server.preparer._context,
    media.MediaLibrary(nano.config(), media.MediaRules(allowed_root=root)),
  )

  def shown(name, kind, **limits):
    content = [part(kind, root / name), words("Which?")]
    body = {"messages": [{"role": "user", "content": content}]}
    request = chat_request.parse(json.dumps(body | {"mm_processor_kwargs": limits}).encode())
    (clip,) = opener.open_all(request)
    return (clip.height, clip.width), shown_media.decode(clip), clip.digest

  for kind, name in (("video", "wide.mp4"), ("image", "wide.png")):
    usual = shown(name, kind)
    whole = shown(name, kind, max_pixels=300_000)
    less = shown(name, kind, min_pixels=40_000)
    assert (usual[0], whole[0], less[0]) == ((252, 448), (720, 1280), (300, 533))
    # The most is then the run's 56 x 56 pixels: of these, twice as many each way are decoded.
    assert shown(name, kind, min_pixels=784)[0] == (84, 149)
    assert len({digest for _, _, digest in (usual, whole, less)}) == 3
    small, large = (
      each.pixels if kind == "image" else each.frames[0] for _, each, _ in (usual, whole)
    )
    assert large[300, :, 1].std() > 70 and small[100, :, 1].std() < 40
