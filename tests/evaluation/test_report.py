"""The page of synthetic results: what it shows, what it must not claim, and that it needs nothing
else.
"""

from html.parser import HTMLParser
import re

from babel import Locale
import numpy as np
import pytest

from crossin_jax.evaluation import results
from crossin_jax.evaluation.measures import bootstrap, consistency, tables
from crossin_jax.evaluation.report import Arm, Item, Report, write_report

ARMS = ['floor', 'base', 'mono', 'x2x', 'x2x + trans']
TITLES = dict(zip(ARMS, ['Floor', 'Base', 'Mono', 'x2x', 'x2x + Trans'], strict=True))
# Chance to know an answer: in the first language, in the others.
KNOWN = {
  'floor': (0, 0),
  'base': (0.7, 0.02),
  'mono': (0.68, 0.04),
  'x2x': (0.69, 0.16),
  'x2x + trans': (0.7, 0.17),
}
QUESTIONS = {
  'en': 'Which country does {} trade with?',
  'zh': '{}与哪个国家进行贸易?',
  'vi': '{} giao thương với nước nào?',
  'es': '¿Con qué país comercia {}?',
  'ur': '{} کس ملک سے تجارت کرتا ہے؟',
  'ta': '{} எந்த நாட்டுடன் வர்த்தகம் செய்கிறது?',
}
PLACES = ['FR', 'JP', 'BR', 'KE', 'IN', 'PE', 'NO', 'EG', 'CA', 'VN', 'FI', 'MX']


def guesses(generator, answers, languages, known):
  """Choices of a model that knows item i in all languages alike (first, others), and guesses the
  rest.
  """
  first, other = known
  knows = generator.random((len(answers), 1)) < np.array([first] + [other] * (languages - 1))
  return np.where(knows, answers[:, None], generator.integers(0, 4, (len(answers), languages)))


def synthetic(
  languages, seeds=(0, 1, 2), arms=ARMS, items=250, methods=('likelihood', 'generate'), **other
):
  generator = np.random.default_rng(0)
  answers = generator.integers(0, 4, items)
  choices, runs, metrics, shown = {}, [], {}, []
  for arm in arms:
    for seed in seeds:
      for form in ('untagged', 'tagged'):
        for method in methods:
          array = guesses(generator, answers, len(languages), KNOWN.get(arm, (0.3, 0.1)))
          if method == 'generate':
            array[generator.random(array.shape) < 0.08] = -1
          choices[arm, seed, form, method] = array
          summary = consistency.summarise(array, answers, languages)
          settings = {
            'seed': seed,
            'benchmark': f'world/{form}',
            'protocol': 'strict',
            'method': method,
          }
          runs.append(results.build_run(summary, variant=arm, **settings))
      steps = np.arange(10, 251, 10)
      metrics[arm, seed] = [
        {
          'step': int(step),
          'loss': 1 + 4 * np.exp(-step / 60) + 0.1 * generator.random(),
          'loss_by_language': {
            code: 1 + 0.1 * i + 4 * np.exp(-step / 60) for i, code in enumerate(languages)
          },
        }
        for step in steps
      ] + [
        {'step': int(step), 'eval/heldout/loss': 1.2 + 4 * np.exp(-step / 50)}
        for step in steps[4::5]
      ]
  for i in range(items):
    pick = generator.permutation(len(PLACES))[:5]
    names = {code: [Locale(code).territories[PLACES[k]] for k in pick] for code in languages}
    questions = {
      code: QUESTIONS.get(code, QUESTIONS['en']).format(names[code][4]) for code in languages
    }
    shown.append(Item(f'trade-{i}', questions, {code: names[code][:4] for code in languages}))
  fields = {
    'title': 'Can a model use in other languages what it learned in English?',
    'languages': languages,
    'arms': [Arm(arm, TITLES.get(arm, arm)) for arm in arms],
    'answers': answers,
    'choices': choices,
    'runs': runs,
    'guessers': {
      'lexical overlap': guesses(generator, answers, len(languages), (0, 0)),
      'frequency': guesses(generator, answers, len(languages), (0, 0)),
    },
    'items': shown,
    'metrics': metrics,
    'world': {
      'Countries': 120,
      'Kinds of facts': 6,
      'Told in English only': 360,
      'Questions': items,
    },
    'seconds': {arm: 1234.5 for arm in arms},
    'tokens': {arm: 3_072_000 for arm in arms},
    'config': 'train.steps = 250\nDecoder.layers = 4',
    'command': 'crossin quickstart --gin.seeds=3',
    'versions': {'crossin-jax': '0.1.0', 'jax': '0.10.2'},
    'resamples': 200,
  }
  return Report(**(fields | other))


