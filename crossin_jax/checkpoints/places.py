"""Which checkpoints a MODEL_DIR has, and their paths."""

import os
import sys

from crossin_jax.errors import CrossinError
from crossin_jax.storage import remote

PREFIX = 'checkpoint'
COMMITTED = 'commit_success.txt'  # Orbax writes it last where it cannot rename
BEGUN = '_CHECKPOINT_METADATA'  # Orbax's manager writes it first


class CheckpointError(CrossinError, RuntimeError):
  """A checkpoint that is missing, damaged or of another model; the message names the remedy."""


def latest_checkpoint(path: str) -> str:
  """`path` itself if it is a checkpoint, else the newest checkpoint in it.

  Raises:
    CheckpointError: it is neither.
  """
  path = remote.absolute(path)
  if remote.prepare(path):
    names = remote.listing(path, deep=False)
    if 'state/' in names:
      if not _is_whole(path, names):
        raise CheckpointError(
          f'{path} is incomplete: it has no {COMMITTED}, which is written last. Name an earlier '
          f'{PREFIX}_<step>'
        )
      return path
  elif os.path.isdir(os.path.join(path, 'state')):
    return path
  if not (steps := steps_in(path)):
    raise CheckpointError(
      f'{path} is neither a {PREFIX}_<step> directory nor does it hold one (nor a config.json of '
      'Hugging Face)'
    )
  return os.path.join(path, f'{PREFIX}_{max(steps)}')


def steps_in(model_dir: str) -> list[int]:
  """Steps of the complete checkpoints in a MODEL_DIR."""
  found = folders_in(model_dir)
  if remote.is_remote(model_dir):
    found = [step for step in found if _is_whole(f'{model_dir}/{PREFIX}_{step}')]
  return found


def folders_in(model_dir: str) -> list[int]:
  """Steps of all folders with the name of a checkpoint."""
  if remote.is_remote(model_dir):
    folders = [
      name.rstrip('/') for name in remote.listing(model_dir, deep=False) if name.endswith('/')
    ]
  else:
    folders = os.listdir(model_dir) if os.path.isdir(model_dir) else []
  found = [n for n in folders if n.startswith(f'{PREFIX}_') and n[len(PREFIX) + 1 :].isdigit()]
  return sorted(int(name[len(PREFIX) + 1 :]) for name in found)


def check_room(directory: str, step: int) -> None:
  """Raises CheckpointError if `checkpoint_<step>` exists, complete or not: its files would mix with
  new ones.
  """
  path = os.path.join(remote.absolute(directory), f'{PREFIX}_{step}')
  if remote.is_remote(path):
    names = remote.listing(path, deep=False)
    unfinished, command = (
      names and not _is_whole(path, names),
      f'gcloud storage rm --recursive {path}',
    )
  else:
    names = os.path.isdir(path) and os.listdir(path)
    unfinished, command = False, f'rm -r {path}'
  if names:
    state = f', without {COMMITTED}: incomplete, or of another kind' if unfinished else ''
    raise CheckpointError(
      f'{path} exists already{state}. Give another directory, or, if nobody writes or needs it, '
      f'remove it: `{command}`'
    )


def _is_whole(url: str, names=None) -> bool:
  """Whether a remote checkpoint is complete; T5X's, written without Orbax's manager, have only
  `state`.
  """
  names = remote.listing(url, deep=False) if names is None else names
  return COMMITTED in names or (BEGUN not in names and remote.exists(f'{url}/state/{COMMITTED}'))


def remove_unfinished(model_dir: str) -> None:
  """Removes incomplete checkpoints of Orbax's manager from a remote MODEL_DIR, and reports them.

  Only for the run that holds the MODEL_DIR. Other folders of that name are not touched.
  """
  for step in folders_in(model_dir):
    path = f'{model_dir}/{PREFIX}_{step}'
    names = remote.listing(path, deep=False)
    if not names or _is_whole(path, names):
      continue
    if BEGUN in names:
      print(f'{path} was not finished by the previous run: it is removed', file=sys.stderr)
      remote.remove_folder(
        path, last=(BEGUN,)
      )  # if this is killed, the next run still recognises it
    else:
      print(
        f'warning: {path} has no {COMMITTED} and was not started by such a run: it is neither '
        'removed nor read',
        file=sys.stderr,
      )
