"""Times of collectives and of whole programs, against numbers worked out by hand."""

import pytest

from launch import chips, costs, roofline

V5P, V5E, IRONWOOD = (chips.CHIPS[name] for name in ("v5p", "v5e", "tpu7x"))
GB = 1e9


def seconds(kind: str, size: float, places, sides, chip=V5P) -> float:
  transfer = costs.Transfer(kind, size, tuple(range(len(places))), 1)
  return roofline.transfer_seconds(transfer, chip, places, sides)


def line(count: int) -> list[tuple[int, ...]]:
  return [(i, 0, 0) for i in range(count)]


def test_a_ring_gathers_over_two_links_and_a_line_over_one():
  ring = seconds("all-gather", 4 * GB, line(4), (4, 1, 1))
  assert ring == pytest.approx(3 / 4 * 4 * GB / (2 * V5P.link))
  assert seconds("all-gather", 2 * GB, line(2), (2, 1, 1)) == pytest.approx(GB / V5P.link)


def test_a_reduction_takes_twice_a_gather():
  gathered = seconds("all-gather", GB, line(4), (4, 4, 1))
  assert seconds("all-reduce", GB, line(4), (4, 4, 1)) == pytest.approx(2 * gathered)
  assert seconds("reduce-scatter", GB, line(4), (4, 4, 1)) == pytest.approx(gathered)


def test_each_dimension_of_the_torus_adds_its_links():
  square = [(x, y, 0) for x in range(2) for y in range(2)]
  expected = 3 / 4 * GB / (2 * V5P.link)
  assert seconds("all-gather", GB, square, (2, 2, 2)) == pytest.approx(expected)


def test_a_permutation_pays_for_the_links_on_its_way():
  near = [(0, 0, 0), (1, 0, 0)]
  far = [(0, 0, 0), (1, 1, 1)]
  around = [(0, 0, 0), (3, 0, 0)]
  assert seconds("collective-permute", GB, near, (2, 2, 2)) == pytest.approx(GB / V5P.link)
  assert seconds("collective-permute", GB, far, (2, 2, 2)) == pytest.approx(3 * GB / V5P.link)
  assert seconds("collective-permute", GB, around, (4, 1, 1)) == pytest.approx(GB / V5P.link)


def test_alone_a_device_waits_for_nobody():
  assert seconds("all-reduce", GB, line(1), (2, 2, 1)) == 0


def test_halves_of_a_chip_do_not_use_its_links():
  same_chip = [(0, 0, 0), (0, 0, 0)]
  took = seconds("all-gather", GB, same_chip, (2, 2, 1), IRONWOOD)
  assert took == pytest.approx(GB / 2 / IRONWOOD.between_halves)


def test_the_bound_is_what_takes_longest():
  spent = costs.Costs(flops=197e12, passes=197e12, bytes=2 * 819e9)
  spent.transfers.append(costs.Transfer("all-gather", 50e9, (0, 1), 3))
  found = roofline.estimate(spent, V5E, [(0, 0), (1, 0)], (2, 2))
  assert (found.compute, found.memory) == (pytest.approx(1), pytest.approx(2))
  assert found.network == pytest.approx(3 * 50e9 / 2 / V5E.link)
  assert (found.bound, found.seconds) == ("memory", pytest.approx(2))


def test_kernels_without_cycles_take_what_their_bytes_or_flops_take_at_peak():
  limited_by_memory = costs.KernelCalls(times=2, passes=197e12, bytes=3 * 819e9)
  limited_by_compute = costs.KernelCalls(times=1, passes=5 * 197e12, bytes=819e9)
  for kernels, seconds in (
    ([limited_by_memory], 2 * 3),
    ([limited_by_compute], 5),
    ([limited_by_memory, limited_by_compute], 2 * 3 + 5),
  ):
    spent = costs.Costs(cycles=V5E.clock, kernels=kernels)
    found = roofline.estimate(spent, V5E, [(0, 0)], (1, 1))
    assert found.schedule == pytest.approx(1 + seconds)


def test_between_slices_each_chip_has_its_share_of_the_data_centres_network():
  for kind, sent in (
    ("all-reduce", 2 * 3 / 4),
    ("reduce-scatter", 3 / 4),
    ("all-to-all", 3 / 4),
    ("all-gather", 3),  # its own part, to three other slices
    ("collective-permute", 1),
  ):
    spent = costs.Costs(transfers=[costs.Transfer(kind, GB, (), 5, slices=4)])
    found = roofline.estimate(spent, V5P, [(0, 0, 0)], (2, 2, 2))
    assert found.dcn == pytest.approx(5 * sent * GB / 6.25e9)
    assert (found.network, found.bound, found.seconds) == (0, "dcn", found.dcn)


def test_the_table_is_of_whole_chips_and_counts_each_link_once():
  """Peak TFLOP/s, GB/s of HBM and of all links both ways, Gb/s of DCN, as Google Cloud states."""
  stated = {
    "v5e": (197, 819, 400, 6400 / 256),
    "v5p": (459, 2765, 1200, 50),
    "v6e": (918, 1638, 800, 100),
    "tpu7x": (2307, 7380, 1200, 100),
  }
  for name, chip in chips.CHIPS.items():
    halves = chip.devices_per_chip
    links = 2 * chip.dimensions
    both_ways = 2 * links * chip.link / 1e9
    found = (chip.peak / 1e12, chip.bandwidth / 1e9, both_ways, 8 * chip.dcn / 1e9)
    assert [halves * number for number in found] == pytest.approx(stated[name])


def test_a_collective_takes_at_least_the_hops_to_its_farthest_chip():
  """A ring of 4 has it 2 hops away, a line of 2 one; an all-reduce goes there and back."""
  for kind, places, sides, hops in (
    ("all-gather", line(4), (4, 1, 1), 2),
    ("all-gather", line(2), (2, 1, 1), 1),
    ("all-reduce", [(x, y, 0) for x in range(4) for y in range(2)], (4, 2, 1), 2 * 3),
    ("collective-permute", [(0, 0, 0), (1, 1, 1)], (2, 2, 2), 3),
    ("all-reduce", line(1), (2, 2, 1), 0),
  ):
    few = costs.Costs(transfers=[costs.Transfer(kind, 8.0, tuple(range(len(places))), 10)])
    found = roofline.estimate(few, V5P, places, sides)
    assert found.network == pytest.approx(10 * hops * 1e-6)
    assert found.latency == pytest.approx(found.network, rel=0.01)


def test_the_compilers_cycles_and_kernels_at_peak_make_the_schedule_beside_the_roofline():
  kernel = costs.KernelCalls(times=1, passes=197e12, bytes=0.0)
  spent = costs.Costs(cycles=3e9, vector_cycles=1.5e9, passes=197e12, kernels=[kernel])
  found = roofline.estimate(spent, V5E, [(0, 0)], (1, 1))
  assert (found.schedule, found.vector) == (pytest.approx(3), pytest.approx(1))
  assert found.seconds == pytest.approx(1)
