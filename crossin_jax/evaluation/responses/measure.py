"""Open-ended responses without a judge: are they in the language that was asked for, do they repeat
themselves, how long are they.

`crossin ask` makes the prompts of X-Instruction's central claim: the same questions once in
English, with the sentence "Answer in Urdu.", and once in the language of the answer. `crossin
responses` reads what `crossin generate` made of them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
import os
import re
import sys

import numpy as np

from crossin_jax import language_id
from crossin_jax.evaluation.measures import bootstrap, tables
from crossin_jax.evaluation.responses.files import Response, read_responses
from crossin_jax.languages import ENGLISH_NAMES
from crossin_jax.pages import words
from crossin_jax.storage.files import write_text
from crossin_jax.workflow import command_line

# A response is called repetitive above this share of duplicated 4-grams; of 1,000 Alpaca answers in
# en, vi and zh under 1 % are.
REPETITIVE = 0.2
FEW = 20  # pairs of responses under which no difference is called real
_FENCED = re.compile(r'(```|~~~).*?(\1|$)|`[^`\n]*`|https?://\S+', re.DOTALL)
_HAN = re.compile('[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]')
_UNSPACED = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')  # Thai, Lao, Burmese, Khmer
_SPACES = re.compile(r'\s+')


# ---- figures of one response ----


def duplicated_share(text: str) -> float:
  """Share of the 4-grams of words that stood earlier in the text, 0..1.

  Where words are not divided by spaces, four of them are taken to be 8 characters of Chinese or
  Japanese, or 16 of Thai, Lao, Burmese or Khmer.

      'a b c d e f g h'          -> 0.0
      'a b c d a b c d a b c d'  -> 0.56: 5 of 9 4-grams
  """
  letters = sum(map(str.isalpha, text))
  if 2 * len(_HAN.findall(text)) > letters:
    units, n = _SPACES.sub('', text), 8
  elif 2 * len(_UNSPACED.findall(text)) > letters:
    units, n = _SPACES.sub('', text), 16
  else:
    units, n = text.split(), 4
  count = len(units) - n + 1
  if count < 1:
    return 0.0
  return 1.0 - len({tuple(units[i : i + n]) for i in range(count)}) / count


def language_of(text: str) -> str:
  """Code of the language of a response, '' if it cannot be told; code and addresses are passed
  over.
  """
  return language_id.identify(_FENCED.sub(' ', text), limit=8192)[0]


# ---- tables ----


@dataclass
class Group:
  """Figures of the responses in one language to questions in one language; shares are fractions
  0..1.

  Attributes:
    fidelity: share in the language that was asked for, with its interval over questions (and
      samples).
    english, undetermined, empty: shares in English, in no language that could be told (the empty
      ones too), without text.
    languages: code -> responses in it, the most frequent first.
    repetition: mean share of duplicated 4-grams. repetitive: share of responses above `REPETITIVE`.
    characters: mean and median of the lengths.
  """

  language: str
  asked_in: str
  responses: int
  fidelity: bootstrap.Interval
  english: float
  undetermined: float
  empty: float
  languages: dict[str, int]
  repetition: float
  repetitive: float
  characters: dict[str, float]


@dataclass
class Claim:
  """Native-asked minus English-asked fidelity of one language, on the questions that both have.

  Attributes:
    difference: paired interval, fractions.
    questions: how many.
    real: whether the printed interval excludes zero, with at least `FEW` questions.
    sentence: the same in words.
  """

  language: str
  difference: bootstrap.Interval
  questions: int
  real: bool
  sentence: str


def measure(
  responses: Sequence[Response], resamples: int = 2000
) -> tuple[list[Group], list[Claim]]:
  """Figures by language and asked_in, and the central claim for each language that was asked for in
  both ways.

  Raises:
    ValueError: there is no response, or questions of a group have unequal numbers of samples.
  """
  if not responses:
    raise ValueError('there is no response to measure')
  found = {response: language_of(response.text) for response in responses}
  groups: dict[tuple[str, str], list[Response]] = {}
  for response in responses:
    groups.setdefault((response.language, response.asked_in), []).append(response)
  tabled = [_group(own, found, resamples) for own in groups.values()]
  claims = []
  for language in dict.fromkeys(response.language for response in responses):
    if language != 'en' and (language, language) in groups and (language, 'en') in groups:
      claims.append(
        _claim(language, groups[language, language], groups[language, 'en'], found, resamples)
      )
  return tabled, [claim for claim in claims if claim]


def _group(own: list[Response], found: dict[Response, str], resamples: int) -> Group:
  first = own[0]
  languages: dict[str, int] = {}
  for response in own:
    languages[found[response] or 'none'] = languages.get(found[response] or 'none', 0) + 1
  repetition = np.array([duplicated_share(response.text) for response in own])
  lengths = np.array([len(response.text) for response in own])
  faithful = _by_sample(own, found, list(dict.fromkeys(response.question for response in own)))
  share = lambda code: languages.get(code, 0) / len(own)
  return Group(
    first.language,
    first.asked_in,
    len(own),
    bootstrap.interval(faithful, None, resamples=resamples),
    share('en'),
    share('none'),
    float(np.mean([not response.text.strip() for response in own])),
    dict(sorted(languages.items(), key=lambda pair: -pair[1])),
    float(repetition.mean()),
    float((repetition > REPETITIVE).mean()),
    {'mean': float(lengths.mean()), 'median': float(np.median(lengths))},
  )


def _by_sample(
  own: Sequence[Response], found: dict[Response, str], questions: Sequence[str]
) -> list[np.ndarray]:
  """Per sample, bool [questions, 1]: in the language that was asked for? Several samples serve as
  the bootstrap's seeds.
  """
  cells = {
    (response.question, response.sample): found[response] == response.language for response in own
  }
  samples = sorted({response.sample for response in own})
  if lacking := [(q, s) for q in questions for s in samples if (q, s) not in cells]:
    raise ValueError(
      f'question {lacking[0][0]!r} has no sample {lacking[0][1]} in {own[0].language!r} asked in '
      f'{own[0].asked_in!r}, others '
      'have: every question needs the same number of samples. Let `crossin generate` finish'
    )
  return [np.array([[cells[question, sample]] for question in questions]) for sample in samples]


def _claim(
  language: str, native: list[Response], english: list[Response], found, resamples: int
) -> Claim | None:
  asked = {response.question for response in english}
  shared = list(
    dict.fromkeys(response.question for response in native if response.question in asked)
  )
  if not shared:
    return None
  first, second = (_by_sample(own, found, shared) for own in (native, english))
  samples = min(len(first), len(second))
  gain = bootstrap.difference(first[:samples], second[:samples], None, resamples=resamples)
  name, verdict = ENGLISH_NAMES.get(language, language), tables.verdict(gain)
  real = verdict != 'none' and len(shared) >= FEW
  low, high = (words.points(value) for value in (gain.low, gain.high))
  span = (
    f'{words.points(gain.estimate)} points, 95 % interval {low} to {high}, {len(shared)} questions'
  )
  if real:
    kind = 'more' if verdict == 'gain' else 'less'
    sentence = f'Questions asked in {name} are answered in {name} {kind} often than in English with "Answer in {name}." ({span}): a real difference.'
  elif verdict != 'none':
    sentence = f'Questions asked in {name} and in English differ in how often they are answered in {name} ({span}), but {len(shared)} questions are too few to call it real; {FEW} are needed.'
  else:
    sentence = f'Whether a question is asked in {name} or in English makes no difference that can be told for being answered in {name} ({span}).'
  return Claim(language, gain, len(shared), real, sentence)


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin responses`. Exit status: 0 done, 1 failed, 2 usage."""
  parser = command_line.Parser(
    'responses',
    'Fidelity (share in the language that was asked for), repetition and length of open-ended '
    'responses.',
    'crossin responses answers.jsonl --questions asked.jsonl --output_dir figures',
  )
  parser.add_argument('answers', help='JSONL of `crossin generate`')
  parser.add_argument(
    '--questions', help='what `crossin ask` wrote, for answers that do not name their language'
  )
  parser.add_argument('--output_dir', help='for responses.json')
  parser.add_argument('--resamples', type=int, default=2000, help='of the bootstrap')
  options = parser.parse_args(argv)
  groups, claims = measure(read_responses(options.answers, options.questions), options.resamples)
  print('\n'.join(_lines(groups, claims)), file=sys.stderr)
  found = {
    'groups': [asdict(group) for group in groups],
    'claims': [asdict(claim) for claim in claims],
  }
  found['repetitive_above'] = REPETITIVE
  if options.output_dir:
    text = json.dumps(found, ensure_ascii=False, indent=1) + '\n'
    write_text(os.path.join(options.output_dir, 'responses.json'), text)
  return command_line.finish(options, found)


