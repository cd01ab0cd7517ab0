"""Declarations of the benchmarks: how each is read, prompted and scored.

CrossIn's benchmarks use SeaEval's five prompts (docs/design/methods.md#a-6-prompts), rendered with
the chat template of the model. The others use the prompts of lm-evaluation-harness as plain text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import itertools
import os
import re

from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.evaluation.benchmarks import files, hub_files
from crossin_jax.evaluation.benchmarks.files import WORDS
from crossin_jax.evaluation.questions import Questions
from crossin_jax.storage import remote
from crossin_jax.storage.records import RecordError

Row = dict
Prompt = Callable[[Mapping, str], Row]  # (fields of an item, language) -> row of Questions


@dataclass(frozen=True)
class Benchmark:
  """Declaration of one benchmark.

  Attributes:
    read: (path, languages, split) -> Items.
    prompts: the prompt forms; figures are medians over them.
    kind: one of `questions.KINDS`.
    methods: the answering methods that apply.
    parallel: whether every language has every item; if not, each language is a benchmark by itself.
    prompt_languages: the languages that its prompt is written in; None = all.
    stop: strings that end a generated answer.
    max_new_tokens: maximum length of a generated answer.
    per_token: whether likelihood compares means over tokens in place of sums.
  """

  read: Callable[[str, Sequence[str] | None, str | None], files.Items]
  prompts: tuple[Prompt, ...]
  kind: str = 'choice'
  methods: tuple[str, ...] = ('likelihood',)
  parallel: bool = True
  prompt_languages: frozenset[str] | None = None
  stop: tuple[str, ...] = ()
  max_new_tokens: int = 128
  per_token: bool = False


# ---- CrossIn's benchmarks: SeaEval's prompts ----


def _seaeval(instruction: str, blank_lines: bool) -> Prompt:
  def prompt(fields: Mapping, language: str) -> Row:
    context = [f'Context:\n{fields["context"]}'] if 'context' in fields else []
    choices = 'Choices:\n' + '\n'.join(fields['choices'])
    blocks = [instruction, *context, f'Question:\n{fields["question"]}', choices, 'Answer:\n']
    text = ('\n\n' if blank_lines else '\n').join(blocks)
    row = {'instruction': text, 'input': '', 'raw': text}
    return row | {'choices': fields['choices'], 'answer': fields['answer']}

  return prompt


# ---- the others: the prompts of lm-evaluation-harness ----


def _row(prompt: str, choices: Sequence[str], continuations: list[str], answer: int) -> Row:
  row = {'prompt': prompt, 'choices': list(choices)}
  return row | {'continuations': continuations, 'answer': answer}


def _xcopa(fields: Mapping, language: str) -> Row:
  """The premise without its full stop, a conjunction, and the choice as the end of the sentence."""
  connector = files.words_of('xcopa')[language][fields['question'] == 'effect']
  choices = [fields['choice1'], fields['choice2']]
  continuations = [' ' + choice[0].lower() + choice[1:] for choice in choices]
  prompt = f'{fields["premise"].strip()[:-1]} {connector}'
  return _row(prompt, choices, continuations, fields['answer'])


def _xnli(fields: Mapping, language: str) -> Row:
  """Compares three complete sentences after an empty prompt."""
  right, *words = files.words_of('xnli')[language]
  sentences = [f' {fields["premise"]}, {right}? {word}, {fields["hypothesis"]}' for word in words]
  return _row('', files.NLI_LABELS, sentences, fields['answer'])


def _pawsx(fields: Mapping, language: str) -> Row:
  right, *words = files.words_of('pawsx')[language]
  first, second = fields['sentence1'], fields['sentence2']
  if language in ('en', 'es', 'fr', 'de'):
    first, second = _detokenised(first), _detokenised(second)
    first = first[:-1] if first.endswith(('.', ',', ';')) else first
    second = second[:1].lower() + second[1:]
  sentences = [f'{first}, {right}? {word}, {second}' for word in words]
  return _row('', ('no', 'yes'), sentences, fields['answer'])


def _detokenised(text: str) -> str:
  """Removes the spaces that tokenisation puts before punctuation."""
  for spaced, joined in ((" n't", "n't"), (' )', ')'), ('( ', '('), ('" ', '"'), (' "', '"')):
    text = text.replace(spaced, joined)
  return re.sub(r" (['.,])", r'\1', text).strip()


def _story_cloze(fields: Mapping, language: str) -> Row:
  choices = fields['choices']
  continuations = [f' {choice}' for choice in choices]
  return _row(' '.join(fields['story']), choices, continuations, fields['answer'])


def _belebele(fields: Mapping, language: str) -> Row:
  """Compares the letters, not the texts of the options."""
  letters = LETTERS[: len(fields['choices'])]
  lines = [f'P: {fields["passage"]}', f'Q: {fields["question"].strip()}']
  lines += [f'{letter}: {choice}' for letter, choice in zip(letters, fields['choices'])]
  prompt = '\n'.join([*lines, 'Answer:'])
  return _row(prompt, letters, [f' {letter}' for letter in letters], fields['answer'])


def _lettered(head: str, before_d: str = '') -> Prompt:
  """A question with lettered choices; compares the letters."""

  def prompt(fields: Mapping, language: str) -> Row:
    letters = LETTERS[: len(fields['choices'])]
    lines = [f'{letter}. {choice}' for letter, choice in zip(letters, fields['choices'])]
    lines[3] = before_d + lines[3]
    text = '\n'.join([head + fields['question'].strip(), *lines, 'Answer:'])
    return _row(text, letters, [f' {letter}' for letter in letters], fields['answer'])

  return prompt


def _cloze(fields: Mapping, language: str) -> Row:
  """Compares complete sentences after an empty prompt, as BMLAMA's authors do for decoders."""
  sentences = [fields['prompt'].replace(hub_files.MASK, choice) for choice in fields['choices']]
  return _row('', fields['choices'], sentences, fields['answer'])


