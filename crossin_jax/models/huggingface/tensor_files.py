"""The files of a Hugging Face directory: safetensors, their index, configuration and tokenizer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import hashlib
import json
import math
import os
import re
import shutil
import struct
from types import MappingProxyType
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from crossin_jax.errors import CrossinError
from crossin_jax.storage import remote
from crossin_jax.storage.files import write_json

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
DTYPES = ('F32', 'F16', 'BF16', 'F64')
# Ends of the names of quantised tensors, see `mxfp4`.
BLOCKS, SCALES = '_blocks', '_scales'
# Parts of multimodal checkpoints outside the text model.
NOT_TEXT = tuple(
  f'{prefix}{part}'
  for prefix in ('', 'model.')
  for part in (
    'vision_tower.', 'vision_model.', 'multi_modal_projector.', 'image_newline', 'audio_tower.',
    'vision_embedder.', 'embed_vision.', 'embed_audio.',
  )
)  # fmt: skip
# Modules of a base model, whose checkpoints lack the prefix `model.`.
BASE_MODULES = ('embed_tokens.', 'layers.', 'norm.')
# Old and new names of the text model in multimodal checkpoints.
TEXT_PREFIXES = (
  ('language_model.model.', 'model.'),
  ('model.language_model.', 'model.'),
  ('language_model.', ''),
)
# Files of a model other than its weights.
COMPANIONS = (
  'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer.model',
  'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'vocab.json',
  'merges.txt', 'chat_template.jinja',
)  # fmt: skip
# What a multimodal model has in addition.
PROCESSORS = (
  'preprocessor_config.json', 'processor_config.json', 'video_preprocessor_config.json',
  'audio_preprocessor_config.json', 'chat_template.json',
)  # fmt: skip


class WeightsError(CrossinError, ValueError):
  """Hugging Face weights that cannot be read; the message names file, tensor and remedy."""


def is_directory(path: str) -> bool:
  """Whether this is a Hugging Face directory: it has a config.json."""
  return remote.exists(os.path.join(path, 'config.json'))


def plain_name(name: str) -> str | None:
  """The name of a tensor in a text-only checkpoint; None outside the text model."""
  if name.startswith(NOT_TEXT):
    return None
  for prefix, replacement in TEXT_PREFIXES:
    if name.startswith(prefix):
      name = replacement + name[len(prefix) :]
      break
  return f'model.{name}' if name.startswith(BASE_MODULES) else name


class Tensors:
  """The tensors of a directory by name, read on demand.

  Attributes:
    shapes: name -> shape.
    outside: name -> bytes, of tensors outside the text model.
  """

  def __init__(self, directory: str):
    """Opens all files and checks them against the index.

    Raises:
      WeightsError: no safetensors, a missing or damaged file, or a wrong index.
    """
    self.directory = directory = _fetched(directory)
    listed, files = _listed_files(directory)
    self._files, self._where, self.shapes = {}, {}, {}
    self.outside, self._stored, self._made = {}, [], {}
    for file in files:
      self._open(file)
    if listed is not None:
      self._check_index(listed)

  def _open(self, file: str) -> None:
    """Opens one file and registers its tensors."""
    path = os.path.join(self.directory, file)
    if os.path.basename(file) != file:
      raise WeightsError(
        f'{os.path.join(self.directory, INDEX)} names {file!r}, which is outside of the directory'
      )
    if not os.path.isfile(path):
      raise WeightsError(f'{path} is missing; {INDEX} names it. Copy it too')
    try:
      self._files[file] = opened = safetensors.safe_open(path, 'np')
    except (safetensors.SafetensorError, OSError) as error:
      raise WeightsError(f'{path} is damaged or cut off ({error}); copy it again') from None
    for name in opened.keys():
      part, plain = opened.get_slice(name), plain_name(name)
      self._stored.append((file, name, plain))
      if plain is None:
        bits = re.search(r'\d+', part.get_dtype())  # BOOL has none
        self.outside[name] = math.prod(part.get_shape()) * (int(bits[0]) if bits else 8) // 8
        continue
      if plain in self._where:
        raise WeightsError(f'tensor {name} is both in {self._where[plain][0]} and in {file}')
      kind = part.get_dtype()
      if kind not in DTYPES and (kind != 'U8' or not plain.endswith((BLOCKS, SCALES))):
        raise WeightsError(
          f'{path}: tensor {name} has dtype {kind}; supported are {", ".join(DTYPES)}. '
          'Quantised weights must be converted first'
        )
      self._where[plain], self.shapes[plain] = (file, name), tuple(part.get_shape())

  def _check_index(self, listed: dict[str, str]) -> None:
    """Raises WeightsError if the index, tensor name -> file, does not match the files."""
    index = os.path.join(self.directory, INDEX)
    listed = {
      plain: file for name, file in listed.items() if (plain := plain_name(name)) is not None
    }
    for name, file in listed.items():
      if self._where.get(name, ('',))[0] != file:
        actual = f'it is in {self._where[name][0]}' if name in self._where else 'no file has it'
        raise WeightsError(f'{index} says that {name} is in {file}, but {actual}')
    if extra := sorted(self._where.keys() - listed.keys()):
      raise WeightsError(f'{self._where[extra[0]][0]} has {extra[0]}, which {index} does not name')

  def read(self, name: str, selection: tuple[slice, ...] = ()) -> np.ndarray:
    """Reads a tensor, or only the selected part of it."""
    if name in self._made:
      return self._made[name](selection)
    return self._read(*self._where[name], selection)

  def _read(self, file: str, name: str, selection: tuple[slice, ...]) -> np.ndarray:
    if not selection:
      return self._files[file].get_tensor(name)
    # The files are read without steps.
    part = self._files[file].get_slice(name)[tuple(slice(s.start, s.stop) for s in selection)]
    return part[tuple(slice(None, None, s.step) for s in selection)]

  def taken(self, name: str) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """Leaves a tensor out; returns what reads a part of it."""
    read = functools.partial(self._read, *self._where[name])
    self.forget(name)
    return read

  def add(self, name: str, shape: tuple[int, ...], read: Callable) -> None:
    """Adds a tensor of which `read` makes the selected part."""
    self.shapes[name], self._made[name] = shape, read

  def as_stored(self) -> Iterator[tuple[str, str | None, Callable[[], np.ndarray]]]:
    """Yields (name in the files, name in a text-only model or None, reader) in file order."""
    for file, name, plain in self._stored:
      yield name, plain, functools.partial(self._files[file].get_tensor, name)

  def rename(self, old: str, new: str) -> None:
    """Gives a tensor another name."""
    for table in (self._where, self.shapes):
      table[new] = table.pop(old)

  def forget(self, name: str) -> None:
    """Leaves a tensor out."""
    for table in (self._where, self.shapes):
      del table[name]

  def digest(self) -> str:
    """SHA-256 of the header and both ends of the data of every file; takes seconds for 100 GB."""
    digest = hashlib.sha256()
    for file in sorted(self._files):
      path = os.path.join(self.directory, file)
      size = os.path.getsize(path)
      digest.update(f'{file}\0{size}\0'.encode())
      with open(path, 'rb') as f:
        header = struct.unpack('<Q', f.read(8))[0]
        digest.update(f.read(header + 65_536))
        f.seek(max(0, size - 65_536))
        digest.update(f.read())
    return digest.hexdigest()


def _listed_files(directory: str) -> tuple[dict[str, str] | None, list[str]]:
  """The index, tensor name -> file, or None without one; and the names of all files."""
  index = os.path.join(directory, INDEX)
  single = os.path.exists(os.path.join(directory, SINGLE))
  if os.path.exists(index):
    try:
      with open(index, encoding='utf-8') as f:
        listed = dict(json.load(f)['weight_map'])
    except (ValueError, KeyError, TypeError) as error:
      raise WeightsError(
        f'{index} is not an index of safetensors ({error!r}); copy it again'
      ) from None
    if not single or SINGLE in listed.values():
      return listed, sorted(set(listed.values()))
    warnings.warn(
      f'{directory} has {SINGLE} and an {INDEX} of other files: {SINGLE} is read, as transformers '
      'does. Remove what is outdated'
    )
  if single:
    return None, [SINGLE]
  pickled = ('.bin', '.pt', '.pth', '.ckpt', '.msgpack')
  unsafe = next((n for n in sorted(os.listdir(directory)) if n.endswith(pickled)), None)
  hint = (
    f', only {unsafe}, which is not opened because it could run code. Convert it with '
    '`save_pretrained(..., safe_serialization=True)`'
  )
  raise WeightsError(f'{directory} has neither {SINGLE} nor {INDEX}{hint if unsafe else ""}')


def _fetched(directory: str) -> str:
  """The local directory of the safetensors; downloads remote ones."""
  if not remote.is_elsewhere(directory):
    return directory
  here = remote.fetched(directory, [INDEX], optional=True)
  try:
    with open(os.path.join(here, INDEX), encoding='utf-8') as f:
      files = set(json.load(f)['weight_map'].values())
    if SINGLE not in files and remote.exists(os.path.join(directory, SINGLE)):
      files = {SINGLE}
  except FileNotFoundError:
    files = [SINGLE]
  except (ValueError, KeyError, TypeError, AttributeError):
    return here  # `Tensors` reports the error
  return remote.fetched(directory, sorted(files))


def write_tensors(
  directory: str,
  tensors,
  dtype: str,
  *,
  shard_bytes: int,
  single: str = SINGLE,
  sizes: Mapping[str, int] = MappingProxyType({}),
) -> None:
  """Writes safetensors files and, if there are several, their index.

  Args:
    directory: must exist; only host 0 writes.
    tensors: of `model_tensors`.
    dtype: of the values.
    shard_bytes: maximum bytes of a file, and of the tensors in memory; a larger tensor gets a
      separate file.
    single: name of the file if there is only one.
    sizes: name -> bytes, of tensors with another dtype.
  """
  chief = jax.process_index() == 0
  width = jnp.dtype(dtype).itemsize
  files: list[list] = [[]]
  used = total = 0
  for tensor in tensors:
    size = sizes.get(tensor[0], math.prod(tensor[1]) * width)
    total += size
    if files[-1] and used + size > shard_bytes:
      files.append([])
      used = 0
    files[-1].append(tensor)
    used += size
  weight_map = {}
  for number, group in enumerate(files, start=1):
    stem, end = os.path.splitext(single)
    file = single if len(files) == 1 else f'{stem}-{number:05d}-of-{len(files):05d}{end}'
    values = {}
    for name, _, fetch in group:
      value = fetch()
      if chief:
        values[name] = np.asarray(value, order='C')  # safetensors writes raw memory
      weight_map[name] = file
    if chief:
      safetensors.numpy.save_file(values, os.path.join(directory, file), metadata={'format': 'pt'})
  if chief and len(files) > 1:
    write_json(
      os.path.join(directory, INDEX), {'metadata': {'total_size': total}, 'weight_map': weight_map}
    )


def copy_companions(source: str, target: str, names: Sequence[str] = COMPANIONS) -> list[str]:
  """Copies the configuration and tokenizer files that exist; returns their names."""
  os.makedirs(target, exist_ok=True)
  source = remote.fetched(source, names, optional=True)
  names = [name for name in names if os.path.isfile(os.path.join(source, name))]
  for name in names:
    shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
  return names
