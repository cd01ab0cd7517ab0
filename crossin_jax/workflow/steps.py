"""Runs what is missing: tasks that are done or not, and steps with a folder and a manifest each."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
from dataclasses import dataclass
import hashlib
import json
import os
import sys
import time

from crossin_jax.errors import CrossinError
from crossin_jax.storage import locks
from crossin_jax.storage.files import read_json, write_json

MANIFEST = 'manifest.json'


class StepError(CrossinError, ValueError):
  """A step that cannot run; the message has the reason and the remedy."""


@dataclass(frozen=True)
class Task:
  """A piece of work with a mark on disk.

  Attributes:
    name: unique.
    run: does the work and sets the mark. Called again after a kill, it continues.
    done: whether the mark is set.
    needs: names of earlier tasks.
  """

  name: str
  run: Callable[[], object]
  done: Callable[[], bool]
  needs: tuple[str, ...] = ()


class _Inline(concurrent.futures.Executor):
  """Runs each call in this thread, where signals are handled."""

  def submit(self, call, /, *args, **kwargs):
    future = concurrent.futures.Future()
    try:
      future.set_result(call(*args, **kwargs))
    except BaseException as error:
      future.set_exception(error)
    return future


def run_missing(
  tasks: Sequence[Task],
  jobs: int = 1,
  tolerated: tuple[type[Exception], ...] = (),
  ended: Callable[[Task, object], None] = lambda task, result: None,
) -> dict[str, Exception]:
  """Runs the tasks that are not done, each after those it needs.

  Args:
    tasks: in an order in which they could run one by one.
    jobs: number of threads; one job runs in the calling thread.
    tolerated: errors that fail a task and all that need it, but not the others. Any other error is
      raised, and no further task starts.
    ended: called in this thread with each task that ran and its result or tolerated error.

  Returns:
    name -> error of the failed tasks.
  """
  failures: dict[str, Exception] = {}
  waiting = {task.name: task for task in tasks}
  running: dict[concurrent.futures.Future, Task] = {}
  executor = _Inline() if jobs == 1 else concurrent.futures.ThreadPoolExecutor(jobs)
  with executor:
    while waiting or running:
      unfinished = {*waiting, *(task.name for task in running.values())}
      for task in list(waiting.values()):
        if len(running) >= jobs:
          break
        if unfinished.intersection(task.needs):
          continue
        del waiting[task.name]
        if lost := [need for need in task.needs if need in failures]:
          failures[task.name] = failures[lost[0]]
        elif not task.done():
          running[executor.submit(task.run)] = task
      if not running:
        continue
      finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in finished:
        task = running.pop(future)
        try:
          result = future.result()
        except tolerated as error:
          failures[task.name] = result = error
        ended(task, result)
  return failures


@dataclass(frozen=True)
class Step:
  """One step of `Steps`.

  Attributes:
    name: of its folder, 'generate' or 'rate.0' (round 0).
    run: (its folder) -> counts for the manifest. Called again after a kill, it continues.
    needs: names of the steps whose output it reads.
    settings: everything else that its output depends on, JSON.
  """

  name: str
  run: Callable[[str], Mapping]
  needs: tuple[str, ...] = ()
  settings: Mapping | None = None


def file_stamp(path: str) -> list:
  """Path, size and time of a file, in place of its content, which may be gigabytes."""
  status = os.stat(path)
  return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


class Steps:
  """Steps in one directory: a folder each, with a manifest of what its output was made from.

  Attributes:
    directory: its folders have the names of the steps.
    steps: name -> Step, in order.
    elsewhere: how a user starts in another directory.
  """

  def __init__(
    self, directory: str, steps: Sequence[Step], elsewhere: str = 'give another --output_dir'
  ):
    self.directory, self.steps = directory, {step.name: step for step in steps}
    self.elsewhere = elsewhere

  def folder(self, name: str) -> str:
    """The folder of a step."""
    return os.path.join(self.directory, name)

  def manifest(self, name: str) -> dict | None:
    """The manifest of a step; None if it is not finished."""
    path = os.path.join(self.folder(name), MANIFEST)
    if not os.path.exists(path):
      return None
    return read_json(path, f'delete {self.folder(name)} to run the step again')

  def made_from(self, name: str) -> dict:
    """Settings of a step and the fingerprints of the steps it needs."""
    step = self.steps[name]
    inputs = {need: (self.manifest(need) or {}).get('fingerprint') for need in step.needs}
    return json.loads(json.dumps({'settings': step.settings or {}, 'inputs': inputs}))

  def state(self, name: str) -> tuple[str, str]:
    """('done' | 'missing' | 'stale' | 'waiting', the reason)."""
    manifest, needs = self.manifest(name), self.steps[name].needs
    if any(self.state(need)[0] != 'done' for need in needs):
      if manifest is not None:
        return 'stale', 'a step before it is stale'
      return 'waiting', f'for {", ".join(needs)}'
    if manifest is None:
      return 'missing', ''
    now, before = self.made_from(name), manifest['made_from']
    changed = [
      f'{need} has run again'
      for need in now['inputs']
      if now['inputs'][need] != before['inputs'].get(need)
    ]
    for key in now['settings'].keys() | before['settings'].keys():
      old, new = before['settings'].get(key), now['settings'].get(key)
      if old != new:
        changed.append(f'{key} was {old!r}, is {new!r}')
    return ('stale', '; '.join(changed)) if changed else ('done', '')

  def run(self, names: Sequence[str] | None = None, redo: bool = False) -> dict[str, dict]:
    """Runs what is missing, in order.

    Args:
      names: only these; None = all.
      redo: run stale steps again; their folders are renamed to NAME.stale.

    Returns:
      name -> manifest of each finished step.

    Raises:
      StepError: stale steps without `redo` (it names all, with the changes), or a step whose input
        is missing.
    """
    names = list(self.steps) if names is None else names
    with locks.locked(os.path.join(self.directory, 'lock'), self.directory):
      states = {name: self.state(name) for name in names}
      stale = [f'{name}: {why}' for name, (state, why) in states.items() if state == 'stale']
      if stale and not redo:
        listed = '\n  '.join(stale)
        raise StepError(
          f'settings or inputs have changed since these steps ran:\n  {listed}\nrun them again '
          f'with --redo, or {self.elsewhere}'
        )
      run_missing(
        [
          Task(name, lambda name=name: self._run(name), lambda name=name: self._done(name))
          for name in names
        ]
      )
      manifests = {name: self.manifest(name) for name in self.steps}
      return {name: manifest for name, manifest in manifests.items() if manifest is not None}

  def _done(self, name: str) -> bool:
    done = self.state(name)[0] == 'done'
    if done:
      print(f'{name}: done', file=sys.stderr)
    return done

  def _run(self, name: str) -> None:
    state, why = self.state(name)
    if state == 'waiting':
      raise StepError(f'step {name} waits {why}; run that first, or `crossin xinstruction run`')
    if state == 'stale':
      self._rename(name)
    folder, started = self.folder(name), time.monotonic()
    made_from = self.made_from(name)
    begun = os.path.join(folder, 'begun.json')
    if os.path.exists(begun) and read_json(begun, f'delete {folder}') != made_from:
      self._rename(name)  # unfinished, from other settings
    os.makedirs(folder, exist_ok=True)
    write_json(begun, made_from)
    print(f'{name}: starts', file=sys.stderr, flush=True)
    counts = dict(self.steps[name].run(folder))
    fingerprint = hashlib.sha256(json.dumps([name, made_from], sort_keys=True).encode()).hexdigest()
    manifest = {
      'step': name,
      'made_from': made_from,
      'fingerprint': fingerprint,
      'counts': counts,
      'seconds': round(time.monotonic() - started, 2),
    }
    write_json(os.path.join(folder, MANIFEST), manifest)
    shown = ', '.join(f'{k} {v}' for k, v in counts.items() if isinstance(v, (int, float, str)))
    print(f'{name}: {shown or "done"} ({manifest["seconds"]:.0f} s)', file=sys.stderr, flush=True)

  def _rename(self, name: str) -> None:
    """NB: renamed, not deleted: the step may have taken hours."""
    number = 0
    while os.path.exists(path := f'{self.folder(name)}.stale{number or ""}'):
      number += 1
    os.rename(self.folder(name), path)
    print(f'{name}: its old output is now {path}', file=sys.stderr)
