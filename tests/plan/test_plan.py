"""crossin plan: real steps compiled for TPU slices that are not there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from crossin_jax import config
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.plan import command as plan_command
from crossin_jax.plan import report as plan_report
from crossin_jax.plan import search as plan_search
from crossin_jax.plan import step as plan_step
from crossin_jax.plan import topology as plan_topology
from crossin_jax.plan.expected import Expected
from crossin_jax.plan.step import Compiled
from crossin_jax.training import optimizers
from crossin_jax.training.objectives import Preference

pytest.importorskip('libtpu', reason='compiling for TPUs needs libtpu, of the extra `test`')

SIZES = {
  'vocab_size': 4096, 'embed_dim': 256, 'num_layers': 2, 'num_heads': 4, 'num_kv_heads': 2,
  'head_dim': 64, 'mlp_dim': 512,
  'dtype': "'bfloat16'",
}  # fmt: skip
MODEL = [
  '--gin_file=gin_configs/models/llama_60m.gin',
  '--gin_file=gin_configs/runs/defaults.gin',
  *[f'--gin.DecoderConfig.{name}={value}' for name, value in SIZES.items()],
  '--gin.LENGTH=64',
]
GIB = 1 << 30


def crossin_plan(capsys, *arguments, status=0):
  """(JSON, what people saw) of a plan that ends with this status."""
  assert plan_command.main(config.rewrite(['--json', '--effort=-1', *MODEL, *arguments])) == status
  out, err = capsys.readouterr()
  return json.loads(out.splitlines()[-1]), out + err


@pytest.mark.parametrize('topology, chips, usable, more', [
  ('v5e:2x4', 8, 15.75, ['--gin.MESH_SHAPE=(1,4,2)', '--gin.train.microbatches=2']),
  ('v5p:2x2x1', 4, 95.74, ["--gin.MESH_SHAPE='auto'", '--gin.DecoderConfig.remat="full"']),
  ('v6e:2x2', 4, 31.25, ['--gin.DecoderConfig.lora=@LoraConfig()', '--gin.LoraConfig.rank=4', '--decode', '--decode_tokens=128']),
])  # fmt: skip
def test_real_steps_compile(capsys, topology, chips, usable, more):
  found, seen = crossin_plan(capsys, '--topology', topology, '--price_per_chip_hour=2', *more)
  assert (
    found['compiled']
    and found['fits']
    and (found['chips'], found['hbm_bytes_per_chip']) == (chips, round(usable * GIB))
  )
  memory = found['memory_per_chip']
  assert sum(memory.values()) == pytest.approx(found['peak_bytes_per_chip'], abs=4)
  assert all(size >= 0 for size in memory.values()) and memory['other'] < 0.5 * 2**30
  embeddings, layer = 2 * 4096 * 256 + 256, 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512 + 2 * 256
  parameters = embeddings + 2 * layer
  adapters = 2 * 4 * (4 * (256 + 256) - 2 * 128 + 3 * (256 + 512))
  if 'LoraConfig' in ' '.join(more):
    assert found['parameter_bytes'] == 2 * parameters + 4 * adapters
    assert found['optimizer_bytes'] == pytest.approx(8 * adapters, rel=1e-3)
    decode = found['decode']
    # Keys and values in bf16, 64 rows over 4 chips; parameters too, cut over all of them.
    assert decode['cache_bytes_per_chip'] == pytest.approx(2 * 2 * 2 * 64 * 128 * 2 * 16, rel=0.01)
    assert (
      decode['parameter_bytes_per_chip'] == pytest.approx(2 * (parameters + adapters) / 4, rel=0.05)
      and decode['fits']
    )
    assert 'decoding  64 rows' in seen
  else:
    assert (found['parameter_bytes'], found['optimizer_bytes']) == (
      4 * parameters,
      8 * parameters + 8,
    )
    cut = found['mesh']['fsdp'] * found['mesh']['tensor']
    assert memory['parameters'] == pytest.approx(4 * parameters / cut, rel=0.02)
    assert memory['gradients'] <= 2 * memory['parameters']
    # The formula knows what XLA sends: matrices gathered twice, gradients scattered or summed.
    largest = max(
      found['sent_bytes_per_chip_by_formula'], key=found['sent_bytes_per_chip_by_formula'].get
    )
    ratio = found['sent_bytes_per_chip'][largest] / found['sent_bytes_per_chip_by_formula'][largest]
    assert 0.7 < ratio < 1.5
  assert 'unknown' not in found['sent_bytes_per_chip']
  assert (
    found['step_seconds_bound']
    == max(found['seconds'].values())
    == found['seconds'][found['bound_by']]
  )
  assert 0 < found['mfu_bound'] <= 1 and found['dollars_per_million_tokens'] > 0
  assert found['flops_per_step'] <= found['executed_flops_per_step']
  assert (
    found['step_seconds_expected'] == found['expected']['seconds'] > found['step_seconds_bound']
  )
  for words in (
    f'compiling the train step for {topology}',
    'XLA expects',
    'activations, scratch',
    ': fits',
    'binds',
    'per million tokens',
  ):
    assert words in seen


def test_an_objective_of_pairs_compiles(capsys):
  """With adapters the reference is a second forward pass, in the program and in the figures."""
  flags = [
    '--topology=v6e:2x2',
    '--gin.DecoderConfig.lora=@LoraConfig()',
    '--gin.LoraConfig.rank=4',
  ]
  flags += ['--gin.train.objective=@Preference()']
  pairs, _ = crossin_plan(capsys, *flags)
  alone, _ = crossin_plan(capsys, *flags, "--gin.Preference.kind='orpo'")
  assert pairs['compiled'] and pairs['fits']
  # Of the frozen matrices: one product forward, one backward, and one for the reference.
  assert 1.3 < pairs['flops_per_step'] / alone['flops_per_step'] < 1.6
  sent = lambda found: sum(found['sent_bytes_per_chip'].values())
  assert sent(pairs) > sent(alone), 'the second pass gathers matrices too'


@pytest.mark.parametrize('length, name', [(64, 'decoder_branches'), (256, 'decoder_answers')])
def test_features_of_pairs(length, name):
  """Splash knows no branches: there the prompt stands twice."""
  setting = plan_step.Setting(
    Decoder(DecoderConfig(**{**SIZES, 'dtype': 'bfloat16'})), optimizers.adamw(total_steps=9), 8,
    length, objective=Preference(),
  )  # fmt: skip
  topology = plan_topology.parse('v5e:2x2', 1)
  partition = Partitioner(mesh_shape=(1, 4, 1), devices=topology.devices)
  batch = plan_step.abstract_batch(setting, partition)
  assert name in batch and 'decoder_reference_logps' in batch and 'decoder_pair_ids' in batch


def test_what_is_too_large_and_what_fits_instead(capsys):
  """1.7 billion parameters with their moments do not fit on every v5e; cut over four they do."""
  wide = [
    'embed_dim=16384',
    'num_heads=64',
    'num_kv_heads=8',
    'mlp_dim=4096',
    'num_layers=6',
    'remat="full"',
  ]
  flags = [f'--gin.DecoderConfig.{setting}' for setting in wide]
  found, seen = crossin_plan(
    capsys, '--topology=v5e:2x2', '--gin.MESH_SHAPE=(4,1,1)', *flags, status=1
  )
  assert (
    not found['fits']
    and found['peak_bytes_per_chip'] > found['hbm_bytes_per_chip']
    and 'DOES NOT FIT' in seen
  )
  assert sum(found['memory_per_chip'].values()) == pytest.approx(
    found['peak_bytes_per_chip'], abs=4
  )
  assert found['memory_per_chip']['parameters'] == found['parameter_bytes'] > 1.2 * 4e9
  instead = found['what_fits'][0]
  assert instead['fits'] and instead['compiled'] and instead['mesh']['fsdp'] > 1
  flag = 'Partitioner.mesh_shape={data},{fsdp},{tensor}'.format(**instead['mesh'])
  assert flag in instead['changes'] and 'what fits:' in seen
  assert instead['memory_per_chip']['parameters'] == pytest.approx(
    found['parameter_bytes'] / instead['mesh']['fsdp'], rel=0.01
  )
  assert (
    instead['peak_bytes_per_chip'] <= found['hbm_bytes_per_chip'] < found['peak_bytes_per_chip']
  )


@pytest.fixture
def by_hand(monkeypatch):
  """A planner whose compiles take no time: temporaries are `factor[0]` times the formula's."""
  factor = [1.0]

  def train_step(setting, partition, topology, effort):
    state = plan_step.state_bytes(setting, partition)
    figures = plan_search.costs.figures(
      setting, tuple(partition.mesh.shape.values()), state, topology.slices
    )
    given, temporaries = state.parameters + state.optimizer, factor[0] * figures.scratch
    return Compiled(
      given + temporaries <= topology.usable, given + temporaries, given, temporaries, 0, None, 1.0
    )

  monkeypatch.setattr(plan_step, 'train_step', train_step)
  return plan_search.Planner(Partitioner), factor


