"""The decoding loop with attention in the kernel, compiled for a TPU that is not there."""

import dataclasses

import pytest

from benchmarks import decode_attention
from launch import topology
from tests import tpu_compiler
from tests.models import test_qwen2_5_vl_tpu

LAYERS, REPLY, PREFIX, GROUP = 9, 256, 1024, 4
KV_HEADS, HEAD_DIM = 2, 128


@pytest.fixture(scope="module", autouse=True)
def compiling_only():
  with tpu_compiler.compiling_only():
    yield


def test_a_step_reads_of_a_longer_prompt_only_its_keys_and_those_once():
  where = topology.find("v5e:2x2")
  shapes = decode_attention.DecodeShapes(prompts=2, group=GROUP, prefix=PREFIX, reply=REPLY)
  text = dataclasses.replace(test_qwen2_5_vl_tpu.CONFIG.text, num_hidden_layers=LAYERS)
  config = dataclasses.replace(test_qwen2_5_vl_tpu.CONFIG, text=text)

  def count(**changes):
    given = dataclasses.replace(shapes, **changes)
    found = decode_attention.count(config, where, given, 1, "pallas")
    kernel = found.kernel_bytes
    return kernel / REPLY / LAYERS, (found.bytes - kernel) / REPLY / LAYERS

  (kernel, others), (longer_kernel, longer_others) = count(), count(prefix=4 * PREFIX)
  a_key = 2 * KV_HEADS * HEAD_DIM * 2  # bytes, with its value
  assert longer_kernel - kernel == 2 * 3 * PREFIX * a_key
  # Nothing outside of it takes a layer's keys out of the stack, or transposes them.
  assert longer_others == pytest.approx(others, rel=0.01)
  replies = 2 * GROUP * REPLY / 2 * a_key
  assert 2 * PREFIX * a_key + replies <= kernel <= 1.2 * (2 * PREFIX * a_key + replies)
