"""Extraction against the authors' own scores of real predictions, and the corners of both
protocols.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from crossin_jax.evaluation.answers import extraction
from crossin_jax.evaluation.measures import consistency

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / '..' / 'shared' / 'data' / 'seaeval' / 'golden'
CASES = json.loads((GOLDEN / 'INDEX.json').read_text()) if (GOLDEN / 'INDEX.json').exists() else []
# In the other cases the reference drew answers at random.
REPRODUCIBLE = [case for case in CASES if case['exact_reproduction']]
needs_golden = pytest.mark.skipif(
  not CASES, reason='put the predictions published with SeaEval into ../shared/data/seaeval/golden'
)

LETTERED = ['(A) Paris', '(B) Lima', '(C) New Lima', '(D) Oslo']
PLAIN = ['Paris', 'Lima', 'New Lima', 'Oslo']


@needs_golden
@pytest.mark.parametrize('case', REPRODUCIBLE, ids=lambda case: case['case'])
def test_published_scores_are_reproduced(case):
  with gzip.open(GOLDEN / f'{case["case"]}.pred.jsonl.gz', 'rt', encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  reference = json.loads((GOLDEN / f'{case["case"]}.score.json').read_text())
  languages = list(reference['language_acc'])
  cut = extraction.first_line if case['first_line_only'] else str
  choices = np.array(
    [
      [
        extraction.seaeval(
          cut(row[language]['model_prediction']),
          row[language]['choices'],
          item_id=row['id'],
          language=language,
        )
        for language in languages
      ]
      for row in rows
    ]
  )
  answers = np.array(
    [
      [row[language]['choices'].index(row[language]['answer']) for language in languages]
      for row in rows
    ]
  )
  ours = consistency.summarise(choices, answers, languages)
  assert ours.accuracy == pytest.approx(reference['overall_acc'], abs=1e-9)
  assert ours.accuracy_by_language == pytest.approx(reference['language_acc'], abs=1e-9)
  for s in range(2, len(languages) + 1):
    assert ours.consistency[str(s)] == pytest.approx(reference[f'consistency_score_{s}'], abs=1e-9)
    assert ours.ac3[str(s)] == pytest.approx(reference[f'AC3_{s}'], abs=1e-9)
  assert ours.pairwise_consistency == pytest.approx(
    reference['detailed_consistency_score']['2_combine'], abs=1e-9
  )


@pytest.mark.parametrize(
    "prediction, index",
    [
        ("(B) Lima", 1), ("(b)", 1), ("B)", 1), ("B.", 1), ("B", 1), ("b", 1), ("a", 0), (" A ", 0),
        ("（Ｂ）", 1), ("**B**", 1),
        ("Lima", 1), ("lima!", 1), ("  PARIS\n", 0), ("Ｐaris", 0), ("New Lima", 2),
        ("The answer is (D).", 3),
        ("I think it is New Lima", 2), ("It is Lima. Yes, Lima. Not Paris", 1), ("<pad> C", 2),
        ("", -1), ("   ", -1), ("...", -1), ("no idea", -1), ("Paris. Lima.", -1),
        ("(A) or (B)", -1), ("E", -1), ("a city", -1),
    ],
)  # fmt: skip
def test_strict_with_letters(prediction, index):
  assert extraction.strict(prediction, LETTERED) == index


@pytest.mark.parametrize(
  'prediction, index',
  [('Lima', 1), ('lima.', 1), ('B', -1), ('(B)', -1), ('it is New Lima', 2), ('oslo\n', 3)],
)
def test_strict_without_letters(prediction, index):
  assert extraction.strict(prediction, PLAIN) == index


def test_strict_keeps_signs_scripts_and_duplicates_apart():
  assert extraction.strict('-5', ['5', '-5']) == 1
  assert extraction.strict('5', ['5', '-5']) == 0
  assert extraction.strict('us', ['US', 'us', 'x']) == 1
  assert extraction.strict('Us', ['US', 'us', 'x']) == -1
  assert extraction.strict('同じ', ['同じ', '同じ', '別']) == -1
  assert (
    extraction.strict('答案是越南语。', ['(A) 越南语', '(B) 泰语', '(C) 乌尔都语', '(D) 英语']) == 0
  )
  assert extraction.strict('اردو۔', ['تمل', 'اردو', 'ہندی', 'چینی']) == 1
  assert extraction.strict('தமிழ்', ['தமிழ்', 'உருது', 'இந்தி', 'சீனம்']) == 0


def test_seaeval_rule():
  pick = lambda text, choices=LETTERED: extraction.seaeval(
    text, choices, item_id='7', language='en'
  )  # noqa: E731
  assert pick('I would say （C）') == 2  # Chinese brackets become ASCII
  # stage 1 has a key, so stage 2 (texts without letters) is not reached
  assert pick('New Lima, the (A) of all') == 0
  assert pick('it is a Lima') == 1  # the article is no answer
  assert pick('option A') == 0 and pick('option b') == 1
  assert pick('(A) Paris (B) Lima (C) New Lima') == 2  # the longest key in a segment wins
  assert pick('Lima. Lima. Oslo.') == 1


def test_seaeval_draws_are_seeded_and_independent_across_languages():
  draws = {
    language: [
      extraction.seaeval('', LETTERED, item_id=str(i), language=language) for i in range(4000)
    ]
    for language in ('en', 'zh', 'vi')
  }
  again = [extraction.seaeval('', LETTERED, item_id=str(i), language='en') for i in range(4000)]
  other = [
    extraction.seaeval('', LETTERED, item_id=str(i), language='en', prompt=2) for i in range(4000)
  ]
  assert draws['en'] == again != other
  choices = np.array(list(draws.values())).T
  assert consistency.consistency(choices, 2) == pytest.approx(0.25, abs=0.02)
  assert consistency.consistency(choices, 3) == pytest.approx(0.0625, abs=0.015)
  assert np.bincount(choices[:, 0], minlength=4) / 4000 == pytest.approx(0.25, abs=0.03)
  ties = {
    extraction.seaeval('Paris. Lima.', LETTERED, item_id=str(i), language='en') for i in range(50)
  }
  assert ties == {0, 1}


def test_first_line():
  assert extraction.first_line('(A) x\n\nQuestion: (B)') == '(A) x'
  assert extraction.first_line('(A) x') == '(A) x'


def test_bad_arguments():
  with pytest.raises(ValueError, match='protocol'):
    extraction.extract('x', LETTERED, 'lenient')
  with pytest.raises(ValueError, match='1 choices'):
    extraction.strict('x', ['only'])


@needs_golden
@pytest.mark.parametrize('case', CASES, ids=lambda case: case['case'])
def test_strict_reads_all_golden_predictions(case):
  with gzip.open(GOLDEN / f'{case["case"]}.pred.jsonl.gz', 'rt', encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  cut = extraction.first_line if case['first_line_only'] else str
  cells = [fields for row in rows for fields in row.values() if isinstance(fields, dict)]
  assert cells and all(
    extraction.strict(cut(fields['model_prediction']), fields['choices']) >= 0 for fields in cells
  )
