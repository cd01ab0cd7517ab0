"""`crossin xinstruction distill`: a teacher answers English instructions in the output languages.

Prompt and sampling follow the released code of X-Instruction for ChatGPT
(docs/design/methods.md#b-8-evaluation), without the system message that it sends by mistake.
"""

import collections
from collections.abc import Sequence
import dataclasses
import hashlib
import os
import sys

from crossin_jax import config
from crossin_jax.endpoint import session as endpoint_session
from crossin_jax.endpoint.client import Request, rough_tokens
from crossin_jax.languages import english_name
from crossin_jax.storage.files import write_json
from crossin_jax.translation import translate
from crossin_jax.workflow import command_line
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.baselines import flags

PARAMETERS = {'temperature': 0.7, 'top_p': 1, 'max_tokens': 2048}  # as published
PROMPT = """Given an instruction in English, please generate a response in {language}.

Instruction: {instruction}

### Response:"""


def request(instruction: str, language: str) -> Request:
  """The request to the teacher; an empty or truncated answer is requested again."""
  content = PROMPT.format(language=english_name(language), instruction=instruction)
  expected = min(PARAMETERS['max_tokens'], 200 + rough_tokens(instruction))
  return Request(
    ({'role': 'user', 'content': content},), PARAMETERS, accept=lambda text: bool(text.strip()),
    complete=True, expected_tokens=expected
  )  # fmt: skip


def outcome(reply) -> tuple[str | None, str]:
  """(the response, '') or (None, why there is none)."""
  if reply.accepted:
    return reply.text.strip(), ''
  return (
    None,
    'no reply' if reply.text is None else 'empty' if not reply.text.strip() else 'cut off',
  )


@dataclasses.dataclass(frozen=True)
class Manifest:
  """STEM_distill.json.

  Attributes:
    input: name of the file; asked: its rows.
    model: name of the teacher.
    prompt: digest of the prompt.
    parameters: as published; changed: by the user.
    style: of the prompts in the rows.
    rows: language -> rows written.
    set_aside: language -> reason -> rows without a response.
  """

  input: str
  model: str
  prompt: str
  parameters: dict
  changed: object
  style: str
  asked: int
  rows: dict[str, int]
  set_aside: dict[str, dict[str, int]]


def write(
  args, languages: Sequence[str], asked: Sequence[tuple[str, str]], outcomes: dict
) -> Manifest:
  """Writes the files of all languages, the rows without a response and the manifest.

  Args:
    args: of the command line.
    languages: codes.
    asked: (id, instruction) of the rows.
    outcomes: (language, number of the row) -> `outcome`.
  """
  stem, style, counts, skipped = args.output, rows_lib.STYLES[args.style], {}, []
  manifest_path = f'{stem}_distill.json'
  if os.path.exists(manifest_path):
    # Without a manifest, files of two runs cannot be taken for one result.
    os.unlink(manifest_path)
  for language in languages:
    rows = []
    for number, (id_, instruction) in enumerate(asked):
      text, reason = outcomes[language, number]
      row = {'id': id_, 'language': language}
      if reason:
        skipped.append(row | {'row': number, 'reason': reason, 'instruction': instruction})
      else:
        styled = style(instruction, language)
        rows.append(row | {'instruction': styled, 'output': text, 'source': 'distilled'})
    counts[language] = rows_lib.write(f'{stem}_{language}.json', rows)
  rows_lib.write(f'{stem}_set_aside.jsonl', skipped)
  if empty := [language for language in languages if not counts[language]]:
    raise ValueError(f'no row came through in {", ".join(empty)}; {stem}_set_aside.jsonl says why')
  manifest = Manifest(
    os.path.basename(args.input),
    args.model,
    hashlib.sha256(PROMPT.encode()).hexdigest()[:16],
    PARAMETERS,
    changed=args.parameter,
    style=args.style,
    asked=len(asked),
    rows=counts,
    set_aside={
      language: dict(collections.Counter(r['reason'] for r in skipped if r['language'] == language))
      for language in languages
    },
  )
  write_json(manifest_path, dataclasses.asdict(manifest))
  return manifest


def main(argv: list[str]) -> int:
  """The command line of `crossin xinstruction distill`."""
  args = flags.parser().parse_args(argv)
  config.parse(args)
  languages = rows_lib.checked_languages(args.languages)
  args.output = rows_lib.checked_output(args.output, languages, [args.input])
  read = translate.read(args.input)
  asked = [(row.id or str(row.number), rows_lib.joined(*row.texts[:2])) for row in read]
  places = [(language, number) for language in languages for number in range(len(asked))]
  requests = [request(asked[number][1], language) for language, number in places]
  outcomes = dict.fromkeys(places, (None, 'no reply'))
  what = f'{len(asked):,} instructions, {len(languages)} language(s)'
  folder = os.path.dirname(args.output)
  with endpoint_session.session(args, [args.model], folder, requests, what) as session:
    if args.dry_run:
      return _done(args, session.dry_run())
    for reply in session.endpoint.complete(requests, progress='distill', check=session.check):
      outcomes[places[reply.index]] = outcome(reply)
    used = session.endpoint.counts().as_json()
  manifest = write(args, languages, asked, outcomes)
  for language in languages:
    reasons = ', '.join(
      f'{reason} {count}' for reason, count in manifest.set_aside[language].items()
    )
    print(f'{args.output}_{language}.json: {manifest.rows[language]:,} '
          f'rows{f", set aside: {reasons}" if reasons else ""}', file=sys.stderr)  # fmt: skip
  if used['failed']:
    print('rows without a reply are asked for again by the same command', file=sys.stderr)
  return _done(args, dataclasses.asdict(manifest) | {'endpoint': used})


def _done(args, result: dict, status: int = 0) -> int:
  return command_line.finish(args, {'status': status, **result}, status)
