"""Costs of a step by formula: operations, HBM traffic, traffic between chips, memory, least time.

The residuals of the forward pass are those of `jax.vjp` of the real loss, traced without a device.
So they include the effects of attention, loss and remat as implemented.
"""

import dataclasses
import functools
import math

import gin
import jax
import jax.numpy as jnp

from crossin_jax.data.stream import FEATURES
from crossin_jax.devices import flops
from crossin_jax.devices.meshes import batch_ways
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models import lora
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.plan.collectives import BETWEEN_SLICES
from crossin_jax.plan.step import Setting, State
from crossin_jax.plan.topology import Topology, lines
from crossin_jax.training import chunked_loss, losses


@dataclasses.dataclass(frozen=True)
class Figures:
  """Figures of one step; bytes are of one chip.

  Attributes:
    model_flops: operations of the model without recomputation, of all chips.
    executed_flops: with recomputation, of all chips.
    memory_bytes: moved to and from HBM.
    sent: mesh axis (or 'slices') -> bytes sent.
    gradients: largest size of gradients and their sums over microbatches.
    activations: residuals for the backward pass, and the layer being computed.
    gathered: parameters that are temporarily unsharded.
  """

  model_flops: float
  executed_flops: float
  memory_bytes: float
  sent: dict[str, float]
  gradients: float
  activations: float
  gathered: float

  @property
  def scratch(self) -> float:
    """Bytes in addition to the arguments."""
    return self.gradients + self.activations + self.gathered


@dataclasses.dataclass(frozen=True)
class Bound:
  """The least seconds of a step, with perfect overlap.

  Attributes:
    compute, memory: seconds.
    links: mesh axis -> seconds inside a slice (ICI, NVLink).
    network: seconds between slices.
  """

  compute: float
  memory: float
  links: dict[str, float]
  network: float

  @property
  def parts(self) -> dict[str, float]:
    """Seconds of each part."""
    return {
      'compute': self.compute,
      'HBM': self.memory,
      'links': sum(self.links.values()),
      'network': self.network,
    }

  @property
  def seconds(self) -> float:
    """The longest part."""
    return max(self.parts.values())

  @property
  def binds(self) -> str:
    """Name of the longest part."""
    return max(self.parts, key=self.parts.get)


def bound(
  figures: Figures, topology: Topology, partition: Partitioner, sent: dict[str, float] | None = None
) -> Bound:
  """The least seconds of a step on some chips.

  Args:
    figures: of the step.
    topology, partition: where it runs.
    sent: bytes by axis as compiled; None = by formula.
  """
  along, links, network = lines(partition.mesh, topology.slices), {}, 0.0
  for axis, count in (figures.sent if sent is None else sent).items():
    if axis == BETWEEN_SLICES:
      network += count / topology.kind.network
      continue
    # A collective over several axes uses the links of all.
    parts = [topology.fast_bandwidth(along[part]) for part in axis.split('+') if part in along]
    links[axis] = count / min(sum(parts) or topology.kind.links, topology.kind.links)
  return Bound(
    figures.executed_flops / (len(topology.devices) * topology.kind.flops),
    figures.memory_bytes / topology.kind.bandwidth,
    links,
    network,
  )


