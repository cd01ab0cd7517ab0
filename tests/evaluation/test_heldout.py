"""Held-out loss: that of every example by itself, put together by language and by pair."""

import json

from conftest import init_params, tiny_config, write_prepared
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossin_jax.data import pair_layout
from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.decoding.scoring import sequence_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.heldout import HeldoutLoss
from crossin_jax.models.decoder import Decoder
from crossin_jax.storage.files import write_json
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


def test_chosen_answers_count_for_their_language(tmp_path):
  rng = np.random.default_rng(0)
  branches = [np.array([0, 0, 1, 1, 2], np.int8), np.array([0, 1, 1, 2, 0, 3, 3, 3, 4], np.int8)]
  pair, both = (
    (rng.integers(2, 60, len(b)).astype(np.int32), (b > 0).astype(np.float32), b) for b in branches
  )
  tasks = {'pairs.es': (1.0, None, [pair]), 'consistency.es': (1.0, None, [both])}
  name = write_prepared(tmp_path, tasks)
  for path in tmp_path.glob('tasks/*/manifest.json'):
    manifest = json.loads(path.read_bytes())
    manifest['splits']['validation'] = manifest['splits']['train']
    write_json(str(path), manifest)
  model = Decoder(tiny_config(num_layers=1, scan_layers=False))
  partition = Partitioner(mesh_shape=(1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    params = init_params(model)
    found = dict(HeldoutLoss(str(tmp_path), name, length=16, rows=2)(model, params, partition))
    chosen = [pair_layout.sequences(*one)[n] for one, n in ((pair, 1), (both, 1), (both, 3))]
    of_pair, first, second = sequence_losses(
      model, params, partition, chosen, bos_id=1, length=16, rows=2
    )
  by_language = {'en': first / 2, 'es': (of_pair + second) / 5}
  assert found['eval/heldout/loss_by_language'] == pytest.approx(by_language, rel=1e-5)
