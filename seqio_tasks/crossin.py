"""CrossIn as lists of examples: a row, its source language and its target language.

No TensorFlow here: worker processes of `prepare` import this module.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from crossin_jax import config
from crossin_jax.data import conversations
from crossin_jax.data.conversations import REASONING, Message
from crossin_jax.data.mixing import fold
from crossin_jax.data.mixture_name import CROSSIN_MODES, MODES
from crossin_jax.data.prompts import (
  CHAT,
  Example,
  Rejected,
  check_template,
  describe_template,
  render_example,
  render_whole,
  stop_id,
)
from crossin_jax.data.vocabulary import Vocabulary
from crossin_jax.languages import english_name


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class Preset:
  """How examples are drawn and cut: this project's default, or as the released code does.

  See docs/design/methods.md#c-decisions.

  Attributes:
    name: goes into the names of Tasks and Mixtures.
    assignment: 'one': every row once per mode, its language pair drawn by hash;
      'every': every row in every pair; 'draws': as many draws with replacement as there are rows,
      row and language shared by en2x, x2en and trans (released code).
    same_language: x2x may draw the same language twice (released archive).
    both_directions: trans also from English into x.
    tags: language tag on en2x, x2en and x2x.
    overlong: 'shorten_input' (see prompts.render_example) or 'right_cut' (released code).
  """

  name: str = 'default'
  assignment: str = 'one'
  same_language: bool = False
  both_directions: bool = False
  tags: bool = True
  overlong: str = 'shorten_input'

  def __post_init__(self):
    if self.assignment not in ('one', 'every', 'draws'):
      raise ValueError(f"Preset.assignment = {self.assignment!r} is not 'one', 'every' or 'draws'")
    if self.overlong not in ('shorten_input', 'right_cut'):
      raise ValueError(f"Preset.overlong = {self.overlong!r} is not 'shorten_input' or 'right_cut'")


def language_pairs(
  mode: str, languages: tuple[str, ...], preset: Preset
) -> tuple[tuple[str, str], ...]:
  """(source, target) languages of a mode, in a fixed order.

  language_pairs('en2x', ('en', 'zh', 'vi'), Preset()) == (('en', 'zh'), ('en', 'vi'))
  """
  others = tuple(language for language in languages if language != 'en')
  if mode == 'base':
    return (('en', 'en'),)
  if mode in ('mono', 'x2en2x', 'text'):
    chosen = languages if mode == 'text' else others
    return tuple((x, x) for x in chosen)
  if mode == 'en2x':
    return tuple(('en', x) for x in others)
  if mode == 'x2en':
    return tuple((x, 'en') for x in others)
  if mode == 'x2x':
    return tuple(
      (s, t) for s, t in itertools.product(languages, repeat=2) if s != t or preset.same_language
    )
  if mode == 'trans':
    into_english = tuple((x, 'en') for x in others)
    return into_english + (tuple(('en', x) for x in others) if preset.both_directions else ())
  raise ValueError(f'mode {mode!r} is not one of {", ".join(MODES)}')


@functools.lru_cache(maxsize=64)
def split_rows(source, validation_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Row indices of the training and the validation split, both int64 and in hash order; do not
  change them.

  A row is in one split in all its languages. At most a twentieth of the rows is held out.
  """
  held_out = min(validation_rows, len(source) // 20)
  keys = np.fromiter((fold(seed, id_) for id_ in source.ids()), np.uint64, len(source))
  order = np.argsort(keys, kind='stable')
  return order[held_out:], order[:held_out]


class Drawn(NamedTuple):
  """The examples of one mode, all its language pairs together.

  Attributes:
    rows: int64 [examples], row of the source.
    pairs: int16 [examples], index in the mode's language pairs.
  """

  rows: np.ndarray
  pairs: np.ndarray


@functools.lru_cache(maxsize=64)
def draw(
  source, mode: str, pairs, preset: Preset, seed: int, validation_rows: int, split: str
) -> Drawn:
  """The examples of one mode, all its language pairs together, in the order that a volume cuts.

  Args:
    source: the rows (only its ids are read).
    mode: one of MODES.
    pairs: language pairs of the mode.
    preset: how to draw.
    seed: of the hashes.
    validation_rows: see `split_rows`.
    split: 'train' or 'validation'.

  Returns:
    The first n of the examples are those at volume n, so a larger volume contains a smaller one. Do
    not change them.
  """
  rows = split_rows(source, validation_rows, seed)[('train', 'validation').index(split)]
  count, n = len(rows), len(pairs)
  if not count or not n:
    return Drawn(np.zeros(0, np.int64), np.zeros(0, np.int16))
  if mode in ('base', 'text'):
    return Drawn(np.repeat(rows, n), np.tile(np.arange(n, dtype=np.int16), count))
  if preset.assignment == 'draws':
    # One draw of (row, language) for en2x, x2en and trans; x2x draws a pair of its own.
    kind = mode if mode in ('x2x', 'mono') else 'shared'
    places = np.fromiter((fold(seed, 'row', i) % count for i in range(count)), np.int64, count)
    return Drawn(
      rows[places],
      np.fromiter((fold(seed, kind, 'language', i) % n for i in range(count)), np.int16, count),
    )
  ids = source.ids()
  if preset.assignment == 'one':
    return Drawn(
      rows, np.fromiter((fold(seed, mode, ids[row]) % n for row in rows.tolist()), np.int16, count)
    )
  keys = (
    fold(seed, mode, id_, pair) for id_ in map(ids.__getitem__, rows.tolist()) for pair in pairs
  )
  order = np.argsort(np.fromiter(keys, np.uint64, count * n), kind='stable')
  return Drawn(rows[order // n], (order % n).astype(np.int16))


@dataclasses.dataclass(frozen=True)
class TaskSpec:
  """One Task: a mode with its source and target language. Picklable.

  Attributes:
    source: rows (`sources.Source`).
    component: name the mixture gives it: the mode, or the name of an extra source.
    mode, source_language, target_language: see MODES.
    languages: of the mixture, English first: they decide which pair a row falls to.
    preset, seed, validation_rows: see `Preset`, `draw`, `split_rows`.
    template: one of prompts.TEMPLATES, or 'chat'.
    vocabulary: the tokenizer.
    trained_turns: answers of a conversation that are trained, 'all' or 'last'.
  """

  source: object
  component: str
  mode: str
  source_language: str
  target_language: str
  languages: tuple[str, ...]
  preset: Preset
  seed: int
  validation_rows: int
  template: str
  vocabulary: Vocabulary
  trained_turns: str = 'all'

  def __post_init__(self):
    check_template(self.template)
    # Read the chat template before any rows.
    if self.template == CHAT:
      object.__setattr__(self, 'vocabulary', self.vocabulary.with_template(CHAT))
    stop_id(self.vocabulary, self.template)

  @property
  def name(self) -> str:
    """Name of the Task: letters, digits, dots and underscores, as SeqIO requires."""
    label = '' if self.component == self.mode else f'{self.component}.'
    pair = f'{self.source_language}.{self.target_language}'
    among = f'.among_{"_".join(self.languages)}' if self.mode in CROSSIN_MODES else ''
    return f'{self.source.name}.{label}{self.mode}.{pair}{among}.{self.preset.name}'

  @property
  def pairs(self) -> tuple[tuple[str, str], ...]:
    """All language pairs of the mode."""
    if self.mode == 'text':
      return ((self.source_language, self.target_language),)
    return language_pairs(self.mode, self.languages, self.preset)

  def drawn(self, split: str) -> Drawn:
    """The examples of the mode in all language pairs, in volume order."""
    return draw(
      self.source, self.mode, self.pairs, self.preset, self.seed, self.validation_rows, split
    )

  def items(self, split: str) -> np.ndarray:
    """int64 [examples, 2]: rank and row of its examples in volume order; ranks are counted over all
    pairs.
    """
    drawn, mine = self.drawn(split), self.pairs.index((self.source_language, self.target_language))
    ranks = np.flatnonzero(drawn.pairs == mine)
    return np.stack([ranks, drawn.rows[ranks]], axis=1)

  def fields(self, row: int) -> dict[str, Any]:
    """'id', 'instruction', 'input', 'output' and 'tag' of one example, before any template; of a
    conversation also 'messages', with the language of each turn that the mode asks for.
    """
    asked = self.source.row(row, self.source_language)
    answered = self.source.row(row, self.target_language)
    id_ = self.source.ids()[row]
    if self.mode == 'trans':
      return {
        'id': id_,
        'instruction': 'Translate the following sentence into '
        f'{english_name(self.target_language)}.',
        'input': conversations.first_question(asked),
        'output': conversations.first_question(answered),
        'tag': '',
      }
    reasoned = self.source.row(row, 'en') if self.mode == 'x2en2x' else answered
    tag = (
      f'[{self.target_language}]'
      if self.preset.tags and self.mode in ('en2x', 'x2en', 'x2x')
      else ''
    )
    fields = {
      'id': id_,
      'instruction': asked['instruction'],
      'input': asked['input'],
      'output': answered['output'],
      'tag': tag,
    }
    if asked.get('messages') or answered.get('messages') or reasoned.get('messages'):
      fields['messages'] = conversations.between(asked, answered, reasoned, tag)
    return fields

  def _check_reasoning(self, messages: Sequence[Message]) -> None:
    if REASONING not in (messages or [{}])[-1]:
      raise Rejected('no_reasoning', 'the English row has none before its last answer')
    if self.template == CHAT and self.vocabulary.reasoning_field is None:
      raise Rejected('template_omits_reasoning', 'the chat template does not write it')

  def example(self, fields: dict[str, Any], max_length: int | None) -> Example:
    """Tokens and weights of one example; raises `prompts.Rejected`."""
    if self.mode == 'x2en2x':
      self._check_reasoning(fields.get('messages'))
    render = functools.partial(
      render_example, self.vocabulary, self.template, fields, fields['tag'],
      trained_turns=self.trained_turns,
    )  # fmt: skip
    if self.preset.overlong == 'shorten_input' or max_length is None:
      return render(max_length=max_length)
    whole = render(max_length=None)
    if len(whole.tokens) <= max_length:
      return whole
    cut = Example(whole.tokens[:max_length], whole.loss_weights[:max_length], 'output')
    if not cut.loss_weights.any():
      raise Rejected('prompt_too_long', f'no token of the response within {max_length}')
    return cut

  def examples(
    self, rows: Sequence[dict[str, Any]], max_length: int | None
  ) -> Iterator[Example | Rejected]:
    """`example` of many rows, and what it raises; faster."""
    for row, whole in zip(rows, render_whole(self.vocabulary, self.template, rows)):
      fits = whole is not None and (max_length is None or len(whole.tokens) <= max_length)
      try:
        yield whole if fits and self.mode != 'x2en2x' else self.example(row, max_length)
      except Rejected as rejected:
        yield rejected

  @property
  def info(self) -> dict[str, str]:
    """The keys for losses by source and language."""
    return {
      'name': self.name,
      'source': self.source.name,
      'component': self.component,
      'mode': self.mode,
      'source_language': self.source_language,
      'target_language': self.target_language,
    }

  def fingerprint_parts(self, max_length: int) -> dict:
    """Everything that the prepared tokens depend on, in readable form."""
    parts = {
      'source': f'{self.source.name} {self.source.digest()}',
      'mode': self.mode,
      'language pair': f'{self.source_language} -> {self.target_language}',
      'languages': ' '.join(self.languages) if self.mode in CROSSIN_MODES else '',
      'preset': repr(dataclasses.asdict(self.preset)),
      'seed': self.seed,
      'validation_rows': self.validation_rows,
      'template': describe_template(self.vocabulary, self.template),
      'vocabulary': self.vocabulary.digest,
      'max_length': max_length,
    }
    # Tasks of one question and answer a row were prepared before there was this setting.
    return parts if self.trained_turns == 'all' else {**parts, 'trained_turns': self.trained_turns}