LARGE = DecoderConfig(
  vocab_size=128256, embed_dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, mlp_dim=14336,
  dtype='bfloat16', remat='none',
)  # fmt: skip


def large(batch_size=64, length=1024):
  return plan_step.Setting(Decoder(LARGE), optimizers.adamw(total_steps=10), batch_size, length)


def test_nearest_settings_are_tried_in_order(by_hand):
  planner, factor = by_hand
  topology = plan_topology.parse('v5p:2x2x4')
  for wrong in (0.5, 2.0):
    factor[0] = wrong
    asked = planner.prove(planner.asked(large(512), topology))
    assert not asked.fits
    first, *_ = plan_search.nearest(planner, asked, 1)
    assert first.fits and first.compiled and first.topology.name == topology.name
    # Microbatches come first where they are enough; then everything else is as it was asked for.
    assert (
      first.setting.microbatches > 1
      and first.mesh == asked.mesh
      and first.setting.model.config.lora is None
    )
  small = plan_topology.parse('v5e:2x2')
  asked = planner.prove(planner.asked(large(), small))
  found = plan_search.nearest(planner, asked, 2)
  assert all(trial.fits for trial in found)
  # 120 GiB of state on 63: only adapters do, or more chips
  assert any('lora' in change for change in found[0].changes)
  assert found[1].topology.chips > 4
  text = plan_report.nearest_text(asked, found)
  assert 'INITIAL_CHECKPOINT_PATH' in text and '--topology v5e:' in text


