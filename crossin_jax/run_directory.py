"""MODEL_DIR: one run at a time in it, and what it needs to be understood later."""

import contextlib
import errno
import os
import shutil
import socket

import gin
import jax

from crossin_jax import checkpoints, config, mirror, remote
from crossin_jax.data.prepared import PreparedMixture, write_json
from crossin_jax.models import huggingface

COMPANIONS = 'huggingface'  # folder in MODEL_DIR


class RunError(RuntimeError):
  """A MODEL_DIR that this run may not use; the message says why and what to do."""


@contextlib.contextmanager
def exclusive(model_dir: str):
  """Holds MODEL_DIR for this run; a second run is refused and told which is the first.

  Of a remote MODEL_DIR what is no checkpoint is written on this machine, by process 0, and pushed. A run that was killed leaves its
  lock there: on another machine the next one waits until it is stale, 90 s after it was last renewed.

  Yields:
    A `mirror.Folder`: `path` is where small files are written.

  Raises:
    RunError: another process holds it, or it cannot be written.
  """
  is_remote = remote.use(model_dir)
  if jax.process_index():
    yield mirror.Folder(model_dir)
    return
  if is_remote:
    try:
      with _remote_files(model_dir) as files:
        yield files
    except mirror.InUse as error:
      raise RunError(str(error)) from error
    return
  import fcntl

  path = os.path.join(model_dir, 'lock')
  try:
    os.makedirs(model_dir, exist_ok=True)
    f = open(path, 'ab+', buffering=0)  # pylint: disable=consider-using-with  # held below
  except OSError as error:
    raise RunError(f'cannot write in MODEL_DIR {model_dir} ({error.strerror}); choose another') from None
  with f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      f.seek(0)
      holder = f.read().decode().strip() or 'another run'
      raise RunError(f'{model_dir} is in use by {holder}; wait for it, stop it, or use another MODEL_DIR') from None
    try:
      f.truncate(0)
      f.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
      yield mirror.Folder(model_dir)
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        raise
      raise RunError(
        f'cannot write in MODEL_DIR {model_dir} ({error.strerror}). Make room there and start the same command again; it '
        'goes on from the last whole checkpoint'
      ) from error


@contextlib.contextmanager
def _remote_files(model_dir: str):
  """The lock, then the files."""
  with (
    mirror.Lock(f'{remote.absolute(model_dir)}/lock') as lock,
    mirror.Mirror(model_dir, folders=('tensorboard', COMPANIONS)) as files,
  ):
    files.check = lock.check
    yield files


def name_of(checkpoint: str) -> str:
  """The last part of a MODEL_DIR's or Hugging Face directory's path, for tables."""
  folder = (
    checkpoint if huggingface.is_directory(checkpoint) else os.path.dirname(checkpoints.latest_checkpoint(checkpoint))
  )
  return os.path.basename(remote.absolute(folder))


def companions_of(path: str) -> str | None:
  """The folder with config.json and tokenizer files that belong to a checkpoint, MODEL_DIR or Hugging Face directory."""
  parent = os.path.dirname(remote.absolute(path))
  for folder in (path, os.path.join(path, COMPANIONS), os.path.join(parent, COMPANIONS)):
    if huggingface.is_directory(folder):
      return folder
  return None


def describe(model_dir: str, prepared: PreparedMixture, initial_checkpoint: str | None = None) -> None:
  """Writes config.gin (the operative configuration), prompts.json and the tokenizer into MODEL_DIR.

  Inference prompts the model as training did from the last two. Where the parameters came from a Hugging Face directory,
  its configuration and tokenizer go to MODEL_DIR/huggingface, for the way back.
  """
  if initial_checkpoint and (source := companions_of(initial_checkpoint)):
    huggingface.copy_companions(source, os.path.join(model_dir, COMPANIONS))
  path = os.path.join(model_dir, 'config.gin')
  with open(f'{path}.writing', 'w', encoding='utf-8') as f:
    f.write(gin.operative_config_str())
  os.replace(f'{path}.writing', path)
  vocabulary = prepared.description['vocabulary']
  copy = os.path.basename(vocabulary['file'])
  shutil.copyfile(prepared.vocabulary_path, os.path.join(model_dir, copy))
  write_json(
    os.path.join(model_dir, 'prompts.json'),
    {'prompts': prepared.description['prompts'], 'vocabulary': {**vocabulary, 'file': copy}},
  )


def imported_config(directory: str) -> str:
  """gin text of a model that config.json in `directory` describes."""
  return (
    'import crossin_jax.models.architectures\nimport crossin_jax.models.decoder\nimport crossin_jax.train\n\n'
    f'MODEL = @Decoder()\nDecoder.config = @from_huggingface()\nfrom_huggingface.directory = {directory!r}\n'
    'train.model = %MODEL\n'
  )


def parse_saved(args, checkpoint: str) -> None:
  """Parses gin flags on top of what a checkpoint was trained or imported with, or of what a config.json says.

  Args:
    args: flags of `config.add_flags`.
    checkpoint: a MODEL_DIR, a checkpoint or a Hugging Face directory.

  Raises:
    ConfigError: nothing says what the model is. CheckpointError: nothing is there.
  """
  if huggingface.is_directory(checkpoint):
    folder = checkpoint
    args.gin_bindings[:0] = imported_config(remote.absolute(checkpoint)).splitlines()
  else:
    folder = os.path.dirname(checkpoints.latest_checkpoint(checkpoint))
    saved, directory = os.path.join(folder, 'config.gin'), os.path.join(folder, COMPANIONS)
    if remote.exists(saved):
      saved = remote.fetched(saved)
      args.gin_file.insert(0, saved)
      with open(saved, encoding='utf-8') as f:
        # The directory that the run began from may be gone; its configuration was copied.
        if 'from_huggingface.directory' in f.read() and huggingface.is_directory(directory):
          args.gin_bindings.insert(0, f'from_huggingface.directory = {remote.absolute(directory)!r}')
  config.parse(args)
  if config.macro('MODEL') is None:
    raise config.ConfigError(
      f'{folder}/config.gin does not define MODEL; give the gin file of the model with --gin_file'
    )


def saved_model(args, checkpoint: str):
  """The model of a checkpoint, see `parse_saved`."""
  parse_saved(args, checkpoint)
  return config.resolve(config.bound('train.model'))
