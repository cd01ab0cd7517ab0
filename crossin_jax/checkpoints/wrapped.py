"""Text models inside a multimodal directory: what stands around them in an export."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import os

from crossin_jax.errors import CrossinError
from crossin_jax.models.huggingface import families, tensor_files
from crossin_jax.models.huggingface.declarations import WRAPPERS
from crossin_jax.storage import hub_names, remote
from crossin_jax.storage.files import read_json, write_json

# In MODEL_DIR/huggingface: where the multimodal directory is.
SOURCE = 'source.json'
_EMBEDDING, _HEAD = 'model.embed_tokens.weight', 'lm_head.weight'


class WrapperError(CrossinError, ValueError):
  """A multimodal directory that is gone or is another one; the message names the remedy."""


def json_config(directory: str) -> dict | None:
  """config.json of a multimodal model; None if the directory has a text model."""
  found = read_json(os.path.join(directory, 'config.json'), 'copy it again', WrapperError)
  is_wrapper = found.get('model_type') in WRAPPERS and isinstance(found.get('text_config'), dict)
  return found if is_wrapper else None


def remember(source: str, target: str) -> None:
  """Records in the folder `target` where the multimodal directory is.

  Args:
    source: a Hugging Face directory, or the folder of a run that has a copy of its config.json.
    target: folder for source.json; nothing is written for a text model.
  """
  is_inside = tensor_files.is_directory(source) and json_config(source) is not None
  if is_inside and (directory := _directory(source)):
    write_json(os.path.join(target, SOURCE), {'path': directory})


def _directory(companions: str) -> str | None:
  """The directory with the weights that belong to a copy of config.json, or None."""
  names = (tensor_files.SINGLE, tensor_files.INDEX)
  if any(remote.exists(os.path.join(companions, name)) for name in names):
    return remote.absolute(companions)
  known = os.path.join(companions, SOURCE)
  return read_json(known, 'copy it again', WrapperError)['path'] if remote.exists(known) else None


class Wrapper:
  """The multimodal directory that a model is from.

  Attributes:
    directory: with the tensors outside the text model.
    sizes: name -> bytes, of these tensors.
  """

  def __init__(self, companions: str, directory: str | None = None):
    """Opens the directory.

    Args:
      companions: folder with the config.json of a multimodal model: its directory, or that of a
        run.
      directory: where the multimodal directory is now; None = where it was.

    Raises:
      WrapperError: it is not there, or is another model. WeightsError: its files are damaged.
    """
    self._config = json_config(companions)
    directory = hub_names.pinned(directory) if directory else None
    kind, directory = self._config['model_type'], directory or _directory(companions)
    if directory is None or not tensor_files.is_directory(directory):
      where = 'of unknown place' if directory is None else f'that was {directory}, and is not there'
      raise WrapperError(
        f'the text model is from a {kind} directory {where}: name it with --wrapper_directory, or '
        'write the text model alone with --wrapper text'
      )
    if (json_config(directory) or {}).get('model_type') != kind:
      raise WrapperError(
        f'{directory} is not the {kind} directory that the text model is from: name that one with '
        '--wrapper_directory'
      )
    self.directory = directory
    self._files = tensor_files.Tensors(directory)
    self.sizes: Mapping[str, int] = self._files.outside

  def tensors(self, text: Iterable[tuple]) -> Iterator[tuple[str, tuple, Callable]]:
    """Yields (name, shape, function that fetches it) of all tensors, under their names here.

    Args:
      text: those of the text model, see `weights.model_tensors`.

    Raises:
      WrapperError: a tensor of the text model is not here.
    """
    text = {name: (shape, fetch) for name, shape, fetch in text}
    here = {plain for _, plain, _ in self._files.as_stored()}
    if _HEAD not in text:  # tied: stored under one of the names, or under both
      text[_HEAD] = text[_EMBEDDING]
      here |= {_HEAD, _EMBEDDING} if here & {_HEAD, _EMBEDDING} else set()
    if missing := sorted(text.keys() - here):
      raise WrapperError(
        f'{self.directory} has no tensor {missing[0]}: it is not the directory that the text model '
        'is from; name that one with --wrapper_directory'
      )
    for name, plain, read in self._files.as_stored():
      yield name, *(text[plain] if plain in text else ((), read))

  def written_config(self, dtype: str, text_config: Mapping) -> dict:
    """config.json with the dtype of the text model, and its vocabulary where that has grown."""
    text = dict(self._config['text_config'])
    found = {**self._config, 'text_config': text}
    if 'torch_dtype' not in found:
      found['dtype'] = dtype
    for holder in (found, text):
      holder |= {key: dtype for key in ('dtype', 'torch_dtype') if key in holder}
    rows = text_config['vocab_size']
    if rows != families.vocab_size(self.directory):
      text['vocab_size'] = rows
      found |= {'vocab_size': rows} if 'vocab_size' in found else {}
    return found


def adapter_names(tensors: Iterable[tuple]) -> Iterator[tuple]:
  """The tensors of a PEFT adapter under their names in the multimodal class."""
  for name, shape, fetch in tensors:
    yield name.replace('.model.model.', '.model.model.language_model.', 1), shape, fetch


def adapter_config(config: dict) -> dict:
  """adapter_config.json for the multimodal class, whose other parts have modules of these names."""
  names = '|'.join(config['target_modules'])
  return {**config, 'target_modules': rf'.*language_model\..*\.({names})'}