def _polymath(fields: Mapping, language: str) -> Row:
  """The question, and where the answer belongs."""
  prompt = f'{fields["question"]}\nPut the final answer in \\boxed{{}}.\n'
  return {'prompt': prompt, 'answers': fields['answers']}


def _mgsm(fields: Mapping, language: str) -> Row:
  question, answer = files.words_of('mgsm')[language]
  return {'prompt': f'{question}{fields["question"]}\n{answer}', 'answers': fields['answers']}


def _xquad(fields: Mapping, language: str) -> Row:
  context, question, answer = files.words_of('xquad')[language]
  prompt = f'{context}: {fields["context"]}\n\n{question}: {fields["question"]}\n\n{answer}:'
  return {'prompt': prompt, 'answers': fields['answers']}


def _mlqa(fields: Mapping, language: str) -> Row:
  return _xquad(fields, 'en')  # the prompt is English in every language


_SEAEVAL = Benchmark(
  files.read_seaeval,
  tuple(_seaeval(*words) for words in WORDS['seaeval']['prompts']),
  methods=('likelihood', 'generate'),
)
_STORY = Benchmark(files.read_story_cloze, (_story_cloze,))
_SPANS = {'kind': 'spans', 'methods': ('generate',), 'stop': ('\n',), 'max_new_tokens': 64}
_MGSM = {
  'kind': 'number',
  'methods': ('generate',),
  'stop': tuple(dict.fromkeys(words[0].strip() for words in WORDS['mgsm'].values())),
  'max_new_tokens': 256,
}


def _worded(name: str, read, prompt: Prompt, **settings) -> Benchmark:
  """A benchmark whose prompt has words of `WORDS`."""
  return Benchmark(read, (prompt,), prompt_languages=frozenset(WORDS[name]), **settings)


BENCHMARKS: dict[str, Benchmark] = {
  'cross_mmlu': _SEAEVAL,
  'cross_logiqa': _SEAEVAL,
  'cross_xquad': _SEAEVAL,
  'xcopa': _worded('xcopa', files.read_xcopa, _xcopa),
  'xnli': _worded('xnli', files.read_xnli, _xnli),
  'xstorycloze': _STORY,
  'indocloze': _STORY,
  'belebele': Benchmark(files.read_belebele, (_belebele,)),
  'pawsx': _worded('pawsx', files.read_pawsx, _pawsx),
  'mgsm': _worded('mgsm', files.read_mgsm, _mgsm, **_MGSM),
  'xquad': _worded('xquad', files.read_squad, _xquad, **_SPANS),
  'global_mmlu': Benchmark(hub_files.read_global_mmlu, (_lettered(''),)),
  # The harness' prompt has a space before D.
  'include': Benchmark(hub_files.read_include, (_lettered('', ' '),), parallel=False),
  'xcsqa': Benchmark(hub_files.read_xcsqa, (_lettered('Question: '),)),
  'bmlama': Benchmark(hub_files.read_bmlama, (_cloze,), per_token=True),
  'klar': Benchmark(hub_files.read_klar, (_cloze,), per_token=True),
  'polymath': Benchmark(
    hub_files.read_polymath, (_polymath,), 'number', ('generate',), max_new_tokens=2048
  ),
  'mlqa': Benchmark(files.read_squad, (_mlqa,), parallel=False, **_SPANS),
}