def test_search_prints_three(by_hand, capsys):
  planner, _ = by_hand
  topologies = [plan_topology.parse(name) for name in ('v5p:2x2x1', 'v5p:2x2x2')]
  rows = plan_search.search(planner, large(), topologies)
  assert [name for name, *_ in rows] == ['best', 'next smaller', 'second best']
  best, less, second = (trial for _, trial, _ in rows)
  assert best.topology.chips == 8 and less.topology.chips == 4 and second.topology.chips == 8
  assert best.compiled and less.compiled and second.compiled is None
  assert best.rank <= second.rank and best.bound.seconds < less.bound.seconds
  assert best.mesh[0] * best.mesh[1] * best.mesh[2] == 8 and best.peak <= best.topology.usable
  text = plan_report.search_text(rows, 2.0)
  assert text.count('v5p:2x2x') == 3 and '  Partitioner.mesh_shape=' in text
  least = plan_search.smallest(
    planner, large(), [plan_topology.parse(n) for n in ('v5p:2x2x1', 'v5p:2x2x2')]
  )
  assert least.topology.chips == 4 and least.fits
  assert plan_search.smallest(planner, large(), [plan_topology.parse('v5e:1x1')]) is None


def test_a_search_believes_the_compiler(by_hand):
  """Where XLA needs three times the memory that the formula thought, the next choice is one that is
  small enough.
  """
  planner, factor = by_hand
  factor[0] = 3.0
  topology = plan_topology.parse('v5p:2x2x2')
  winner, _ = plan_search.best(planner, large(), topology, tries=5)
  assert winner.fits and winner.compiled.temporaries == pytest.approx(3 * winner.figures.scratch)


def test_a_search_ranks_compiled_meshes_by_what_xla_expects(by_hand, monkeypatch):
  """Of three compiled meshes the fastest is the one that XLA thinks so, not the first by formula."""
  planner, _ = by_hand
  compile_by_hand, seconds = plan_step.train_step, iter([3.0, 1.0, 2.0])

  def train_step(*arguments):
    expected = Expected({'products': next(seconds)}, {'products': 0.0}, 1.0, 0.0, (), 0, ())
    return dataclasses.replace(compile_by_hand(*arguments), expected=expected)

  monkeypatch.setattr(plan_step, 'train_step', train_step)
  topology = plan_topology.parse('v5p:2x2x2')
  winner, others = plan_search.best(planner, large(), topology, proofs=3)
  assert [trial.expected.seconds for trial in (winner, *others[:2])] == [1.0, 2.0, 3.0]
  assert len({trial.mesh for trial in (winner, *others[:2])}) == 3
  assert others[2].compiled is None and others[1].rank <= winner.rank
  rows = [('best', winner, topology), ('second best', others[0], topology)]
  assert 'XLA expects 1.000 s, at least' in plan_report.search_text(rows, None)