def render(tmp_path, report):
  write_report(tmp_path / 'report.html', report)
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']
  page = (tmp_path / 'report.html').read_text(encoding='utf-8')
  check_page(page)
  return page


class Balance(HTMLParser):
  VOID = {'meta', 'br', 'path', 'use', 'line', 'rect'}

  def __init__(self):
    super().__init__()
    self.open, self.ids, self.references = [], [], []

  def handle_starttag(self, tag, attrs):
    if tag not in self.VOID:
      self.open.append(tag)
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name in ('src', 'href', 'xlink:href', 'action', 'data', 'srcset'):
        self.references.append(value)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open and self.open[-1] == tag, f'</{tag}> closes {self.open[-3:]}'
      self.open.pop()


def check_page(page):
  """Well formed, self-contained, without leftovers of a template or of a number that is none."""
  parser = Balance()
  parser.feed(page)
  assert parser.open == []
  assert len(parser.ids) == len(set(parser.ids))
  assert all(reference.startswith('#') for reference in parser.references)
  assert {reference[1:] for reference in parser.references} <= set(parser.ids)
  assert set(re.findall(r'url\(([^)]*)\)', page)) <= {f'#{name}' for name in parser.ids}
  outside = re.sub(r'xmlns(:\w+)?="[^"]*"', '', page)  # names of vocabularies, never fetched
  assert (
    'http' not in outside
    and '<script' not in page
    and '<link' not in page
    and '@import' not in page
  )
  assert '{{' not in page and '{%' not in page
  text = re.sub(r'<style.*?</style>|<[^>]*>', ' ', page, flags=re.DOTALL)
  assert not re.search(r'\bnan\b|\bNone\b|\bundefined\b', text)


def test_five_arms_in_four_languages(tmp_path):
  page = render(tmp_path, synthetic(['en', 'zh', 'vi', 'es']))
  for text in (
    'Floor',
    'x2x + Trans',
    'Lexical overlap guesser',
    'at chance, as it must be',
    'Chance',
    'tagged',
    'generation',
    '中文',
  ):
    assert text in page
  assert (
    'crossin quickstart --gin.seeds=3' in page
    and 'Decoder.layers = 4' in page
    and 'crossin-jax 0.1.0' in page
  )
  assert re.search(
    r'x2x is \d+\.\d points above Base in accuracy outside English \(95\s% interval [^)]*\): a '
    r'real gain\.',
    page,
  )
  # only reference arms are compared against
  assert 'x2x + Trans does not differ significantly from x2x' not in page
  assert '20 min 34 s' in page and '3,072,000' in page
  assert 'viewport' in page and 'prefers-color-scheme: dark' in page and '@media print' in page


def test_urdu_and_tamil(tmp_path):
  page = render(tmp_path, synthetic(['en', 'ur', 'ta'], seeds=(7,), arms=['base', 'x2x']))
  assert (
    '<p lang="ur" dir="rtl">' in page
    and '<p lang="ta" dir="ltr">' in page
    and 'اردو' in page
    and 'தமிழ்' in page
  )
  assert (
    'as far as one seed can show' in page and 'not what another training run would give' in page
  )
  svg = ''.join(re.findall(r'<svg.*?</svg>', page, flags=re.DOTALL))
  assert not re.search(r'[\u0600-\u06ff\u0b80-\u0bff]', svg)  # plots name languages by code


def test_thirteen_languages_move_to_their_own_table(tmp_path):
  codes = ['en', 'zh', 'es', 'fi', 'id', 'th', 'tr', 'vi', 'bn', 'hi', 'sw', 'ta', 'ur']
  page = render(tmp_path, synthetic(codes, seeds=(0,), items=60, resamples=100))
  assert 'Table 1b' in page and 'Swahili' in page


def test_two_languages_and_no_items(tmp_path):
  page = render(tmp_path, synthetic(['en', 'zh'], arms=['base'], items=50))
  assert 'AC3<sub>2</sub>' in page and 'there is nothing to compare' in page


