"""A model on disk: what kind of path it is, and everything that belongs to it."""

import argparse
import dataclasses
import functools
import hashlib
import json
import os

from flax import traverse_util

from crossin_jax import config
from crossin_jax.checkpoints import digests, parameters, places
from crossin_jax.checkpoints.places import CheckpointError
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.models import lora
from crossin_jax.models.huggingface import weights
from crossin_jax.storage import files, remote

COMPANIONS = 'huggingface'  # folder in MODEL_DIR with config.json and tokenizer


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A checkpoint of this project or of T5X, or a Hugging Face directory, here or on gs://.

  Attributes:
    path: absolute: a `checkpoint_<step>` directory, or the Hugging Face directory.
    is_huggingface: which of the two.
  """

  path: str
  is_huggingface: bool

  @classmethod
  def open(cls, path: str) -> 'SavedModel':
    """The model at a path: a MODEL_DIR means its latest checkpoint.

    Raises:
      CheckpointError: the path is none of a checkpoint, a MODEL_DIR and a Hugging Face directory.
    """
    if weights.is_directory(path):
      return cls(remote.absolute(path), True)
    return cls(places.latest_checkpoint(path), False)

  @property
  def folder(self) -> str:
    """The MODEL_DIR, or the Hugging Face directory."""
    return self.path if self.is_huggingface else os.path.dirname(self.path)

  @property
  def name(self) -> str:
    """The last part of the folder, for tables."""
    return os.path.basename(self.folder)

  @functools.cached_property
  def companions(self) -> str | None:
    """The folder with config.json and tokenizer that the model was imported from."""
    folders = (
      self.path,
      os.path.join(self.path, COMPANIONS),
      os.path.join(self.folder, COMPANIONS),
    )
    return next(filter(weights.is_directory, folders), None)

  @functools.cached_property
  def prompts(self) -> Prompts:
    """Template and tokenizer, see `Prompts`."""
    return Prompts(self.folder)

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """Tokens that end an answer: those of the template, of the tokenizer, and of the model's own
    generation_config.json.
    """
    ids = {self.prompts.stop_id, self.prompts.vocabulary.eos_id}
    path = os.path.join(self.companions or '', 'generation_config.json')
    if self.companions and remote.exists(path):
      with open(remote.fetched(path), encoding='utf-8') as f:
        more = json.load(f).get('eos_token_id')
      ids |= set(more if isinstance(more, list) else [] if more is None else [more])
    return tuple(sorted(ids))

  @functools.cached_property
  def run(self) -> dict:
    """The run state saved with a checkpoint; {} where there is none."""
    return {} if self.is_huggingface else parameters.run_of(self.path)

  @functools.cached_property
  def has_adapters(self) -> bool:
    """Whether LoRA adapters are among the parameters: alone, or beside the full model as T5X saves
    them.
    """
    if self.is_huggingface:
      return False
    names = traverse_util.flatten_dict(parameters.target_shapes(self.path))
    return any(name[-1].startswith('lora_') for name in names)

  @functools.cached_property
  def base(self) -> dict[str, str]:
    """{'path', 'digest'} of the parameters that a LoRA run on this model freezes; for a LoRA run
    those that it froze itself.
    """
    if self.is_huggingface:
      return {'path': self.path, 'digest': weights.Tensors(self.path).digest()}
    if base := self.run.get('base'):
      return base
    try:
      digest = files.load_json(digests.path_of(self.path))
    except (FileNotFoundError, ValueError):
      digest = digests.file_digests(self.path)
    return {'path': self.path, 'digest': _sha256(json.dumps(digest, sort_keys=True))}

  @functools.cached_property
  def digest(self) -> str:
    """Identifies the parameters wherever they are stored, with the base of a LoRA run."""
    parts = [self.base['digest']]
    if self.has_adapters:
      parts.append(json.dumps(digests.file_digests(self.path), sort_keys=True))
    return _sha256('\n'.join(parts))

  def check_base(self, saved: dict | None) -> None:
    """Raises CheckpointError if a LoRA run is resumed whose base, `saved`, is not this model."""
    if saved is None:
      raise CheckpointError(
        'the run so far trained all parameters, now DecoderConfig.lora is set; use another '
        'MODEL_DIR'
      )
    if saved['digest'] != self.base['digest']:
      raise CheckpointError(
        f'the adapters were trained on {saved["path"]}, and {self.base["path"]} holds other '
        'weights; give the same INITIAL_CHECKPOINT_PATH, or another MODEL_DIR'
      )

  def parse(self, args: argparse.Namespace) -> None:
    """Parses gin flags on top of the configuration that the model was trained or imported with.

    Args:
      args: flags of `config.add_flags`.

    Raises:
      ConfigError: nothing defines the model.
    """
    if self.is_huggingface:
      args.gin_bindings[:0] = imported_config(self.path).splitlines()
    elif remote.exists(saved := os.path.join(self.folder, 'config.gin')):
      saved = remote.fetched(saved)
      args.gin_file.insert(0, saved)
      directory = os.path.join(self.folder, COMPANIONS)
      with open(saved, encoding='utf-8') as f:
        # The directory that the run started from may be gone; its configuration was copied.
        if 'from_huggingface.directory' in f.read() and weights.is_directory(directory):
          args.gin_bindings.insert(0, f'from_huggingface.directory = {directory!r}')
    config.parse(args)
    if config.macro('MODEL') is None:
      raise config.ConfigError(
        f'{self.folder}/config.gin does not define MODEL; give the gin file of the model with '
        '--gin_file'
      )

  def module(self, args: argparse.Namespace):
    """The Linen module that `parse` configures."""
    self.parse(args)
    return config.resolve(config.bound('train.model'))

  def restore(self, abstract, model):
    """Parameters from disk.

    Args:
      abstract: shapes, dtypes and shardings of the wanted leaves: all of the model's or some. For a
        LoRA run, leaves that it did not train are read from its base.
      model: the model that they are for.

    Raises:
      CheckpointError: damaged, or of another model. WeightsError: a Hugging Face directory that
        does not fit the model.
    """
    if self.is_huggingface:
      return weights.load_params(self.path, model.config, abstract)
    # T5X's own checkpoints, and copies without their digests, are read unverified.
    if remote.exists(digests.path_of(self.path)) and (problem := digests.damage(self.path)):
      raise CheckpointError(
        f'{self.path} is damaged: {problem}. Name another checkpoint_<step>, or copy it again'
      )
    adapters, base = lora.of_model(model), self.run.get('base')
    if base is None:
      return parameters.restore_target(self.path, abstract, partly=adapters is not None)
    if adapters is None:
      raise CheckpointError(
        f'{self.path} holds LoRA adapters, and the model has none; write the merged model first '
        '(crossin export-hf --format merged), or set DecoderConfig.lora'
      )
    below = SavedModel.open(base['path'])
    if below.base['digest'] != base['digest']:
      raise CheckpointError(
        f'{self.path} holds adapters for {base["path"]}, whose weights have changed since'
      )
    stored = traverse_util.flatten_dict(parameters.target_shapes(self.path)).keys()
    part = lambda trained: traverse_util.unflatten_dict(
      {
        name: leaf
        for name, leaf in traverse_util.flatten_dict(abstract).items()
        if (name in stored) == trained
      }
    )
    return lora.merge(
      parameters.restore_target(self.path, part(True)), below.restore(part(False), model)
    )

  def params(self, model, partition):
    """All parameters on the mesh of `partition`, the base of a LoRA run quantised as it asks.

    `partition.activate()` must be in force.
    """
    from crossin_jax.training import state

    abstract = state.parameter_shapes(model, partition)
    return lora.quantised(self.restore(abstract, model), lora.of_model(model))


def imported_config(directory: str) -> str:
  """gin text of a model that config.json in `directory` describes."""
  return f"""import crossin_jax.models.huggingface.families
import crossin_jax.models.decoder
import crossin_jax.train

MODEL = @Decoder()
Decoder.config = @from_huggingface()
from_huggingface.directory = {directory!r}
train.model = %MODEL
"""


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