def figures(setting: Setting, mesh: tuple[int, ...], state: State, slices: int = 1) -> Figures:
  """All figures of a train step by formula.

  Args:
    setting: the model must have a DecoderConfig.
    mesh: sizes of data, fsdp and tensor, and perhaps expert.
    state: of `step.state_bytes`, for this mesh.
    slices: number of slices, over which the data axis is divided.
  """
  config, tensor, parts = setting.model.config, mesh[2], setting.microbatches
  tokens, rows = (
    setting.batch_size * setting.length,
    setting.batch_size // parts // batch_ways(mesh),
  )
  width = jnp.dtype(config.dtype).itemsize
  matrices, trained = _matrices(config), _trained_matrices(config)
  saved, full_logits = saved_bytes(setting.model, setting.length, rows)
  # Over `tensor`, inputs of blocks are replicated and values inside blocks are sharded.
  inputs = rows * config.num_layers * setting.length * config.embed_dim * width
  kept = min(inputs, saved) + max(0.0, saved - inputs) / tensor
  internal = rows * internal_bytes(setting.model, setting.length) / tensor
  layer = internal / config.num_layers
  # The current layer and its gradients; and gradients of logits, if logits are materialised.
  at_work = layer * (1 if config.remat == 'none' else 2) + full_logits / tensor
  model = flops.training_flops(config, setting.length) * tokens
  # Logits are computed again where they are neither whole nor kept.
  twice = not full_logits and not _settings_of_loss(setting.model, setting.length, rows)['keep']
  recomputed = _recomputed(config, setting.length) + (2 * _head(config) if twice else 0)
  if config.scan_layers:
    recomputed += flops.unneeded_flops(config)

  # HBM: matrices for each pass (forward, backward, remat), their gradients, residuals and logits
  # written and read, and the state of the optimizer once.
  passes = 3 if config.remat == 'full' else 2
  logits = rows * setting.length * config.padded_vocab_size * max(4, width) / tensor
  work = (2 if config.remat == 'none' else 4) * internal + 2 * kept
  work += (4 if twice else 3) * logits
  if setting.objective.has_second_pass(setting.model):  # the reference, forward alone
    passes += 1
    model += flops.forward_flops(dataclasses.replace(config, lora=None), setting.length) * tokens
  memory = parts * ((passes * matrices + 2 * trained) * width / tensor + work)
  memory += 2 * (state.parameters + state.optimizer) + 2 * parts * state.trained

  return Figures(
    model_flops=model,
    executed_flops=model + recomputed * tokens,
    memory_bytes=memory,
    sent=_sent(config, mesh, parts, rows * setting.length, state.trained, slices),
    gradients=state.trained * (1 if parts == 1 else 2),
    activations=kept + at_work,
    gathered=_gathered(config, mesh),
  )


