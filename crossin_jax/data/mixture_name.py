"""The name of a mixture: source.variant.volume.languages.preset."""

import dataclasses
import re

from crossin_jax.languages import code_of

# Mode -> its instruction and response: docs/design/methods.md#a-3-data-composition.
MODES = {
  'base': 'English instruction, English response; no tag',
  'mono': 'instruction and response in the same language, not English; no tag',
  'en2x': 'English instruction, tagged, response in x',
  'x2en': 'instruction in x, tagged, English response',
  'x2x': 'instruction and response in two different languages, English among them; tagged',
  'x2en2x': 'instruction in x, reasoning in English, response in x; no tag',
  'trans': 'translate the instruction text from x into English; no tag',
  'text': 'running text, every token trained',
  'pairs': 'a prompt with a chosen and a rejected response',
  'consistency': 'one question in two languages, with the same two candidates for each',
}
CROSSIN_MODES = ('mono', 'en2x', 'x2en', 'x2x', 'x2en2x', 'trans')  # those that a volume limits


@dataclasses.dataclass(frozen=True)
class MixtureName:
  """`source.variant.volume.languages.preset`, for instance
  `alpaca.base_x2x_trans.3000.en_zh_vi_es.default`.

  Attributes:
    source: name of the aligned source.
    components: modes or names of extra sources, in order.
    volume: examples per CrossIn mode, pooled over its language pairs; None = 'all'.
    languages: codes, English first.
    preset: name of the preset.
  """

  source: str
  components: tuple[str, ...]
  volume: int | None
  languages: tuple[str, ...]
  preset: str

  def __str__(self) -> str:
    volume = 'all' if self.volume is None else str(self.volume)
    return '.'.join(
      (self.source, '_'.join(self.components), volume, '_'.join(self.languages), self.preset)
    )

  @classmethod
  def parse(cls, name: str) -> 'MixtureName':
    """The inverse of str(); raises ValueError for a malformed name."""
    parts = name.split('.')
    if len(parts) != 5 or not all(re.fullmatch(r'\w+', part) for part in parts):
      raise ValueError(
        f'mixture name {name!r} is not source.variant.volume.languages.preset, '
        'such as alpaca.base_x2x.3000.en_zh_vi_es.default'
      )
    source, variant, volume, languages, preset = parts
    if volume != 'all' and not volume.isdigit():
      raise ValueError(f"mixture name {name!r}: volume {volume!r} is neither a number nor 'all'")
    codes = tuple(code_of(code) for code in languages.split('_'))
    if codes[0] != 'en' or len(set(codes)) != len(codes):
      raise ValueError(f'mixture name {name!r}: languages must begin with en, each once')
    return cls(
      source, tuple(variant.split('_')), None if volume == 'all' else int(volume), codes, preset
    )
