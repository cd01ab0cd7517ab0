"""From pairs in a file to a tuned model, as a user runs it, at toy size: LoRA, and all parameters with
a stored reference.
"""

import json
import math
import os
import subprocess
import sys

from conftest import REPOSITORY
import pytest
from test_recipe import REASON, hf  # noqa: F401

from crossin_jax import cli

pytest.importorskip('transformers', reason=REASON)

LANGUAGES = {'en': ('July', 'May', 'Which month is hot'), 'es': ('julio', 'mayo', 'Qué mes')}


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """24 pairs in two languages, and 12 rows of direct consistency."""
  folder = tmp_path_factory.mktemp('rows')
  for how in ('given', 'options'):
    rows = [
      {'id': str(i), 'prompt': f'{prompt}, {i}?', 'chosen': chosen, 'rejected': rejected,
       'language': language, 'how': how}
      for i in range(12)
      for language, (chosen, rejected, prompt) in LANGUAGES.items()
    ]  # fmt: skip
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / f'{how}.jsonl').write_text(text, encoding='utf-8')
  return folder


def prepare(hf, pairs, how, data, *flags):  # noqa: F811
  values = {'PAIRS': str(pairs / f'{how}.jsonl'), 'VOCABULARY': os.path.join(hf, 'tokenizer.model')}
  values |= {'MixtureSettings.template': 'gemma', 'MixtureSettings.max_length': 64}
  settings = [f'--gin.{name}={value!r}' for name, value in values.items()]
  command = [
    'prepare', '--gin_file=gin_configs/mixtures/pairs.gin', *settings,
    '--mixture=tuned.pairs.all.en_es.default', f'--output_dir={data}', *flags,
  ]  # fmt: skip
  if not flags:
    return cli.main(command), ''
  # A process that has imported nothing yet.
  done = subprocess.run(
    [sys.executable, '-m', 'crossin_jax.cli', *command], cwd=REPOSITORY, text=True,
    stderr=subprocess.PIPE,
  )  # fmt: skip
  return done.returncode, done.stderr


def train(hf, data, run, *flags):  # noqa: F811
  values = {
    'HF_DIR': hf, 'DATA_DIR': str(data), 'MODEL_DIR': str(run), 'BATCH_SIZE': 4, 'LENGTH': 128,
    'MIXTURE_OR_TASK_NAME': 'tuned.pairs.all.en_es.default', 'TRAIN_STEPS': 60,
    'DecoderConfig.dtype': 'float32', 'LoraConfig.base_dtype': 'float32', 'LoraConfig.rank': 4,
    'train.epochs': None, 'train.log_period': 1, 'schedule.peak': 1e-2,
    'Preference.nll': 0.0,
  }  # fmt: skip
  settings = [f'--gin.{name}={value!r}' for name, value in values.items()]
  return cli.main(['train', '--gin_file=gin_configs/runs/preference_lora.gin', *settings, *flags])


def lines(run):
  with open(run / 'metrics.jsonl', encoding='utf-8') as f:
    return [row for row in map(json.loads, f) if 'preference' in row]


@pytest.mark.parametrize('lora', [True, False])
def test_pairs_are_learnt(hf, pairs, tmp_path, lora):  # noqa: F811
  stored = [] if lora else ['--reference', hf, "--gin.DecoderConfig.dtype='float32'"]
  status, told = prepare(hf, pairs, 'given', tmp_path / 'D', *stored)
  assert status == 0, told
  assert ('log-probabilities of 24 pairs (24 new)' in told) != lora
  flags = [] if lora else ['--gin.DecoderConfig.lora=None']
  assert train(hf, tmp_path / 'D', tmp_path / 'run', *flags) == 0
  first, *_, last = lines(tmp_path / 'run')
  assert first['loss'] == pytest.approx(math.log(2), abs=1e-4)
  assert first['preference']['margin'] == pytest.approx(0, abs=1e-3)
  assert last['loss'] < 0.6 and last['preference']['accuracy'] == 1
  assert set(last['preference_by_language']) == {'en', 'es'}


def test_direct_consistency_closes_the_gap(hf, pairs, tmp_path):  # noqa: F811
  assert prepare(hf, pairs, 'options', tmp_path / 'D') == (0, '')
  flags = ['--gin.OBJECTIVE=@DirectConsistency()', '--gin.TRAIN_STEPS=100']
  # The loss has kinks: at a higher rate the gap falls in leaps.
  assert train(hf, tmp_path / 'D', tmp_path / 'run', *flags, '--gin.schedule.peak=3e-3') == 0
  first, *_, last = lines(tmp_path / 'run')
  assert last['preference']['gap'] < 0.5 * first['preference']['gap']
