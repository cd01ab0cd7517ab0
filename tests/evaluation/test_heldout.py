"""Held-out loss: that of every example by itself, put together by language and by pair."""

from conftest import tiny_config
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.heldout import HeldoutLoss
from crossin_jax.models.decoder import Decoder
from crossin_jax.training import losses


def test_sums_of_examples_by_language_and_pair(tiny_prepared):
  model = Decoder(tiny_config(vocab_size=1216, num_layers=1, scan_layers=False))
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  tokens = jnp.zeros((1, 64), jnp.int32)
  with partition.activate():
    params = model.init(jax.random.key(0), tokens, tokens, enable_dropout=False)['params']
    params = jax.tree.map(lambda leaf: 3 * leaf, params)
    evaluator = HeldoutLoss(*tiny_prepared, length=64, rows=4, examples_per_task=3, by_pair=True)
    found = dict(evaluator(model, params, partition))
  mixture, sums = PreparedMixture(*tiny_prepared, 'validation'), {}
  run = jax.jit(
    lambda params, tokens: model.apply({'params': params}, tokens, tokens, enable_dropout=False)
  )
  for task in mixture.tasks:
    info = task.info
    for index in range(min(3, task.examples)):
      targets, weights = task.split.example(index)
      inputs = np.zeros(64, np.int32)
      inputs[: len(targets)] = [mixture.bos_id, *targets[:-1]]
      logits = run(params, inputs[None])[:, : len(targets)]
      each = losses.token_losses(logits, jnp.asarray(targets)[None])[0][0]
      pair = f'{info["mode"]} {info["source_language"]}>{info["target_language"]}'
      for key in ('all', info['target_language'], pair):
        loss, weight = sums.get(key, (0.0, 0.0))
        sums[key] = loss + float((each * weights).sum()), weight + float(weights.sum())
  mean = {key: loss / weight for key, (loss, weight) in sums.items()}
  assert found['eval/heldout/loss'] == pytest.approx(mean['all'], rel=1e-5)
  assert found['eval/heldout/loss_by_language'] == pytest.approx(
    {l: mean[l] for l in ('en', 'es', 'vi', 'zh')}, rel=1e-5
  )
  pairs = found['eval/heldout/loss_by_pair']
  assert (
    pairs == pytest.approx({key: mean[key] for key in pairs}, rel=1e-5)
    and {'x2x en>zh', 'base en>en'} <= pairs.keys()
  )
  assert len(set(np.round(list(pairs.values()), 4))) > 5
