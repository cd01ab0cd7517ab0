"""What the random draws of `seaeval` leave open, against exact binomials and the golden rule."""

import json

import numpy as np
import pytest
import scipy.stats

from crossin_jax import cli
from crossin_jax.evaluation.answers.draws import drawn_among, with_draws
from crossin_jax.evaluation.answers.predictions import Predictions
from crossin_jax.evaluation.answers.seaeval import candidates
from crossin_jax.evaluation.measures import consistency

CHOICES = ['(A) north', '(B) east', '(C) south', '(D) west']


def predictions(texts):
  items = len(texts)
  languages = ['en', 'zh'][: len(texts[0])]
  answers = np.zeros((items, len(languages)), np.int64)
  return Predictions(
    [str(i) for i in range(items)], languages, [[CHOICES] * len(languages)] * items, answers, texts
  )


def summarised(found):
  chosen_NL = found.extract('seaeval')
  return with_draws(
    consistency.summarise(chosen_NL, found.answers, found.languages), found, drawn_among(found)
  )


@pytest.mark.parametrize(
  'text, options',
  [
    ('(B) east', [1]), ('', [0, 1, 2, 3]), ('no idea at all', [0, 1, 2, 3]),
    ('(A) north. (C) south', [0, 2]), ('(A) north. (C) south. (C)', [2]),
  ],
)  # fmt: skip
def test_what_the_rule_draws_among(text, options):
  assert sorted(candidates(text, CHOICES)) == options


def test_the_interval_is_that_of_the_binomial():
  """Of 200 answers 120 are right for certain and 80 are drawn among four options."""
  drawn = summarised(
    predictions([['(A) north', '(A) north']] * 120 + [['', '(A) north']] * 80)
  ).drawn
  assert drawn['items'] == 80 and drawn['by_language'] == {'en': 80, 'zh': 0}
  exact = (120 + scipy.stats.binom(80, 0.25).ppf([0.025, 0.975])) / 200
  np.testing.assert_allclose(drawn['accuracy_by_language']['en'], exact, atol=0.006)
  assert drawn['accuracy_by_language']['zh'] == [1.0, 1.0]
  np.testing.assert_allclose(drawn['accuracy'], (exact + 1) / 2, atol=0.003)
  np.testing.assert_allclose(drawn['consistency']['2'], exact, atol=0.006)


def test_a_tie_is_drawn_among_its_options_only():
  drawn = summarised(predictions([['(B) east. (C) south', '(A)']] * 50)).drawn
  assert drawn['accuracy_by_language'] == {'en': [0.0, 0.0], 'zh': [1.0, 1.0]}


def test_nothing_drawn_is_not_mentioned():
  assert summarised(predictions([['(A)', '(B)']] * 4)).drawn is None


def test_score_tells_it(tmp_path, capsys):
  path = tmp_path / 'toy.jsonl'
  row = {'choices': CHOICES, 'answer': 0}
  rows = [
    {'id': str(i), 'language': code, 'prediction': '' if code == 'zh' else '(A)'} | row
    for i in range(30)
    for code in ('en', 'zh')
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  command = ['score', '--task', 'toy', '--predictions', str(path), '--json']
  assert cli.main([*command, '--protocol', 'seaeval']) == 0
  out, err = capsys.readouterr()
  assert json.loads(out.splitlines()[-1])['drawn']['by_language'] == {'en': 0, 'zh': 30}
  assert 'drawn at random: answers to 30 items (zh 30)' in out
  assert cli.main(command) == 0
  out, err = capsys.readouterr()
  assert 'drawn' not in json.loads(out.splitlines()[-1]) and 'drawn at random' not in out + err
