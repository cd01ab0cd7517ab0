"""`crossin xinstruction translated`: translated instruction rows as a baseline.

The instruction of a row is the English one, its response that of the language, as in an
X-Instruction set: so both are trained on and asked in one form.
"""

from collections.abc import Iterator
import sys

from crossin_jax.workflow import command_line
from crossin_jax.xinstruction import rows as rows_lib
from seqio_tasks import flags
from seqio_tasks.sources import ParallelFiles, SourceError


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
  source, styled = ParallelFiles(stem, ('en', language)), rows_lib.STYLES[style]
  aside: dict[str, int] = {}
  for (_, reason), count in source.set_aside().items():
    aside[reason] = aside.get(reason, 0) + count

  def made():
    for index, id_ in enumerate(source.ids()):
      english = source.row(index, 'en')
      if 'messages' in english:
        raise SourceError(
          f'{stem}, id {id_!r}: is a conversation; an X-Instruction row is one question and one '
          'answer. Remove it from the files of all languages'
        )
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


def main(argv: list[str]) -> int:
  """The command line of `crossin xinstruction translated`."""
  args = flags.translated_parser().parse_args(argv)
  languages, counts, aside = rows_lib.checked_languages(args.languages), {}, {}
  from crossin_jax.data.readers import find_files

  stem = rows_lib.checked_output(
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