EXPERTS = ['--gin.DecoderConfig.num_experts=8', '--gin.DecoderConfig.experts_per_token=2']


@pytest.mark.slow
def test_a_mesh_with_experts(capsys):
  """Compiled for a TPU with a fourth axis."""
  mesh = '--gin.MESH_SHAPE=(1,2,1,2)'
  found, seen = crossin_plan(capsys, '--topology=v5p:2x2x1', *EXPERTS, mesh)
  assert found['compiled'] and found['fits']
  assert found['mesh'] == {'data': 1, 'fsdp': 2, 'tensor': 1, 'expert': 2}
  assert 'expert 2' in seen


def test_gpus_are_planned_by_formula(capsys):
  found, seen = crossin_plan(capsys, '--topology=h100:8', '--search')
  assert (
    found['fits']
    and not found['compiled']
    and found['compile_seconds'] is None
    and found['device_kind'] == 'NVIDIA H100'
  )
  assert [row['rank'] for row in found['ranking']] == ['best', 'next smaller', 'second best']
  assert found['ranking'][1]['chips'] == 4
  _, seen = crossin_plan(capsys, '--topology=h100:8', '--decode')
  assert 'only on a GPU' in seen and 'for TPUs only' in seen


def test_two_slices_by_formula(by_hand):
  planner, _ = by_hand
  trial = planner.trial(large(), plan_topology.parse('v5p:2x2x2', 2), (2, 8, 1))
  assert (
    trial.figures.sent['slices'] > 0
    and 'data' not in trial.figures.sent
    and trial.bound.network > 0
  )


def test_a_checkpoint_of_hugging_face_says_what_the_model_is(tmp_path, capsys):
  fields = {
    'model_type': 'llama', 'architectures': ['LlamaForCausalLM'], 'vocab_size': 512,
    'hidden_size': 64, 'intermediate_size': 128,
    'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
    'hidden_act': 'silu', 'rms_norm_eps': 1e-5,
    'max_position_embeddings': 2048, 'rope_theta': 10000.0, 'tie_word_embeddings': True,
  }  # fmt: skip
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  arguments = [
    '--json',
    '--topology=h100:1',
    '--gin_file=gin_configs/runs/crossin_lora.gin',
    f'--gin.HF_DIR="{tmp_path}"',
  ]
  assert plan_command.main(config.rewrite(arguments)) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert (found['length'], found['lora_rank'], found['batch_size']) == (4096, 64, 16)


@pytest.mark.parametrize('arguments, said', [
  (['--topology=v5z:2x2', *MODEL], 'Examples'),
  (['--topology=v5e:2x2,v5e:2x4', *MODEL], '--search'),
  (['--topology=h100:8'], 'no model'),
  (['--topology=h100:8', '--gin_file=gin_configs/runs/crossin_lora.gin'], 'HF_DIR is not set'),
  (['--topology=h100:8', '--effort=3', *MODEL], 'between -1 and 1'),
  (['--topology=h100:8', '--gin.BATCH_SIZE=9', *MODEL], 'use a multiple of 8'),
  (['--topology=h100:8', 'MESH_SHAPE=3,1,1', *MODEL], 'mesh_shape=auto, or --search'),
])  # fmt: skip
def test_what_is_wrong_is_said(arguments, said):
  with pytest.raises(ValueError, match=said):
    plan_command.main(config.rewrite(arguments))


def test_told_to_stop_while_it_compiles(tmp_path):
  """SIGTERM in the middle of a compile ends it at once with 75, and nothing but its own lines was
  on the terminal.
  """
  program = 'import sys; from crossin_jax import cli; sys.exit(cli.main(["plan", *sys.argv[1:]]))'
  command = [
    sys.executable,
    '-c',
    program,
    '--topology=v5e:2x2',
    *MODEL,
    '--gin.DecoderConfig.remat="full"',
  ]
  environment = {key: value for key, value in os.environ.items() if not key.startswith('TPU_')}
  with open(tmp_path / 'seen', 'w+', encoding='utf-8') as seen:
    process = subprocess.Popen(command, stderr=seen, stdout=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 60
    while 'compiling' not in (tmp_path / 'seen').read_text() and time.monotonic() < deadline:
      time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
  assert (tmp_path / 'seen').read_text().splitlines() == [
    'compiling the train step for v5e:2x2 ...',
    'crossin plan: interrupted; start the same command again to continue',
  ]
