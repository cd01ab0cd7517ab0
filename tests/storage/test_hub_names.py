"""Names on the hub: how they are read, pinned, found in the cache, and downloaded."""

import http.server
import json
import os
import re
import subprocess
import sys
import threading

from conftest import REPOSITORY
import pytest

from crossin_jax.data.readers import find_files, other_files, read_rows
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.storage import hub_names, remote

COMMIT = re.compile(r'hf:org/tiny@[0-9a-f]{40}')


@pytest.fixture
def files(tmp_path):
  folder = tmp_path / 'files'
  folder.mkdir()
  (folder / 'config.json').write_text('{"model_type": "llama"}')
  (folder / 'model.safetensors').write_bytes(b'weights')
  (folder / 'pytorch_model.bin').write_bytes(b'pickle')
  return folder


def test_forms(hub, files):
  commit = hub.add('org/tiny', files)
  hub.add('org/tiny', files, revision='v1')
  name = f'hf:org/tiny@{commit}'
  for given in ('org/tiny', 'hf:org/tiny', 'hf:org/tiny@main', 'org/tiny@v1', name, 'hf:org/tiny/'):
    assert hub_names.pinned(given) == name, given
  assert hub_names.pinned('hf:org/tiny/sub/x') == f'{name}/sub/x'
  assert hub_names.title(name) == 'hf:org/tiny'
  for path in ('/a/b', './a/b', 'a', 'a/b/c', 'gs://a/b', '~/a', str(files)):
    assert hub_names.pinned(path) == path


def test_a_folder_that_is_here_is_no_name(hub, files, tmp_path, monkeypatch):
  hub.add('org/tiny', files)
  (tmp_path / 'org' / 'tiny').mkdir(parents=True)
  monkeypatch.chdir(tmp_path)
  assert hub_names.pinned('org/tiny') == 'org/tiny'
  assert COMMIT.fullmatch(hub_names.pinned('hf:org/tiny'))


def test_paths_of_files(hub, files):
  name = f'hf:org/tiny@{hub.add("org/tiny", files)}'
  assert remote.exists(f'{name}/config.json') and not remote.exists(f'{name}/none.json')
  folder = remote.fetched(name, ['config.json', 'none.json'], optional=True)
  assert json.load(open(os.path.join(folder, 'config.json'))) == {'model_type': 'llama'}
  assert remote.fetched(f'{name}/config.json') == os.path.join(folder, 'config.json')
  with pytest.raises(hub_names.HubError, match='has no none.json, it has config.json, model'):
    remote.fetched(name, ['none.json'])


def test_what_is_not_there_without_the_network(hub, files):
  hub.add('org/tiny', files)
  with pytest.raises(hub_names.HubError) as error:
    hub_names.pinned('runs/frist')
  assert str(error.value) == (
    f'runs/frist: no such folder here; on the hub: model runs/frist is not in the cache {hub.root}, '
    'and huggingface.co cannot be asked: HF_HUB_OFFLINE is set.\nFetch it where there is a network, '
    '`hf download runs/frist`, or give the path of a local copy'
  )
  with pytest.raises(hub_names.HubError, match='tiny@v9 is not in the cache .*\n.* --revision v9'):
    hub_names.pinned('hf:org/tiny@v9')
  with pytest.raises(hub_names.HubError, match='--repo-type dataset org/rows'):
    hub_names.pinned('hf:datasets/org/rows/a.jsonl')
  with pytest.raises(hub_names.HubError, match='write hf:ORG/NAME'):
    hub_names.pinned('hf:org tiny')
  with pytest.raises(hub_names.HubError, match='cannot be a name on the hub'):
    hub_names.pinned('hf:org/-tiny')


