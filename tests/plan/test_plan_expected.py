"""What XLA expects a compiled step to take: programs whose cost is known, and a real step."""

import dataclasses
import math

import numpy as np
import pytest

from crossin_jax.devices import chips, flops
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.plan import costs, expected, hlo, loops, report, work
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.training import optimizers

V5E = next(kind for kind in chips.KINDS if kind.name == 'v5e')


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a device as a topology asks for."""

  id: int
  coords: tuple
  device_kind: str = 'TPU v5 lite'
  platform: str = 'tpu'


DEVICES = tuple(Chip(i, (i % 2, i // 2, 0)) for i in range(4))
TOPOLOGY = plan_topology.Topology('v5e:2x2', 1, DEVICES, V5E, (2, 2))
BOTH = 2 * V5E.links / 4  # bytes/s of a chip with two neighbours


def cycles(count):
  return f'backend_config={{"window_config":{{}},"estimated_cycles":"{count}"}}'


def seconds(count):
  return count / V5E.clock


def read(text, **more):
  return expected.read(text, TOPOLOGY, np.array(DEVICES, object), ('chips',), **more)


COUNTERS = """
%body.inner (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p.1 = (s32[], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %step.1 = s32[] get-tuple-element(%p.1), index=1
  %next.1 = s32[] add(%i.1, %step.1)
  %work.1 = f32[8,128]{1,0} add(%x, %x), CYCLES_10
  ROOT %t.1 = (s32[], s32[]) tuple(%next.1, %step.1)
}

%condition.inner (p: (s32[], s32[])) -> pred[] {
  %p.2 = (s32[], s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %end.2 = s32[] constant(8)
  ROOT %less.2 = pred[] fusion(%i.2, %end.2), kind=kLoop, calls=%compared
}

%compared (a: s32[], b: s32[]) -> pred[] {
  %a.3 = s32[] parameter(0)
  %b.3 = s32[] parameter(1)
  ROOT %less.3 = pred[] compare(%a.3, %b.3), direction=LT
}

%body.outer (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p.4 = (s32[], s32[]) parameter(0)
  %i.4 = s32[] get-tuple-element(%p.4), index=0
  %two.4 = s32[] get-tuple-element(%p.4), index=1
  %zero.4 = s32[] constant(0)
  %start.4 = (s32[], s32[]) tuple(%zero.4, %two.4)
  %loop.4 = (s32[], s32[]) while(%start.4), condition=%condition.inner, body=%body.inner
  %one.4 = s32[] constant(1)
  %next.4 = s32[] subtract(%i.4, %one.4)
  ROOT %t.4 = (s32[], s32[]) tuple(%next.4, %two.4)
}

%condition.outer (p: (s32[], s32[])) -> pred[] {
  %p.5 = (s32[], s32[]) parameter(0)
  %i.5 = s32[] get-tuple-element(%p.5), index=0
  %end.5 = s32[] constant(0)
  ROOT %more.5 = pred[] compare(%i.5, %end.5), direction=GT
}

ENTRY %main (x: f32[8,128]) -> f32[] {
  %three = s32[] constant(3)
  %two = s32[] constant(2)
  %start = (s32[], s32[]) tuple(%three, %two)
  %loop = (s32[], s32[]) while(%start), condition=%condition.outer, body=%body.outer
  ROOT %out = f32[] constant(0)
}
""".replace('CYCLES_10', cycles(10))


def test_counters_of_nested_loops_are_followed():
  """3, 2, 1 outside; 0, 2, 4, 6 inside, with a step that the outer loop hands on unchanged."""
  runs = loops.runs(hlo.parse(COUNTERS))
  assert runs.turns == {('main', 'loop'): 3, ('body.outer', 'loop.4'): 4} and not runs.guessed
  assert runs.times['body.inner'] == 12
  assert read(COUNTERS).busy == pytest.approx(seconds(12 * 10), rel=0.01)


def test_iterations_that_are_noted_or_guessed():
  noted = COUNTERS.replace('body=%body.inner', 'body=%body.inner, known_trip_count={"n":"5"}')
  assert loops.runs(hlo.parse(noted)).times['body.inner'] == 15
  unknown = COUNTERS.replace('%zero.4 = s32[] constant(0)', '%zero.4 = s32[] custom-call(%y)')
  runs = loops.runs(hlo.parse(unknown))
  assert runs.guessed == ['loop.4'] and runs.times['body.inner'] == 3 * 8  # its only number
  assert 'iterations of 1 loops are guessed' in report.expected_text(read(unknown))


FUSIONS = """
%matrices (p: bf16[64,32], p: bf16[32,128]) -> bf16[64,128] {
  %a.1 = bf16[64,32]{1,0} parameter(0)
  %b.1 = bf16[32,128]{1,0} parameter(1)
  ROOT %product.1 = bf16[64,128]{1,0} convolution(%a.1, %b.1), dim_labels=bf_io->bf
}

%sum (p: f32[64,128], p: f32[64,128]) -> f32[64,128] {
  %a.2 = f32[64,128]{1,0} parameter(0)
  %b.2 = f32[64,128]{1,0} parameter(1)
  ROOT %sum.2 = f32[64,128]{1,0} add(%a.2, %b.2)
}

%one_of_ten (p: f32[10,64,128], p: s32[]) -> f32[64,128] {
  %a.3 = f32[10,64,128]{2,1,0} parameter(0)
  %i.3 = s32[] parameter(1)
  %zero.3 = s32[] constant(0)
  %j.3 = s32[] add(%i.3, %zero.3)
  %slice.3 = f32[1,64,128]{2,1,0} dynamic-slice(%a.3, %j.3, %zero.3, %zero.3)
  ROOT %out.3 = f32[64,128]{1,0} bitcast(%slice.3)
}

%update (p: f32[10,64,128], p: f32[1,64,128], p: s32[]) -> f32[10,64,128] {
  %a.4 = f32[10,64,128]{2,1,0} parameter(0)
  %b.4 = f32[1,64,128]{2,1,0} parameter(1)
  %i.4 = s32[] parameter(2)
  %zero.4 = s32[] constant(0)
  ROOT %out.4 = f32[10,64,128]{2,1,0} dynamic-update-slice(%a.4, %b.4, %i.4, %zero.4, %zero.4)
}

ENTRY %main (x: f32[8]) -> f32[] {
  %left = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %right = bf16[32,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %many = f32[10,64,128]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %f.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} fusion(%left, %right), kind=kOutput, calls=%matrices, CYCLES_300
  %f.3 = f32[64,128]{1,0} fusion(%many, %i), kind=kLoop, calls=%one_of_ten, CYCLES_40
  %f.2 = f32[64,128]{1,0:S(1)} fusion(%f.3, %f.3), kind=kLoop, calls=%sum, CYCLES_20
  %view = f32[1,64,128]{2,1,0:S(1)} bitcast(%f.2)
  %f.4 = f32[10,64,128]{2,1,0} fusion(%many, %view, %i), kind=kLoop, calls=%update, CYCLES_7
  %start = (f32[64,128]{1,0:S(1)}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%f.3)
  %done = f32[64,128]{1,0:S(1)} copy-done(%start)
  ROOT %out = f32[] constant(0)
}
"""
for count in (7, 20, 40, 300):
  FUSIONS = FUSIONS.replace(f'CYCLES_{count}\n', f'{cycles(count)}\n')


def test_fusions_by_kind_and_what_they_touch():
  found = read(FUSIONS)
  by_kind = {work.PRODUCTS: 300, work.ELEMENTWISE: 20, work.LAYOUT: 40 + 7, work.KERNELS: 0}
  assert found.seconds_by_kind == {kind: pytest.approx(seconds(n)) for kind, n in by_kind.items()}
  assert found.flops_by_kind[work.PRODUCTS] == 2 * 64 * 32 * 128
  assert found.products_at_peak == 2 * 64 * 32 * 128 / V5E.flops
  tile = 4 * 64 * 128
  # One operand of the product; the slice, read and written; both terms; the update; the copy;
  # and a position twice.
  assert found.hbm_bytes == 2 * 64 * 32 + 2 * tile + 2 * tile + tile + tile + 2 * 4
  assert found.replaced == 0 and found.exposed == {} and found.seconds == found.busy


@pytest.mark.parametrize('absurd', [-5, 10**12])
def test_an_absurd_estimate_is_replaced(absurd):
  found = read(FUSIONS.replace('"estimated_cycles":"300"', f'"estimated_cycles":"{absurd}"'))
  assert found.replaced == 1
  assert found.seconds_by_kind[work.PRODUCTS] < seconds(100)
  assert '1 absurd estimates replaced' in report.expected_text(found)


@pytest.mark.parametrize('left, right, out, attributes, wanted', [
  ('8,32', '32,16', '8,16', 'dim_labels=bf_io->bf', 2 * 8 * 32 * 16),
  ('32,8', '16,32', '8,16', 'dim_labels=fb_oi->bf', 2 * 8 * 32 * 16),
  # A batch of four products: each output position meets one position of the window.
  ('8,32,4', '32,16,4', '8,16,4', 'window={size=4 pad=3_3 rhs_reversal=1 lhs_dilate=1}, dim_labels=bf0_io0->bf0', 2 * 8 * 32 * 16 * 10),
  ('8,32,1', '4,16,32', '8,4,16', 'window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_0oi->b0f', 2 * 8 * 32 * 16 * 4),
  # A sum over two dimensions is a window as large as the input.
  ('8,32,6', '32,16,6', '8,16,1', 'window={size=6}, dim_labels=bf0_io0->bf0', 2 * 8 * 32 * 6 * 16),
])  # fmt: skip
def test_operations_of_products(left, right, out, attributes, wanted):
  text = f"""
ENTRY %main (x: f32[]) -> f32[] {{
  %a = bf16[{left}] parameter(0)
  %b = bf16[{right}] parameter(1)
  ROOT %product = bf16[{out}] convolution(%a, %b), {attributes}
}}
"""
  module = hlo.parse(text)
  assert work.flops(module, module.computations['main'].root) == wanted


def transfers(hidden):
  """An all-gather behind `hidden` cycles, and an all-reduce that nothing hides."""
  return f"""
%sum (a: f32[], b: f32[]) -> f32[] {{
  %a.1 = f32[] parameter(0)
  %b.1 = f32[] parameter(1)
  ROOT %s.1 = f32[] add(%a.1, %b.1)
}}

ENTRY %main (x: f32[8]) -> f32[] {{
  %x = bf16[1000,256]{{1,0}} parameter(0)
  %g = (bf16[1000,256]{{1,0}}, bf16[4000,256]{{1,0}}) all-gather-start(%x), channel_id=1, replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
  %w = f32[64,128]{{1,0:S(1)}} exponential(%y), {cycles(hidden)}
  %gd = bf16[4000,256]{{1,0}} all-gather-done(%g)
  %r = f32[1000]{{0}} all-reduce(%z), channel_id=2, replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %out = f32[] constant(0)
}}
"""


def test_collectives_with_one_channel_are_two():
  found = read(transfers(0).replace('channel_id=2', 'channel_id=1'))
  assert list(found.sent) == ['all-gather', 'all-reduce']
  twice = transfers(0).replace(
    '  ROOT %out',
    '  %r.2 = f32[1000]{0} all-reduce(%z), channel_id=2, replica_groups=[1,4]<=[4]\n  ROOT %out',
  )
  assert read(twice).sent['all-reduce'] == 2 * found.sent['all-reduce']


def test_what_is_not_hidden():
  gather, reduce = 3 * 1000 * 256 * 2 / BOTH, 2 * 3 / 4 * 4000 / BOTH
  for hidden in (0, gather / 2, 2 * gather):
    found = read(transfers(round(hidden * V5E.clock)))
    assert found.exposed == {
      'all-gather': pytest.approx(max(0, gather - hidden), abs=1e-9),
      'all-reduce': pytest.approx(reduce),
    }
    assert found.seconds == found.busy + sum(found.exposed.values())
  assert found.sent == {'all-gather': 3 * 1000 * 256 * 2, 'all-reduce': 6000}
  ends_later = transfers(round(2 * gather * V5E.clock)).replace(
    'all-gather-done(%g)', 'copy-done(%q)'
  )
  assert read(ends_later).exposed['all-gather'] == 0
  faster = read(transfers(0), links=2 * BOTH)
  assert sum(faster.exposed.values()) == pytest.approx((gather + reduce) / 2)
  text = report.expected_text(found)
  assert 'not hidden: all-reduce' in text and 'all-gather' not in text


# Four fusions in a loop carry an all-gather that starts before it. A reduce-scatter has no work.
CARRIED = """
%starts (p: bf16[1000,256]) -> bf16[4000,256] {
  %a.1 = bf16[1000,256]{1,0} parameter(0)
  %gather.1 = bf16[4000,256]{1,0} all-gather(%a.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c.1 = bf16[4000,256]{1,0} custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%carries (p: bf16[1000,256], p: bf16[64,32], p: bf16[32,128]) -> bf16[64,128] {
  %a.2 = bf16[1000,256]{1,0} parameter(0)
  %b.2 = bf16[64,32]{1,0} parameter(1)
  %d.2 = bf16[32,128]{1,0} parameter(2)
  %gather.2 = bf16[4000,256]{1,0} all-gather(%a.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %product.2 = bf16[64,128]{1,0} convolution(%b.2, %d.2), dim_labels=bf_io->bf
}

%ends (p: bf16[1000,256]) -> bf16[4000,256] {
  %a.3 = bf16[1000,256]{1,0} parameter(0)
  %gather.3 = bf16[4000,256]{1,0} all-gather(%a.3), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c.3 = bf16[4000,256]{1,0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: bf16[400,256]) -> bf16[100,256] {
  %a.4 = bf16[400,256]{1,0} parameter(0)
  %r.4 = bf16[400,256]{1,0} all-reduce(%a.4), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %s.4 = bf16[100,256]{1,0} dynamic-slice(%r.4, %i, %i)
}

%body (p: (s32[])) -> (s32[]) {
  %f.5 = bf16[64,128]{1,0:S(1)} fusion(%x, %b, %d), kind=kOutput, calls=%carries, CYCLES
}

%condition (p: (s32[])) -> pred[] {
}

ENTRY %main (x: f32[8]) -> f32[] {
  %s = bf16[4000,256]{1,0} fusion(%x), kind=kCustom, calls=%starts
  %loop = (s32[]) while(%t), condition=%condition, body=%body, known_trip_count={"n":"4"}
  %e = bf16[4000,256]{1,0} fusion(%x), kind=kCustom, calls=%ends
  %rs = bf16[100,256]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = f32[] constant(0)
}
"""


@pytest.mark.parametrize('count', [100, 3000])
def test_a_collective_that_fusions_carry(count):
  found = read(CARRIED.replace('CYCLES', cycles(count)))
  gather, scatter = 3 * 1000 * 256 * 2 / BOTH, 3 / 4 * 400 * 256 * 2 / BOTH
  assert found.busy == pytest.approx(4 * seconds(count))
  assert found.exposed == {
    'all-gather': pytest.approx(gather - 4 * seconds(count)),
    'reduce-scatter': pytest.approx(scatter),
  }


def test_a_carried_collective_has_buffers_that_do_not_count():
  """They are handed from one fusion to the next; the product's arrays count."""
  text = CARRIED.replace('CYCLES', cycles(100))
  without = read(text).hbm_bytes
  body = text.replace(
    '%f.5 = bf16[64,128]{1,0:S(1)} fusion(%x, %b, %d)',
    '%a = bf16[1000,256]{1,0} get-tuple-element(%t), index=1\n'
    '  %f.5 = (bf16[64,128]{1,0}, bf16[1000,256]{1,0}, bf16[4000,256]{1,0}) fusion(%a, %b, %d)',
  ).replace(
    '  ROOT %product.2 = bf16[64,128]{1,0} convolution(%b.2, %d.2), dim_labels=bf_io->bf',
    '  %product.2 = bf16[64,128]{1,0} convolution(%b.2, %d.2), dim_labels=bf_io->bf\n'
    '  ROOT %t.2 = (bf16[64,128]{1,0}, bf16[1000,256]{1,0}, bf16[4000,256]{1,0})'
    ' tuple(%product.2, %a.2, %gather.2)',
  )
  assert body.count('%t.2') == 1
  assert read(body).hbm_bytes - without == 4 * 64 * 128 * 2


# A sparse core scatters: its program starts early, and gets its data with the update.
OFFLOADED = """
%sum.clone (p: bf16[], p.1: bf16[]) -> bf16[] {
  %p.1 = bf16[] parameter(0)
  %p.2 = bf16[] parameter(1)
  ROOT %add.1 = bf16[] add(%p.1, %p.2)
}, execution_thread="sparsecore"

%scatters (p: bf16[400,256]) -> bf16[100,256] {
  %a.1 = bf16[400,256]{1,0} parameter(0)
  ROOT %scatter.1 = bf16[100,256]{1,0} reduce-scatter(%a.1), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum.clone
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8]) -> f32[] {
  %s = ((), (), s32[8]{0}) custom-call-start(), async_execution_thread="sparsecore", called_computations={%scatters}
  %before = bf16[64,128]{1,0:S(1)} fusion(%x, %b), kind=kLoop, calls=%nothing, BEFORE
  %u = ((bf16[400,256]{1,0}), bf16[100,256]{1,0}) custom-call-update(%s, %before)
  %after = bf16[64,128]{1,0:S(1)} fusion(%x, %b), kind=kLoop, calls=%nothing, AFTER
  %d = bf16[100,256]{1,0} custom-call-done(%u)
  ROOT %out = f32[] constant(0)
}
"""


def test_a_collective_of_a_sparse_core_is_hidden_by_what_follows_its_data():
  scatter = 3 / 4 * 400 * 256 * 2 / BOTH
  half = round(scatter / 2 * V5E.clock)
  text = lambda before, after: read(
    OFFLOADED.replace('BEFORE', cycles(before)).replace('AFTER', cycles(after))
  )
  assert text(9 * half, 1).exposed['reduce-scatter'] == pytest.approx(scatter, rel=1e-3)
  assert text(1, half).exposed['reduce-scatter'] == pytest.approx(scatter / 2, rel=1e-3)
  found = text(1, 9 * half)
  assert found.exposed['reduce-scatter'] == 0 and found.sent['reduce-scatter'] == 3 * 100 * 256 * 2


def test_a_loop_that_never_turns():
  """A collective that is only in its body is not sent."""
  text = CARRIED.replace('CYCLES', cycles(100)).replace('{"n":"4"}', '{"n":"0"}')
  for name in ('starts', 'ends'):
    text = text.replace(f'fusion(%x), kind=kCustom, calls=%{name}', 'copy-done(%x)')
  found = read(text)
  assert found.busy == 0 and list(found.sent) == ['reduce-scatter']


@pytest.mark.parametrize('name, heads, results, products', [
  ('splash_mha_fwd', 2, ['bf16[8,512,128]'], 2),
  ('splash_mha_fwd_residuals_block_kv=512_block_q_dkv=256', 2, ['bf16[8,512,128]'], 2),
  ('splash_mha_dq', 2, ['bf16[8,512,128]'], 3),
  ('splash_mha_dkv', 2, ['bf16[2,512,128]'] * 2, 4),
  ('splash_mha_dkv', 8, ['bf16[8,512,128]'] * 2, 4),
  ('splash_mha_dkv', 2, ['f32[1,8,512,128]'] + ['bf16[2,512,128]'] * 2, 5),
])  # fmt: skip
def test_a_kernel_runs_at_half_of_peak(name, heads, results, products):
  text = f"""
ENTRY %main (x: f32[8]) -> f32[] {{
  %mask = s8[1,1,1] parameter(0)
  %q = bf16[8,512,128]{{2,1,0:S(1)}} parameter(1)
  %k = bf16[{heads},512,128]{{2,1,0:S(1)}} parameter(2)
  ROOT %kernel.1 = ({', '.join(each + '{S(1)}' for each in results)}) custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"block_q": 256
}}}}, metadata={{op_name="jit(step)/{name}/pallas_call"}}
}}
"""
  found = read(text)
  operations = products * 2 * 8 * 512 * 512 * 128 / 2
  assert found.flops_by_kind == {work.PRODUCTS: 0, work.KERNELS: operations}
  assert found.seconds == found.seconds_by_kind[work.KERNELS]
  assert found.seconds == pytest.approx(operations / (V5E.flops / 2))


@pytest.mark.parametrize('left, right, out', [
  ('bf16[1024,512]', 'bf16[8,512,256]', 'bf16[1024,256]'),
  ('bf16[1024,512]', 'bf16[1024,256]', 'f32[8,512,256]'),
])  # fmt: skip
def test_a_kernel_of_experts(left, right, out):
  text = f"""
ENTRY %main (x: f32[8]) -> f32[] {{
  %sizes = s32[8] parameter(0)
  %x = {left} parameter(1)
  %y = {right} parameter(2)
  ROOT %ragged-dot-none.1 = {out} custom-call(%sizes, %x, %y), custom_call_target="tpu_custom_call"
}}
"""
  assert read(text).flops_by_kind[work.KERNELS] == 2 * 1024 * 512 * 256


def test_a_chip_without_a_clock():
  unknown = dataclasses.replace(TOPOLOGY, kind=dataclasses.replace(V5E, clock=None))
  with pytest.raises(ValueError, match='devices/chips.py'):
    expected.read(FUSIONS, unknown, np.array(DEVICES, object), ('chips',))


def test_a_real_step_has_the_operations_of_the_formula():
  """Full remat, two and four scanned layers on four chips."""
  pytest.importorskip('libtpu', reason='compiling for TPUs needs libtpu, of the extra `test`')
  topology = plan_topology.parse('v5e:2x2')
  partition = Partitioner(mesh_shape=(1, 4, 1), devices=topology.devices)
  for layers in (2, 4):
    config = DecoderConfig(
      vocab_size=2048, embed_dim=256, num_layers=layers, num_heads=4, num_kv_heads=2, head_dim=128,
      mlp_dim=512, dtype='bfloat16', remat='full',
    )  # fmt: skip
    setting = plan_step.Setting(Decoder(config), optimizers.adamw(total_steps=9), 8, 256)
    state = plan_step.state_bytes(setting, partition)
    figures = costs.figures(setting, (1, 4, 1), state)
    found = plan_step.train_step(setting, partition, topology, effort=-1).expected
    tokens = 8 * 256 / 4
    attention = flops.attention_flops(config, 256) * tokens
    # Forward, again, and twice as much backward.
    # Rotary positions are a product of each head on TPUs: forward, again, and once backward.
    rotations = 3 * layers * tokens * 2 * 128**2 * (4 + 2)
    wanted = figures.executed_flops / 4 - 4 * attention + rotations
    assert found.flops_by_kind[work.PRODUCTS] == pytest.approx(wanted, rel=0.03)
    # The two backward kernels compute the logits again: 11 products where the formula has 8.
    assert found.flops_by_kind[work.KERNELS] == pytest.approx(4 * attention * 11 / 8, rel=0.01)
    assert found.products_at_peak < found.seconds_by_kind[work.PRODUCTS] < found.busy
    assert found.busy < found.seconds and math.isfinite(found.seconds) and not found.guessed
    sent = sum(found.sent.values())
    assert 0.7 < sent / figures.sent['fsdp'] < 1.5