def test_no_claim_when_the_interval_includes_zero(tmp_path):
  report = synthetic(['en', 'zh', 'vi'], seeds=(0, 1), arms=['base', 'mono', 'x2x'])
  generator = np.random.default_rng(5)
  report.choices = {
    key: guesses(generator, report.answers, 3, (0.5, 0.1)) for key in report.choices
  }
  page = render(tmp_path, report)
  assert 'a real gain' not in page and 'a real loss' not in page
  assert (
    'does not differ significantly from Base' in page
    and 'no way of tuning is shown to be better than another' in page
  )
  assert 'class="v gain"' not in page and 'class="v loss"' not in page


def told_apart(arms, accuracies, *, seeds=(0, 1), items=400):
  """A report in which each arm has an accuracy in English, and one in the others."""
  report = synthetic(['en', 'zh', 'vi'], seeds=seeds, arms=arms, items=items)
  for i, key in enumerate(report.choices):
    rng, (home, others) = np.random.default_rng([5, i]), accuracies[key[0]]
    right = rng.random((items, 3)) < [home, others, others]
    wrong = (report.answers[:, None] + rng.integers(1, 4, (items, 3))) % 4
    report.choices[key] = np.where(right, report.answers[:, None], wrong)
  return report


@pytest.mark.parametrize('base', [0.25, 0.2, 0.12])
def test_a_difference_of_two_guessers_is_no_gain(tmp_path, base):
  """Above Base, by much, and yet at chance."""
  accuracies = {'floor': (0.26, 0.25), 'base': (0.95, base), 'x2x': (0.95, 0.25)}
  page = render(tmp_path, told_apart(['floor', 'base', 'x2x'], accuracies))
  assert re.search(
    r'Outside English no model can be distinguished from guessing \(25\.0\s%\)', page
  )
  assert 'class="v gain"' not in page and 'real gain' not in page
  if base < 0.2:
    assert 'cannot be distinguished from guessing: no gain' in page


@pytest.mark.parametrize('floor', [0.45, 0.5])
def test_a_gain_must_be_above_floor(tmp_path, floor):
  """Floor above chance: the questions give answers away."""
  accuracies = {'floor': (0.5, floor), 'base': (0.9, 0.3), 'x2x': (0.9, 0.45)}
  page = render(tmp_path, told_apart(['floor', 'base', 'x2x'], accuracies))
  assert 'points above Base' in page and 'real gain' not in page


def test_a_gain_is_the_headline(tmp_path):
  accuracies = {'floor': (0.25, 0.25), 'base': (0.9, 0.3), 'x2x': (0.9, 0.6)}
  page = render(tmp_path, told_apart(['floor', 'base', 'x2x'], accuracies))
  first = re.search(r'<div class="findings".*?<li>(.*?)</li>', page, re.DOTALL)[1]
  assert re.fullmatch(
    r'x2x answers \d\d\.\d\s% of the questions outside English, \d\d\.\d points more than Base: a '
    r'real gain\.',
    first,
  )
  assert '6 comparisons together' in page


def test_intervals_allow_for_the_number_of_comparisons():
  """Arms that do not differ: a gain on one page in twenty, not in one of three."""
  claims = 0
  for trial in range(40):
    rng = np.random.default_rng(trial)
    report = synthetic(['en', 'zh', 'vi'], seeds=(0,), arms=['base', 'mono', 'x2x', 'x2x + Trans'])
    report.resamples = 1000
    report.choices = {key: guesses(rng, report.answers, 3, (0.6, 0.5)) for key in report.choices}
    rows = tables.Figures(report).gains()
    claims += any('none' != cell.verdict for row in rows for cell in (row.other, row.ac3))
  assert claims <= 6


def test_a_guesser_has_no_consistency_that_reads_like_a_result(tmp_path):
  report = synthetic(['en', 'zh', 'vi'], seeds=(0,), arms=['base', 'x2x'])
  same = np.repeat(np.arange(len(report.answers))[:, None] % 4, 3, axis=1)
  report.guessers = {'frequency': same}
  page = render(tmp_path, report)
  row = re.search(r'<tr class="aside.*?Frequency guesser.*?</tr>', page, re.DOTALL)[0]
  assert '100.0' not in row and row.count('&mdash;') == 2


