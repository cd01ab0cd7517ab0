"""Open-ended responses without a judge: language fidelity, repetition and length.

`crossin ask` writes the prompts for X-Instruction's central claim: the same questions in English
with the sentence "Answer in Urdu.", and in the language of the answer. `crossin responses` measures
the answers of `crossin generate` to them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
import itertools
import os
import re

import numpy as np

from crossin_jax import language_id
from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.evaluation.measures import bootstrap, tables
from crossin_jax.evaluation.responses import flags
from crossin_jax.evaluation.responses.files import Response, read_responses
from crossin_jax.languages import english_name
from crossin_jax.pages import words
from crossin_jax.storage.files import write_json
from crossin_jax.workflow import command_line

# A response is repetitive above this share of duplicated 4-grams; of 1,000 Alpaca answers in en, vi
# and zh under 1 % are.
REPETITIVE = 0.2
FEW = 20  # a difference on fewer questions is never called real
_FENCED = re.compile(r'(```|~~~).*?(\1|$)|`[^`\n]*`|https?://\S+', re.DOTALL)
_HAN = re.compile('[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]')
_UNSPACED = re.compile('[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')  # Thai, Lao, Burmese, Khmer
_SPACES = re.compile(r'\s+')


# ---- figures of one response ----


def duplicated_share(text: str) -> float:
  """Share of the 4-grams of words that repeat an earlier one, 0..1.

  In scripts without spaces, a 4-gram is 8 characters of Chinese or Japanese, or 16 of Thai, Lao,
  Burmese or Khmer.

      'a b c d e f g h'          -> 0.0
      'a b c d a b c d a b c d'  -> 0.56: 5 of 9 4-grams
  """
  letters = sum(map(str.isalpha, text))
  units, n = text.split(), 4
  for pattern, characters in ((_UNSPACED, 16), (_HAN, 8)):
    if 2 * len(pattern.findall(text)) > letters:
      units, n = _SPACES.sub('', text), characters
  count = len(units) - n + 1
  if count < 1:
    return 0.0
  return 1.0 - len({tuple(units[i : i + n]) for i in range(count)}) / count


def identified(text: str) -> tuple[str, float]:
  """`language_id.identify` of a response; ignores thoughts, code and URLs."""
  return language_id.identify(_FENCED.sub(' ', without_thoughts(text)), limit=8192)


def language_of(text: str) -> str:
  """Code of the language of a response, '' if undetermined; ignores thoughts, code and URLs."""
  return identified(text)[0]


# ---- tables ----


@dataclass(frozen=True)
class Group:
  """Figures of the responses in one language to questions in one language, as fractions 0..1.

  Attributes:
    fidelity: share in the requested language, with its interval over questions (and samples).
    english, undetermined, empty: shares in English, in no identifiable language (which includes
      empty ones), and without text.
    languages: code -> number of responses, the most frequent first.
    repetition: mean share of duplicated 4-grams.
    repetitive: share of responses above `REPETITIVE`.
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


@dataclass(frozen=True)
class Claim:
  """Fidelity of native questions minus that of English ones, on the questions that both have."""

  language: str
  difference: bootstrap.Interval  # paired, as fractions
  questions: int
  real: bool  # the printed interval excludes zero, with at least `FEW` questions
  sentence: str


def measure(
  responses: Sequence[Response], resamples: int = 2000
) -> tuple[list[Group], list[Claim]]:
  """Figures by language and asked_in, and the claim for each language that has both forms.

  Raises:
    ValueError: no response, or questions of a group with unequal numbers of samples.
  """
  if not responses:
    raise ValueError('there is no response to measure')
  identified = {response: language_of(response.text) for response in responses}
  by_form: dict[tuple[str, str], list[Response]] = {}
  for response in responses:
    by_form.setdefault((response.language, response.asked_in), []).append(response)
  groups = [_group(group, identified, resamples) for group in by_form.values()]
  claims = [
    _claim(by_form[language, language], by_form[language, 'en'], identified, resamples)
    for language in dict.fromkeys(response.language for response in responses)
    if language != 'en' and {(language, language), (language, 'en')} <= by_form.keys()
  ]
  return groups, list(filter(None, claims))


def _group(responses: list[Response], identified: dict[Response, str], resamples: int) -> Group:
  languages = Counter(identified[response] or 'none' for response in responses)
  repetition = np.array([duplicated_share(response.text) for response in responses])
  lengths = np.array([len(response.text) for response in responses])
  questions = list(dict.fromkeys(response.question for response in responses))
  faithful = _faithful(responses, identified, questions)
  return Group(
    language=responses[0].language,
    asked_in=responses[0].asked_in,
    responses=len(responses),
    fidelity=bootstrap.interval(faithful, None, resamples=resamples),
    english=languages['en'] / len(responses),
    undetermined=languages['none'] / len(responses),
    empty=float(np.mean([not response.text.strip() for response in responses])),
    languages=dict(languages.most_common()),
    repetition=float(repetition.mean()),
    repetitive=float((repetition > REPETITIVE).mean()),
    characters={'mean': float(lengths.mean()), 'median': float(np.median(lengths))},
  )


