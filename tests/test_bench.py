"""`crossin bench`: the three commands run, and say what they claim."""

import json

import pytest

from crossin_jax import cli

SMALL = [
  '--gin_file=gin_configs/models/world_1m.gin', '--gin.DecoderConfig.embed_dim=16',
  '--gin.DecoderConfig.mlp_dim=16',
  '--gin.DecoderConfig.num_layers=1', '--gin.DecoderConfig.vocab_size=64',
]  # fmt: skip


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
