"""MODEL_DIR: one run at a time, and the files that describe it."""

import contextlib
import errno
import os
import shutil

import jax

from crossin_jax.checkpoints import wrapped
from crossin_jax.checkpoints.saved_model import COMPANIONS, SavedModel
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.errors import CrossinError
from crossin_jax.models.huggingface import tensor_files
from crossin_jax.storage import hub_names, lease, locks, mirror, remote
from crossin_jax.storage.files import write_json, write_text


class RunError(CrossinError, RuntimeError):
  """A MODEL_DIR that this run may not use; the message says why and what to do."""


@contextlib.contextmanager
def exclusive(model_dir: str):
  """Locks MODEL_DIR for this run; a second run gets an error that names the first.

  For a remote MODEL_DIR, process 0 writes the small files locally and pushes them. A killed run
  leaves its lock there: on another machine the next run waits until it is stale, 90 s after the
  last renewal.

  Yields:
    A `mirror.Folder`; small files go to its `path`.

  Raises:
    RunError: another process holds it, or it cannot be written.
  """
  is_remote = remote.prepare(model_dir)
  if jax.process_index():
    yield mirror.Folder(model_dir)
    return
  if is_remote:
    try:
      with _remote_files(model_dir) as files:
        yield files
    except lease.InUse as error:
      raise RunError(str(error)) from error
    return
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locks.locked(os.path.join(model_dir, 'lock'), f'MODEL_DIR {model_dir}'))
    except locks.InUse as error:
      raise RunError(str(error)) from None
    except OSError as error:
      full = error.errno in (errno.ENOSPC, errno.EDQUOT)
      raise RunError(
        f'cannot write in MODEL_DIR {model_dir} ({error.strerror}); '
        f'{"make room there" if full else "make it writable"} or choose another'
      ) from None
    try:
      yield mirror.Folder(model_dir)
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        raise
      raise RunError(
        f'cannot write in MODEL_DIR {model_dir} ({error.strerror}). Make room there and start the '
        'same command again; it continues from the last complete checkpoint'
      ) from error


@contextlib.contextmanager
def _remote_files(model_dir: str):
  """Takes the lock, then mirrors the files."""
  with (
    lease.Lock(f'{remote.absolute(model_dir)}/lock') as lock,
    mirror.Mirror(model_dir, folders=('tensorboard', COMPANIONS)) as files,
  ):
    files.check = lock.check
    yield files


def keep_names(model_dir: str) -> None:
  """Makes names on the hub mean what they did when the run in `model_dir` began, if one did."""
  if remote.exists(path := os.path.join(model_dir, 'config.gin')):
    with open(remote.fetched(path), encoding='utf-8') as file:
      hub_names.keep(file.read())


def describe(
  model_dir: str, prepared: PreparedMixture, config: str, initial_checkpoint: str | None = None
) -> None:
  """Writes config.gin (the gin text `config`), prompts.json and the tokenizer into MODEL_DIR.

  Inference uses the last two to prompt the model as in training. If the parameters came from a
  Hugging Face directory, its configuration and tokenizer are copied to MODEL_DIR/huggingface for
  the export.
  """
  for source in SavedModel.open(initial_checkpoint).companion_folders if initial_checkpoint else ():
    tensor_files.copy_companions(source, os.path.join(model_dir, COMPANIONS))
    wrapped.remember(source, os.path.join(model_dir, COMPANIONS))
  write_text(os.path.join(model_dir, 'config.gin'), config)
  vocabulary = prepared.description['vocabulary']
  copy = os.path.basename(vocabulary['file'])
  shutil.copyfile(prepared.vocabulary_path, os.path.join(model_dir, copy))
  write_json(
    os.path.join(model_dir, 'prompts.json'),
    {'prompts': prepared.description['prompts'], 'vocabulary': {**vocabulary, 'file': copy}},
  )
