"""Reads and writes Hugging Face weights: safetensors only, one tensor at a time, sharded."""

from collections.abc import Callable, Iterator, Mapping
import functools
import hashlib
import json
import os
import shutil
import struct

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import safetensors
import safetensors.numpy

from crossin_jax.errors import CrossinError
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface.families import FAMILIES, TOP_TENSORS
from crossin_jax.storage import remote
from crossin_jax.storage.files import write_json

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16', 'F64': 'float64'}
# Parts of multimodal checkpoints outside the text model.
NOT_TEXT = (
  'vision_tower.', 'multi_modal_projector.', 'model.vision_tower.', 'model.multi_modal_projector.',
)  # fmt: skip
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


class WeightsError(CrossinError, ValueError):
  """Hugging Face weights that cannot be read; the message names file, tensor and remedy."""


def is_directory(path: str) -> bool:
  """Whether this is a Hugging Face directory: it has a config.json."""
  return remote.exists(os.path.join(path, 'config.json'))


# ---- tensor names and leaves ----


def tensor_leaves(
  model_type: str, config: DecoderConfig
) -> dict[str, tuple[tuple[str, int | None], ...]]:
  """Tensor name -> its leaves, each (path below `decoder/`, index in a stacked array or None)."""
  leaves = {name: tuple((path, None) for path in paths) for name, paths in TOP_TENSORS.items()}
  if config.tie_embeddings:
    del leaves['lm_head.weight']
  exists = _exists(config)
  for i in range(config.num_layers):
    layer, index = config.layer_path(i)
    for name, paths in FAMILIES[model_type].tensors.items():
      if all(exists(path) for path in paths):
        leaves[f'model.layers.{i}.{name}'] = tuple((f'{layer}/{path}', index) for path in paths)
  return leaves


def _exists(config: DecoderConfig):
  """Returns a function that tells whether a block has a leaf."""
  without = set()
  if config.norm_placement == 'pre':
    without |= {'post_attention_norm/scale', 'post_mlp_norm/scale'}
  if config.norm_placement == 'post':
    without |= {'pre_attention_norm/scale', 'pre_mlp_norm/scale'}
  if config.qk_norm == 'none':
    without |= {'self_attention/query_norm/scale', 'self_attention/key_norm/scale'}
  if not config.mlp_bias:
    without |= {f'mlp/{name}/bias' for name in ('gate', 'up', 'down')}
  if config.attention_bias != 'all':
    without.add('self_attention/out/bias')
  if config.attention_bias == 'none':
    without |= {f'self_attention/{name}/bias' for name in ('query', 'key', 'value')}
  return lambda path: path not in without


def _is_transposed(path: str) -> bool:
  return path.endswith('kernel') or path == 'lm_head'


# ---- reading ----


class Tensors:
  """The tensors of a directory by name, read on demand.

  Attributes:
    shapes: name -> shape.
  """

  def __init__(self, directory: str):
    """Opens all files and checks them against the index.

    Raises:
      WeightsError: no safetensors, a missing or damaged file, or a wrong index.
    """
    self.directory = directory = _fetched(directory)
    listed, files = _listed_files(directory)
    self._files, self._where, self.shapes, self._dtypes = {}, {}, {}, {}
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
      part, plain = opened.get_slice(name), self._plain(name)
      if plain is None:
        continue
      if plain in self._where:
        raise WeightsError(f'tensor {name} is both in {self._where[plain][0]} and in {file}')
      if part.get_dtype() not in DTYPES:
        raise WeightsError(
          f'{path}: tensor {name} has dtype {part.get_dtype()}; supported are {", ".join(DTYPES)}. '
          'Quantised weights must be converted first'
        )
      self._where[plain] = (file, name)
      self.shapes[plain], self._dtypes[plain] = tuple(part.get_shape()), DTYPES[part.get_dtype()]

  def _check_index(self, listed: dict[str, str]) -> None:
    """Raises WeightsError if the index, tensor name -> file, does not match the files."""
    index = os.path.join(self.directory, INDEX)
    listed = {
      plain: file for name, file in listed.items() if (plain := self._plain(name)) is not None
    }
    for name, file in listed.items():
      if self._where.get(name, ('',))[0] != file:
        actual = f'it is in {self._where[name][0]}' if name in self._where else 'no file has it'
        raise WeightsError(f'{index} says that {name} is in {file}, but {actual}')
    if extra := sorted(self._where.keys() - listed.keys()):
      raise WeightsError(f'{self._where[extra[0]][0]} has {extra[0]}, which {index} does not name')

  @staticmethod
  def _plain(name: str) -> str | None:
    """The name in a text-only checkpoint; None outside the text model."""
    if name.startswith(NOT_TEXT):
      return None
    for prefix, replacement in TEXT_PREFIXES:
      if name.startswith(prefix):
        return replacement + name[len(prefix) :]
    return name

  def dtype(self, name: str) -> str:
    """'float32', 'bfloat16', 'float16' or 'float64'."""
    return self._dtypes[name]

  def read(self, name: str, selection: tuple[slice, ...] = ()) -> np.ndarray:
    """Reads a tensor, or only the selected part of it."""
    file, name = self._where[name]
    if not selection:
      return self._files[file].get_tensor(name)
    return self._files[file].get_slice(name)[selection]

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
  if os.path.exists(index):
    try:
      with open(index, encoding='utf-8') as f:
        listed = dict(json.load(f)['weight_map'])
    except (ValueError, KeyError, TypeError) as error:
      raise WeightsError(
        f'{index} is not an index of safetensors ({error!r}); copy it again'
      ) from None
    return listed, sorted(set(listed.values()))
  if os.path.exists(os.path.join(directory, SINGLE)):
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
  if not remote.is_remote(directory):
    return directory
  here = remote.fetched(directory, [INDEX], optional=True)
  try:
    with open(os.path.join(here, INDEX), encoding='utf-8') as f:
      files = set(json.load(f)['weight_map'].values())
  except FileNotFoundError:
    files = [SINGLE]
  except (ValueError, KeyError, TypeError, AttributeError):
    return here  # `Tensors` reports the error
  return remote.fetched(directory, sorted(files))


