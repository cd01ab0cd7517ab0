"""`crossin xinstruction translated`: the baseline of translated instruction data, as rows of a
mixture.

The instruction of a row is the English one, its response that of the language, as in an
X-Instruction set: so both are trained on and asked in one form.
"""

from collections.abc import Iterator, Sequence
import os
import sys

from crossin_jax.languages import code_of
from crossin_jax.workflow import command_line
from crossin_jax.xinstruction import rows as rows_lib


def rows(
  stem: str, language: str, style: str = 'assistant'
) -> tuple[Iterator[dict], dict[str, int]]:
  """Rows {"id", "instruction" (English), "output", "language", "source"} of a language, and how
  many were set aside why.

  Args:
    stem: of aligned files, `tr/rows` for tr/rows_en.json and tr/rows_sw.json, as `crossin
      translate` writes them; see `seqio_tasks.sources.ParallelFiles`.
    language: code.
    style: of the prompt, of `rows.STYLES`.

  Raises:
    ValueError: a missing or malformed file.
  """
  from seqio_tasks.sources import ParallelFiles

  source, styled = ParallelFiles(stem, ('en', language)), rows_lib.STYLES[style]
  aside: dict[str, int] = {}
  for (_, reason), count in source.set_aside().items():
    aside[reason] = aside.get(reason, 0) + count

  def made():
    for index, id_ in enumerate(source.ids()):
      english = source.row(index, 'en')
      instruction = styled(rows_lib.joined(english['instruction'], english['input']), language)
      output = source.row(index, language)['output']
      yield {
        'id': id_,
        'instruction': instruction,
        'output': output,
        'language': language,
        'source': 'translated',
      }

  return made(), aside


def checked_languages(text: str) -> list[str]:
  """Codes of languages separated by commas; ValueError for English, in which the instructions are."""
  languages = list(dict.fromkeys(code_of(language) for language in text.split(',')))
  if 'en' in languages:
    raise ValueError(
      "--languages names 'en'; the instructions are English by themselves, name the languages of "
      'the responses'
    )
  return languages


def checked_output(stem: str, languages: Sequence[str], inputs: Sequence[str]) -> str:
  """The stem in full; ValueError where a file of it would overwrite an input."""
  stem = os.path.abspath(stem)
  for path in (f'{stem}_{language}.json' for language in languages):
    if any(
      os.path.exists(one) and os.path.exists(path) and os.path.samefile(one, path) for one in inputs
    ):
      raise ValueError(f'{path} is an input and would be overwritten; choose another --output')
  return stem


def main(argv: list[str]) -> int:
  """The command line of `crossin xinstruction translated`."""
  parser = command_line.Parser(
    'xinstruction translated',
    'The baseline of translated data: English instruction, response in the language, from aligned '
    'rows. Writes STEM_LANG.json for --gin.TRANSLATED of gin_configs/mixtures/xinstruction.gin.',
    'crossin translate --input rows.en.json --languages sw,ta --output_dir tr --endpoint URL '
    '--model NAME; crossin xinstruction translated --rows tr/rows --languages sw,ta --output '
    'baselines/translated',
  )
  parser.add_argument(
    '--rows', required=True, metavar='STEM', help='of aligned files, STEM_en.json, STEM_sw.json ...'
  )
  parser.add_argument('--languages', required=True, help='of the responses, separated by commas')
  parser.add_argument(
    '--output', required=True, metavar='STEM', help='of the files that are written'
  )
  parser.add_argument(
    '--style', choices=rows_lib.STYLES, default='assistant', help='of the prompt (assistant)'
  )
  args = parser.parse_args(argv)
  languages, counts, aside = checked_languages(args.languages), {}, {}
  from crossin_jax.data.readers import find_files

  stem = checked_output(
    args.output, languages, list(find_files(args.rows, ('en', *languages)).values())
  )
  for language in languages:
    found, aside[language] = rows(args.rows, language, args.style)
    counts[language] = rows_lib.write(f'{stem}_{language}.json', found)
    told = ', '.join(f'{count:,} {reason}' for reason, count in aside[language].items())
    print(
      f'{stem}_{language}.json: {counts[language]:,} rows{f", set aside: {told}" if told else ""}',
      file=sys.stderr,
    )
  return command_line.finish(args, {'rows': counts, 'set_aside': aside})
