"""The check of answers that part: both libraries' logits, a planted tie, and one that is none."""

import importlib.util

from conftest import REPOSITORY
import numpy as np
import pytest
import small_models

torch = pytest.importorskip('torch', reason='the comparison needs the extra `test`')

PROMPT = (5, 9, 200, 31)


@pytest.fixture(scope='module')
def ties():
  path = REPOSITORY / 'benchmarks' / 'harness_ties.py'
  spec = importlib.util.spec_from_file_location('harness_ties', path)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  return found


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """(directory, the two best tokens behind PROMPT, which are equal, and another one)."""
  folder = str(tmp_path_factory.mktemp('model') / 'tied')
  model = small_models.write_model(folder, tie_word_embeddings=False)
  small_models.write_tokenizer(folder, ['</s>'], {'bos_token': None, 'eos_token': '</s>'})
  with torch.no_grad():
    order = model(torch.tensor([PROMPT])).logits[0, -1].argsort(descending=True)
    first, second, third = order[:3].tolist()
    model.lm_head.weight[second] = model.lm_head.weight[first]
  model.save_pretrained(folder)
  return folder, (first, second), third


def test_where_answers_part(ties):
  ours = {(1, 2): (3, 4, 5), (7,): (8, 9), (6,): (1,)}
  theirs = {(1, 2): (3, 6, 7), (7,): (8, 9, 2, 2), (6,): (1,)}
  assert ties.partings(ours, theirs) == [([1, 2, 3], 4, 6)]
  with pytest.raises(ValueError, match='the sides read other prompts'):
    ties.partings(ours, {(1, 2): (3,)})


def test_a_tie_and_none(ties, model):
  folder, (first, second), third = model
  ours = {PROMPT: (first, 3)}
  (row,) = ties.table(folder, ours, {PROMPT: (second, 3)})
  assert row['tied'] and set(row['best']) == {first, second} and row['prefix'] == len(PROMPT)
  assert row['difference']['transformers float64'] == pytest.approx(0, abs=1e-12)
  (row,) = ties.table(folder, ours, {PROMPT: (third, 3)})
  assert not row['tied'] and row['difference']['transformers float64'] > 1e-3
  assert ties.table(folder, ours, ours) == []


def test_both_libraries_have_the_same_logits(ties, model):
  (logits,) = ties.next_logits(model[0], [list(PROMPT)])
  exact = logits['transformers', 'float64']
  np.testing.assert_allclose(logits['crossin', 'float64'], exact, rtol=1e-9, atol=1e-9)
  for library in ('crossin', 'transformers'):
    error = np.abs(logits[library, 'float32'] - exact).max()
    assert 0 < error < 1e-4


def test_two_close_logits_that_rounding_cannot_exchange_are_no_tie(ties):
  rounding = {'crossin': 1e-6, 'transformers': 2e-6}
  assert ties.is_tie(3e-6, rounding, [4, 7], (7, 4))
  assert not ties.is_tie(5e-6, rounding, [4, 7], (7, 4))
  assert not ties.is_tie(0.0, rounding, [4, 7], (4, 5))
