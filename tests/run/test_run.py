"""`crossin run`: one file gives what the separate commands give, continues, and says what is wrong."""

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time

from conftest import REPOSITORY
import pytest
import small_models

from crossin_jax import cli
from crossin_jax.processes.exit_status import RESTART

pytest.importorskip('transformers', reason='needs transformers of the extra `test`')

QUESTIONS = {
  'en': 'What is number {} plus one?',
  'vi': 'Số {} cộng một là bao nhiêu?',
  'zh': '数字{}加一是多少?',
}
TINY = """
BATCH_SIZE = 4
LENGTH = 128
MixtureSettings.max_length = 128
MixtureSettings.template = 'plain'
LoraConfig.rank = 4
DecoderConfig.remat = 'none'
TRAIN_STEPS = 6
train.epochs = None
train.evaluation_period = 3
CheckpointConfig.period = 3
schedule.peak = 1e-2
answer_questions.max_new_tokens = 4
run.questions = ('questions.jsonl',)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model, rows in three languages, questions, and the file of `crossin new` with TINY behind."""
  folder = tmp_path_factory.mktemp('run')
  specials = ['<s>', '</s>']
  small_models.write_tokenizer(
    folder / 'model', specials, {'bos_token': '<s>', 'eos_token': '</s>'}
  )
  small_models.write_model(folder / 'model', bos_token_id=380, eos_token_id=381)
  (folder / 'data').mkdir()
  questions = []
  for language, text in QUESTIONS.items():
    rows = [{'instruction': text.format(n), 'output': f'{n + 1}'} for n in range(40)]
    small_models.write_json(folder / 'data' / f'sums.{language}.json', rows)
    questions += [
      {'id': str(n), 'language': language, 'instruction': text.format(n), 'answer': n % 4,
       'choices': [str(k) for k in range(n - n % 4 + 1, n - n % 4 + 5)]}
      for n in range(8)
    ]  # fmt: skip
  lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in questions)
  (folder / 'questions.jsonl').write_text(''.join(lines), encoding='utf-8')
  before = os.getcwd()
  os.chdir(folder)
  try:
    words = ['new', '--model', 'model', '--rows', 'data/sums', '--languages', 'en,zh,vi']
    assert cli.main([*words, '--tune', 'lora', '--output', 'job.gin']) == 0
  finally:
    os.chdir(before)
  with open(folder / 'job.gin', 'a', encoding='utf-8') as f:
    f.write(TINY)
  return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
  monkeypatch.chdir(folder)


def run(*words):
  return cli.main(['run', 'job.gin', *words])


@pytest.fixture(scope='module')
def done(folder):
  """The job once, complete: its standard output."""
  words = [sys.executable, '-m', 'crossin_jax.cli', 'run', 'job.gin', '--json']
  environment = os.environ | {'PYTHONPATH': str(REPOSITORY)}
  process = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout.splitlines()[-1])


def contents(directory):
  """Path -> hash of the files that are results."""
  found = {}
  for base, _, names in os.walk(directory):
    for name in names:
      path = os.path.join(base, name)
      if name.endswith(('.safetensors', '.arrow')) or 'predictions' in base:
        with open(path, 'rb') as f:
          found[os.path.relpath(path, directory)] = hashlib.sha256(f.read()).hexdigest()
  return found


def losses(model_dir):
  with open(os.path.join(model_dir, 'metrics.jsonl'), encoding='utf-8') as f:
    rows = [json.loads(line) for line in f]
  return [{k: row.get(k) for k in ('step', 'loss', 'eval/heldout/loss')} for row in rows]


def test_a_new_file_is_short_and_fits_the_model(folder):
  text = (folder / 'job.gin').read_text(encoding='utf-8').removesuffix(TINY)
  assert len(text.splitlines()) <= 40
  assert "include 'gin_configs/runs/crossin_lora.gin'" in text
  assert "MIXTURE_OR_TASK_NAME = 'sums.base_x2x.all.en_zh_vi.default'" in text
  assert "VOCABULARY = 'model/tokenizer.json'" in text
  assert 'LENGTH = 128 ' in text  # the context of the model
  assert "MixtureSettings.template = 'alpaca'" in text  # it has no chat template


def test_a_small_model_is_tuned_in_full(capsys, tmp_path):
  output = str(tmp_path / 'small.gin')
  words = ['--model', 'model', '--rows', 'data/sums', '--languages', 'en,vi', '--output', output]
  assert cli.main(['new', *words]) == 0
  with open(output, encoding='utf-8') as f:
    assert "include 'gin_configs/runs/crossin_full.gin'" in f.read()
  assert cli.main(['new', *words]) == 2  # it is not overwritten
  assert f'{output} exists' in capsys.readouterr().err


@pytest.mark.parametrize(
  'change, said',
  [
    ({'--languages': 'vi,en'}, 'give en first'),
    ({'--languages': 'en,xx'}, 'xx'),
    ({'--languages': 'en,es'}, "no file for language 'es'"),
    ({'--rows': 'data/none'}, 'data/none'),
    ({'--model': 'data'}, 'data'),
    ({'--benchmark': 'cross_mmluu=x'}, 'cross_mmluu'),
  ],
)
def test_new_says_what_is_wrong(capsys, tmp_path, change, said):
  words = {'--model': 'model', '--rows': 'data/sums', '--languages': 'en,vi'} | change
  flags = [word for pair in words.items() for word in pair]
  assert cli.main(['new', *flags, '--output', str(tmp_path / 'x.gin')]) in (1, 2)
  message = capsys.readouterr().err
  assert said in message and 'Traceback' not in message and len(message.splitlines()) <= 3
  assert not os.path.exists(tmp_path / 'x.gin')