def load_params(directory: str, config: DecoderConfig, abstract):
  """Reads parameters, each tensor once and only the shards of this host's devices.

  At most one tensor is in memory in addition to the result.

  Args:
    directory: with config.json and safetensors.
    config: the model, see `families.from_huggingface`.
    abstract: tree `{'decoder': ...}` of jax.ShapeDtypeStruct with shardings; other leaves are not
      read.

  Returns:
    The same tree of arrays.

  Raises:
    WeightsError: a tensor is missing, unknown or has another shape.
  """
  from crossin_jax.models.huggingface.families import read_json_config

  tensors = Tensors(directory)
  table = tensor_leaves(read_json_config(directory)['model_type'], config)
  wanted = traverse_util.flatten_dict(abstract['decoder'], sep='/')
  _check(tensors, table, config, directory)
  known = {path for leaves in table.values() for path, _ in leaves}
  if unknown := sorted(wanted.keys() - known):
    raise WeightsError(f'the model has {unknown[0]}, for which {directory} has no tensor')

  # leaf -> [(index, tensor name, first row, rows)]
  parts: dict[str, list] = {}
  for name, leaves in table.items():
    first = 0
    for path, index in leaves:
      rows = _rows(tensors.shapes[name], leaves, path, config)
      parts.setdefault(path, []).append((index, name, first, rows))
      first += rows
  loaded = {}
  for path, leaf in wanted.items():
    read = functools.partial(_read_leaf, tensors, path, config)
    if parts[path][0][0] is None:
      [(_, name, first, rows)] = parts[path]
      loaded[path] = read(leaf.shape, leaf.dtype, leaf.sharding, name, first, rows)
      continue
    of_layer = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[1:]))
    stack = jax.jit(
      lambda leaf=leaf: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding
    )()
    put = _put(leaf.sharding)
    for index, name, first, rows in parts[path]:
      stack = put(stack, read(leaf.shape[1:], leaf.dtype, of_layer, name, first, rows), index)
    loaded[path] = stack
    jax.block_until_ready(stack)  # else the host runs ahead and holds many tensors
  return {'decoder': traverse_util.unflatten_dict(loaded, sep='/')}


@functools.lru_cache(maxsize=64)
def _put(sharding):
  """A jitted (stack, layer, index) -> stack with that layer replaced."""
  write = lambda stack, layer, index: jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)
  return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _read_leaf(tensors, path, config, shape, dtype, sharding, name, first, rows):
  """Reads one leaf, or one layer of it, as a sharded array; vocabulary padding is zero."""

  transposed = _is_transposed(path)

  def part(selection):
    bounds = [s.indices(n)[:2] for s, n in zip(selection, shape)]
    if transposed:
      bounds = bounds[::-1]
    (start, stop), *rest = bounds
    inside = slice(first + start, first + min(stop, rows)) if start < rows else slice(first, first)
    values = tensors.read(name, (inside, *(slice(*bound) for bound in rest)))
    values = (values.T if transposed else values).astype(dtype)
    missing = (stop - start) - (inside.stop - inside.start)
    if missing > 0:
      values = np.pad(values, [(0, missing * (i == transposed)) for i in range(values.ndim)])
    return values

  return jax.make_array_from_callback(tuple(shape), sharding, part)


def _rows(shape, leaves, path, config: DecoderConfig) -> int:
  """Number of rows of one leaf in its tensor."""
  if len(leaves) == 1:
    return shape[0]
  return leaf_shape(path, config)[1]


def leaf_shape(path: str, config: DecoderConfig) -> tuple[int, ...]:
  """Shape of a leaf of one layer, without padding of the vocabulary."""
  embed, mlp = config.embed_dim, config.mlp_dim
  wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  if path == 'token_embedding':
    return config.vocab_size, embed
  if path == 'lm_head':
    return embed, config.vocab_size
  *_, module, leaf = path.split('/')
  if leaf == 'scale':
    joined = {'query_norm': wide, 'key_norm': narrow}
    if module in joined and config.qk_norm != 'joined':
      return (config.head_dim,)
    return (joined.get(module, embed),)
  kernels = {
    'query': (embed, wide), 'key': (embed, narrow), 'value': (embed, narrow), 'out': (wide, embed),
    'gate': (embed, mlp), 'up': (embed, mlp), 'down': (mlp, embed),
  }  # fmt: skip
  return kernels[module] if leaf == 'kernel' else kernels[module][1:]


