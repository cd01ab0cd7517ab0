"""What T5X makes of this project's model, asked in a process of its own: shards, logits,
predictions.

    python library_checks.py DIRECTORY

DIRECTORY/asked.json has `config`, `vocabulary` (path), `checkpoints` (name -> path);
DIRECTORY/batch.npz the features of a batch, and `prompts` (`decoder_input_tokens`,
`decoder_causal_attention`). Answers: shards.json, answers.npz.
"""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.models.decoder import Decoder
from crossin_jax.models.decoder_config import DecoderConfig
from crossin_jax.models.lora import LoraConfig
from crossin_jax.t5x_bridge import checkout
from crossin_jax.t5x_bridge.model import t5x_model
from crossin_jax.training import optimizers


def make(asked, *, lora=False, optimizer=None):
  config = dict(asked['config'], lora=LoraConfig(rank=4, base_dtype='float32') if lora else None)
  module = Decoder(DecoderConfig(**config))
  return t5x_model(module, Vocabulary(**asked['vocabulary']), optimizer=optimizer, total_steps=20)


def initializer(model, partitioner, shape):
  from t5x import utils

  return utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={'decoder_input_tokens': shape},
    input_types={'decoder_input_tokens': jnp.int32},
    partitioner=partitioner,
  )


def main(directory: str) -> None:
  with open(os.path.join(directory, 'asked.json'), encoding='utf-8') as f:
    asked = json.load(f)
  checkout.load()
  from flax import traverse_util
  from t5x import partitioning, utils

  rules = partitioning.standard_logical_axis_rules(
    additional_rules=(('lora_rank', None), ('embed_activation', None))
  )
  partitioner = partitioning.PjitPartitioner(
    num_partitions=1, model_parallel_submesh=(1, 2), logical_axis_rules=rules
  )
  batch = dict(np.load(os.path.join(directory, 'batch.npz')))
  shape = batch['decoder_input_tokens'].shape

  shards = {}
  for name, options in {
    'lora': {'lora': True, 'optimizer': optimizers.adamw},
    'adafactor': {'optimizer': optimizers.adafactor},
  }.items():
    state = initializer(make(asked, **options), partitioner, shape).from_scratch(
      jax.random.PRNGKey(0)
    )
    flat = traverse_util.flatten_dict(state.state_dict(), sep='/')
    shards[name] = {
      path: [list(leaf.shape), list(leaf.addressable_shards[0].data.shape)]
      for path, leaf in flat.items()
      if hasattr(leaf, 'addressable_shards')
    }
  with open(os.path.join(directory, 'shards.json'), 'w', encoding='utf-8') as f:
    json.dump(shards, f)

  answers, model = {}, make(asked)
  apply = jax.jit(model._compute_logits)
  for name, path in asked['checkpoints'].items():
    config = utils.RestoreCheckpointConfig(
      path=path, mode='specific', dtype='float32', strict=False
    )
    restored, _ = utils.create_checkpoint_manager_and_restore(
      initializer(model, partitioner, shape), partitioner, config, path, None, use_orbax=True
    )
    answers[f'logits {name}'] = np.asarray(apply(restored.params, batch))
  prompts = dict(np.load(os.path.join(directory, 'prompts.npz')))
  answers['predictions'] = np.asarray(
    jax.jit(model.predict_batch)(restored.params, prompts, jax.random.PRNGKey(0))
  )
  np.savez(os.path.join(directory, 'answers.npz'), **answers)


if __name__ == '__main__':
  main(sys.argv[1])