def test_the_job_is_what_the_commands_give_by_hand(done, capsys):
  """Bit for bit: token files, losses, predictions and the exported model."""
  capsys.readouterr()
  assert run('--dry_run', '--redo', 'run.output_dir=runs/hand') == 0
  printed = capsys.readouterr().out.splitlines()
  commands = [line.strip() for line in printed if line.strip().startswith('crossin ')]
  assert [shlex.split(line)[1] for line in commands] == [
    'prepare', 'evaluate', 'train', 'evaluate', 'compare', 'export-hf',
  ]  # fmt: skip
  for command in commands:
    assert cli.main(shlex.split(command)[1:]) == 0, command
  one, other = contents('runs/job'), contents('runs/hand')
  assert one == other and len(one) > 10
  assert losses('runs/job/train') == losses('runs/hand/train')
  assert any(path.startswith('export/merged/') for path in one)


def test_the_result_and_the_page(done):
  assert done['exported'] == 'runs/job/export/merged'
  assert done['training']['step'] == 6
  assert done['training']['heldout'] < done['training']['heldout_before']
  with open(done['page'], encoding='utf-8') as f:
    page = f.read()
  assert 'Held-out loss' in page and 'href="compare/compare.html"' in page
  for step in ('prepare', 'before', 'train', 'after', 'compare', 'export'):
    assert f'<h3>{step}, ' in page


def test_transformers_loads_the_export(done):
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(done['exported'])
  tokenizer = transformers.AutoTokenizer.from_pretrained(done['exported'])
  ids = tokenizer('What is', return_tensors='pt').input_ids
  assert model.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]


def test_what_is_done_is_skipped_on_any_mesh(done, capsys):
  assert run('MESH_SHAPE=1,1,1', '--json') == 0
  captured = capsys.readouterr()
  assert captured.err.count(': done') == 6 and 'starts' not in captured.err
  assert json.loads(captured.out.splitlines()[-1])['training'] == done['training']


def test_stale_steps_are_named_before_anything_runs(done, capsys):
  assert run('schedule.peak=5e-3') == 1
  message = capsys.readouterr().err
  assert "train: schedule.peak was '0.01', is '0.005'" in message
  assert 'prepare:' not in message and 'before:' not in message
  assert '--redo, or set another run.output_dir' in message


def test_a_changed_file_makes_its_step_stale(done, capsys):
  path = 'questions.jsonl'
  status = os.stat(path)
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
  try:
    assert run() == 1
  finally:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
  message = capsys.readouterr().err
  assert 'before: files' in message and 'after: files' in message and 'train:' not in message


def test_an_interrupted_job_continues(folder, capsys):
  words = [sys.executable, '-m', 'crossin_jax.cli', 'run', 'job.gin',
           'run.output_dir=runs/cut', 'run.questions=()', 'TRAIN_STEPS=400',
           'train.evaluation_period=400', 'CheckpointConfig.period=40']  # fmt: skip
  environment = os.environ | {'PYTHONPATH': str(REPOSITORY)}
  process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 120
  begun = lambda: process.poll() is not None or os.path.isdir('runs/cut/train/checkpoint_40')
  while time.monotonic() < deadline and not begun():
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == RESTART, errors
  assert 'start the same command again to continue' in errors
  # It continues where it broke, with fewer steps than planned so that the test ends.
  process = subprocess.run([*words, '--json'], env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert 'prepare: done' in process.stderr and 'continues at step' in process.stderr
  assert json.loads(process.stdout.splitlines()[-1])['training']['step'] == 400


def test_a_dry_run_says_what_it_takes(capfd):
  assert run('--dry_run', '--json', 'run.output_dir=runs/dry') == 0
  found = json.loads(capfd.readouterr().out.splitlines()[-1])
  assert found['steps']['prepare'] == 'missing' and not os.path.exists('runs/dry')
  assert found['training']['steps'] == 6 and found['training']['seconds_per_step'] > 0
  assert 0 < found['training']['bytes_per_device'] < found['training']['room_per_device']
  # 38 rows of English, and as many across languages; two of 40 are held out.
  assert found['prepared']['examples'] == 76 and found['prepared']['tokens'] > 1000
  assert run('--dry_run', 'MixtureSettings.max_length=3') == 1
  assert 'no example left' in capfd.readouterr().err


@pytest.mark.parametrize(
  'words, said',
  [
    (['run'], 'give the file of the job'),
    (['run', 'none.gin'], "'none.gin' does not exist"),
    (['run', 'job.gin', 'MODEL_DIR=x'], 'MODEL_DIR is another in every step'),
    (['run', 'job.gin', 'run.benchmarks=x'], "'x' is not NAME=PATH"),
    (['run', 'job.gin', 'run.export=ful'], 'none of auto, merged'),
    (['run', 'gin_configs/runs/crossin_lora.gin'], 'is not set'),
  ],
)
def test_run_says_what_is_wrong(capsys, words, said):
  assert cli.main(words) == 2
  message = capsys.readouterr().err
  assert said in message and 'Traceback' not in message and len(message.splitlines()) <= 3
