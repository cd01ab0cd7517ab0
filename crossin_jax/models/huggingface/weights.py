"""Between arrays and Hugging Face tensors: one tensor at a time, sharded."""

from collections.abc import Callable, Iterator, Mapping
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.huggingface import mxfp4
from crossin_jax.models.huggingface.families import read_json_config, vocab_size
from crossin_jax.models.huggingface.leaves import (
  PER_TOKEN,
  is_packed,
  is_transposed,
  joined,
  leaf_shape,
  tensor_leaves,
  tensor_shape,
)
from crossin_jax.models.huggingface.tensor_files import Tensors, WeightsError


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
  tensors = Tensors(directory)
  mxfp4.dequantise(tensors)
  table = tensor_leaves(read_json_config(directory)['model_type'], config)
  wanted = traverse_util.flatten_dict(abstract['decoder'], sep='/')
  if config.tie_embeddings:
    _tie(tensors)
  _check(tensors, table, config, directory)
  known = {path for leaves in table.values() for path, _ in leaves}
  if unknown := sorted(wanted.keys() - known):
    raise WeightsError(f'the model has {unknown[0]}, for which {directory} has no tensor')

  # leaf -> [(index, tensor name, first row, rows)]; packed: its number, number of leaves
  parts: dict[str, list] = {}
  for name, leaves in table.items():
    first = 0
    for number, (path, index) in enumerate(leaves):
      shape = leaf_shape(path, index, config)
      if is_packed(path, shape):
        parts.setdefault(path, []).append((index, name, number, len(leaves)))
        continue
      rows = _rows(tensors.shapes[name], leaves, shape)
      parts.setdefault(path, []).append((index, name, first, rows))
      first += rows
  loaded = {}
  for path, leaf in wanted.items():
    new_row = _new_row(tensors, parts[path], path, config)
    read = functools.partial(_read_leaf, tensors, path, config, new_row)
    stacked = len(parts[path][0][0])
    if not stacked:
      [(_, name, first, rows)] = parts[path]
      loaded[path] = read(leaf.shape, leaf.dtype, leaf.sharding, name, first, rows)
      continue
    of_layer = NamedSharding(leaf.sharding.mesh, PartitionSpec(*leaf.sharding.spec[stacked:]))
    stack, put = _zeros(leaf.shape, leaf.dtype, leaf.sharding)(), _put(leaf.sharding)
    for index, name, first, rows in parts[path]:
      layer = read(leaf.shape[stacked:], leaf.dtype, of_layer, name, first, rows)
      stack = put(stack, layer, index)
    loaded[path] = stack
    jax.block_until_ready(stack)  # else the host runs ahead and holds many tensors
  return {'decoder': traverse_util.unflatten_dict(loaded, sep='/')}


# These are kept because a function that JAX has not seen is compiled anew.
@functools.lru_cache(maxsize=64)
def _zeros(shape, dtype, sharding):
  """A jitted function without arguments."""
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _put(sharding):
  """A jitted (stack, layer, index) -> stack with that layer, or expert of a layer, replaced."""

  def write(stack, layer, index):
    start = (*index, *[0] * layer.ndim)
    return jax.lax.dynamic_update_slice(stack, layer[(None,) * len(index)], start)

  return jax.jit(write, donate_argnums=0, out_shardings=sharding)


def _new_row(tensors: Tensors, parts: list, path: str, config: DecoderConfig) -> np.ndarray | None:
  """The mean of the rows of embedding or output head, if the model has more; f32 [E] or None."""
  name = parts[0][1]
  if path not in PER_TOKEN or (rows := tensors.shapes[name][0]) >= config.vocab_size:
    return None
  total = np.zeros(tensors.shapes[name][1], np.float64)
  for start in range(0, rows, 8192):  # a few at a time: the sum takes 8 bytes a number
    part = slice(start, min(rows, start + 8192)), slice(None)
    total += tensors.read(name, part).astype(np.float64).sum(0)
  return (total / rows).astype(np.float32)


