"""Floating-point operations of a step by formula, and the peak of devices."""

import jax

from crossin_jax.devices import chips
from crossin_jax.models.decoder_config import DecoderConfig


def peak_flops(device: jax.Device | None = None) -> float | None:
  """bf16 FLOP/s of one device, or None if unknown (CPUs)."""
  kind = chips.kind_of(device or jax.devices()[0])
  return kind.flops if kind else None


def matrix_parameters(config: DecoderConfig) -> int:
  """Parameters that multiply every token: all kernels and the output head."""
  wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  layer = config.embed_dim * (2 * wide + 2 * narrow) + 3 * config.embed_dim * config.mlp_dim
  return config.num_layers * layer + config.embed_dim * config.padded_vocab_size


def adapter_parameters(config: DecoderConfig) -> int:
  """Parameters of the LoRA adapters."""
  if config.lora is None:
    return 0
  wide, narrow = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
  ends = {'query': wide, 'key': narrow, 'value': narrow, 'out': wide}
  sides = lambda target: config.embed_dim + ends.get(target, config.mlp_dim)
  return config.num_layers * config.lora.rank * sum(map(sides, config.lora.targets))


def attention_flops(config: DecoderConfig, length: int) -> float:
  """FLOPs of attention per token in a forward pass over a row of `length`: logits and values."""
  total = 0.0
  for layer in range(config.num_layers):
    window = min(config.window_of(config.kind(layer)) or length, length)
    # A token sees min(position + 1, window) keys.
    keys = (window * (window + 1) / 2 + (length - window) * window) / length
    total += 4 * config.num_heads * config.head_dim * keys
  return total


def forward_flops(config: DecoderConfig, length: int) -> float:
  """FLOPs of the forward pass per token: 2 a parameter (multiply and add), and attention."""
  parameters = matrix_parameters(config) + adapter_parameters(config)
  return 2 * parameters + attention_flops(config, length)


def training_flops(config: DecoderConfig, length: int) -> float:
  """FLOPs of a training step per token, without recomputation.

  Three times a forward pass: forward, gradients of activations and of parameters (Kaplan et al.
  2020, section 2.1). Frozen matrices have no parameter gradients.
  """
  frozen = 0 if config.lora is None else matrix_parameters(config)
  if config.lora is not None and config.lora.train_embeddings:
    frozen -= config.embed_dim * config.padded_vocab_size
  return 3 * forward_flops(config, length) - 2 * frozen - unneeded_flops(config)


def unneeded_flops(config: DecoderConfig) -> float:
  """FLOPs per token of input gradients of the first layer's query, key and value.

  Frozen embeddings do not need them. `scan_layers` computes them nevertheless.
  """
  if config.lora is None or config.lora.train_embeddings:
    return 0.0
  inputs = config.num_heads + 2 * config.num_kv_heads
  adapted = len({'query', 'key', 'value'} & set(config.lora.targets))
  return 2 * config.embed_dim * (inputs * config.head_dim + adapted * config.lora.rank)


def utilisation(config, length: int, tokens_per_second: float) -> float | None:
  """MFU: the model's FLOP/s as a fraction of the peak of all devices; None if unknown."""
  peak = peak_flops()
  if peak is None or not isinstance(config, DecoderConfig):
    return None
  return training_flops(config, length) * tokens_per_second / (peak * jax.device_count())