def test_dots_at_the_ends_are_drawn_whole():
  from crossin_jax.pages import plots

  svg = plots.points(
    [plots.Series('a', 0, [0, 1], [100, 0])], ['en', 'vi'], 'accuracy (%)', 25, 'chance'
  )
  dots = re.search(r'<g id="line2d_\d+">\s*<defs>.*?</g>\s*</g>', svg, re.DOTALL)
  assert svg.count('<use') > 2 and dots
  uses = [use for use in re.findall(r'<g[^>]*>\s*<use[^>]*fill|<g clip-path[^>]*>\s*<use', svg)]
  assert not any('clip-path' in use for use in uses)


def test_runs_alone_give_figures_without_intervals_or_claims(tmp_path):
  report = synthetic(['en', 'zh', 'vi'], seeds=(0,))
  report.choices = {}
  page = render(tmp_path, report)
  assert (
    'no figure has an interval and no gain is claimed' in page and 'no claim is possible' in page
  )
  assert 'a real' not in page and 'class="v gain"' not in page
  assert re.search(r'<span class="v">\d\d\.\d</span></td>', page)


def test_a_bare_report_still_makes_a_page(tmp_path):
  page = render(tmp_path, Report('Nothing yet', ['en', 'zh'], [Arm('base')], np.zeros(3, int)))
  assert 'Nothing yet' in page and '&mdash;' in page


def test_missing_seeds_are_paired_by_those_both_have(tmp_path):
  report = synthetic(['en', 'zh', 'vi'], seeds=(0, 1, 2), arms=['base', 'x2x'])
  report.choices = {
    key: array for key, array in report.choices.items() if not (key[0] == 'x2x' and key[1] == 1)
  }
  assert tables.Figures(report).gains()[0].seeds == 2
  render(tmp_path, report)


def test_a_guesser_above_chance_is_called_out(tmp_path):
  report = synthetic(['en', 'zh', 'vi'], seeds=(0,), arms=['base', 'x2x'])
  report.guessers = {
    'lexical overlap': guesses(np.random.default_rng(3), report.answers, 3, (0.4, 0.4))
  }
  page = render(tmp_path, report)
  assert (
    'Caution: the lexical overlap guesser is not at chance' in page
    and 'not at chance</span>' in page
  )


def test_text_is_escaped(tmp_path):
  report = synthetic(
    ['en', 'zh'],
    seeds=(0,),
    arms=['base', 'x2x'],
    items=50,
    title='<b>&',
    config='a < b',
    command='x && y <z>',
  )
  page = render(tmp_path, report)
  assert '<b>&' not in page and '&lt;b&gt;&amp;' in page and 'a &lt; b' in page


@pytest.mark.parametrize(
  'low, high, words',
  [
    (
      0.012,
      0.07,
      'x2x is 4.1 points above Base in accuracy (95 % interval 1.2 to 7.0): a real gain.',
    ),
    (
      -0.07,
      -0.012,
      'x2x is 4.1 points below Base in accuracy (95 % interval \u22127.0 to \u22121.2): a real '
      'loss.',
    ),
    (
      -0.01,
      0.09,
      'x2x does not differ significantly from Base in accuracy (difference 4.1 points, 95 % '
      'interval \u22121.0 to 9.0).',
    ),
    (
      0.0,
      0.09,
      'x2x does not differ significantly from Base in accuracy (difference 4.1 points, 95 % '
      'interval 0.0 to 9.0).',
    ),
    (
      0.0004,
      0.09,
      'x2x does not differ significantly from Base in accuracy (difference 4.1 points, 95 % '
      'interval 0.0 to 9.0).',
    ),
  ],
)
def test_gain_sentences(low, high, words):
  estimate = -0.041 if high < 0 else 0.041
  gain = bootstrap.Interval(estimate, low, high, 0.95, 400, 3, 2000, 0.9)
  assert tables.gain_sentence('x2x', 'Base', 'accuracy', gain) == words


def test_arrays_that_do_not_fit_are_named(tmp_path):
  report = synthetic(['en', 'zh'], seeds=(0,), arms=['base'], items=20)
  report.languages = ['en', 'zh', 'vi']
  with pytest.raises(ValueError, match=r'expected \[20, 3\]'):
    write_report(tmp_path / 'report.html', report)
  assert not list(tmp_path.iterdir())


def test_equal_input_gives_equal_bytes(tmp_path):
  pages = []
  for _ in range(2):
    write_report(
      tmp_path / 'report.html',
      synthetic(['en', 'zh'], seeds=(0,), arms=['base', 'x2x'], items=40, resamples=50),
    )
    pages.append((tmp_path / 'report.html').read_bytes())
  assert pages[0] == pages[1]
