"""The places of TPU chips in a mesh, with the devices of real topologies; nothing is compiled."""

import itertools
import math

from jax.experimental import mesh_utils
import numpy as np
import pytest

from launch import topology
from vr_jax import errors
from vr_jax.parallel import decoding_layout, torus
from vr_jax.parallel import mesh as mesh_lib


def shares(places):
  """Of each run of rows of a mesh with the same owners: their number."""
  rows = places.reshape(-1, math.prod(places.shape[2:]))
  owners = [frozenset(device.process_index for device in row) for row in rows]
  return [(share, len(list(run))) for share, run in itertools.groupby(owners)]


def hops(places, axis):
  """Links from each device to the next one along an axis: the most of any."""
  along = np.moveaxis(places, mesh_lib.AXES.index(axis), 0)
  spot = lambda device: np.array([*device.coords, device.core_on_chip])  # noqa: E731
  pairs = [zip(a.flat, b.flat, strict=True) for a, b in itertools.pairwise(along)]
  return max((int(abs(spot(a) - spot(b)).sum()) for a, b in itertools.chain(*pairs)), default=0)


def meshes(devices):
  powers = [2**n for n in range(devices.bit_length())]
  return [s for s in itertools.product(powers, repeat=4) if math.prod(s) == devices]


@pytest.mark.parametrize("name", ["v5p-16", "v5e-16", "v6e-8", "v5p-32", "tpu7x-16", "v5e:2x2"])
def test_each_host_has_whole_rows_of_every_mesh_and_tensor_goes_from_link_to_link(name):
  devices = topology.find(name).devices
  hosts = {device.process_index for device in devices}
  for sizes in meshes(len(devices)):
    places = torus.place_devices(sizes, devices)
    assert places.shape == sizes and set(places.flat) == set(devices)
    runs, before = shares(places), shares(np.asarray(devices).reshape(sizes))
    assert {length for _, length in runs} == {length for _, length in before}, sizes
    assert len(runs) == len(before) == len({share for share, _ in runs}), sizes
    assert sum(len(share) for share, _ in runs) == len(hosts), sizes
    assert hops(places, "tensor") <= 1, sizes


# The fsdp devices of a host of 2 x 2 chips that `tensor` fills are a host apart: two links.
@pytest.mark.parametrize(
  ("name", "sizes", "links"),
  [
    ("v5p-16", (1, 8, 1, 1), 1),
    ("v5p-16", (1, 4, 1, 2), 1),
    ("v5p-16", (1, 2, 1, 4), 1),
    ("v5p-16", (2, 2, 1, 2), 1),
    ("v5p-16", (1, 1, 1, 8), 0),
    ("v5e-16", (1, 16, 1, 1), 1),
    ("v5e-16", (2, 8, 1, 1), 1),
    ("v5e-16", (1, 4, 1, 4), 2),
    ("v6e-8", (1, 8, 1, 1), 1),
    ("v6e-8", (1, 4, 1, 2), 1),
    ("v6e-8", (1, 2, 1, 4), 2),
    ("v5p-128", (1, 64, 1, 1), 1),
    ("v5p-64", (1, 16, 1, 2), 1),
    ("v5p-64", (1, 4, 1, 8), 1),
    ("tpu7x-16", (1, 8, 1, 2), 1),
  ],
)
def test_neighbours_along_fsdp_are_neighbours_on_the_torus(name, sizes, links):
  devices = topology.find(name).devices
  places = mesh_lib.make_mesh(sizes, devices).devices
  assert hops(places, "fsdp") == links
  assert hops(places, "fsdp") <= hops(np.asarray(devices).reshape(sizes), "fsdp")


def test_jax_own_function_scatters_the_rows_of_a_host():
  """The reason for `torus`: once this fails, see whether JAX's function does."""
  devices = topology.find("v5p-16").devices
  places = mesh_utils.create_device_mesh((1, 8, 1, 1), devices, allow_split_physical_axes=True)
  assert len(shares(places)) == 8


def test_decoding_splits_heads_over_the_chips_of_a_host():
  mesh = mesh_lib.make_mesh((1, 16, 1, 1), topology.find("v5e-16").devices)
  owners = [frozenset([device.process_index]) for device in mesh.devices.flat]
  assert decoding_layout.heads_ways(owners, 16, 8) == 4


@pytest.mark.parametrize("sizes", [(2, 8, 1, 1), (2, 4, 1, 2), (4, 4, 1, 1), (-1, 1, 1, 8)])
def test_data_goes_from_slice_to_slice_and_each_slice_has_the_mesh_of_one(sizes):
  mesh = mesh_lib.make_mesh(sizes, topology.find("2xv5p-16").devices)
  halves = np.split(mesh.devices, 2)
  alone = mesh_lib.make_mesh(halves[0].shape, topology.find("v5p-16").devices).devices
  for index, half in enumerate(halves):
    assert {device.slice_index for device in half.flat} == {index}
    assert [device.coords for device in half.flat] == [device.coords for device in alone.flat]
    assert {length for _, length in shares(half)} == {length for _, length in shares(alone)}


def test_a_mesh_that_the_slices_do_not_divide_is_one_line_with_one_that_they_do():
  devices = topology.find("2xv5p-16").devices
  with pytest.raises(errors.InputError, match="data=1 can't be split over 2 slices") as caught:
    mesh_lib.make_mesh((1, -1, 1, 2), devices)
  line = str(caught.value)
  assert "\n" not in line and line.endswith('use --config.mesh="(2,-1,1,2)"')
  assert mesh_lib.make_mesh((2, -1, 1, 2), devices)
  with pytest.raises(errors.InputError, match="nor can the 16 devices with sequence x tensor=16"):
    mesh_lib.make_mesh((1, 1, 1, 16), devices)


def test_chips_that_are_no_whole_box_stay_in_their_order():
  devices = topology.find("v5e-16").devices
  for chosen in (devices[:3], devices[1:5], devices[:6]):
    assert torus.place_devices((1, len(chosen), 1, 1), chosen).ravel().tolist() == list(chosen)
