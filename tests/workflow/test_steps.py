"""The engine that runs what is missing."""

import sys
import threading

import pytest

from crossin_jax.workflow import jobs as jobs_lib
from crossin_jax.workflow.steps import Task, run_missing


class Work:
  """Tasks that note their order; those in `broken` raise."""

  def __init__(self, broken=()):
    self.ran, self.broken, self.lock = [], broken, threading.Lock()

  def task(self, name, *needs):
    return Task(name, lambda: self.run(name), lambda: name in self.ran, needs)

  def run(self, name):
    if name in self.broken:
      raise self.broken[name]
    with self.lock:
      self.ran.append(name)
    return name.upper()


@pytest.mark.parametrize('jobs', [1, 3])
def test_tasks_run_once_and_after_what_they_need(jobs):
  work, ended = Work(), []
  tasks = [work.task('a'), work.task('b'), work.task('c', 'a', 'b'), work.task('d', 'c')]
  work.ran.append('b')
  assert run_missing(tasks, jobs, ended=lambda task, result: ended.append(result)) == {}
  assert work.ran == ['b', 'a', 'c', 'd'] and ended == ['A', 'C', 'D']
  assert run_missing(tasks, jobs) == {} and len(work.ran) == 4


@pytest.mark.parametrize('jobs', [1, 2])
def test_a_tolerated_error_fails_only_what_needs_the_task(jobs):
  error, ended = KeyError('a'), {}
  work = Work({'a': error})
  tasks = [work.task('a'), work.task('b'), work.task('c', 'a'), work.task('d', 'c')]
  report = lambda task, result: ended.update({task.name: result})
  assert run_missing(tasks, jobs, (KeyError,), report) == {'a': error, 'c': error, 'd': error}
  assert work.ran == ['b'] and ended == {'a': error, 'b': 'B'}


def test_any_other_error_stops_the_rest():
  work = Work({'b': OSError('b')})
  with pytest.raises(OSError):
    run_missing([work.task(name) for name in 'abc'], tolerated=(KeyError,))
  assert work.ran == ['a']


def test_jobs_run_at_the_same_time_and_one_job_in_this_thread():
  barrier, threads = threading.Barrier(2, timeout=30), []
  tasks = [Task(name, barrier.wait, lambda: False) for name in 'ab']
  assert run_missing(tasks, 2) == {}
  here = Task('c', lambda: threads.append(threading.current_thread()), lambda: bool(threads))
  run_missing([here])
  assert threads == [threading.current_thread()]


def test_a_long_command_is_heard_of(tmp_path, monkeypatch, capsys):
  """The last line of its log, now and then."""
  monkeypatch.setattr(jobs_lib, 'PERIOD', 0.3)
  script = 'import time; print("step 3/7", flush=True); time.sleep(1)'
  jobs_lib.Jobs(str(tmp_path)).execute('reading', [sys.executable, '-c', script])
  assert 'reading: step 3/7\n' in capsys.readouterr().err
