"""Every `--help` is printed, and every usage error reported, without a heavy library."""

import json
import os
import re
import subprocess
import sys

from conftest import REPOSITORY
import pytest

from crossin_jax import cli

# A parser must not import these, or one of the libraries that they are most of: each takes longer
# than all the rest of a help text.
HEAVY = (
  'aiohttp', 'babel', 'datasets', 'fsspec', 'flax', 'grain', 'huggingface_hub', 'jax', 'jaxlib',
  'jinja2', 'lm_eval', 'matplotlib', 'ml_dtypes', 'numpy', 'openai', 'optax', 'orbax', 'pandas',
  'peft', 'pyarrow', 'safetensors', 'scipy', 'sentencepiece', 'seqio', 'sklearn', 'starlette',
  't5x', 'tensorboardX', 'tensorflow', 'tensorflow_datasets', 'tensorstore', 'tokenizers', 'torch',
  'tqdm', 'transformers', 'uvicorn',
)  # fmt: skip
PROGRAM = """
import contextlib, io, json, sys
from crossin_jax import cli
results = {}
for words in json.loads(sys.argv[1]):
  known, out = set(sys.modules), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    try:
      status = cli.main(words)
    except SystemExit as error:
      status = error.code
  results[' '.join(words)] = [status, out.getvalue(), sorted(set(sys.modules) - known)]
print(json.dumps(results))
"""


def run(*commands: list[str]) -> dict:
  """Command -> (exit status, what it printed, modules that it imported first), in one process."""
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM, json.dumps(commands)], capture_output=True, text=True,
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
  )  # fmt: skip
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout)


@pytest.fixture(scope='module')
def helps() -> dict:
  commands = [name.split() for name in [*cli.COMMANDS, *cli.NESTED]]
  return run(['--help'], ['--version'], *([*words, '--help'] for words in commands))


def test_no_help_imports_a_heavy_library(helps):
  for command, (_, _, modules) in helps.items():
    heavy = sorted({name.split('.')[0] for name in modules} & set(HEAVY))
    assert not heavy, f'crossin {command} imports {", ".join(heavy)}'


def test_every_help_is_of_its_command(helps):
  for name in [*cli.COMMANDS, *cli.NESTED]:
    status, text, _ = helps[f'{name} --help']
    assert status == 0 and text.startswith(f'usage: crossin {name} '), text
    assert '\nexample: ' in text.replace('\n  ', '\n')


def test_commands_of_two_words_are_known(helps):
  """The help of a command names its nested ones, and each of them has its own entry."""
  text = helps['xinstruction --help'][1]
  listed = re.search(r'\{([a-z,-]+)\}', text)[1].split(',')
  assert {name.split()[1] for name in cli.NESTED} <= set(listed)


@pytest.mark.parametrize('program', ['run', 'seqio_data', 'whole'])
def test_programs_beside_the_commands(program):
  result = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', f'crossin_jax.t5x_bridge.{program}', '--help'],
    capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
  )  # fmt: skip
  assert result.returncode == 0 and result.stdout.startswith('usage: python -m'), result.stderr
  loaded = {name.split('.')[0] for name in re.findall(r'\| +([\w.]+)\n', result.stderr)}
  # seqio_data is built on the prepared files.
  assert 'runpy' in loaded and not loaded & set(HEAVY) - {'numpy', 'pyarrow'}


def test_usage_errors_import_nothing_heavy_either():
  found = run(['train', '--json=1'], ['evaluate'], ['pairs', '--by', 'chance'])
  for command, (status, text, modules) in found.items():
    assert status == 2 and 'error: ' in text, (command, text)
    assert not {name.split('.')[0] for name in modules} & set(HEAVY), command