def _sent(
  config: DecoderConfig, mesh, parts: int, tokens: float, trained_bytes: float, slices: int
) -> dict[str, float]:
  """Bytes that a chip sends along each axis in a step, by the ring algorithm.

  fsdp gathers matrices for the forward and the backward pass and scatters their gradients. data
  sums gradients. tensor sums activations, twice a layer in each pass, and once more with full
  remat. expert collects the tokens of a layer and scatters the sums of its experts, in each pass,
  and sums the gradients of what is not an expert. All is in the dtype of the computation, and in
  each microbatch: XLA moves nothing out of their loop.

  Args:
    tokens: of a microbatch on one chip.
    trained_bytes: of a chip's part of the trained parameters.
  """
  data, fsdp, tensor, expert = (*mesh, 1)[:4]
  width, share = jnp.dtype(config.dtype).itemsize, lambda n: (n - 1) / n
  gradients = trained_bytes * width / jnp.dtype(config.param_dtype).itemsize
  matrices = 2 * _matrices(config) + _trained_matrices(config)
  sums = (4 + (config.remat == 'full')) * config.num_layers
  sent = {
    'data': 2 * gradients * share(data // slices),
    'fsdp': matrices * width / tensor * share(fsdp),
    'tensor': sums * 2 * tokens * config.embed_dim * width * share(tensor),
    BETWEEN_SLICES: 2 * gradients * share(slices),
  }
  if expert > 1:
    passes = 4 + 2 * (config.remat == 'full')
    of_tokens = passes * config.num_layers * tokens * config.embed_dim * width * (expert - 1)
    dense = _trained_matrices(config) * (1 - flops.expert_share(config)) * width / fsdp / tensor
    sent['expert'] = of_tokens + 2 * dense * share(expert)
    sent['fsdp'] *= 1 - flops.expert_share(config) * share(expert)
  return {axis: parts * count for axis, count in sent.items() if count}


def _recomputed(config: DecoderConfig, length: int) -> float:
  """Operations a token that remat repeats.

  In a block without a norm after its MLP, nothing depends on the last product, which is not
  repeated.
  """
  if config.remat == 'none':
    return 0.0
  attention = flops.attention_flops(config, length)
  if config.remat == 'minimal':
    return attention
  last = config.num_layers * config.mlp_dim * config.embed_dim
  last *= config.experts_per_token if config.num_experts else 1
  last = last if config.norm_placement in ('pre', 'parallel') else 0
  return 2 * (_matrices(config, active=True) - _head(config) - last) + attention


def _head(config: DecoderConfig) -> int:
  return config.embed_dim * config.padded_vocab_size


def _matrices(config: DecoderConfig, active: bool = False) -> float:
  """Elements of all matrices, without an embedding that is only looked up; see `flops`."""
  return flops.matrix_parameters(config, active) + flops.adapter_parameters(config, active)


def _trained_matrices(config: DecoderConfig) -> float:
  if config.lora is None:
    return _matrices(config)
  return flops.adapter_parameters(config) + (_head(config) if config.lora.train_embeddings else 0)


def _gathered(config: DecoderConfig, mesh) -> float:
  """Bytes of the largest unsharded parameters: the head, or two layers (the next is prefetched)."""
  if mesh[1] == 1:
    return 0.0
  layer = (flops.matrix_parameters(config) - _head(config)) / config.num_layers
  return max(_head(config), 2 * layer) * jnp.dtype(config.dtype).itemsize / mesh[2]


def saved_bytes(model, length: int, rows: int) -> tuple[float, float]:
  """Bytes of the residuals of some rows: all of them, and those of materialised logits.

  These are the residuals of `jax.vjp` that depend on the number of rows. Logits are 0 if the loss
  does not materialise them.
  """
  of_loss = _settings_of_loss(model, length, rows)
  kept, other = (_residuals(model, length, n, **of_loss) for n in (rows, rows + 1))
  size = lambda leaf: math.prod(leaf.shape) * leaf.dtype.itemsize
  of_rows = [leaf for leaf, same in zip(kept, other) if leaf.shape != same.shape] if rows else []
  wide = [leaf for leaf in of_rows if leaf.shape[-1] == model.config.padded_vocab_size]
  return sum(map(size, of_rows)), sum(map(size, wide))


@functools.lru_cache(maxsize=256)
def internal_bytes(model, length: int) -> float:
  """Bytes of the residuals of all layers for one row without remat."""
  config = dataclasses.replace(model.config, remat='none')
  period = len(config.layer_pattern)
  deep = lambda n: model.clone(config=dataclasses.replace(config, num_layers=n * period))
  size = lambda n: saved_bytes(deep(n), length, 1)[0]
  return (size(2) - size(1)) * config.num_layers / period


def _settings_of_loss(model, length: int, rows: int) -> dict:
  """Chunk and keep of `losses.cross_entropy` for this many rows; one more changes only sizes."""
  bound = {'chunk': 'auto', 'keep': 'auto'} | gin.get_bindings('cross_entropy')
  chunk, keep = chunked_loss.chosen(model.config, max(1, rows), length, **bound)
  return {'chunk': chunk, 'keep': keep}


@functools.lru_cache(maxsize=512)
def _residuals(model, length: int, rows: int, chunk, keep) -> list[jax.ShapeDtypeStruct]:
  """Residuals of `jax.vjp` of the loss for some rows, including parameters."""
  batch = {name: jax.ShapeDtypeStruct((rows, length), dtype) for name, dtype in FEATURES.items()}
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  shapes = jax.eval_shape(
    lambda tokens: model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)['params'],
    tokens,
  )
  trained, frozen = lora.split(shapes, lora.of_model(model))

  def kept(trained, frozen, batch):
    return jax.vjp(
      lambda params: losses.batch_loss(model, lora.merge(params, frozen), batch, 1)[0], trained
    )[1]

  with gin.unlock_config():
    for name, value in (('chunk', chunk), ('keep', keep)):
      gin.bind_parameter(f'residuals/cross_entropy.{name}', value)
  with gin.config_scope('residuals'):
    return jax.tree.leaves(jax.eval_shape(kept, trained, frozen, batch))


def dollars_per_million_tokens(
  price_per_chip_hour: float, chips: int, seconds: float, tokens: float
) -> float:
  """Cost at some seconds a step."""
  return price_per_chip_hour * chips * seconds / 3600 / tokens * 1e6


def decode_seconds(
  config: DecoderConfig, topology: Topology, parameters: float, cache: float, rows_per_chip: float
) -> dict:
  """The least seconds for one token of every row.

  Args:
    config, topology: model and chips.
    parameters, cache: bytes that a chip reads for each token.
    rows_per_chip: rows over chips.
  """
  return {
    'HBM': (parameters + cache) / topology.kind.bandwidth,
    'compute': 2 * _matrices(config, active=True) * rows_per_chip / topology.kind.flops,
  }
