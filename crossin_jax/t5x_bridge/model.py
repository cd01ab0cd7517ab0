"""This project's decoder as a model of T5X.

Letters: B batch, L length, V vocabulary.
"""

from collections.abc import Callable
import functools

import gin
import jax
import jax.numpy as jnp

from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.models import lora
from crossin_jax.t5x_bridge import optimizers as bridge_optimizers
from crossin_jax.training import losses, optimizers


@gin.configurable
def t5x_model(
  module,
  vocabulary: Vocabulary,
  optimizer: Callable[..., optimizers.Optimizer] | None = None,
  total_steps: int | None = None,
  z_loss: float = 0.0,
  stop_id: int | None = None,
  temperature: float = 0.0,
  top_k: int = 0,
):
  """A `t5x.models.DecoderOnlyModel` that keeps this project's loss weights and its tokens of id 0.

  Args:
    module: `models.decoder.Decoder`, or any with its call signature.
    vocabulary: the tokenizer; every row starts with its BOS, if it has one.
    optimizer: called with total_steps, as by `crossin train`; None = no training (evaluation,
      inference).
    total_steps: steps of the run, for the schedule.
    z_loss: factor on log(Z)^2.
    stop_id: token that ends a prediction; None = the vocabulary's stop token.
    temperature: of sampling; 0 = the most probable token.
    top_k: sample from the k most probable tokens; 0 = all.

  Raises:
    ValueError: adapters on a quantised base, which T5X does not support.
  """
  adapters = lora.of_model(module)
  if adapters is not None and adapters.base_dtype in lora.QUANTISED:
    raise ValueError(
      f'LoraConfig.base_dtype = {adapters.base_dtype!r}: T5X does not support quantised '
      "parameters; set 'float32', or use crossin train"
    )
  definition = (
    bridge_optimizers.wrapped(optimizer(total_steps=total_steps), adapters) if optimizer else None
  )
  return _model_class()(module, vocabulary, definition, z_loss, stop_id, temperature, top_k)


@gin.configurable
def prepared_vocabulary(data_dir: str, mixture: str) -> Vocabulary:
  """The tokenizer that a prepared mixture was made with."""
  prepared = PreparedMixture(data_dir, mixture)
  words = prepared.description['vocabulary']
  return Vocabulary(prepared.vocabulary_path, words.get('bos_token'), words.get('eos_token'))


def prompt_lengths(causal_BL: jax.Array) -> jax.Array:
  """Tokens of each prompt but the first, int [B]. T5X counts ids other than 0 and so loses real
  ones.

  `decoder_causal_attention` has a one for each token of the prompt and for BOS, if there is one:
  1 1 1 0 0 is BOS and a prompt of two.
  """
  return jnp.sum(causal_BL, axis=-1).astype(jnp.int32) - 1


def ended(tokens: jax.Array, prompt_lengths_B: jax.Array, stop_id: int, eos_id: int) -> jax.Array:
  """Predictions with eos in place of the zeros that T5X writes after their end.

      prompt of 2, stop 9, eos 3:  tokens 0 7 9 0 0 0  ->  0 7 3 3 3 3
      no stop within length 6:     tokens 4 0 5 8 0 0  ->  4 0 5 8 3 3

  Args:
    tokens: int [B, ..., L], what follows the prompt, left-aligned; the last `prompt_lengths`
      columns are unused.
    prompt_lengths_B: int [B].
    stop_id: ends a prediction.
    eos_id: written from there on.
  """
  length = tokens.shape[-1]
  room = (length - prompt_lengths_B).reshape(-1, *(1,) * (tokens.ndim - 1))
  over = (jnp.cumsum(tokens == stop_id, axis=-1) > 0) | (jnp.arange(length) >= room)
  return jnp.where(over, eos_id, tokens)


def _metrics(batch, loss_BL) -> dict:
  """T5X's metrics of a batch, as clu metrics."""
  import clu.metrics
  from t5x import metrics

  weights_BL = batch['decoder_loss_weights'].astype(loss_BL.dtype)
  total = jnp.where(weights_BL != 0, loss_BL * weights_BL, 0).sum()
  mean = clu.metrics.Average(total=total, count=weights_BL.sum())
  rows, tokens = loss_BL.shape[0], jnp.sum(batch['decoder_segment_ids'] > 0)
  size, rate = jnp.asarray(loss_BL.size), metrics.TimeRate.from_model_output
  return {
    'loss': mean,
    'loss_per_nonpadding_target_token': mean,
    'loss_tokens': metrics.Sum.from_model_output(weights_BL.sum()),
    'tokens': metrics.Sum.from_model_output(tokens),
    'non_padding_fraction/decoder': clu.metrics.Average(total=tokens, count=size),
    'timing/seqs_per_second': rate(numerator=jnp.asarray(rows)),
    'timing/target_tokens_per_second': rate(numerator=size),
    'timing/steps_per_second': metrics.StepsPerTime.from_model_output(),
    'timing/seconds': metrics.Time(),
  }


