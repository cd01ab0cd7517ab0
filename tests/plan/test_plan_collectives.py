"""What chips send, read from HLO: against programs whose traffic is known."""

import math

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from crossin_jax.plan import collectives as plan_collectives
from crossin_jax.plan import hlo, loops
from crossin_jax.plan.collectives import _groups, bytes_by_axis

AXES = ('data', 'fsdp', 'tensor')


def collectives(text, *layout, **more):
  """The collectives in the text of a program."""
  module = hlo.parse(text)
  return plan_collectives.collectives(module, loops.runs(module), *layout, **more)


@pytest.mark.parametrize('turns', [1, 7])
def test_a_loop_counts_as_often_as_it_turns(turns):
  """x W with W cut along its rows: one sum over fsdp a turn, [8, 32] in f32, on the tensor axis
  nothing.
  """
  mesh = jax.make_mesh((1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:4])
  put = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )

  def step(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=turns)[0]

  compiled = jax.jit(step, out_shardings=NamedSharding(mesh, PartitionSpec(None, 'fsdp'))).lower(
    put((8, 32), None, 'fsdp'), put((32, 32), 'fsdp', None)
  ).compile()  # fmt: skip
  found = collectives(compiled.as_text(), (1, 2, 2), AXES)
  sums = [item for item in found if item.operation in ('all-reduce', 'reduce-scatter')]
  assert {item.axis for item in sums} == {'fsdp'}
  sent = sum(item.times * item.bytes for item in sums)
  whole = 8 * 32 * 4
  # As a sum that all get (2 x 1/2), or of which each gets its part (1/2).
  assert sent in (turns * whole, turns * whole / 2)


@hypothesis.given(
  shape=st.lists(st.integers(1, 4), min_size=3, max_size=3),
  chosen=st.sets(st.integers(0, 2), min_size=1),
)
def test_three_notations_are_one(shape, chosen):
  ids = np.arange(math.prod(shape)).reshape(shape)
  order = [i for i in range(3) if i not in chosen] + sorted(chosen)
  size = math.prod(shape[i] for i in chosen)
  expected = ids.transpose(order).reshape(-1, size).tolist()
  written = '{' + ','.join('{' + ','.join(map(str, group)) + '}' for group in expected) + '}'
  iota = f'[{len(expected)},{size}]<=[{",".join(map(str, shape))}]T({",".join(map(str, order))})'
  named = (
    'mesh['
    + ','.join(f"'axis_{i}'={n}" for i, n in enumerate(shape))
    + '] {'
    + ','.join(f"'axis_{i}'" for i in sorted(chosen))
    + '}'
  )
  for text in (written, iota, named):
    assert (
      _groups(f'x = all-gather(y), replica_groups={text}, dimensions={{0}}', math.prod(shape))
      == expected
    )
  line = f'  %a = bf16[6,10]{{1,0:T(8,128)(2,1)}} all-gather(%b), replica_groups={written}, dimensions={{0}}'
  found = collectives(
    f'HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n{line}\n}}\n', shape, AXES
  )
  varying = [AXES[i] for i in sorted(chosen) if shape[i] > 1]
  if not varying:
    assert found == []
  else:
    assert bytes_by_axis(found) == {
      '+'.join(varying): pytest.approx(6 * 10 * 2 * (size - 1) / size)
    }


def test_part_of_an_axis():
  """[8] as 2 x 4: groups along the four, and along the two."""
  line = "x = all-gather(y), replica_groups=mesh['a'=8] {'a':(2)4}, dimensions={0}"
  assert _groups(line, 8) == [[0, 1, 2, 3], [4, 5, 6, 7]]
  line = "x = all-gather(y), replica_groups=mesh['a'=8] {'a':(1)2}, dimensions={0}"
  assert _groups(line, 8) == [[0, 4], [1, 5], [2, 6], [3, 7]]
  line = "x = all-gather(y), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, dimensions={0}"
  assert _groups(line, 8) == [[0, 2, 4, 6], [1, 3, 5, 7]]
  assert _groups('x = all-gather(y), replica_groups=something_new, dimensions={0}', 8) is None


def test_what_libtpu_writes():
  """Lines that a kernel breaks, a scatter that is a sum inside a fusion, something started and
  awaited, and a sum between slices.
  """
  hlo = """HloModule m

%all-reduce-scatter.1 (input: f32[16,4]) -> f32[4,4] {
  %ar = f32[16,4]{1,0} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
}

%cond (p: (s32[], f32[])) -> pred[] {
  %c = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%body (p: (s32[], f32[])) -> (s32[], f32[]) {
  %k = bf16[8,8]{1,0} custom-call(%y), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block_q": 256
}}, metadata={op_name="splash"}
  %f = f32[4,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %g = (bf16[2,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%y), replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (a: f32[]) -> f32[] {
  %w = (s32[], f32[]) while(%t), condition=%cond, body=%body
  %s = (bf16[10,10]{1,0}, u32[], token[]) send(%z, %tok), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""
  sent = bytes_by_axis(collectives(hlo, (2, 4, 1), AXES, slices=2))
  assert sent == {
    'fsdp': 3 * (16 * 4 * 4 * 3 / 4 + 8 * 8 * 2 * 3 / 4),
    'slices': pytest.approx(10 * 10 * 2),
  }
