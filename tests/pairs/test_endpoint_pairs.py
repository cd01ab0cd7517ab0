"""`crossin pairs` with answers of `crossin serve`."""

import json
import shutil

import gin
import numpy as np
import pytest
import serving

pytest.importorskip('py3langid', reason='language identification: pip install crossin-jax[lid]')
pytest.importorskip('uvicorn', reason='the server needs the extra `serve`')
pytest.importorskip('torch', reason='the model needs the extra `test`')

from crossin_jax import cli  # noqa: E402
from crossin_jax.storage.files import write_json  # noqa: E402


@gin.configurable
def letter_counts(texts):
  """Vectors of texts: how often each of some letters is in them."""
  return np.array([[text.count(letter) for letter in 'etaoinshr'] for text in texts], float) + 0.1


@pytest.fixture(scope='module')
def prompts(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prompts')
  for code, word in (('en', 'Which river'), ('es', 'Qué río')):
    rows = [{'id': i, 'instruction': f'{word}, {i}?'} for i in range(5)]
    write_json(str(folder / f'ask.{code}.json'), rows)
  return folder / 'ask'


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  folder = tmp_path_factory.mktemp('models') / 'nile'
  serving.write_model(folder)
  with serving.running([folder], rows=8) as running:
    yield running


def command(prompts, output, url, *more):
  return [
    'pairs', '--by', 'pivot', '--prompts', str(prompts), '--languages', 'en,es', '--endpoint', url,
    '--model', 'nile', '--output_dir', str(output), '--chunk', '2', '--gin.Sampling.samples=4',
    '--gin.Sampling.max_new_tokens=24', "--gin.Sampling.stop=('a','n','s','o')", *more,
  ]  # fmt: skip


def test_a_served_model_answers(server, prompts, tmp_path, capsys):
  out, embedder = tmp_path / 'out', '--gin.nearness.embedder=@letter_counts'
  files = lambda: [(out / 'round_1' / f'pairs.{kind}').read_bytes() for kind in ('jsonl', 'json')]
  run = command(prompts, out, f'{server.url}/v1', embedder)
  assert cli.main([*run, '--dry_run']) == 0
  assert '40 requests to make, 0 of 40 cached' in capsys.readouterr().err
  assert cli.main(run) == 0
  before = files()
  found = json.loads(before[1])
  assert found['pairs'] > 0 and found['checkpoint']['path'].startswith('nile at http')
  assert [own['answers']['sampled'] for own in found['by_language'].values()] == [20, 20]
  # Chunks that were lost are made of the stored replies.
  shutil.rmtree(out / 'round_1' / 'chunks')
  capsys.readouterr()
  assert cli.main(run) == 0 and files() == before
  assert '0 requests sent' in capsys.readouterr().err
  # Another start of everything gets the same answers: each request has a seed of its own.
  shutil.rmtree(out)
  assert cli.main(run) == 0 and files() == before


def test_what_an_endpoint_cannot_do(server, prompts, tmp_path, capsys):
  assert cli.main(command(prompts, tmp_path / 'a', f'{server.url}/v1')) == 2
  assert 'an endpoint gives no hidden states' in capsys.readouterr().err
  gone = command(prompts, tmp_path / 'b', 'http://127.0.0.1:9/v1', '--retries', '0')
  assert cli.main([*gone, '--gin.nearness.embedder=@letter_counts']) == 1
  assert 'start the same command again' in capsys.readouterr().err


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda run: run[:-2] + ['--checkpoint', 'x'], 'needs one model that answers'),
    (lambda run: [one for one in run if one not in ('--model', 'nile')], 'go together'),
    (lambda run: [{'pivot': 'implicit'}.get(one, one) for one in run], 'does not read --endpoint'),
  ],
)
def test_flags_that_do_not_fit(prompts, tmp_path, capsys, change, message):
  run = change(command(prompts, tmp_path, 'http://127.0.0.1:9/v1'))
  assert cli.main(run) == 2
  assert message in capsys.readouterr().err