def _faithful(
  responses: Sequence[Response], identified: dict[Response, str], questions: Sequence[str]
) -> list[np.ndarray]:
  """Whether responses are in the requested language: per sample, bool [questions, 1].

  The bootstrap treats samples as seeds.
  """
  cells = {
    (response.question, response.sample): identified[response] == response.language
    for response in responses
  }
  samples = sorted({response.sample for response in responses})
  for question, sample in itertools.product(questions, samples):
    if (question, sample) not in cells:
      first = responses[0]
      raise ValueError(
        f'question {question!r} has no sample {sample} in {first.language!r} asked in '
        f'{first.asked_in!r}, but others have: every question needs the same number of samples. '
        'Let `crossin generate` finish'
      )
  return [np.array([[cells[question, sample]] for question in questions]) for sample in samples]


def _claim(
  native: list[Response], english: list[Response], identified: dict[Response, str], resamples: int
) -> Claim | None:
  language = native[0].language
  asked = {response.question for response in english}
  shared = list(
    dict.fromkeys(response.question for response in native if response.question in asked)
  )
  if not shared:
    return None
  first, second = (_faithful(group, identified, shared) for group in (native, english))
  samples = min(len(first), len(second))
  gain = bootstrap.difference(first[:samples], second[:samples], None, resamples=resamples)
  name, verdict = english_name(language), tables.verdict(gain)
  real = verdict != 'none' and len(shared) >= FEW
  estimate, low, high = (words.points(value) for value in (gain.estimate, gain.low, gain.high))
  span = f'{estimate} points, 95 % interval {low} to {high}, {len(shared)} questions'
  if real:
    sentence = (
      f'Questions asked in {name} are answered in {name} {"more" if verdict == "gain" else "less"} '
      f'often than in English with "Answer in {name}." ({span}): a real difference.'
    )
  elif verdict != 'none':
    sentence = (
      f'Questions asked in {name} and in English differ in how often the answer is in {name} '
      f'({span}), but {len(shared)} questions are too few to call it real; {FEW} are needed.'
    )
  else:
    sentence = (
      f'Asking in {name} or in English makes no significant difference in how often the answer is '
      f'in {name} ({span}).'
    )
  return Claim(language, gain, len(shared), real, sentence)


def main(argv: Sequence[str] | None = None) -> int:
  """`crossin responses`."""
  options = flags.responses_parser().parse_args(argv)
  groups, claims = measure(read_responses(options.answers, options.questions), options.resamples)
  print('\n'.join(_lines(groups, claims)))
  report = {
    'groups': [asdict(group) for group in groups],
    'claims': [asdict(claim) for claim in claims],
    'repetitive_above': REPETITIVE,
  }
  if options.output_dir:
    write_json(os.path.join(options.output_dir, 'responses.json'), report)
  return command_line.finish(options, report)


def _lines(groups: Sequence[Group], claims: Sequence[Claim]) -> Iterator[str]:
  """The table and the sentences."""
  row = '{:<12}{:<12}{:>6}{:>10}{:>16}{:>9}{:>7}{:>7}{:>12}{:>15}{:>8}{:>8}'.format
  shares = ('English', 'none', 'empty', 'repetitive', '4-grams twice')
  yield row('language', 'asked in', 'n', 'fidelity', '95 % interval', *shares, 'mean', 'median')
  for group in groups:
    shares = (group.english, group.undetermined, group.empty, group.repetitive, group.repetition)
    yield row(
      english_name(group.language),
      english_name(group.asked_in),
      group.responses,
      words.percent(group.fidelity.estimate),
      f'{words.percent(group.fidelity.low)} to {words.percent(group.fidelity.high)}',
      *map(words.percent, shares),
      *(f'{group.characters[key]:.0f}' for key in ('mean', 'median')),
    )
    named = (group.language, 'en', 'none')
    if others := [f'{code} {n}' for code, n in group.languages.items() if code not in named]:
      yield f'{"":<30}other languages: {", ".join(others[:6])}'
  yield (
    'shares in per cent, lengths in characters; repetitive: over '
    f'{100 * REPETITIVE:.0f} % of the 4-grams are duplicates'
  )
  yield from (claim.sentence for claim in claims)
