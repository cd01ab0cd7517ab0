"""The benchmarks: how each is read, prompted and scored. One declaration each, in `BENCHMARKS`.

Prompts of CrossIn's benchmarks are SeaEval's five (METHODS.md A.6), rendered with the template of
the model; those of the others are lm-evaluation-harness' words, given to the model as plain text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import re

from crossin_jax.evaluation.answers.extraction import LETTERS
from crossin_jax.evaluation.benchmarks import files as benchmark_files
from crossin_jax.evaluation.questions import Questions
from crossin_jax.storage import remote
from crossin_jax.storage.records import RecordError

Row = dict
Prompt = Callable[[Mapping, str], Row]  # (fields of an item, language) -> row of Questions


@dataclass(frozen=True)
class Benchmark:
  """One benchmark.

  Attributes:
    read: (path, languages, split) -> Items.
    prompts: the forms of its prompt; figures are medians over them.
    kind: of `questions.KINDS`.
    methods: how it may be answered.
    parallel: whether every item is there in every language; without, languages are figures of their
      own.
    spoken: languages that its prompt has words for; None = all.
    stop: texts that end a generated answer.
    max_new_tokens: most tokens of one.
  """

  read: Callable[[str, Sequence[str] | None, str | None], benchmark_files.Items]
  prompts: tuple[Prompt, ...]
  kind: str = 'choice'
  methods: tuple[str, ...] = ('likelihood',)
  parallel: bool = True
  spoken: frozenset[str] | None = None
  stop: tuple[str, ...] = ()
  max_new_tokens: int = 128


# ---- CrossIn's benchmarks: SeaEval's prompts ----

_LEADS = (
  'Respond to the question by selecting the most appropriate answer.',
  'Kindly choose the correct answer from the options provided for the multiple-choice question.',
  'Solve the multi-choice question by selecting the accurate answer.',
  'Please answer the following multiple-choice question by selecting the correct option.',
  'As an expert, your task is to solve the following multiple-choice question. Identify the '
  'correct response among the '
  'given choices.',
)
_BLANK_LINES = (True, False, False, True, True)  # between the blocks of each prompt


def _seaeval(lead: str, blank: bool) -> Prompt:
  def prompt(fields: Mapping, language: str) -> Row:
    blocks = [lead] if lead else []
    blocks += [f'Context:\n{fields["context"]}'] if 'context' in fields else []
    blocks += [
      f'Question:\n{fields["question"]}',
      'Choices:\n' + '\n'.join(fields['choices']),
      'Answer:\n',
    ]
    text = ('\n\n' if blank else '\n').join(blocks)
    return {
      'instruction': text,
      'input': '',
      'raw': text,
      'choices': fields['choices'],
      'answer': fields['answer'],
    }

  return prompt


SEAEVAL_PROMPTS = tuple(_seaeval(lead, blank) for lead, blank in zip(_LEADS, _BLANK_LINES))
_SEAEVAL = {
  'read': benchmark_files.read_seaeval,
  'prompts': SEAEVAL_PROMPTS,
  'methods': ('likelihood', 'generate'),
}
# ---- the others: the words of lm-evaluation-harness ----

_XCOPA_WORDS = {
  'en': ('because', 'therefore'), 'id': ('karena', 'maka'), 'it': ('perché', 'quindi'),
  'sw': ('kwa sababu', 'kwa hiyo'),
  'ta': ('காரணமாக', 'எனவே'), 'th': ('เพราะ', 'ดังนั้น'), 'tr': ('çünkü', 'bu yüzden'),
  'vi': ('bởi vì', 'vì vậy'),
  'zh': ('因为', '所以'),
}  # fmt: skip
# language -> (right?, entailment, neutral, contradiction)
_XNLI_WORDS = {
  'ar': ('صحيح', 'نعم', 'لذا', 'رقم'), 'de': ('richtig', 'Ja', 'Auch', 'Nein'),
  'el': ('σωστός', 'Ναί', 'Έτσι', 'όχι'),
  'en': ('right', 'Yes', 'Also', 'No'), 'es': ('correcto', 'Sí', 'Asi que', 'No'),
  'fr': ('correct', 'Oui', 'Aussi', 'Non'), 'hi': ('सही', 'हाँ', 'इसलिए', 'नहीं'),
  'ru': ('правильно', 'Да', 'Так', 'Нет'), 'sw': ('sahihi', 'Ndiyo', 'Hivyo', 'Hapana'),
  'th': ('ถูกต้อง', 'ใช่', 'ดังนั้น', 'ไม่'), 'tr': ('doğru', 'Evet', 'Böylece', 'Hayır'),
  'ur': ('صحیح', 'جی ہاں', 'اس لئے', 'نہیں'), 'vi': ('đúng', 'Vâng', 'Vì vậy', 'Không'),
  'zh': ('正确', '是的', '所以', '不是的'),
}  # fmt: skip
# language -> (right?, no, yes)
_PAWSX_WORDS = {
  'de': ('richtig', 'Nein', 'Ja'), 'en': ('right', 'No', 'Yes'), 'es': ('verdad', 'No', 'Sí'),
  'fr': ("n'est-ce pas", 'Non', 'Oui'), 'ja': ('ですね', 'いいえ', 'はい'), 'ko': ('맞죠', '아니요', '예'),
  'zh': ('对吧', '不是', '是'),
}  # fmt: skip
_MGSM_WORDS = {
  'bn': ('প্রশ্ন: ', 'Answer:'), 'de': ('Frage: ', 'Antwort:'), 'en': ('Question: ', 'Answer:'),
  'es': ('Pregunta: ', 'Respuesta:'), 'fr': ('Question : ', 'Réponse :'), 'ja': ('問題： ', 'Answer:'),
  'ru': ('Задача: ', 'Answer:'), 'sw': ('Swali: ', 'Answer:'), 'te': ('ప్రశ్న: ', 'Answer:'),
  'th': ('โจทย์: ', 'Answer:'), 'zh': ('问题： ', 'Answer:'),
}  # fmt: skip
_XQUAD_WORDS = {
  'ar': ('سيا', 'سؤال', 'إجابة'), 'de': ('Kontext', 'Frage', 'Antwort'),
  'el': ('Συμφραζόμενα', 'Ερώτηση', 'Απάντηση'),
  'en': ('Context', 'Question', 'Answer'), 'es': ('Contexto', 'Pregunta', 'Respuesta'),
  'hi': ('प्रसंग', 'सवाल', 'उत्तर'), 'ro': ('Context', 'Întrebare', 'Răspuns'),
  'ru': ('Контекст', 'Вопрос', 'Ответ'),
  'th': ('บริบท', 'คำถาม', 'คำตอบ'), 'tr': ('Bağlam', 'Soru', 'Cevap'),
  'vi': ('Bối cảnh', 'Câu hỏi', 'Trả lời'),
  'zh': ('语境', '问题', '回答'),
}  # fmt: skip


def _xcopa(fields: Mapping, language: str) -> Row:
  """The premise without its full stop, a conjunction, and the choice as the rest of the sentence."""
  connector = _XCOPA_WORDS[language][fields['question'] == 'effect']
  choices = [fields['choice1'], fields['choice2']]
  continuations = [' ' + choice[0].lower() + choice[1:] for choice in choices]
  prompt = f'{fields["premise"].strip()[:-1]} {connector}'
  return {
    'prompt': prompt,
    'choices': choices,
    'continuations': continuations,
    'answer': fields['answer'],
  }


def _xnli(fields: Mapping, language: str) -> Row:
  """Three whole sentences are compared; nothing stands before them."""
  right, *words = _XNLI_WORDS[language]
  sentences = [f' {fields["premise"]}, {right}? {word}, {fields["hypothesis"]}' for word in words]
  return {
    'prompt': '',
    'choices': list(benchmark_files.NLI_LABELS),
    'continuations': sentences,
    'answer': fields['answer'],
  }


def _pawsx(fields: Mapping, language: str) -> Row:
  right, no, yes = _PAWSX_WORDS[language]
  first, second = fields['sentence1'], fields['sentence2']
  if language in ('en', 'es', 'fr', 'de'):
    first, second = _untokenised(first), _untokenised(second)
    first = first[:-1] if first.endswith(('.', ',', ';')) else first
    second = second[:1].lower() + second[1:]
  sentences = [f'{first}, {right}? {word}, {second}' for word in (no, yes)]
  return {
    'prompt': '',
    'choices': ['no', 'yes'],
    'continuations': sentences,
    'answer': fields['answer'],
  }


def _untokenised(text: str) -> str:
  """Spaces that tokenisation put before punctuation taken out again."""
  for spaced, joined in ((" n't", "n't"), (' )', ')'), ('( ', '('), ('" ', '"'), (' "', '"')):
    text = text.replace(spaced, joined)
  return re.sub(r" (['.,])", r'\1', text).strip()


def _story_cloze(fields: Mapping, language: str) -> Row:
  choices = fields['choices']
  continuations = [f' {choice}' for choice in choices]
  return {
    'prompt': ' '.join(fields['story']), 'choices': choices, 'continuations': continuations,
    'answer': fields['answer']
  }  # fmt: skip


def _belebele(fields: Mapping, language: str) -> Row:
  """The letter is compared, not the text of the option."""
  letters = LETTERS[: len(fields['choices'])]
  lines = [f'P: {fields["passage"]}', f'Q: {fields["question"].strip()}']
  lines += [f'{letter}: {choice}' for letter, choice in zip(letters, fields['choices'])]
  return {
    'prompt': '\n'.join([*lines, 'Answer:']), 'choices': list(letters),
    'continuations': [f' {letter}' for letter in letters], 'answer': fields['answer'],
  }  # fmt: skip


def _mgsm(fields: Mapping, language: str) -> Row:
  question, answer = _MGSM_WORDS[language]
  return {'prompt': f'{question}{fields["question"]}\n{answer}', 'answers': fields['answers']}


def _xquad(fields: Mapping, language: str) -> Row:
  context, question, answer = _XQUAD_WORDS[language]
  prompt = f'{context}: {fields["context"]}\n\n{question}: {fields["question"]}\n\n{answer}:'
  return {'prompt': prompt, 'answers': fields['answers']}


def _mlqa(fields: Mapping, language: str) -> Row:
  return _xquad(fields, 'en')  # English words in every language


_SPANS = {'kind': 'spans', 'methods': ('generate',), 'stop': ('\n',), 'max_new_tokens': 64}
_STORY = {'read': benchmark_files.read_story_cloze, 'prompts': (_story_cloze,)}
BENCHMARKS: dict[str, Benchmark] = {
  'cross_mmlu': Benchmark(**_SEAEVAL),
  'cross_logiqa': Benchmark(**_SEAEVAL),
  'cross_xquad': Benchmark(**_SEAEVAL),
  'xcopa': Benchmark(benchmark_files.read_xcopa, (_xcopa,), spoken=frozenset(_XCOPA_WORDS)),
  'xnli': Benchmark(benchmark_files.read_xnli, (_xnli,), spoken=frozenset(_XNLI_WORDS)),
  'xstorycloze': Benchmark(**_STORY),
  'indocloze': Benchmark(**_STORY),
  'belebele': Benchmark(benchmark_files.read_belebele, (_belebele,)),
  'pawsx': Benchmark(benchmark_files.read_pawsx, (_pawsx,), spoken=frozenset(_PAWSX_WORDS)),
  'mgsm': Benchmark(
    benchmark_files.read_mgsm, (_mgsm,), kind='number', methods=('generate',),
    spoken=frozenset(_MGSM_WORDS),
    stop=tuple(dict.fromkeys(words[0].strip() for words in _MGSM_WORDS.values())),
    max_new_tokens=256,
  ),
  'xquad': Benchmark(benchmark_files.read_squad, (_xquad,), spoken=frozenset(_XQUAD_WORDS), **_SPANS),
  'mlqa': Benchmark(benchmark_files.read_squad, (_mlqa,), parallel=False, **_SPANS),
}  # fmt: skip


class LoadedBenchmark:
  """A benchmark with its items.

  Attributes:
    name: of `BENCHMARKS`.
    declaration: its entry there.
    languages: codes.
    notes: what was found and mended in the files, for people.
  """

  def __init__(
    self,
    name: str,
    path: str,
    languages: Sequence[str] | None = None,
    split: str | None = None,
    limit: int | None = None,
  ):
    """Args:
      name: of `BENCHMARKS`.
      path: file or folder, as it was downloaded.
      languages: codes; None = all that the files have and the prompt has words for.
      split: part of the files' names, where there are several.
      limit: first so many items.

    Raises:
      ValueError: an unknown name or language, malformed files, an item that lacks a language (with
        the ids).
    """
    if name not in BENCHMARKS:
      raise ValueError(f'no benchmark {name!r}; choose one of {", ".join(BENCHMARKS)}')
    self.name, self.declaration = name, BENCHMARKS[name]
    spoken = self.declaration.spoken
    if (
      languages
      and spoken is not None
      and (mute := [language for language in languages if language not in spoken])
    ):
      raise ValueError(
        f'{name} has no prompt in {", ".join(mute)}; it has {", ".join(sorted(spoken))}'
      )
    items = self.declaration.read(remote.fetched(path), languages, split)
    self.languages = [
      language for language in items.languages if spoken is None or language in spoken
    ]
    if not self.languages:
      raise RecordError(
        f'{path}: none of the languages {", ".join(items.languages)} has a prompt of {name}'
      )
    self.notes, self._fields = (
      items.notes,
      {language: items.fields[language] for language in self.languages},
    )
    if self.declaration.parallel:
      self._check_parallel(path)
      kept = list(self._fields[self.languages[0]])[:limit]
      self._ids = {language: kept for language in self.languages}
    else:
      self._ids = {language: list(self._fields[language])[:limit] for language in self.languages}

  def _check_parallel(self, path: str) -> None:
    every = list(dict.fromkeys(item_id for fields in self._fields.values() for item_id in fields))
    for language, fields in self._fields.items():
      if missing := [item_id for item_id in every if item_id not in fields]:
        shown = ', '.join(map(repr, missing[:5])) + (' ...' if len(missing) > 5 else '')
        if self.name == 'pawsx':  # incomplete pairs are left out by language: leave them out in all
          continue
        raise RecordError(
          f'{path}: {len(missing)} items have no {language} ({shown}); consistency needs every '
          'language: mend the files, or '
          'choose others with --languages'
        )
    for fields in self._fields.values():
      for item_id in every:
        if any(item_id not in other for other in self._fields.values()):
          fields.pop(item_id, None)
    first = self._fields[self.languages[0]]
    for language, fields in self._fields.items():
      # NB: the order of the options may differ in no language, or consistency would compare
      # letters.
      for item_id, own in fields.items():
        if 'answer' in own and own['answer'] != first[item_id]['answer']:
          raise RecordError(
            f'{path}: item {item_id!r} has the answer {own["answer"]} in {language} and '
            f'{first[item_id]["answer"]} in '
            f'{self.languages[0]}; options must be parallel'
          )

  def questions(self, prompt: int = 1) -> list[Questions]:
    """The items under a prompt form, counted from 1: one `Questions`, or one a language where they
    are not parallel.
    """
    declaration = self.declaration
    if not 1 <= prompt <= len(declaration.prompts):
      raise ValueError(f'{self.name} has prompts 1 to {len(declaration.prompts)}, not {prompt}')
    render = declaration.prompts[prompt - 1]
    groups = (
      [self.languages] if declaration.parallel else [[language] for language in self.languages]
    )
    return [
      Questions(
        self.name,
        self._ids[languages[0]],
        languages,
        [
          [
            render(self._fields[language][i], language) | {'language': language}
            for language in languages
          ]
          for i in self._ids[languages[0]]
        ],
        declaration.kind,
        prompt,
        declaration.stop,
        declaration.max_new_tokens,
      )
      for languages in groups
    ]
