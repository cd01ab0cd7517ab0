"""Preference pairs from files: those of `crossin pairs`, or in TRL's layouts."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import os
import re

from crossin_jax import config
from crossin_jax.data.pair_rows import PairRow, instances, read_pairs
from crossin_jax.data.readers import extension
from crossin_jax.data.source_errors import SourceError
from crossin_jax.languages import code_of, in_order
from crossin_jax.storage import hub_names
from seqio_tasks.sources import rows_path

Instance = tuple[PairRow, ...]  # a pair, or the two halves of a row of direct consistency


@config.configurable(commands=('prepare',))
@dataclasses.dataclass(frozen=True)
class PairFiles:
  """Preference pairs of any languages in one or several files.

      # pairs.jsonl: {"id": "7", "prompt": "2+2?", "chosen": "4", "rejected": "5", "language": "en"}
      source = PairFiles('pairs.jsonl')

  The pairs are held in memory.

  Attributes:
    path: a file that `data.pair_rows.read_pairs` reads, or several.
    language: code of the rows without a field `language`; '' = every row has one.
    name: '' = made from the path.

  Raises (the constructor for settings, the methods for files):
    SourceError: what was found where, and the remedy.
  """

  path: str | tuple[str, ...]
  language: str = ''
  name: str = ''

  def __post_init__(self):
    given = (self.path,) if isinstance(self.path, (str, os.PathLike)) else tuple(self.path)
    paths = tuple(map(rows_path, given))
    if not paths:
      raise SourceError('PairFiles.path = (): name at least one file')
    base = os.path.basename(hub_names.title(paths[0].rstrip('/')))
    name = self.name or re.sub(r'[^\w.]', '_', base.removesuffix(extension(base) or ''))
    if not re.fullmatch(r'[\w.]+', name):
      raise SourceError(
        f"PairFiles.name = {name!r}: names of tasks hold only letters, digits, '_' and '.'"
      )
    try:
      language = code_of(self.language) if self.language else ''
    except ValueError as error:
      raise SourceError(f'PairFiles.language = {self.language!r}: {error}') from None
    object.__setattr__(self, 'path', paths)
    object.__setattr__(self, 'language', language)
    object.__setattr__(self, 'name', name)

  def __getstate__(self):
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _read(self) -> tuple[list[Instance], Counter]:
    left_out: Counter = Counter()
    rows = (
      row
      for path in self.path
      for row in read_pairs(path, language=self.language or None, left_out=left_out)
    )
    return list(instances(rows, left_out)), left_out

  def __len__(self) -> int:
    return len(self._read[0])

  def instance(self, index: int) -> Instance:
    """The pair, or the two halves, with this number."""
    return self._read[0][index]

  def ids(self) -> Sequence[str]:
    """The id of each instance."""
    return [instance[0].id for instance in self._read[0]]

  @functools.cached_property
  def kinds(self) -> list[tuple[str, str, str]]:
    """(mode, first language, second language) of each instance.

    Of mode 'pairs' these are the languages of prompt and answers, of 'consistency' those of the
    answers of the two halves.
    """

    def kind(first: PairRow, *second: PairRow):
      if second:
        return 'consistency', first.language, second[0].language
      return 'pairs', first.prompt_language, first.language

    return [kind(*instance) for instance in self._read[0]]

  @property
  def languages(self) -> tuple[str, ...]:
    """The codes of all prompts and answers."""
    return tuple(in_order({code for _, *codes in self.kinds for code in codes}))

  def outside(self, languages: Sequence[str]) -> int:
    """How many instances have a language that is none of these."""
    return sum(not set(codes) <= set(languages) for _, *codes in self.kinds)

  def set_aside(self) -> dict[tuple[str, str], int]:
    """(language, reason) -> rows that cannot be used, see `data.pair_rows.FAULTS`."""
    return dict(self._read[1])

  def digest(self) -> str:
    """SHA-256 (hex) of the pairs in order."""
    digest = hashlib.sha256()
    for instance in self._read[0]:
      fields = [row.as_json() for row in instance]
      digest.update(json.dumps(fields, sort_keys=True, ensure_ascii=False).encode() + b'\n')
    return digest.hexdigest()
