"""Continuations behind shared prefixes: the losses of whole sequences, from far fewer tokens."""

from conftest import init_params, tiny_config
import jax
import numpy as np
import pytest

from crossin_jax.decoding import scoring
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import Decoder


def questions(seed=0, items=11, longest=40):
  """Prefixes of ragged lengths (an empty one, two equal) with 0 to 4 continuations."""
  rng = np.random.default_rng(seed)
  prefixes = [rng.integers(3, 61, rng.integers(1, longest)).tolist() for _ in range(items - 2)]
  prefixes += [[], prefixes[1]]
  continuations = [
    [rng.integers(3, 61, rng.integers(1, 13)).tolist() for _ in range(rng.integers(0, 5))]
    for _ in prefixes
  ]
  return prefixes, continuations


@pytest.mark.parametrize('count', [1, 4], ids=['1 device', '4 devices'])
@pytest.mark.parametrize(
  'changes', [{}, {'layer_pattern': ('local', 'global'), 'window': 7, 'scan_layers': False}]
)
@pytest.mark.parametrize('length', [64, 512])
def test_branches_give_the_losses_of_whole_sequences(count, changes, length):
  model = Decoder(tiny_config(**changes))
  params = init_params(model, 1)
  partition = Partitioner((1, -1, 1), devices=jax.devices()[:count])
  prefixes, continuations = questions()
  whole = [
    (prefix + option, [0.0] * len(prefix) + [1.0] * len(option))
    for prefix, options in zip(prefixes, continuations)
    for option in options
  ]
  with partition.activate():
    found = scoring.continuation_losses(
      model, params, partition, prefixes, continuations, bos_id=1, length=length, rows=4
    )
    expected = scoring.sequence_losses(model, params, partition, whole, bos_id=1, length=64, rows=4)
  assert [len(own) for own in found] == [len(options) for options in continuations]
  np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-5)
  assert len(expected) > 15


def test_a_prefix_is_read_once(monkeypatch):
  """60 tokens with four short continuations: a third of the tokens of whole sequences, in one
  program.
  """
  model = Decoder(tiny_config())
  params = init_params(model, 1)
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  rng = np.random.default_rng(2)
  prefixes = [rng.integers(3, 61, 60).tolist() for _ in range(8)]
  options = [[rng.integers(3, 61, 5).tolist() for _ in range(4)] for _ in range(9)]
  read = []
  put = scoring.put_batch
  monkeypatch.setattr(
    scoring,
    'put_batch',
    lambda make, step, shape, *a: read.append(shape) or put(make, step, shape, *a),
  )
  with partition.activate():
    scoring.continuation_losses(
      model, params, partition, [*prefixes, prefixes[0]], options, bos_id=1, length=128, rows=4
    )
  real = 8 * 60 + 9 * 20  # equal prefixes are one
  assert (
    len(set(read)) == 1
    and real <= sum(rows * width for rows, width in read) <= 2.5 * real < 9 * 4 * 65
  )


def test_more_continuations_than_a_row_holds():
  model = Decoder(tiny_config())
  params = init_params(model, 1)
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  rng = np.random.default_rng(3)
  prefix, options = (
    rng.integers(3, 61, 20).tolist(),
    [rng.integers(3, 61, 9).tolist() for _ in range(40)],
  )
  with partition.activate():
    (found,) = scoring.continuation_losses(
      model, params, partition, [prefix], [options], bos_id=1, length=64, rows=2
    )
    whole = [(prefix + option, [0.0] * 20 + [1.0] * 9) for option in options]
    expected = scoring.sequence_losses(model, params, partition, whole, bos_id=1, length=64, rows=2)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_branch_sees_its_trunk_and_itself_alone():
  """By gradient: no logit of one continuation depends on a token of another, whatever the window."""
  for changes in ({}, {'layer_pattern': ('local', 'global'), 'window': 5, 'scan_layers': False}):
    model = Decoder(tiny_config(**changes))
    params = init_params(model, 1)
    tokens = np.array([[1, 5, 6, 7, 8, 9, 10, 11]])
    branches = np.array([[0, 0, 0, 1, 1, 2, 2, 2]])
    positions = np.array([[0, 1, 2, 3, 4, 3, 4, 5]])

    def logits(tokens, places=None):
      return np.asarray(
        model.apply(
          {'params': params}, tokens, tokens, decoder_segment_ids=np.ones_like(tokens),
          decoder_positions=positions,
          decoder_branches=branches, decoder_logit_places=places, enable_dropout=False,
        )
      )  # fmt: skip

    before = logits(tokens)
    np.testing.assert_allclose(logits(tokens, np.array([[4, 7]])), before[:, [4, 7]], rtol=1e-6)
    for changed in range(8):
      after = logits(np.where(np.arange(8) == changed, 20, tokens))
      moved = np.abs(after - before).max(axis=(0, 2)) > 1e-7
      sees = [i >= changed and branches[0, changed] in (0, branches[0, i]) for i in range(8)]
      assert not (moved & ~np.array(sees)).any(), changed
      assert moved[changed]


def test_an_empty_continuation_is_refused():
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  with pytest.raises(ValueError, match='prefix 1 has an empty continuation'):
    scoring.continuation_losses(None, None, partition, [[3], [4]], [[[5]], [[6], []]], bos_id=1)


def test_nothing_to_score():
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  assert [
    len(found)
    for found in scoring.continuation_losses(None, None, partition, [[3]], [[]], bos_id=1)
  ] == [0]