def _lines(groups: Sequence[Group], claims: Sequence[Claim]) -> list[str]:
  """The table and the sentences."""
  head = (
    'fidelity',
    '95 % interval',
    'English',
    'none',
    'empty',
    'repetitive',
    '4-grams twice',
    'mean',
    'median',
  )
  widths = (10, 16, 9, 7, 7, 12, 15, 8, 8)
  lines = [
    f'{"language":<12}{"asked in":<12}{"n":>6}' + ''.join(f'{h:>{w}}' for h, w in zip(head, widths))
  ]
  for group in groups:
    cells = [words.percent(group.fidelity.estimate)]
    cells.append(f'{words.percent(group.fidelity.low)} to {words.percent(group.fidelity.high)}')
    cells += [
      words.percent(x)
      for x in (group.english, group.undetermined, group.empty, group.repetitive, group.repetition)
    ]
    cells += [f'{group.characters[key]:.0f}' for key in ('mean', 'median')]
    names = f'{ENGLISH_NAMES[group.language]:<12}{ENGLISH_NAMES[group.asked_in]:<12}'
    lines.append(
      f'{names}{group.responses:>6}' + ''.join(f'{cell:>{w}}' for cell, w in zip(cells, widths))
    )
    others = {
      code: n for code, n in group.languages.items() if code not in (group.language, 'en', 'none')
    }
    if others:
      lines.append(
        f'{"":<30}other languages: '
        + ', '.join(f'{code} {n}' for code, n in list(others.items())[:6])
      )
  lines.append(
    f'shares in per cent, lengths in characters; repetitive: over {100 * REPETITIVE:.0f} % of the '
    '4-grams stood before'
  )
  return lines + [claim.sentence for claim in claims]
