"""Floating-point operations of a step by formula, and the peak of devices."""

import jax

from crossin_jax.devices import chips
from crossin_jax.models.decoder_config import DecoderConfig


def peak_flops(device: jax.Device | None = None) -> float | None:
  """bf16 FLOP/s of one device, or None if unknown (CPUs)."""
  kind = chips.kind_of(device or jax.devices()[0])
  return kind.flops if kind else None


def matrix_parameters(config: DecoderConfig, active: bool = False) -> int:
  """Elements of all kernels and the output head; `active`: of those that multiply each token."""
  layers = sum(
    inputs * outputs * _copies(config, name, active)
    for layer in range(config.num_layers)
    for name, (inputs, outputs) in _kernels(config, layer).items()
  )
  return layers + config.embed_dim * config.padded_vocab_size


def expert_share(config: DecoderConfig) -> float:
  """The share of all matrices that the experts have."""
  if not config.num_experts:
    return 0.0
  experts = 3 * config.embed_dim * config.mlp_dim * config.num_experts * config.num_layers
  return experts / matrix_parameters(config)


def _copies(config: DecoderConfig, name: str, active: bool) -> int:
  """How many kernels of this name a layer has, or uses for each token."""
  if not config.num_experts or name not in ('gate', 'up', 'down'):
    return 1
  return config.experts_per_token if active else config.num_experts


def adapter_parameters(config: DecoderConfig, active: bool = False) -> int:
  """Parameters of the LoRA adapters; `active`: of those that multiply each token."""
  if config.lora is None:
    return 0
  return config.lora.rank * sum(
    (inputs + outputs) * _copies(config, name, active)
    for layer in range(config.num_layers)
    for name, (inputs, outputs) in _kernels(config, layer).items()
    if name in config.lora.targets
  )


def _kernels(config: DecoderConfig, layer: int) -> dict[str, tuple[int, int]]:
  """Name -> (inputs, outputs) of the kernels of a layer."""
  config = config.of_kind(config.kind(layer))
  embed, mlp = config.embed_dim, config.mlp_dim
  wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  kernels = {'query': (embed, wide), 'key': (embed, narrow), 'out': (wide, embed)}
  if not config.key_is_value:
    kernels['value'] = (embed, narrow)
  if config.mlp_gate:
    kernels['gate'] = (embed, mlp)
  if config.num_experts:
    kernels['router'] = (embed, config.num_experts)
  return kernels | {'up': (embed, mlp), 'down': (mlp, embed)}


def attention_flops(config: DecoderConfig, length: int) -> float:
  """FLOPs of attention per token in a forward pass over a row of `length`: logits and values."""
  total = 0.0
  for layer in range(config.num_layers):
    kind = config.kind(layer)
    window = min(config.window_of(kind) or length, length)
    # A token sees min(position + 1, window) keys.
    keys = (window * (window + 1) / 2 + (length - window) * window) / length
    total += 4 * config.num_heads * config.of_kind(kind).head_dim * keys
  return total


def forward_flops(config: DecoderConfig, length: int) -> float:
  """FLOPs of the forward pass per token: 2 a parameter (multiply and add), and attention."""
  parameters = matrix_parameters(config, active=True) + adapter_parameters(config, active=True)
  return 2 * parameters + attention_flops(config, length)


def training_flops(config: DecoderConfig, length: int) -> float:
  """FLOPs of a training step per token, without recomputation.

  Three times a forward pass: forward, gradients of activations and of parameters (Kaplan et al.
  2020, section 2.1). Frozen matrices have no parameter gradients.
  """
  frozen = 0 if config.lora is None else matrix_parameters(config, active=True)
  if config.lora is not None and config.lora.train_embeddings:
    frozen -= config.embed_dim * config.padded_vocab_size
  return 3 * forward_flops(config, length) - 2 * frozen - unneeded_flops(config)


def unneeded_flops(config: DecoderConfig) -> float:
  """FLOPs per token of input gradients of the first layer's query, key and value.

  Frozen embeddings do not need them. `scan_layers` computes them nevertheless.
  """
  if config.lora is None or config.lora.train_embeddings:
    return 0.0
  kernels = _kernels(config, 0)
  first = {name: kernels[name] for name in ('query', 'key', 'value') if name in kernels}
  adapted = len(first.keys() & set(config.lora.targets))
  outputs = sum(outputs for _, outputs in first.values())
  return 2 * config.embed_dim * (outputs + adapted * config.lora.rank)


def utilisation(config, length: int, tokens_per_second: float) -> float | None:
  """MFU: the model's FLOP/s as a fraction of the peak of all devices; None if unknown."""
  peak = peak_flops()
  if peak is None or not isinstance(config, DecoderConfig):
    return None
  return training_flops(config, length) * tokens_per_second / (peak * jax.device_count())
