"""`crossin bench`: the three commands run, and say what they claim."""

import json

import pytest

from crossin_jax import cli

SMALL = [
  '--gin_file=gin_configs/models/world_1m.gin', '--gin.DecoderConfig.embed_dim=16',
  '--gin.DecoderConfig.mlp_dim=16',
  '--gin.DecoderConfig.num_layers=1', '--gin.DecoderConfig.vocab_size=64',
]  # fmt: skip


MESH = '--gin.Partitioner.mesh_shape=(1, -1, 1)'


def bench(capsys, *argv):
  assert cli.main(['bench', *argv, '--json']) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize('lora', [False, True])
def test_train(capsys, lora):
  flags = ['--gin.DecoderConfig.lora=@crossin_jax.models.lora.LoraConfig()'] if lora else []
  found = bench(capsys, 'train', *SMALL, *flags, '--gin.bench_train.batch_size=4', '--gin.bench_train.length=32',
                '--gin.bench_train.steps=3')  # fmt: skip
  assert found['mfu'] is None and found['devices'] == 4
  assert found['tokens_per_second'] == pytest.approx(4 * 32 / found['seconds_per_step'], rel=0.05)
  assert found['flops_per_step'] > 0


PAIRS = [
  '--gin.bench_train.batch_size=4', '--gin.bench_train.length=48', '--gin.bench_train.steps=3',
  '--gin.bench_train.prompt_tokens=8', '--gin.bench_train.answer_tokens=2',
]  # fmt: skip
LORA = '--gin.DecoderConfig.lora=@crossin_jax.models.lora.LoraConfig()'


DPO = '--gin.bench_train.objective=@Preference()'


@pytest.mark.parametrize('flags, pairs, columns, layout', [
  ([DPO], 4, 12, 'branches'),
  ([DPO, LORA], 4, 12, 'branches'),
  ([DPO, "--gin.BatchStream.pairs='plain'"], 2, 20, 'plain'),
  (['--gin.bench_train.objective=@DirectConsistency()', '--gin.bench_train.microbatches=2'],
   2, 24, 'branches'),
], ids=['stored reference', 'adapters', 'plain', 'consistency'])  # fmt: skip
def test_train_times_the_objective_of_the_run(capsys, flags, pairs, columns, layout):
  """The number of pairs is what the objective itself counted in the step that was timed."""
  mesh = '--gin.Partitioner.mesh_shape=(1, 2, 2)' if 'microbatches' in flags[-1] else MESH
  found = bench(capsys, 'train', *SMALL, *PAIRS, *flags, mesh)
  seconds = found['seconds_per_step']
  assert found['layout'] == layout
  assert found['positions_used'] == pytest.approx(pairs * columns / 48, abs=1e-4)
  assert found['pairs_per_second'] == pytest.approx(4 * pairs / seconds, rel=0.05)
  assert found['tokens_per_second'] == pytest.approx(4 * pairs * columns / seconds, rel=0.05)


def test_train_counts_the_pass_of_the_reference(capsys, tmp_path):
  """And takes the objective of a run's configuration."""
  run = tmp_path / 'run.gin'
  run.write_text('import crossin_jax.train\ntrain.objective = @Preference()\n')
  flags = [*SMALL, f'--gin_file={run}', *PAIRS, LORA, MESH]
  of = lambda kind: bench(capsys, 'train', *flags, f"--gin.Preference.kind='{kind}'")
  assert 1.2 < of('dpo')['flops_per_step'] / of('orpo')['flops_per_step'] < 1.7


@pytest.mark.parametrize('flag, part', [
  ('prompt_tokens=45', 'takes 49 columns, and a row has 48'),
  ('answer_tokens=0', 'answers of at least 1, found 8 and 0'),
  ('prompt_tokens=-1', 'prompts of at least 0 tokens and answers of at least 1, found -1'),
])  # fmt: skip
def test_a_pair_that_does_not_fit_is_said(capsys, flag, part):
  flags = [*PAIRS, DPO, f'--gin.bench_train.{flag}']
  assert cli.main(['bench', 'train', *SMALL, *flags]) == 1
  assert part in capsys.readouterr().err


def test_the_file_of_a_run_needs_no_names_of_the_run(capsys):
  run = ['--gin_file=gin_configs/runs/defaults.gin', '--gin.LENGTH=32', '--gin.BATCH_SIZE=4']
  found = bench(capsys, 'train', *SMALL, *run, '--gin.bench_train.steps=1')
  assert found['tokens_per_second'] > 0
  assert cli.main(['bench', 'data', *SMALL, *run]) == 2
  assert 'DATA_DIR is not set' in capsys.readouterr().err


def test_decode(capsys):
  found = bench(capsys, 'decode', *SMALL, '--gin.bench_decode.prompts=5', '--gin.bench_decode.prompt_tokens=12',
                '--gin.bench_decode.new_tokens=6', '--gin.bench_decode.rows=4')  # fmt: skip
  assert found['tokens'] == 30


def test_data(capsys, tiny_prepared):
  directory, mixture = tiny_prepared
  found = bench(capsys, 'data', f'--gin.bench_data.data_dir={directory!r}', f'--gin.bench_data.mixture={mixture!r}',
                '--gin.bench_data.batch_size=4', '--gin.bench_data.length=64',
                '--gin.bench_data.seconds=0.5')  # fmt: skip
  assert found['rows_per_second'] > 0 and 0.5 < found['positions_used'] <= 1


def test_no_model_is_said(capsys):
  assert cli.main(['bench', 'train']) == 2
  assert 'no model' in capsys.readouterr().err
