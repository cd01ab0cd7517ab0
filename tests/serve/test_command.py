"""The command line of `crossin serve`: flags, signals, exit statuses."""

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from conftest import REPOSITORY
import pytest
import serving

pytest.importorskip('uvicorn', reason='the server needs the extra `serve`')
openai = pytest.importorskip('openai', reason='the clients need the extra `test`')
pytest.importorskip('torch', reason='the model needs the extra `test`')

from crossin_jax import cli  # noqa: E402


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('models') / 'nile'
  serving.write_model(folder, length=4096)
  return folder


def test_wrong_flags(folder, capsys):
  for flags, message in (
    (['--port', '99999'], '--port 99999 must be at most 65535'),
    (['--languages', 'xx'], "--languages: unknown language 'xx'"),
    (['--compare_name', 'b'], 'give it with --compare'),
    (['--max_length', '1'], '--max_length 1 must be at least 2'),
    (['--gin.Sampling.temprature=1'], 'temprature'),
  ):
    assert cli.main(['serve', str(folder), *flags]) == 2
    assert message in capsys.readouterr().err
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = str(taken.getsockname()[1])
    assert cli.main(['serve', str(folder), '--port', port]) == 2
    assert f'cannot listen at 127.0.0.1:{port}' in capsys.readouterr().err
  assert cli.main(['serve', str(folder / 'nowhere')]) == 1
  assert 'nowhere' in capsys.readouterr().err
  assert cli.main(['serve', str(folder), '--compare', str(folder), '--port', '0']) == 2
  assert 'two models are called' in capsys.readouterr().err


def test_sigterm_finishes_what_runs_up_to_a_limit(folder, tmp_path):
  """A short stream ends in full, one that takes longer than the limit is cut; status 0."""
  environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'CROSSIN_API_KEY': 'sesame-0123'}
  log = tmp_path / 'log'
  command = ['serve', str(folder), '--port', '0', '--drain_seconds', '4', '--gin.Generator.rows=8',
             '--gin.Partitioner.mesh_shape=(-1,1,1)']  # fmt: skip
  with open(log, 'w') as err:
    process = subprocess.Popen(
      [sys.executable, '-m', 'crossin_jax.cli', *command], env=environment, stderr=err
    )
  try:
    until = time.monotonic() + 120
    while not (found := re.search(r'serving nile at (http://127.0.0.1:\d+/v1)', log.read_text())):
      assert process.poll() is None and time.monotonic() < until, log.read_text()
      time.sleep(0.1)
    client = openai.OpenAI(base_url=found[1], api_key='sesame-0123', max_retries=0, timeout=60)
    begun = [threading.Event(), threading.Event()]

    def ask(i, **options):
      """(choices of a stream, whether it was cut)."""
      choices = []
      try:
        for chunk in client.completions.create(
          model='nile', prompt='The', temperature=0, stream=True, **options
        ):
          choices += chunk.choices
          begun[i].set()
      except Exception:  # of the transport
        return choices, True
      return choices, False

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      short = pool.submit(ask, 0, max_tokens=110)  # no shape that must be compiled
      assert begun[0].wait(60)  # first come, first served: behind 100 answers it would wait
      long = pool.submit(ask, 1, max_tokens=4000, n=100)
      assert begun[1].wait(60)
      process.send_signal(signal.SIGTERM)
      sent = time.monotonic()
      (answer, cut), (many, many_cut) = short.result(60), long.result(60)
    assert answer[-1].finish_reason in ('stop', 'length') and not cut
    assert many_cut or sum(choice.finish_reason is not None for choice in many) < 100
    assert process.wait(40) == 0, log.read_text()
    assert time.monotonic() - sent < 25
    with pytest.raises(openai.APIConnectionError):
      client.models.list()
  finally:
    process.kill()
