"""Remote storage against a stand-in for it: copies, mirrors, locks, prepared data, and what is said
when something is wrong.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time

from conftest import REPOSITORY, TINY_MIXTURE
from fake_gcs import put_folder
import numpy as np
import pytest

from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.storage import gcs as object_store
from crossin_jax.storage import lease, mirror, remote
from crossin_jax.storage.files import FileError, read_json

pytestmark = pytest.mark.usefixtures('gcs')


def tree(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


# ---- paths and messages ----


def test_local_paths_stay_as_they_are(tmp_path):
  assert remote.fetched('no/such/file') == 'no/such/file' and not remote.prepare(
    None, 'a/b', str(tmp_path)
  )
  assert remote.absolute('gs://b/a/') == 'gs://b/a' and remote.absolute('a') == os.path.abspath('a')


@pytest.mark.parametrize('url', ['gs://', 'gs://b/../x', 'gs://b//x', 'gs://b/./x'])
def test_a_url_that_no_disk_can_hold_is_refused(url):
  with pytest.raises(remote.RemoteError, match='bucket|part'):
    remote.cache_path(url)


def test_an_object_with_dots_in_its_name_does_not_leave_the_cache(gcs, tmp_path):
  gcs.put('a/../../../escaped', b'x')
  with pytest.raises(remote.RemoteError, match='as a part'):
    remote.fetched('gs://bucket/a')
  assert not list(tmp_path.rglob('escaped'))


@pytest.mark.parametrize('url, words', [
    ('gs://no-such-bucket/x', 'no bucket no-such-bucket; list it with `gcloud storage ls '
                              'gs://no-such-bucket`'),
    ('gs://bucket/nothing', 'gs://bucket/nothing does not exist'),
    ('gs://secret/x', r'no permission for gs://secret/x \(test@test does not have '
                      r'.*add-iam-policy-binding gs://secret'),
])  # fmt: skip
def test_what_is_wrong_is_said(url, words):
  with pytest.raises(remote.RemoteError, match=words):
    remote.fetched(url)
  with pytest.raises(OSError, match='gs://'):
    remote.fetched(url, ['file'])


def test_prepared_data_that_is_not_there_names_the_command():
  with pytest.raises(
    PreparedDataError, match='crossin prepare FILE.gin --mixture m --output_dir gs://bucket/data'
  ):
    PreparedMixture('gs://bucket/data', 'm')


def test_without_gcsfs_the_extra_is_named(tmp_path):
  program = 'import sys; sys.modules["gcsfs"] = None\nfrom crossin_jax.storage import remote\nremote.fetched("gs://bucket/x")'
  found = subprocess.run(
    [sys.executable, '-c', program], cwd=REPOSITORY, capture_output=True, text=True, check=False
  )
  assert "ValueError: gs:// paths need gcsfs: pip install 'crossin-jax[gcs]'" in found.stderr


@pytest.mark.parametrize('words, refused', [
    ('train --gin.MODEL_DIR=\'gs://b/r\'', None),
    ('evaluate --checkpoint gs://b/r --benchmark xcopa=gs://b/x --output_dir=gs://b/o', None),
    ('prepare --output_dir=gs://b/p --mixture m', None),
    ('sweep --remote_dir gs://b/s --output_dir out', None),
    ('sweep --remote_dir gs://b/s --output_dir gs://b/o', '--output_dir: gs://b/o'),
    ('judge --a gs://b/a.jsonl', '--a: gs://b/a.jsonl is remote, but `crossin judge`'),
    ('quickstart --output_dir=gs://b/q', 'gcloud storage cp'),
    ("xinstruction run --gin.OUT='gs://b/q'", 'gs://b/q'),
    ('contamination gs://b/x', 'contamination: gs://b/x'),
])  # fmt: skip
def test_commands_say_where_they_take_no_remote_path(words, refused):
  command, *argv = words.split()
  if refused is None:
    remote.check_flags(command, argv)
  else:
    with pytest.raises(ValueError, match=refused):
      remote.check_flags(command, argv)


# ---- copies ----


def test_a_copy_is_made_once_and_again_when_the_object_changes(gcs):
  gcs.put('data/a.txt', b'one')
  gcs.put('data/deep/b.bin', os.urandom(300_000))
  folder = remote.fetched('gs://bucket/data')
  assert tree_of(folder) == {'a.txt': b'one', 'deep/b.bin': gcs.read('data/deep/b.bin')}
  count = len(gcs.seen('alt=media'))
  assert count == 2
  remote.fetched('gs://bucket/data')
  assert len(gcs.seen('alt=media')) == count
  gcs.put('data/a.txt', b'two')
  assert open(remote.fetched('gs://bucket/data/a.txt'), 'rb').read() == b'two'
  # A copy that was cut off is made anew; times that a file system did not keep cost a look at the
  # content only.
  with open(os.path.join(folder, 'deep', 'b.bin'), 'r+b') as f:
    f.truncate(10)
  os.utime(os.path.join(folder, 'a.txt'))
  remote.fetched('gs://bucket/data')
  assert len(gcs.seen('alt=media')) == count + 2 and tree_of(folder)['deep/b.bin'] == gcs.read(
    'data/deep/b.bin'
  )


def tree_of(folder):
  import pathlib

  return tree(pathlib.Path(folder))


def test_optional_files_that_are_gone_are_gone_here_too(gcs):
  gcs.put('m/a', b'1')
  gcs.put('m/b', b'2')
  folder = remote.fetched('gs://bucket/m', ['a', 'b', 'c'], optional=True)
  del gcs.buckets['bucket']['m/b']
  remote.fetched('gs://bucket/m', ['a', 'b', 'c'], optional=True)
  assert os.listdir(folder) == ['a']


def test_what_is_gone_from_a_folder_is_gone_here_too(gcs, monkeypatch):
  for name in ('a', 'deep/b', 'deep/c', 'd'):
    gcs.put(f'm/{name}', b'1')
  folder = remote.fetched('gs://bucket/m')
  write(folder, 'deep/.writing-x', 'of another process')
  for name in ('a', 'deep/b'):
    del gcs.buckets['bucket'][f'm/{name}']
  listing = remote.listing  # 'd' is younger than it
  monkeypatch.setattr(
    remote, 'listing', lambda url: {n: e for n, e in listing(url).items() if n != 'd'}
  )
  assert tree_of(remote.fetched('gs://bucket/m/')).keys() == {'deep/c', 'deep/.writing-x', 'd'}


def test_compare_copies_predictions_only(gcs):
  from crossin_jax.evaluation.comparison import compare

  for name in (
    'eval/results.json',
    'eval/predictions/x.generate.jsonl',
    'eval/checkpoint_4/state/large',
  ):
    gcs.put(name, b'{}')
  folder = compare._download('gs://bucket/eval/')
  assert tree_of(folder).keys() == {'results.json', 'predictions/x.generate.jsonl'}
  assert open(compare._download('gs://bucket/eval/results.json'), 'rb').read() == b'{}'
  with pytest.raises(remote.RemoteError, match='gs://bucket/nothing/predictions does not exist'):
    compare._download('gs://bucket/nothing')


def test_requests_end_with_their_limit_also_if_it_is_set_while_they_run(gcs):
  gcs.fail('GET .*/o/slow', times=9, status=None, delay=30)
  gcs.fail('POST .*', times=99)
  for ask in (
    lambda: remote.stat('gs://bucket/slow'),
    lambda: remote.map_in_threads(remote.read, ['gs://bucket/slow']),
  ):
    started, limit = time.monotonic(), remote.Limit()
    threading.Timer(0.3, limit.set, (0.5,)).start()
    with (
      pytest.raises(remote.RemoteError, match='gs://bucket/slow cannot be reached: TimeoutError'),
      limit.applied(),
    ):
      ask()
    assert time.monotonic() - started < 5
  started = time.monotonic()
  with pytest.raises(remote.RemoteError, match='gs://bucket/x'), remote.Limit(0.5).applied():
    remote.upload(__file__, 'gs://bucket/x')
  assert time.monotonic() - started < 5
  gcs.put('quick', b'1')
  with remote.Limit(20).applied():
    assert remote.read('gs://bucket/quick') == b'1'


def test_many_objects_are_listed_over_pages(gcs):
  for i in range(1300):
    gcs.put(f'many/{i}', b'')
  gcs.put('many/folder/x', b'x')
  assert len(remote.listing('gs://bucket/many')) == 1301
  assert sorted(remote.listing('gs://bucket', deep=False)) == ['many/']
  assert len(remote.listing('gs://bucket/many', deep=False)) == 1301


def test_faults_in_between_change_nothing(gcs):
  """503, a connection dropped in the middle of the content, and content damaged on the way."""
  content = os.urandom(200_000)
  gcs.put('f', content)
  gcs.fail('GET .*alt=media')
  gcs.fail('GET .*alt=media', status=0)
  assert open(remote.fetched('gs://bucket/f'), 'rb').read() == content


def test_a_copy_that_arrives_damaged_is_not_kept(gcs, monkeypatch):
  gcs.put('f', b'right')
  monkeypatch.setattr(object_store, 'ATTEMPTS', 2)
  monkeypatch.setattr(
    remote.filesystem(), 'get_file', lambda url, path: open(path, 'wb').write(b'wrong')
  )
  with pytest.raises(remote.RemoteError, match='gs://bucket/f arrived damaged'):
    remote.fetched('gs://bucket/f')
  assert not [name for _, _, names in os.walk(remote.cache('files')) for name in names]


def test_a_disk_that_is_too_small_is_named_before_anything_is_copied(gcs, monkeypatch):
  gcs.put('f', bytes(10_000))
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 10, 5_000))
  with pytest.raises(remote.RemoteError, match='gs://bucket/f is 0.00 GB, and .* CROSSIN_CACHE'):
    remote.fetched('gs://bucket/f')
  assert not gcs.seen('alt=media')


def fetch_in_process(url, barrier):
  barrier.wait()
  remote.fetched(url)


def test_processes_that_ask_at_once_copy_once(gcs):
  for i in range(4):
    gcs.put(f'shared/{i}', os.urandom(100_000))
  context = multiprocessing.get_context('spawn')
  barrier = context.Barrier(2)
  running = [
    context.Process(target=fetch_in_process, args=('gs://bucket/shared', barrier)) for _ in range(2)
  ]
  for process in running:
    process.start()
  for process in running:
    process.join(60)
    assert process.exitcode == 0
  assert (
    len(gcs.seen('alt=media')) == 4 and len(tree_of(remote.cache_path('gs://bucket/shared'))) == 4
  )


# ---- mirrors ----


def write(folder, name, text):
  path = os.path.join(folder, name)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(path, 'w', encoding='utf-8') as f:
    f.write(text)


def test_a_mirror_begins_with_what_is_there_and_brings_what_changes(gcs):
  gcs.put('run/metrics.jsonl', b'1\n')
  gcs.put('run/tensorboard/events', b'e')
  gcs.put('run/checkpoint_4/state/x', b'large')
  gcs.put('run/old', b'o')
  with mirror.Mirror('gs://bucket/run', folders=('tensorboard',)) as files:
    assert tree_of(files.path) == {'metrics.jsonl': b'1\n', 'tensorboard/events': b'e', 'old': b'o'}
    count = len(gcs.seen('^POST'))
    files.push()
    assert len(gcs.seen('^POST')) == count
    with open(os.path.join(files.path, 'metrics.jsonl'), 'a', encoding='utf-8') as f:
      f.write('2\n')
    for name in ('config.gin.writing', '.writing-1', 'lock', 'checkpoint_9/x'):
      write(files.path, name, 'no')
    os.unlink(os.path.join(files.path, 'old'))
    files.push()
    assert gcs.read('run/metrics.jsonl') == b'1\n2\n'
    write(files.path, 'config.gin', 'x = 1')
  assert gcs.names('run') == [
    'run/checkpoint_4/state/x', 'run/config.gin', 'run/metrics.jsonl', 'run/tensorboard/events',
  ]  # fmt: skip
  # What a killed process had not pushed is thrown away.
  write(files.path, 'metrics.jsonl', 'not pushed')
  write(files.path, 'left', 'not pushed')
  with mirror.Mirror('gs://bucket/run', folders=('tensorboard',)) as files:
    assert open(os.path.join(files.path, 'metrics.jsonl'), 'rb').read() == b'1\n2\n'
    assert not os.path.exists(os.path.join(files.path, 'left'))


def test_markers_come_last_and_go_first(gcs):
  options = {'markers': ('tasks/*/manifest.json', 'mixtures/*.json')}
  with mirror.Mirror('gs://bucket/d', **options) as files:
    for name in ('mixtures/m.json', 'tasks/a/manifest.json', 'tasks/a/train-0.arrow', 'tasks/z'):
      write(files.path, name, name)
    files.push()
    sent = [request.split('"name"')[-1] for request in gcs.seen('^POST')]
    assert len(sent) == 4
    order = sorted(gcs.buckets['bucket'], key=lambda name: gcs.buckets['bucket'][name].generation)
    assert order[2:] == ['d/tasks/a/manifest.json', 'd/mixtures/m.json']
    os.unlink(os.path.join(files.path, 'tasks/a/manifest.json'))
    os.unlink(os.path.join(files.path, 'tasks/z'))
    write(files.path, 'tasks/a/train-0.arrow', 'other')
    gcs.requests.clear()
  changes = [request for request in gcs.seen('^(POST|DELETE)')]
  assert 'manifest.json' in changes[0] and changes[0].startswith('DELETE')
  assert changes[-1].startswith('DELETE') and changes[-1].endswith('tasks/z')


def test_a_push_that_fails_is_said_once_and_made_good(gcs, capsys):
  with mirror.Mirror('gs://bucket/m', period=0.1) as files:
    gcs.forbidden.add('bucket')
    write(files.path, 'a', '1')
    until = time.monotonic() + 20
    while 'no permission' not in capsys.readouterr().err:
      assert time.monotonic() < until
      time.sleep(0.05)
    time.sleep(0.5)
    assert 'no permission' not in capsys.readouterr().err
    gcs.forbidden.discard('bucket')
    while not gcs.names('m'):
      assert time.monotonic() < until
      time.sleep(0.05)
  gcs.forbidden.add('bucket')
  try:
    with pytest.raises(remote.RemoteError, match='no permission'):
      mirror.Mirror('gs://bucket/m').__enter__()
  finally:
    gcs.forbidden.discard('bucket')
  with (
    pytest.raises(remote.RemoteError, match='no permission'),
    mirror.Mirror('gs://bucket/m') as files,
  ):
    write(files.path, 'b', '1')
    gcs.forbidden.add('bucket')
  gcs.forbidden.discard('bucket')


@pytest.mark.parametrize('at_work', [False, True])
def test_an_error_is_not_kept_back_by_a_store_that_does_not_answer(
  gcs, monkeypatch, capsys, at_work
):
  monkeypatch.setattr(lease, 'SHORT', 0.6)
  started = time.monotonic()
  with (
    pytest.raises(ValueError, match='the reason'),
    mirror.Mirror('gs://bucket/m', period=0.1 if at_work else 60) as files,
  ):
    gcs.fail('POST .*', times=999)
    write(files.path, 'a', '1')
    while at_work and not gcs.seen('POST .*upload'):
      assert time.monotonic() - started < 20
      time.sleep(0.02)
    started = time.monotonic()
    raise ValueError('the reason')
  assert time.monotonic() - started < 4
  assert capsys.readouterr().err.count('warning: gs://bucket/m/a') == 1
  assert not files._thread.is_alive()
  time.sleep(1)  # a request that was on its way at the deadline still meets the fault
  gcs.faults.clear()
  time.sleep(1.5)
  assert not gcs.names('m'), 'what was given up does not come later'


def test_results_replace_those_that_are_there(gcs):
  """Their markers stay until the first new one is pushed, and stay if there is none."""
  for name in ('results.json', 'predictions/a', 'other'):
    gcs.put(f'out/{name}', b'old')
  for copied in (False, True):
    with pytest.raises(ValueError), mirror.written('gs://bucket/out', ('results.json',)) as files:
      raise ValueError
    assert len(gcs.names('out')) == 3
    with mirror.written('gs://bucket/out', ('results.json',)) as files:
      assert not os.path.exists(os.path.join(files.path, 'results.json')), copied
      files.push()
      assert len(gcs.names('out')) == 3
      write(files.path, 'predictions/a', 'new')
      files.push()
      assert gcs.names('out') == ['out/other', 'out/predictions/a']
      write(files.path, 'results.json', 'new')
    assert gcs.read('out/results.json') == b'new'


def test_one_mirror_of_a_folder_on_a_machine():
  with mirror.Mirror('gs://bucket/m'):
    with pytest.raises(lease.InUse, match='gs://bucket/m is being written by another process'):
      mirror.Mirror('gs://bucket/m').__enter__()


# ---- locks ----

LOCK = 'gs://bucket/run/lock'


def lock(**changes):
  return lease.Lock(LOCK, **{'period': 0.15, 'stale': 0.8, **changes})


def foreign(gcs):
  """A lock that a process of another machine left."""
  gcs.put(
    'run/lock',
    json.dumps({'token': 'x', 'holder': 'process 7 on far', 'process': 'boot ns 7 1'}).encode(),
  )


def test_a_lock_is_held_renewed_and_let_go(gcs):
  with lock() as held:
    with pytest.raises(
      lease.InUse, match=f'gs://bucket/run is in use by process {os.getpid()} on '
    ):
      lock().__enter__()
    time.sleep(1.0)
    held.check()
  assert gcs.names() == []
  with lock():
    pass


def test_a_stale_lock_is_taken_over_after_it_was_waited_for(gcs, capsys):
  foreign(gcs)
  started = time.monotonic()
  with lock(stale=1.5) as held:
    assert 0.3 < time.monotonic() - started < 10
    held.check()
  assert 'is held by process 7 on far; if it is not renewed within' in capsys.readouterr().err


def test_a_lock_of_a_dead_process_of_this_machine_is_not_waited_for(gcs):
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
  identity = lease._identity(process.pid)
  content = json.dumps(
    {'token': 'x', 'holder': f'process {process.pid}', 'process': identity}
  ).encode()
  gcs.put('run/lock', content)
  with pytest.raises(lease.InUse):
    threading.Timer(0.4, gcs.put, ('run/lock', content)).start()  # it lives, and renews
    lock(stale=60).__enter__()
  process.kill()
  process.wait()
  started = time.monotonic()
  with lock(stale=60):
    assert time.monotonic() - started < 5


def test_a_holder_whose_lock_was_taken_over_is_told(gcs):
  with lock() as held:
    foreign(gcs)
    until = time.monotonic() + 10
    with pytest.raises(lease.InUse, match='was taken over by another run'):
      while time.monotonic() < until:
        held.check()
        time.sleep(0.05)
  assert b'far' in gcs.read('run/lock'), 'the lock of the other is left alone'


def test_a_holder_that_could_not_renew_looks_before_it_answers(gcs, monkeypatch):
  """A machine that slept: nothing says that it did, and the thread has not come to its turn."""
  with lock(period=60) as held:
    monkeypatch.setattr(lease, 'SHORT', 0.5)
    count = len(gcs.requests)
    held.check()
    assert len(gcs.requests) == count
    time.sleep(1.0)
    held.check()
    assert len(gcs.requests) > count, 'nobody had taken it'
    count = len(gcs.requests)
    held.check()
    assert len(gcs.requests) == count
    held._renewed -= 1
    gcs.fail('.*', times=999)
    with pytest.raises(remote.RemoteError, match='run/lock cannot be reached') as told:
      held.check()
    assert not isinstance(told.value, lease.InUse)
    gcs.faults.clear()
    foreign(gcs)
    for _ in range(2):
      with pytest.raises(lease.InUse, match='was taken over by another run'):
        held.check()
  assert b'far' in gcs.read('run/lock')


def test_a_lost_answer_to_the_request_for_a_lock_is_no_other_holder(gcs):
  """The object was written, and the client sends the request again."""
  write = remote.write
  made = []

  def twice(url, data, generation=None):
    made.append(write(url, data, generation))
    return write(url, data, generation)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(remote, 'write', twice)
    held = lock(period=60)
    held._take()
  assert held._generation == made[0].generation


# ---- prepared data ----


def test_a_mixture_is_read_from_the_store_and_only_it(gcs, tiny_prepared):
  import pathlib

  directory, name = tiny_prepared
  put_folder(gcs, pathlib.Path(directory), 'prepared')
  gcs.put('prepared/tasks/other/train-00000.arrow', b'of another mixture')
  local, found = PreparedMixture(directory, name), PreparedMixture('gs://bucket/prepared', name)
  assert [task.split.name for task in found.tasks] == [task.split.name for task in local.tasks]
  for mine, theirs in zip(found.tasks, local.tasks):
    assert mine.examples == theirs.examples and mine.rate == theirs.rate
    for index in range(0, mine.examples, 7):
      for a, b in zip(mine.split.example(index), theirs.split.example(index)):
        np.testing.assert_array_equal(a, b)
  with open(found.vocabulary_path, 'rb') as a, open(local.vocabulary_path, 'rb') as b:
    assert a.read() == b.read()
  assert not gcs.seen('other') and not gcs.seen('validation.*alt=media')
  count = len(gcs.seen('alt=media'))
  assert PreparedMixture('gs://bucket/prepared', name).vocabulary_path
  assert len(gcs.seen('alt=media')) == count, 'the second time nothing is copied'
  PreparedMixture('gs://bucket/prepared', name, 'validation')
  assert gcs.seen('validation.*alt=media')


def test_prepare_to_the_store_is_prepare_to_disk(gcs, tiny_settings, tiny_prepared):
  import pathlib

  from seqio_tasks.prepare import prepare

  found = prepare(TINY_MIXTURE, 'gs://bucket/p', tiny_settings(), workers=1)
  assert found['output_dir'] == 'gs://bucket/p' and found['tokenised'] == found['tasks']
  wanted = tree(pathlib.Path(tiny_prepared[0]))
  assert {name.removeprefix('p/'): gcs.read(name) for name in gcs.names('p/')} == wanted
  # Markers after what they stand for.
  made = {name: gcs.buckets['bucket'][name].generation for name in gcs.names('p/')}
  manifests = [generation for name, generation in made.items() if name.endswith('manifest.json')]
  assert max(g for name, g in made.items() if name.endswith('.arrow')) < min(manifests)
  assert max(manifests) < made[f'p/mixtures/{TINY_MIXTURE}.json'] == max(made.values())
  # Elsewhere, nothing is done again, and no Arrow file is copied to see that.
  shutil.rmtree(remote.cache())
  gcs.requests.clear()
  again = prepare(TINY_MIXTURE, 'gs://bucket/p', tiny_settings(), workers=1)
  assert (
    again['tokenised'] == 0
    and again['tokens'] == found['tokens']
    and not gcs.seen('arrow.*alt=media')
  )
  assert {name.removeprefix('p/'): gcs.read(name) for name in gcs.names('p/')} == wanted
  with pytest.raises(PreparedDataError, match='^gs://bucket/p/tasks/.* is stale: .*--overwrite'):
    prepare(TINY_MIXTURE, 'gs://bucket/p', tiny_settings(max_length=48), workers=1)
  gcs.put(next(name for name in gcs.names('p/') if name.endswith('manifest.json')), b'{')
  with pytest.raises(
    PreparedDataError, match='^gs://bucket/p/tasks/.*; delete gs://bucket/p/tasks/[^ ]* and'
  ):
    prepare(TINY_MIXTURE, 'gs://bucket/p', tiny_settings(), workers=1)


def test_prepare_that_was_killed_goes_on_elsewhere(gcs, tiny_settings, tiny_prepared, monkeypatch):
  import pathlib

  from seqio_tasks import prepare as lib

  monkeypatch.setattr(lib, 'PART', 40)
  whole = lib.prepare(TINY_MIXTURE, 'gs://bucket/whole', tiny_settings(), workers=1)
  make, made = lib._tokenise_part, []

  def interrupted(*arguments):
    if len(made) == 3:
      raise KeyboardInterrupt
    made.append(make(*arguments))
    return made[-1]

  monkeypatch.setattr(lib, '_tokenise_part', interrupted)
  with pytest.raises(KeyboardInterrupt):
    lib.prepare(TINY_MIXTURE, 'gs://bucket/p', tiny_settings(), workers=1)
  assert len([name for name in gcs.names('p/') if name.endswith('.arrow')]) == 3
  assert not [name for name in gcs.names('p/') if 'manifest' in name or 'mixtures' in name]
  shutil.rmtree(remote.cache())
  again = []
  monkeypatch.setattr(lib, '_tokenise_part', lambda *a: again.append(a[1][4]) or make(*a))
  found = lib.prepare(TINY_MIXTURE, 'gs://bucket/p', tiny_settings(), workers=1)
  parts = len([name for name in gcs.names('p/') if name.endswith('.arrow')])
  assert found['tokens'] == whole['tokens'] and len(again) == parts - 3
  same = lambda prefix: {name.removeprefix(prefix): gcs.read(name) for name in gcs.names(prefix)}
  assert same('p/') == same('whole/')
  assert pathlib.Path(tiny_prepared[0]).is_dir()


def test_read_json_reads_objects(gcs):
  gcs.put('x.json', b'{"a": 1}')
  assert read_json('gs://bucket/x.json', 'no') == {'a': 1}
  gcs.put('x.json', b'{')
  with pytest.raises(FileError, match='gs://bucket/x.json is not valid JSON'):
    read_json('gs://bucket/x.json', 'no')
