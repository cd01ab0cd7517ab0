"""Continuations behind shared prefixes: the losses of whole sequences, from far fewer tokens."""

import dataclasses

from conftest import init_params, tiny_config
import jax
import numpy as np
import pytest

from crossin_jax.decoding import scoring, slots
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.models.decoder import Decoder
from crossin_jax.partitioning import Partitioner


def questions(seed=0, items=11, longest=40):
  """Prefixes of ragged lengths (an empty one, two equal) with 0 to 4 continuations."""
  rng = np.random.default_rng(seed)
  prefixes = [rng.integers(3, 61, rng.integers(1, longest)).tolist() for _ in range(items - 2)]
  prefixes += [[], prefixes[1]]
  continuations = [
    [rng.integers(3, 61, rng.integers(1, 13)).tolist() for _ in range(rng.integers(0, 5))] for _ in prefixes
  ]
  return prefixes, continuations


@pytest.mark.parametrize('count', [1, 4], ids=['1 device', '4 devices'])
@pytest.mark.parametrize('changes', [{}, {'layer_pattern': ('local', 'global'), 'window': 7, 'scan_layers': False}])
def test_shared_prefixes_give_the_losses_of_whole_sequences(count, changes):
  model = Decoder(tiny_config(**changes))
  params = init_params(model, 1)
  partition = Partitioner((1, -1, 1), devices=jax.devices()[:count])
  prefixes, continuations = questions()
  with partition.activate():
    score = lambda **options: scoring.continuation_losses(
      model, params, partition, prefixes, continuations, bos_id=1, length=64, rows=4, **options
    )
    shared, packed = score(shared=True), score(shared=False)
  assert [len(found) for found in shared] == [len(options) for options in continuations]
  for found, expected in zip(shared, packed):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  assert sum((losses > 0).sum() for losses in shared) == sum(map(len, continuations)) > 15


def test_a_prefix_is_read_once_and_the_cheaper_way_is_taken(monkeypatch):
  """64 tokens with four short continuations: about a third of the tokens. Short prefixes are packed."""
  model = Decoder(tiny_config())
  params = init_params(model, 1)
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  rng = np.random.default_rng(2)
  long = [rng.integers(3, 61, 60).tolist() for _ in range(8)]
  options = [[rng.integers(3, 61, 5).tolist() for _ in range(4)] for _ in range(9)]
  read = []
  prefill = slots.Programs.prefill
  monkeypatch.setattr(
    slots.Programs, 'prefill', lambda self, params, *a, **k: read.append(a[0].shape) or prefill(self, params, *a, **k)
  )
  whole = []
  packed = scoring.sequence_losses
  monkeypatch.setattr(scoring, 'sequence_losses', lambda *a, **k: whole.append(len(a[3])) or packed(*a, **k))
  with partition.activate():
    score = lambda prefixes: scoring.continuation_losses(
      model, params, partition, prefixes, options, bos_id=1, length=128, rows=4
    )
    score([*long, long[0]])
    assert sum(rows * length for rows, length in read) == 8 * 64 and not whole, 'equal prefixes are one'
    score([prefix[:4] for prefix in [*long, long[0]]])
    assert len(read) == 1 and whole == [36]


def test_an_empty_continuation_is_refused():
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  with pytest.raises(ValueError, match='prefix 1 has an empty continuation'):
    scoring.continuation_losses(None, None, partition, [[3], [4]], [[[5]], [[6], []]], bos_id=1)


def test_nothing_to_score():
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  assert [len(found) for found in scoring.continuation_losses(None, None, partition, [[3]], [[]], bos_id=1)] == [0]


def test_scoring_compiles_once_a_bucket():
  model = Decoder(dataclasses.replace(tiny_config(), mlp_dim=20))
  params = init_params(model, 1)
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  with partition.activate():
    for seed in (0, 1):
      prefixes, continuations = questions(seed, items=20)
      scoring.continuation_losses(
        model, params, partition, prefixes, continuations, bos_id=1, length=64, rows=4, shared=True
      )
    compiled = slots.programs(model, partition, Sampling(), (), 1).compiled
  assert len(set(compiled)) == len(compiled)
  assert {shape[0] for shape in compiled} == {'prefill', 'score'}
