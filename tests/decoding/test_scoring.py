"""Continuations behind shared prefixes: the losses of whole sequences, from far fewer tokens."""

from conftest import init_params, tiny_config
import jax
import numpy as np
import pytest

from crossin_jax.decoding import scoring
from crossin_jax.decoding.nonfinite import NonFiniteLikelihood
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


@pytest.mark.parametrize('count', [1, 4], ids=['1 device', '4 devices'])
def test_a_likelihood_that_is_not_finite_names_its_prefix(count):
  """With an output head of its own, only the packed row that reads the damaged token has NaN."""
  model = Decoder(tiny_config(tie_embeddings=False))
  params = init_params(model, 1)
  table = params['decoder']['token_embedding'].at[7].set(np.nan)
  params = {**params, 'decoder': {**params['decoder'], 'token_embedding': table}}
  partition = Partitioner((1, -1, 1), devices=jax.devices()[:count])
  prefixes, options = [[4] * 60, [5] * 61, [8] * 59], [[[9], [10]], [[9], [7, 9]], [[9], [10, 7]]]

  def score():
    return scoring.continuation_losses(
      model, params, partition, prefixes, options, bos_id=1, length=64
    )

  with partition.activate():
    with pytest.raises(NonFiniteLikelihood, match='prefix 2 of 3: .* not finite.*dtype') as error:
      score()
    assert error.value.index == 1 and error.value.exit_status == 1
    options[1] = [[9], [10]]
    assert np.isfinite(score()).all()  # nothing reads the last token of an option


def test_nothing_to_score():
  partition = Partitioner((1, 1, 1), devices=jax.devices()[:1])
  assert [
    len(found)
    for found in scoring.continuation_losses(None, None, partition, [[3]], [[]], bos_id=1)
  ] == [0]


def shared_questions(seed=4):
  """Options with a common beginning, options of one token, contexts with a common beginning, and
  prefixes of very different lengths.
  """
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.integers(3, 61, n).tolist()
  premise, shots = draw(20), draw(50)
  prefixes, options = [[1]], [[premise + draw(n) for n in (3, 1, 5)]]
  for _ in range(4):
    prefixes.append([1, *shots, *draw(9)])
    options.append([[5], [6], [7], [5, 8]])
  ending = draw(4)
  for n in (2, 3):
    prefixes.append([1, *premise[:12], *draw(n)])
    options.append([ending])
  prefixes.append([1, *draw(150)])
  options.append([draw(3), draw(90)])
  prefixes.append([1])
  options.append([[4]])
  return prefixes, options


@pytest.mark.parametrize('count', [1, 4], ids=['1 device', '4 devices'])
def test_scores_of_any_lengths(count, monkeypatch):
  """Losses of whole sequences, whether greedy decoding gives a continuation, few shapes, and shared
  beginnings read once.
  """
  model = Decoder(tiny_config())
  params = init_params(model, 1)
  partition = Partitioner((1, -1, 1), devices=jax.devices()[:count])
  prefixes, options = shared_questions()
  tokens = np.array([[*prefixes[1], 0]])
  logits = model.apply({'params': params}, tokens, tokens, enable_dropout=False)
  best = int(np.argmax(np.asarray(logits)[0, len(prefixes[1]) - 1]))
  options[1] = [[best], *options[1]]
  whole = [
    (prefix[1:] + option, [0.0] * (len(prefix) - 1) + [1.0] * len(option))
    for prefix, own in zip(prefixes, options)
    for option in own
  ]
  read = []
  put = scoring.put_batch
  monkeypatch.setattr(
    scoring,
    'put_batch',
    lambda make, step, shape, *a: read.append(shape) or put(make, step, shape, *a),
  )
  with partition.activate():
    scores = list(
      scoring.continuation_scores(
        model, params, partition, prefixes, options, bos_id=None, length=96, rows=2
      )
    )
    shapes = list(read)
    expected = scoring.sequence_losses(
      model, params, partition, whole, bos_id=1, length=256, rows=4
    )
  found = {(s.prefix, s.option): s for s in scores}
  keys = [(i, j) for i, own in enumerate(options) for j in range(len(own))]
  assert sorted(found) == sorted(keys) and len(scores) == len(keys)
  np.testing.assert_allclose([found[key].loss for key in keys], expected, rtol=1e-5, atol=1e-5)
  greedy = [(1, j) for j, option in enumerate(options[1]) if option == [best]]
  assert [key for key in keys if found[key].greedy] == greedy
  assert max(scores, key=lambda s: len(prefixes[s.prefix])) in scores[:2]  # the longest first
  assert len(set(shapes)) <= 4
  if count == 1:
    assert sum(rows * width for rows, width in shapes) < 0.7 * sum(len(t) for t, _ in whole)