def test_without_the_library(hub, monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(hub_names.HubError, match=r"pip install 'crossin-jax\[hub\]'"):
    hub_names.pinned('org/tiny')


def test_a_run_that_goes_on_keeps_its_commits(hub, files):
  first = hub.add('org/tiny', files)
  hub_names.pinned('org/tiny')
  text = "HF_DIR = 'org/tiny'\nfrom_huggingface.directory = \"org/tiny\"\nx = 'other'\n"
  recorded = hub_names.recorded(text)
  name = f'hf:org/tiny@{first}'
  assert recorded == f"HF_DIR = '{name}'\nfrom_huggingface.directory = \"{name}\"\nx = 'other'\n"

  hub.forget()
  (files / 'config.json').write_text('{"model_type": "gemma"}')
  second = hub.add('org/tiny', files)
  assert second != first and hub_names.pinned('org/tiny') == f'hf:org/tiny@{second}'
  hub.forget()
  hub_names.keep(recorded)
  assert hub_names.pinned('org/tiny') == name
  assert hub_names.pinned('org/tiny@main') == f'hf:org/tiny@{second}'


def test_a_tokenizer(hub, tiny_vocabulary, tmp_path):
  folder = tmp_path / 'tokenizer'
  folder.mkdir()
  (folder / 'tokenizer.model').write_bytes(open(tiny_vocabulary.path, 'rb').read())
  (folder / 'tokenizer_config.json').write_text('{"chat_template": "{{ messages }}"}')
  hub.add('org/words', folder)
  for path in ('org/words', 'hf:org/words', 'hf:org/words/tokenizer.model', str(folder)):
    vocabulary = Vocabulary(path)
    assert vocabulary.digest == tiny_vocabulary.digest and vocabulary.chat == '{{ messages }}'
  with pytest.raises(FileNotFoundError, match='is not a file; set .* or ORG/NAME on the Hugging'):
    Vocabulary('data/words.model')


def test_rows(hub, tmp_path):
  folder = tmp_path / 'rows' / 'data'
  folder.mkdir(parents=True)
  row = {'instruction': 'Name a colour.', 'output': 'Red'}
  for language in ('en', 'vi'):
    (folder / f'alpaca.{language}.jsonl').write_text(json.dumps(row) + '\n')
  hub.add('org/rows', folder.parent, kind='dataset')
  stem = 'hf:datasets/org/rows/data/alpaca'
  [found] = read_rows(f'{stem}.en.jsonl')
  assert found.texts == ('Name a colour.', '', 'Red')
  assert [row.texts[2] for row in read_rows(find_files(stem, ('en',))['en'])] == ['Red']
  assert other_files(stem, ('en',)) == {'vi': 'alpaca.vi.jsonl'}

  from seqio_tasks.sources import ParallelFiles
  from seqio_tasks.texts import TextFiles

  source = ParallelFiles(stem, ('en', 'vi'))
  assert source.name == 'alpaca' and len(source) == 1
  assert re.fullmatch(r'hf:datasets/org/rows@[0-9a-f]{40}/data/alpaca', source.path)
  assert len(TextFiles('hf:datasets/org/rows/data', ('en',), column='output')) == 2


class Hub(http.server.BaseHTTPRequestHandler):
  """What the hub answers about one model; `asked` has the paths of all requests."""

  files = {'config.json': b'{}', 'model.safetensors': b'weights', 'pytorch_model.bin': b'pickle'}
  commit = '0123456789abcdef0123456789abcdef01234567'
  asked: list[str] = []

  def do_GET(self):
    self.asked.append(self.path)
    path = self.path.split('?')[0]
    if re.fullmatch(r'/api/models/org/tiny(/revision/main)?', path):
      siblings = [{'rfilename': name} for name in self.files]
      info = {'id': 'org/tiny', 'sha': self.commit, 'siblings': siblings}
      return self._answer(200, json.dumps(info).encode())
    if path.startswith('/api/models/org/tiny/revision/'):
      return self._answer(404, b'', **{'X-Error-Code': 'RevisionNotFound'})
    name = path.rsplit('/', 1)[1]
    if re.match('/org/tiny/resolve/', path) and name in self.files:
      tag = {'X-Repo-Commit': self.commit, 'ETag': f'"{name}"'}
      return self._answer(200, self.files[name], **tag)
    return self._answer(404, b'', **{'X-Error-Code': 'RepoNotFound'})

  do_HEAD = do_GET

  def _answer(self, status, body, **headers):
    self.send_response(status)
    for name, value in {'Content-Length': str(len(body)), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(b'' if self.command == 'HEAD' else body)

  def log_message(self, *_):
    pass


PROGRAM = """
import sys
from crossin_jax.storage import hub_names, remote
try:
  name = hub_names.pinned(sys.argv[1])
  print(name, open(remote.fetched(name, ['model.safetensors']) + '/model.safetensors').read())
except hub_names.HubError as error:
  print(error)
"""


def test_a_hub(tmp_path):
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  environment = {
    **os.environ, 'HF_HOME': str(tmp_path), 'PYTHONPATH': str(REPOSITORY),
    'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}', 'HF_HUB_DISABLE_XET': '1', 'HF_HUB_OFFLINE': '0',
  }  # fmt: skip

  def ask(name, **more):
    return subprocess.run(
      [sys.executable, '-c', PROGRAM, name], env={**environment, **more}, cwd=tmp_path,
      capture_output=True, text=True,
    )  # fmt: skip

  found = f'hf:org/tiny@{Hub.commit} weights\n'
  assert ask('org/tiny').stdout == found
  assert any('model.safetensors' in path for path in Hub.asked)
  assert not any('.bin' in path for path in Hub.asked)
  assert ask('org/tiny@v9').stdout.startswith(
    "org/tiny@v9: no such folder here; on the hub: hf:org/tiny has no revision 'v9'; give a branch"
  )
  assert ask('org/tinny').stdout.startswith(
    'org/tinny: no such folder here; on the hub: huggingface.co has no model org/tinny, or this'
  )
  server.shutdown()
  server.server_close()
  assert ask('org/tiny', HF_HUB_OFFLINE='1').stdout == found
  without = ask('org/tiny')
  assert without.stdout == found and 'huggingface.co does not answer' in without.stderr