class LoadedBenchmark:
  """A benchmark with its items.

  Attributes:
    notes: human-readable notes of its reader.
    fields: language -> ID -> fields of the item.
  """

  def __init__(
    self,
    name: str,
    path: str,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
  ):
    """Reads the files.

    Args:
      name: a key of `BENCHMARKS`.
      path: the downloaded file or folder.
      languages: codes; None = all that the files and the prompt have.
      split: the part of the file names that selects one of several splits.
      limit: number of items to keep.

    Raises:
      ValueError: an unknown name or language, malformed files, or items that lack a language.
    """
    if name not in BENCHMARKS:
      raise ValueError(f'no benchmark {name!r}; choose one of {", ".join(BENCHMARKS)}')
    self.name, self.declaration = name, BENCHMARKS[name]
    if not os.path.exists(path) and not remote.is_remote(path):
      raise RecordError(files.ABSENT.format(path))
    supported = self.declaration.prompt_languages
    if supported is not None:
      supported = supported | files.words_of(name).keys()
    if supported and (lacking := [code for code in languages or () if code not in supported]):
      raise ValueError(
        f'{name} has no prompt in {", ".join(lacking)}; it has {", ".join(sorted(supported))}'
      )
    items = self.declaration.read(remote.fetched(path), languages, split)
    self.languages = [code for code in items.languages if supported is None or code in supported]
    if not self.languages:
      raise RecordError(
        f'{path}: none of the languages {", ".join(items.languages)} has a prompt of {name}'
      )
    self.notes = items.notes
    if lacking := [code for code in items.languages if code not in self.languages]:
      self.notes.append(f'{name} has no prompt in {", ".join(lacking)}; these were not read')
    self.fields = {language: items.fields[language] for language in self.languages}
    if self.declaration.parallel:
      self._keep_parallel(path)
    self._ids = {language: list(fields)[:limit] for language, fields in self.fields.items()}
    if self.declaration.parallel:
      self._ids = dict.fromkeys(self.languages, self._ids[self.languages[0]])

  def _keep_parallel(self, path: str) -> None:
    """Checks that the items are parallel; drops PAWS-X pairs that a language lacks."""
    ids, incomplete = list(dict.fromkeys(itertools.chain(*self.fields.values()))), set()
    for language, fields in self.fields.items():
      missing = [item_id for item_id in ids if item_id not in fields]
      incomplete.update(missing)
      if missing and self.name != 'pawsx':
        shown = ', '.join(map(repr, missing[:5])) + (' ...' if len(missing) > 5 else '')
        raise RecordError(
          f'{path}: {len(missing)} items have no {language} ({shown}); consistency needs every '
          'language: fix the files, or choose other languages with --languages'
        )
    first = self.fields[self.languages[0]]
    for language, fields in self.fields.items():
      for item_id in incomplete:
        fields.pop(item_id, None)
      # NB: options must have the same order in all languages, or consistency compares letters.
      for item_id, item in fields.items():
        answer = first[item_id].get('answer')
        if item.get('answer') != answer:
          raise RecordError(
            f'{path}: item {item_id!r} has the answer {item["answer"]} in {language} and {answer} '
            f'in {self.languages[0]}; options must be parallel'
          )

  def questions(self, prompt: int = 1) -> list[Questions]:
    """The items under a prompt form, counted from 1.

    Returns:
      One `Questions`; one per language where the items are not parallel.
    """
    declared = self.declaration
    if not 1 <= prompt <= len(declared.prompts):
      raise ValueError(f'{self.name} has prompts 1 to {len(declared.prompts)}, not {prompt}')
    render = declared.prompts[prompt - 1]

    def questions(languages: list[str]) -> Questions:
      ids = self._ids[languages[0]]
      rows = [
        [render(self.fields[code][id_], code) | {'language': code} for code in languages]
        for id_ in ids
      ]
      settings = (
        declared.kind, prompt, declared.stop, declared.max_new_tokens, declared.per_token
      )  # fmt: skip
      return Questions(self.name, ids, languages, rows, *settings)

    groups = [self.languages] if declared.parallel else [[code] for code in self.languages]
    return list(map(questions, groups))
