"""The load command against the tests' server: nothing is lost, and every slot is free again."""

from benchmarks import serve_load


def test_no_request_of_a_few_clients_is_lost_and_replies_repeat(served, root):
  videos = [root / "clip.mp4", root / "other.mp4"]
  report = serve_load.load(served.url, videos, clients=6, seconds=3.0)
  assert (report["lost"], report["changed"], report["taken_slots"]) == (0, 0, 0)
  assert report["first_losses"] == []
  assert report["done"] >= 3
