"""What a path of a model is, and the model behind it."""

import hashlib
import json
import os

from crossin_jax import config
from crossin_jax.checkpoints import digests, parameters, places
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.models.huggingface import weights
from crossin_jax.storage import remote


def stop_ids(prompts: Prompts, checkpoint: str) -> tuple[int, ...]:
  """Tokens that end an answer: that of the template, the tokenizer's, and those of the model's own
  generation_config.json.
  """
  found = {prompts.stop_id, prompts.vocabulary.eos_id}
  if companions := companions_of(checkpoint):
    path = os.path.join(companions, 'generation_config.json')
    if remote.exists(path):
      with open(remote.fetched(path), encoding='utf-8') as f:
        more = json.load(f).get('eos_token_id')
      found |= set(more if isinstance(more, list) else [] if more is None else [more])
  return tuple(sorted(found))


def weights_digest(checkpoint: str) -> str:
  """What the parameters are, wherever they lie: a digest of the checkpoint's files and of a LoRA
  run's base.
  """
  parts = [parameters.base_reference(checkpoint)['digest']]
  if not weights.is_directory(checkpoint) and parameters.has_adapters(checkpoint):
    parts.append(
      json.dumps(digests.file_digests(places.latest_checkpoint(checkpoint)), sort_keys=True)
    )
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


COMPANIONS = 'huggingface'  # folder in MODEL_DIR


def name_of(checkpoint: str) -> str:
  """The last part of a MODEL_DIR's or Hugging Face directory's path, for tables."""
  folder = (
    checkpoint
    if weights.is_directory(checkpoint)
    else os.path.dirname(places.latest_checkpoint(checkpoint))
  )
  return os.path.basename(remote.absolute(folder))


def companions_of(path: str) -> str | None:
  """The folder with config.json and tokenizer files that belong to a checkpoint, MODEL_DIR or
  Hugging Face directory.
  """
  parent = os.path.dirname(remote.absolute(path))
  for folder in (path, os.path.join(path, COMPANIONS), os.path.join(parent, COMPANIONS)):
    if weights.is_directory(folder):
      return folder
  return None


def imported_config(directory: str) -> str:
  """gin text of a model that config.json in `directory` describes."""
  return (
    'import crossin_jax.models.huggingface.families\nimport crossin_jax.models.decoder\nimport '
    'crossin_jax.train\n\n'
    'MODEL = @Decoder()\nDecoder.config = @from_huggingface()\nfrom_huggingface.directory = '
    f'{directory!r}\n'
    'train.model = %MODEL\n'
  )


def parse_saved(args, checkpoint: str) -> None:
  """Parses gin flags on top of what a checkpoint was trained or imported with, or of what a
  config.json says.

  Args:
    args: flags of `config.add_flags`.
    checkpoint: a MODEL_DIR, a checkpoint or a Hugging Face directory.

  Raises:
    ConfigError: nothing says what the model is. CheckpointError: nothing is there.
  """
  if weights.is_directory(checkpoint):
    folder = checkpoint
    args.gin_bindings[:0] = imported_config(remote.absolute(checkpoint)).splitlines()
  else:
    folder = os.path.dirname(places.latest_checkpoint(checkpoint))
    saved, directory = os.path.join(folder, 'config.gin'), os.path.join(folder, COMPANIONS)
    if remote.exists(saved):
      saved = remote.fetched(saved)
      args.gin_file.insert(0, saved)
      with open(saved, encoding='utf-8') as f:
        # The directory that the run began from may be gone; its configuration was copied.
        if 'from_huggingface.directory' in f.read() and weights.is_directory(directory):
          args.gin_bindings.insert(
            0, f'from_huggingface.directory = {remote.absolute(directory)!r}'
          )
  config.parse(args)
  if config.macro('MODEL') is None:
    raise config.ConfigError(
      f'{folder}/config.gin does not define MODEL; give the gin file of the model with --gin_file'
    )


def saved_model(args, checkpoint: str):
  """The model of a checkpoint, see `parse_saved`."""
  parse_saved(args, checkpoint)
  return config.resolve(config.bound('train.model'))