def _read_leaf(tensors, path, config, new_row, shape, dtype, sharding, name, first, rows):
  """Reads one leaf, or one layer of it, as a sharded array; vocabulary padding is zero.

  Rows between those of the tensor and `config.vocab_size` are `new_row`.
  """

  transposed = is_transposed(path)

  def part(selection):
    if not shape:  # a scalar
      return tensors.read(name).astype(dtype)
    bounds = [s.indices(n)[:2] for s, n in zip(selection, shape)]
    if is_packed(path, shape):
      *others, (start, stop) = bounds
      alternate = slice(rows * start + first, rows * stop, rows)
      return tensors.read(name, (*(slice(*b) for b in others), alternate)).astype(dtype)
    if transposed:
      bounds = bounds[::-1]
    (start, stop), *rest = bounds
    inside = slice(first + start, first + min(stop, rows)) if start < rows else slice(first, first)
    values = tensors.read(name, (inside, *(slice(*bound) for bound in rest)))
    values = (values.T if transposed else values).astype(dtype)
    missing = (stop - start) - (inside.stop - inside.start)
    if missing > 0:
      values = np.pad(values, [(0, missing * (i == transposed)) for i in range(values.ndim)])
    if new_row is not None:
      new = slice(max(0, rows - start), max(0, min(stop, config.vocab_size) - start))
      columns = new_row[slice(*rest[0])].astype(dtype)
      if transposed:
        values[:, new] = columns[:, None]
      else:
        values[new] = columns
    return values

  return jax.make_array_from_callback(tuple(shape), sharding, part)


def _rows(shape, leaves, leaf: tuple[int, ...]) -> int:
  """Number of rows of one leaf, of this shape, in its tensor."""
  if len(leaves) == 1:
    return shape[0] if shape else 1
  return leaf[1]


def _tie(tensors: Tensors) -> None:
  """Makes one tensor of an embedding and its tied head, whichever of them are stored.

  Raises:
    WeightsError: both are, with different values.
  """
  embedding, head = 'model.embed_tokens.weight', 'lm_head.weight'
  if head not in tensors.shapes:
    return
  if embedding not in tensors.shapes:
    tensors.rename(head, embedding)
    return
  if not _are_equal(tensors, embedding, head):
    raise WeightsError(
      f'{tensors.directory}: config.json says tie_word_embeddings, but {head} is a tensor of its '
      f'own with other values than {embedding}, as after merging an adapter that trained one of '
      'them. transformers 5 uses both, older versions drop the head. If both are meant, write '
      f'"tie_word_embeddings": false in config.json; if not, remove {head} from the weights'
    )
  tensors.forget(head)


def _are_equal(tensors: Tensors, one: str, other: str, rows: int = 4096) -> bool:
  """Whether two tensors have the same values, some rows at a time."""
  if tensors.shapes[one] != tensors.shapes[other]:
    return False
  size = tensors.shapes[one][0]
  parts = (slice(first, min(first + rows, size)) for first in range(0, size, rows))
  return all(
    np.array_equal(
      tensors.read(one, (part,)).astype(np.float32), tensors.read(other, (part,)).astype(np.float32)
    )
    for part in parts
  )


def _check(tensors: Tensors, table: Mapping, config: DecoderConfig, directory: str) -> None:
  extra = tensors.shapes.keys() - table.keys()
  # Some writers also store tables that the configuration determines.
  extra = {name for name in extra if not name.endswith('rotary_emb.inv_freq')}
  known_rows = vocab_size(directory)

  def fits(shape, leaves) -> bool:
    wanted = tensor_shape(leaves, config)
    grown = leaves[0][0] in PER_TOKEN and config.vocab_size > known_rows
    return shape == wanted or (grown and shape == (known_rows, *wanted[1:]))

  problems = [f'tensor {name} is missing' for name in sorted(table.keys() - tensors.shapes.keys())]
  problems += [f'tensor {name} is not part of the model' for name in sorted(extra)]
  problems += [
    f'tensor {name} has shape {tensors.shapes[name]}, config.json says '
    f'{tensor_shape(leaves, config)}'
    for name, leaves in table.items()
    if name in tensors.shapes and not fits(tensors.shapes[name], leaves)
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
      parts.append(value)
    return joined(parts, leaves[0][0])

  for name, leaves in tensor_leaves(model_type, config).items():
    yield name, tensor_shape(leaves, config), functools.partial(fetch, leaves)


def _adapter(flat: Mapping, path: str) -> tuple | None:
  """(A, B) of a kernel, or None."""
  module, _, leaf = path.rpartition('/')
  if leaf != 'kernel' or f'{module}/lora_a' not in flat:
    return None
  return flat[f'{module}/lora_a'], flat[f'{module}/lora_b']


def to_host(leaf, index: tuple[int, ...], dtype: str) -> np.ndarray:
  """A leaf, or one layer or expert of it, as NumPy on every host."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return np.asarray(_taken(leaf.sharding.mesh, dtype)(leaf, index))
  return np.asarray(leaf[index]).astype(dtype)


@functools.lru_cache(maxsize=64)
def _taken(mesh, dtype: str):
  """A jitted (leaf, index) -> that layer or expert of it, on every device."""
  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.jit(lambda leaf, index: leaf[index].astype(dtype), out_shardings=replicated)