def tensor_shape(leaves, config: DecoderConfig) -> tuple[int, ...]:
  """Shape of a tensor made of these leaves."""
  shapes = [leaf_shape(path, config)[:: -1 if _is_transposed(path) else 1] for path, _ in leaves]
  return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _check(tensors: Tensors, table: Mapping, config: DecoderConfig, directory: str) -> None:
  extra = tensors.shapes.keys() - table.keys()
  # Some writers also store the tied head, or tables that the configuration determines.
  extra = {name for name in extra if not name.endswith('rotary_emb.inv_freq')}
  if config.tie_embeddings:
    extra -= {'lm_head.weight'}
  problems = [f'tensor {name} is missing' for name in sorted(table.keys() - tensors.shapes.keys())]
  problems += [f'tensor {name} is not part of the model' for name in sorted(extra)]
  problems += [
    f'tensor {name} has shape {tensors.shapes[name]}, config.json says '
    f'{tensor_shape(leaves, config)}'
    for name, leaves in table.items()
    if name in tensors.shapes and tensors.shapes[name] != tensor_shape(leaves, config)
  ]
  if problems:
    more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
    raise WeightsError(
      f'{directory}: {"; ".join(problems[:3])}{more}. Does config.json belong to these weights?'
    )


# ---- writing ----


def model_tensors(
  model_type: str, config: DecoderConfig, params, dtype: str
) -> Iterator[tuple[str, tuple, Callable[[], np.ndarray]]]:
  """Yields (name, shape, function that fetches it as NumPy) for every tensor, in file order.

  Adds adapters to their kernels in f32. All hosts must call the functions, in this order.
  """
  flat = traverse_util.flatten_dict(params['decoder'], sep='/')

  def fetch(leaves):
    parts = []
    for path, index in leaves:
      adapter = _adapter(flat, path)
      value = to_host(flat[path], index, dtype if adapter is None else 'float32')
      if adapter:
        a, b = (to_host(leaf, index, 'float32') for leaf in adapter)
        value = (value + np.float32(config.lora.scale) * (a @ b)).astype(dtype)
      if path == 'token_embedding':
        value = value[: config.vocab_size]
      if path == 'lm_head':
        value = value[:, : config.vocab_size]
      parts.append(value.T if _is_transposed(path) else value)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  for name, leaves in tensor_leaves(model_type, config).items():
    yield name, tensor_shape(leaves, config), functools.partial(fetch, leaves)


def _adapter(flat: Mapping, path: str) -> tuple | None:
  """(A, B) of a kernel, or None."""
  module, _, leaf = path.rpartition('/')
  if leaf != 'kernel' or f'{module}/lora_a' not in flat:
    return None
  return flat[f'{module}/lora_a'], flat[f'{module}/lora_b']


def to_host(leaf, index: int | None, dtype: str) -> np.ndarray:
  """A leaf, or one layer of it, as NumPy on every host."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    replicated = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    pick = lambda x: (x if index is None else x[index]).astype(dtype)
    return np.asarray(jax.jit(pick, out_shardings=replicated)(leaf))
  return np.asarray(leaf if index is None else leaf[index]).astype(dtype)


def write_tensors(
  directory: str, tensors, dtype: str, *, shard_bytes: int, single: str = SINGLE
) -> None:
  """Writes safetensors files and, if there are several, their index.

  Args:
    directory: must exist; only host 0 writes.
    tensors: of `model_tensors`.
    dtype: of the values.
    shard_bytes: maximum bytes of a file, and of the tensors in memory; a larger tensor gets a
      separate file.
    single: name of the file if there is only one.
  """
  chief = jax.process_index() == 0
  width = jnp.dtype(dtype).itemsize
  files: list[list] = [[]]
  used = 0
  tensors = list(tensors)
  for tensor in tensors:
    size = int(np.prod(tensor[1])) * width
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
        values[name] = np.ascontiguousarray(value)  # safetensors writes raw memory
      weight_map[name] = file
    if chief:
      safetensors.numpy.save_file(values, os.path.join(directory, file), metadata={'format': 'pt'})
  if chief and len(files) > 1:
    total = sum(int(np.prod(shape)) * width for _, shape, _ in tensors)
    write_json(
      os.path.join(directory, INDEX), {'metadata': {'total_size': total}, 'weight_map': weight_map}
    )


def copy_companions(source: str, target: str) -> list[str]:
  """Copies the configuration and tokenizer files that exist; returns their names."""
  os.makedirs(target, exist_ok=True)
  source = remote.fetched(source, COMPANIONS, optional=True)
  names = [name for name in COMPANIONS if os.path.isfile(os.path.join(source, name))]
  for name in names:
    shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
  return names
