"""Steps of a pipeline in one directory: each has a folder with its output and a manifest that says
what it was made from.
"""

from collections.abc import Callable, Mapping, Sequence
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
  """A step that cannot run; the message says why and what to do."""


@dataclass(frozen=True)
class Step:
  """One step.

  Attributes:
    name: of its folder, 'generate' or 'rate.0' (round 0).
    run: (its folder) -> counts for the manifest. Called again after a kill, it does what is
      missing.
    needs: names of the steps whose output it reads.
    settings: everything else that its output depends on, JSON.
  """

  name: str
  run: Callable[[str], Mapping]
  needs: tuple[str, ...] = ()
  settings: Mapping | None = None


def file_stamp(path: str) -> list:
  """What changes when a file does: size and time. Its content may be gigabytes."""
  status = os.stat(path)
  return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


class Steps:
  """The steps over one directory.

  Attributes:
    directory: its folders are named as the steps.
    steps: name -> Step, in order.
  """

  def __init__(self, directory: str, steps: Sequence[Step]):
    self.directory, self.steps = directory, {step.name: step for step in steps}

  def folder(self, name: str) -> str:
    """The folder of a step."""
    return os.path.join(self.directory, name)

  def manifest(self, name: str) -> dict | None:
    """What a finished step has noted; None if it is not finished."""
    path = os.path.join(self.folder(name), MANIFEST)
    return (
      read_json(path, f'delete {self.folder(name)} to run the step again')
      if os.path.exists(path)
      else None
    )

  def made_from(self, name: str) -> dict:
    """Settings of a step and the fingerprints of what it needs, as the manifests have them."""
    step = self.steps[name]
    inputs = {need: (self.manifest(need) or {}).get('fingerprint') for need in step.needs}
    return json.loads(json.dumps({'settings': step.settings or {}, 'inputs': inputs}))

  def state(self, name: str) -> tuple[str, str]:
    """('done' | 'missing' | 'stale' | 'waiting', what is to be known of it)."""
    if any(self.state(need)[0] != 'done' for need in self.steps[name].needs):
      stale = self.manifest(name) is not None
      return (
        ('stale', 'a step before it is')
        if stale
        else ('waiting', f'for {", ".join(self.steps[name].needs)}')
      )
    if (manifest := self.manifest(name)) is None:
      return 'missing', ''
    now, before = self.made_from(name), manifest['made_from']
    changed = [
      f'{need} was made anew'
      for need in now['inputs']
      if now['inputs'][need] != before['inputs'].get(need)
    ]
    for key in now['settings'].keys() | before['settings'].keys():
      was, is_ = before['settings'].get(key), now['settings'].get(key)
      if was != is_:
        changed.append(f'{key} was {was!r}, is {is_!r}')
    return ('stale', '; '.join(changed)) if changed else ('done', '')

  def run(self, names: Sequence[str] | None = None, redo: bool = False) -> dict[str, dict]:
    """Runs what is missing, in order.

    Args:
      names: only these; None = all.
      redo: stale steps are run again, what they left put aside as NAME.stale.

    Returns:
      name -> manifest of each finished step.

    Raises:
      StepError: stale steps without `redo` (all are named, with what changed), a step whose input
        is missing.
    """
    names = list(self.steps) if names is None else names
    with locks.locked(os.path.join(self.directory, 'lock'), self.directory):
      stale = {
        name: told
        for name in names
        if (found := self.state(name))[0] == 'stale'
        for told in [found[1]]
      }
      if stale and not redo:
        listed = '\n  '.join(f'{name}: {told}' for name, told in stale.items())
        raise StepError(
          f'settings or inputs have changed since these steps ran:\n  {listed}\nrun them again '
          'with --redo, or give another '
          '--output_dir'
        )
      for name in names:
        state, told = self.state(name)
        if state == 'done':
          print(f'{name}: done', file=sys.stderr)
          continue
        if state == 'waiting':
          raise StepError(
            f'step {name} waits {told}; run that first, or `crossin xinstruction run`'
          )
        if state == 'stale':
          self._put_aside(name)
        self._run_one(name)
      return {
        name: manifest for name in self.steps if (manifest := self.manifest(name)) is not None
      }

  def _run_one(self, name: str) -> None:
    folder, started = self.folder(name), time.monotonic()
    made_from = self.made_from(name)
    begun = os.path.join(folder, 'begun.json')
    if os.path.exists(begun) and read_json(begun, f'delete {folder}') != made_from:
      self._put_aside(name)  # half done, from other settings
    os.makedirs(folder, exist_ok=True)
    write_json(begun, made_from)
    print(f'{name}: begins', file=sys.stderr, flush=True)
    counts = dict(self.steps[name].run(folder))
    fingerprint = hashlib.sha256(json.dumps([name, made_from], sort_keys=True).encode()).hexdigest()
    manifest = {
      'step': name, 'made_from': made_from, 'fingerprint': fingerprint, 'counts': counts,
      'seconds': round(time.monotonic() - started, 2),
    }  # fmt: skip
    write_json(os.path.join(folder, MANIFEST), manifest)
    print(f'{name}: {_told(counts)} ({manifest["seconds"]:.0f} s)', file=sys.stderr, flush=True)

  def _put_aside(self, name: str) -> None:
    """NB: renamed, not deleted: a model may have taken hours."""
    number = 0
    while os.path.exists(aside := f'{self.folder(name)}.stale{number or ""}'):
      number += 1
    os.rename(self.folder(name), aside)
    print(f'{name}: what was there is now {aside}', file=sys.stderr)


def _told(counts: Mapping) -> str:
  return ', '.join(
    f'{key} {value}' for key, value in counts.items() if isinstance(value, (int, float, str))
  )
