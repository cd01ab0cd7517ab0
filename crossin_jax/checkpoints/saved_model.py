"""A model on disk: what kind of path it is, and everything that belongs to it."""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import re

from flax import traverse_util

from crossin_jax import config
from crossin_jax.checkpoints import digests, parameters, places
from crossin_jax.checkpoints.places import CheckpointError
from crossin_jax.checkpoints.saved_prompts import TOKENIZERS, Prompts
from crossin_jax.models import lora
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface import families, tensor_files, weights
from crossin_jax.models.huggingface.adapter import Adapter, is_adapter
from crossin_jax.models.huggingface.peft import CONFIG, WEIGHTS
from crossin_jax.storage import files, hub_names, remote

COMPANIONS = 'huggingface'  # folder in MODEL_DIR with config.json and tokenizer


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A checkpoint of this project or of T5X, a Hugging Face directory, or a PEFT adapter, here or on
  gs://; the latter two also by their name on the hub.

  Attributes:
    path: absolute: a `checkpoint_<step>` directory, or the directory of Hugging Face or PEFT.
    is_huggingface: it is one of the latter.
  """

  path: str
  is_huggingface: bool

  @classmethod
  def open(cls, path: str) -> 'SavedModel':
    """The model at a path: a MODEL_DIR means its latest checkpoint.

    Args:
      path: of any of these kinds, or ORG/NAME on the hub, see `hub_names.pinned`.

    Raises:
      CheckpointError: the path is none of a checkpoint, a MODEL_DIR, a Hugging Face directory and
        an adapter, or both of the latter. HubError: no such name.
    """
    path = hub_names.pinned(path)
    if is_adapter(path):
      whole = (tensor_files.SINGLE, tensor_files.INDEX)
      if both := [name for name in whole if remote.exists(os.path.join(path, name))]:
        raise CheckpointError(
          f'{path} has {CONFIG} and {both[0]}: an adapter and a model. Give each its own directory'
        )
      return cls(remote.absolute(path), True)
    if tensor_files.is_directory(path):
      return cls(remote.absolute(path), True)
    if hub_names.is_name(path):
      raise CheckpointError(f'{path} has neither config.json nor {CONFIG}: it is no model')
    return cls(places.latest_checkpoint(path), False)

  @property
  def folder(self) -> str:
    """The MODEL_DIR, or the directory of Hugging Face or PEFT."""
    return self.path if self.is_huggingface else os.path.dirname(self.path)

  @property
  def name(self) -> str:
    """The last part of the folder, for tables."""
    return os.path.basename(hub_names.title(self.folder))

  @functools.cached_property
  def adapter(self) -> Adapter | None:
    """The PEFT adapter that this is, or None."""
    return Adapter(self.path) if self.is_huggingface and is_adapter(self.path) else None

  @functools.cached_property
  def _below(self) -> str:
    """The directory of the model below a PEFT adapter.

    Raises:
      CheckpointError: neither the adapter nor gin names one that is here.
    """
    name = self.adapter.base_name
    given = config.resolve(config.bound('from_huggingface.directory'))
    for path in filter(None, (name, name and os.path.join(self.path, name), given)):
      path = hub_names.pinned(path) if path == given else path
      if tensor_files.is_directory(path):
        return remote.absolute(hub_names.pinned(path))
    problem = 'which is not a directory here'
    revision = f'@{self.adapter.base_revision}' if self.adapter.base_revision else ''
    try:
      if name and hub_names.is_name(found := hub_names.pinned(name + revision)):
        return found
    except hub_names.HubError as error:
      problem = f'and {error}'
    raise CheckpointError(
      f'{os.path.join(self.path, CONFIG)} names the base model {name!r}, {problem}.\nGive its '
      'directory in base_model_name_or_path, or with from_huggingface.directory=PATH'
    )

  @property
  def companion_folders(self) -> list[str]:
    """Folders to copy configuration and tokenizer from; files of a later one replace others."""
    return [*([self.companions] if self.companions else []), *([self.path] if self.adapter else [])]

  @functools.cached_property
  def companions(self) -> str | None:
    """The folder with config.json and tokenizer that the model was imported from."""
    if self.adapter:
      return self._below
    folders = (
      self.path,
      os.path.join(self.path, COMPANIONS),
      os.path.join(self.folder, COMPANIONS),
    )
    return next(filter(tensor_files.is_directory, folders), None)

  @functools.cached_property
  def prompts(self) -> Prompts:
    """Template and tokenizer, see `Prompts`; an adapter without any has those of its base."""
    own = [os.path.join(self.folder, name) for name in TOKENIZERS]
    return Prompts(
      self._below if self.adapter and not any(map(remote.exists, own)) else self.folder
    )

  @functools.cached_property
  def stop_ids(self) -> tuple[int, ...]:
    """Tokens that end an answer: those of the template, of the tokenizer, and of the model's own
    generation_config.json, or else config.json.

    Raises:
      CheckpointError: one of these files is damaged.
    """
    ids = {self.prompts.stop_id, self.prompts.vocabulary.eos_id}
    return tuple(sorted(ids | (_own_stop_ids(self.companions) if self.companions else set())))

  @functools.cached_property
  def generation_stop_ids(self) -> tuple[int, ...]:
    """Tokens at which `generate` of transformers ends, for a directory of Hugging Face: without
    that of its chat template. For a run `stop_ids`.
    """
    if not self.is_huggingface:
      return self.stop_ids
    return tuple(sorted({self.prompts.vocabulary.eos_id} | _own_stop_ids(self.companions)))

  @functools.cached_property
  def generation_config(self) -> dict:
    """generation_config.json of the model as it was imported; {} where there is none.

    Raises:
      CheckpointError: damaged.
    """
    return self._companion('generation_config.json')

  @functools.cached_property
  def context_length(self) -> int | None:
    """The longest input in tokens that config.json or else tokenizer_config.json names."""
    own = self._companion('config.json')
    text = own.get('text_config') if isinstance(own.get('text_config'), dict) else own
    names = ('n_positions', 'max_position_embeddings', 'n_ctx')
    lengths = [text[name] for name in names if text.get(name) is not None]
    lengths.append(self._companion('tokenizer_config.json').get('model_max_length'))
    # Tokenizers without a limit have one of 1e30.
    fits = lambda value: isinstance(value, (int, float)) and 0 < value < 1e12
    return next((int(value) for value in lengths if fits(value)), None)

  def _companion(self, name: str) -> dict:
    path = os.path.join(self.companions, name) if self.companions else None
    if path is None or not remote.exists(path):
      return {}
    content = files.read_json(path, 'copy it again', CheckpointError)
    if not isinstance(content, dict):
      raise CheckpointError(f'{path} is not an object; copy it again')
    return content

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
      return self.adapter is not None
    names = traverse_util.flatten_dict(parameters.target_shapes(self.path))
    return any(name[-1].startswith('lora_') for name in names)

  @functools.cached_property
  def base(self) -> dict[str, str]:
    """{'path', 'digest'} of the parameters that a LoRA run on this model freezes; for a LoRA run
    those that it froze itself.
    """
    if self.is_huggingface:
      path = self._below if self.adapter else self.path
      return {'path': path, 'digest': tensor_files.Tensors(path).digest()}
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
      is_named = hub_names.is_name(self.path)
      of_files = digests.file_digests(self.adapter.directory if is_named else self.path)
      if self.adapter:
        of_files = {name: of_files[name] for name in (CONFIG, WEIGHTS) if name in of_files}
      parts.append(json.dumps(of_files, sort_keys=True))
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
    if self.adapter:
      args.gin_bindings[:0] = self._adapted_config(args.gin_bindings).splitlines()
    elif self.is_huggingface:
      args.gin_bindings[:0] = imported_config(self.path).splitlines()
    elif remote.exists(saved := os.path.join(self.folder, 'config.gin')):
      saved = remote.fetched(saved)
      args.gin_file.insert(0, saved)
      directory = os.path.join(self.folder, COMPANIONS)
      with open(saved, encoding='utf-8') as f:
        # The directory that the run started from may be gone; its configuration was copied.
        if 'from_huggingface.directory' in f.read() and tensor_files.is_directory(directory):
          args.gin_bindings.insert(0, f'from_huggingface.directory = {directory!r}')
    config.parse(args)
    if config.macro('MODEL') is None:
      raise config.ConfigError(
        f'{self.folder}/config.gin does not define MODEL; give the gin file of the model'
      )

  def _adapted_config(self, given: list[str]) -> str:
    """gin text of the base of a PEFT adapter and of the adapter."""
    for binding in given:  # not parsed yet, and the settings of the adapter need its base
      if match := re.fullmatch(
        r'from_huggingface\.directory\s*=\s*([\'"]?)(.*)\1', binding.strip()
      ):
        self.__dict__['_below'] = remote.absolute(hub_names.pinned(match.group(2)))
    json_config = families.read_json_config(self._below)
    fields = families.decoder_fields(json_config, ignore=tuple(json_config))
    settings = self.adapter.settings(json_config['model_type'], DecoderConfig(**fields))
    # Held as it is stored, if that is possible.
    stored = str(json_config.get('dtype') or json_config.get('torch_dtype'))
    settings['base_dtype'] = 'bfloat16' if stored.endswith('bfloat16') else 'float32'
    lines = [f'LoraConfig.{name} = {value!r}' for name, value in settings.items()]
    return '\n'.join(
      (
        imported_config(self._below) + 'import crossin_jax.models.lora',
        'DecoderConfig.lora = @LoraConfig()',
        *lines,
      )
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
    if self.adapter:
      return self._restore_adapted(abstract, model)
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

  def _restore_adapted(self, abstract, model):
    """`restore` of a PEFT adapter and its base."""
    if lora.of_model(model) is None:
      raise CheckpointError(
        f'{self.path} is an adapter, and the model has none; write the merged model first '
        '(crossin export-hf --format merged), or set DecoderConfig.lora'
      )
    model_type = families.read_json_config(self._below)['model_type']
    own = traverse_util.flatten_dict(self.adapter.load(model_type, model.config, abstract))
    rest = {
      name: leaf for name, leaf in traverse_util.flatten_dict(abstract).items() if name not in own
    }
    if rest:
      below = weights.load_params(self._below, model.config, traverse_util.unflatten_dict(rest))
      own |= traverse_util.flatten_dict(below)
    return traverse_util.unflatten_dict(own)

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


def _own_stop_ids(directory: str) -> set[int]:
  """`eos_token_id` of a Hugging Face directory, from where transformers takes it."""
  path = os.path.join(directory, 'generation_config.json')
  if not remote.exists(path):
    path = os.path.join(directory, 'config.json')
  settings = files.read_json(path, 'copy it again', CheckpointError)
  if not isinstance(settings, dict):
    raise CheckpointError(f'{path} is a {type(settings).__name__}, not an object; copy it again')
  text = settings.get('text_config')
  ids = settings.get('eos_token_id', text.get('eos_token_id') if isinstance(text, dict) else None)
  ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
  if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
    raise CheckpointError(f'{path}: eos_token_id is {ids!r}; write an id, or a list of ids')
  return set(ids)


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()