def _filled_cache(module, params, inputs, causal_attention, lengths_B):
  """The cache of a module after it has read right-padded prompts."""
  ones = jnp.ones_like(inputs)
  _, created = module.apply(
    {'params': params}, ones, ones, enable_dropout=False, decode=True, mutable=['cache']
  )
  _, filled = module.apply(
    {'params': params, 'cache': created['cache']}, inputs, inputs,
    decoder_causal_attention=causal_attention, enable_dropout=False, prefill=True,
    prefill_lengths=lengths_B, mutable=['cache'],
  )  # fmt: skip
  return filled['cache']


@functools.cache
def _model_class():
  import clu.metrics
  from t5x import decoding, models

  from seqio_tasks.feature_converter import AnyTaskFeatureConverter
  from seqio_tasks.vocabularies import SeqioVocabulary

  class CrossInModel(models.DecoderOnlyModel):
    """See `t5x_model`."""

    def __init__(self, module, vocabulary, optimizer_def, z_loss, stop_id, temperature, top_k):
      super().__init__(
        module,
        SeqioVocabulary(vocabulary),
        optimizer_def,
        decode_fn=functools.partial(
          decoding.temperature_sample, temperature=temperature, topk=top_k
        ),
        feature_converter_cls=functools.partial(AnyTaskFeatureConverter, bos_id=vocabulary.bos_id),
        z_loss=z_loss,
        loss_normalizing_factor='NUM_REAL_TARGET_TOKENS',
      )
      self._eos_id = vocabulary.eos_id
      self._stop_id = vocabulary.eos_id if stop_id is None else stop_id

    def get_initial_variables(self, rng, input_shapes, input_types=None):
      """As in T5X, but input types may be omitted, as t5x.eval does."""
      del input_types
      return super().get_initial_variables(rng, input_shapes, {'decoder_input_tokens': jnp.int32})

    def loss_fn(self, params, batch, dropout_rng):
      """Mean loss per token of weight, and the metrics."""
      objective, metrics = self.summed_loss_fn(params, batch, dropout_rng)
      return objective / jnp.maximum(batch['decoder_loss_weights'].sum(), 1e-8), metrics

    def summed_loss_fn(self, params, batch, dropout_rng):
      """The sum of weighted token losses, for a trainer that divides once over all microbatches."""
      objective, loss_BL, _ = losses.summed_loss(
        self.module, params, batch, self._z_loss, dropout_rng
      )
      return objective, _metrics(batch, loss_BL)

    def eval_fn(self, params, batch):
      """As `loss_fn`, with the accuracy, which needs all logits of the batch."""
      logits_BLV = self._compute_logits(params, batch)
      loss_BL, _ = losses.token_losses(logits_BLV, batch['decoder_target_tokens'])
      metrics = _metrics(batch, loss_BL)
      metrics['accuracy'] = clu.metrics.Accuracy.from_model_output(
        logits=logits_BLV,
        labels=batch['decoder_target_tokens'],
        mask=batch['decoder_loss_weights'] > 0,
      )
      return metrics['loss'].compute(), metrics

    def _compute_kv_cache(self, params, inputs, causal_attention_mask):
      lengths_B = prompt_lengths(causal_attention_mask)
      attention = self._get_decoder_causal_attention(
        {'decoder_causal_attention': causal_attention_mask}
      )
      return _filled_cache(self.module, params, inputs, attention, lengths_B), lengths_B

    def predict_batch_with_aux(self, params, batch, rng=None, *, decoder_params=None, **options):
      """Predictions [B, L] after the prompt; the stop token and everything after it are eos."""
      # T5X ignores an eos of id 0.
      decoder_params = {'eos_id': self._stop_id, **(decoder_params or {})}
      tokens, aux = super().predict_batch_with_aux(
        params, batch, rng, decoder_params=decoder_params, **options
      )
      return ended(
        tokens, prompt_lengths(batch['decoder_causal_attention']), self._stop_id, self._eos_id
      ), aux

  return CrossInModel
