"""`crossin pairs`: pairs of answers in several languages, for preference optimisation."""

import argparse
from collections import Counter
from collections.abc import Callable
import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import sys
from typing import Any

import jax

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.data.pair_rows import Counts, write_pairs
from crossin_jax.endpoint import session as endpoint_session
from crossin_jax.evaluation.answers.choices import LETTERS
from crossin_jax.languages import code_of
from crossin_jax.pages import words
from crossin_jax.pairs import flags, page, results
from crossin_jax.pairs import scores as scores_lib
from crossin_jax.pairs.answers import unknown_languages
from crossin_jax.pairs.chunks import Chunks, Worker
from crossin_jax.pairs.endpoint_sampler import EndpointSampler, requests_of
from crossin_jax.pairs.options import option_pairs
from crossin_jax.pairs.questions import Question, asked_of, read_questions
from crossin_jax.pairs.sampler import Sampler, sampling
from crossin_jax.pairs.scores import PIVOT
from crossin_jax.processes import distributed
from crossin_jax.storage.files import read_json, write_json
from crossin_jax.workflow import command_line

# Flags that a mode does not read.
_FOREIGN = {
  'pivot': ('reference', 'leave_out_answer', 'draws', 'seed'),
  'implicit': ('leave_out_answer', 'draws', 'seed', 'endpoint', 'model'),
  'options': (
    'checkpoint',
    'reference',
    'length_control',
    'round',
    'chunk',
    'share',
    'endpoint',
    'model',
  ),
}
_DEFAULTS = {'draws': 1, 'seed': 0, 'round': 1, 'chunk': 16, 'share': '0/1'}


def main(argv: list[str]) -> int:
  """The command line of `crossin pairs`."""
  args = flags.parser().parse_args(argv)
  languages = _checked(args)
  directory = os.path.join(args.output_dir, f'round_{args.round}')
  _check_folder(directory, args.by)
  left_out: Counts = Counter()
  if args.by == 'options':
    config.parse(args)
    questions = read_questions(args.prompts, languages, args.limit, left_out)
    return _options(args, directory, questions, languages, left_out)
  read = read_questions(args.prompts, [*dict.fromkeys([PIVOT, *languages])], args.limit, left_out)
  _check_choices(read)
  questions = [question for question in read if PIVOT in question.asked]
  for question in read:
    if PIVOT not in question.asked:
      left_out.update((code, 'no_english_prompt') for code in languages if code in question.asked)
  if PIVOT not in languages:
    left_out = Counter({key: n for key, n in left_out.items() if key[0] != PIVOT})
  job = _Job(args, directory, questions, languages, left_out)
  return _by_endpoint(job) if args.endpoint else _by_checkpoint(job)


def _checked(args: argparse.Namespace) -> list[str]:
  """The languages; sets defaults in `args`. Raises ValueError."""
  for flag in _FOREIGN[args.by]:
    if getattr(args, flag) not in (None, False):
      raise config.ConfigError(f'--by {args.by} does not read --{flag}; leave it out')
  for flag, value in _DEFAULTS.items():
    if getattr(args, flag) is None:
      setattr(args, flag, value)
  if args.by != 'options' and bool(args.checkpoint) == bool(args.endpoint):
    other = ' or --endpoint URL with --model NAME' if args.by == 'pivot' else ''
    raise config.ConfigError(
      f'--by {args.by} needs one model that answers: --checkpoint DIR{other}'
    )
  if bool(args.endpoint) != bool(args.model):
    raise config.ConfigError('--endpoint URL and --model, the name of the model there, go together')
  for flag, least in (('round', 1), ('chunk', 1), ('draws', 1), ('limit', 1), ('examples', 0)):
    if getattr(args, flag) is not None and getattr(args, flag) < least:
      raise config.ConfigError(f'--{flag} {getattr(args, flag)}: must be at least {least}')
  command_line.share_of(args)
  languages = list(dict.fromkeys(code_of(code) for code in args.languages.split(',')))
  if args.by == 'options' and len(languages) < 2:
    raise config.ConfigError('--by options compares languages; name at least two')
  return languages


def _check_choices(questions: list[Question]) -> None:
  """Raises ConfigError, before anything is sampled, where choices are too many to compare with."""
  for question in questions:
    if (most := max(len(asked.choices) for asked in question.asked.values())) > len(LETTERS):
      raise config.ConfigError(
        f'prompt {question.id} has {most} choices; sampled answers are compared with at most '
        f'{len(LETTERS)}. Leave some out, or use --by options'
      )


def _check_folder(directory: str, by: str) -> None:
  """Raises ConfigError if the folder has the work of another mode."""
  for name in ('run.json', 'pairs.json'):
    path = os.path.join(directory, name)
    if os.path.exists(path):
      before = read_json(path, f'delete {directory} to restart').get('by')
      if before != by:
        raise config.ConfigError(
          f'{directory} has the pairs of --by {before}; choose another --output_dir'
        )


# ---- options ----


def _options(args, directory: str, questions, languages: list[str], left_out: Counts) -> int:
  tally = results.Tally(left_out)
  rows = option_pairs(
    questions, languages, draws=args.draws, leave_out_answer=args.leave_out_answer,
    seed=args.seed, left_out=left_out,
  )  # fmt: skip
  made_by = {'draws': args.draws, 'leave_out_answer': args.leave_out_answer, 'seed': args.seed}
  return _write(
    args, directory, tally.passing(rows), len(questions), made_by, lambda: tally.figures(languages)
  )


# ---- sampled answers ----


@dataclasses.dataclass(frozen=True)
class _Job:
  """What both kinds of sampling get.

  Attributes:
    args: of the command line.
    directory: of the round.
    questions, languages, left_out: to ask, to make pairs in, and rows that were left out.
  """

  args: argparse.Namespace
  directory: str
  questions: list[Question]
  languages: list[str]
  left_out: Counts

  @property
  def asked(self) -> list[str]:
    """The languages in which the model is asked."""
    first = [PIVOT] if self.args.by == 'pivot' else []
    return list(dict.fromkeys([*first, *self.languages]))

  def run(self, worker: Callable[[], Worker], model: dict[str, Any], made_by: dict) -> int:
    """Computes the missing chunks of this share, then writes the pairs if none is missing.

    Args:
      worker: see `Chunks.compute`.
      model: what the answers of the model depend on.
      made_by: for pairs.json.
    """
    args, samples = self.args, sampling().samples
    chunks = Chunks(self.directory, self.questions, args.chunk)
    chunks.begin(_settings(args, model, self.questions, self.asked))
    count = lambda question: samples * sum(code in question.asked for code in self.asked)
    chunks.compute(worker, command_line.share_of(args), count)
    if missing := len(chunks.missing()):
      print(
        f'{missing} of {len(chunks)} chunks are still missing; the worker that finishes the last '
        'one writes the pairs',
        file=sys.stderr,
      )
      return command_line.finish(args, {'status': 0, 'chunks': len(chunks), 'missing': missing})
    if jax.process_index():
      return 0
    made_by |= {'samples': samples}
    return _assemble(
      args, self.directory, chunks, self.questions, self.languages, self.left_out, made_by
    )


def _check_samples() -> None:
  if sampling().samples < 2:
    raise config.ConfigError('Sampling.samples = 1: a pair needs at least 2 answers to a prompt')


def _by_checkpoint(job: _Job) -> int:
  args, reference = job.args, None
  source = SavedModel.open(args.checkpoint)
  if args.by == 'implicit':
    reference = _reference(args, source)
  _check_round(args, source)
  # The flags of the last module that is configured are in force.
  module_of = {}
  for model in filter(None, (reference, source)):
    module_of[model.path] = model.module(copy.deepcopy(args))
  distributed.initialize(args)
  _check_samples()

  def worker() -> Worker:
    sampler = Sampler(source, module_of[source.path])
    if args.by == 'pivot':
      scored = scores_lib.nearness(sampler, job.questions)
    else:
      scored = scores_lib.implicit_reward(sampler, Sampler(reference, module_of[reference.path]))
    return lambda part, finished: scored(part, sampler.answers(part, job.asked, finished))

  own = {
    f'Sampler.{name}': config.bound(f'Sampler.{name}')
    for name in ('prompt_tokens', 'vector_tokens')
  }
  model = {
    'digest of the weights': source.digest,
    'digest of the reference': reference and reference.digest,
    'template': source.prompts.template,
    'tokenizer': source.prompts.vocabulary.digest,
  } | own
  told = lambda model: model and {'path': model.path, 'digest': model.digest}
  return job.run(worker, model, {'checkpoint': told(source), 'reference': told(reference)})


def _by_endpoint(job: _Job) -> int:
  args = job.args
  config.parse(args)
  _check_round(args, None)
  _check_samples()
  asked = asked_of(job.questions, job.asked)
  if config.bound('nearness.embedder') is None and not all(
    question.asked[language].choices for question, language in asked
  ):
    raise config.ConfigError(
      'an endpoint gives no hidden states to compare answers by: set nearness.embedder '
      '(nearness.embedder="@SentenceEmbedder()" with SentenceEmbedder.name), or ask '
      'questions with choices'
    )
  requests = requests_of(asked, sampling())
  with endpoint_session.session(args, [args.model], job.directory, requests) as session:
    if args.dry_run:
      return command_line.finish(args, {'status': 0, **session.dry_run()})
    sampler = EndpointSampler(session.endpoint, sampling())
    scored = scores_lib.nearness(sampler, job.questions)
    work = lambda part, finished: scored(part, sampler.answers(part, job.asked, finished))
    named = {'path': f'{args.model} at {args.endpoint}', 'digest': None}
    return job.run(lambda: work, {'model at the endpoint': args.model}, {'checkpoint': named})


def _reference(args, source: SavedModel) -> SavedModel:
  """The model of which the checkpoint is a tuned one. Raises ConfigError."""
  path = args.reference or (source.base['path'] if source.has_adapters else None)
  if path is None:
    raise config.ConfigError(
      '--by implicit needs --reference: the model that --checkpoint was tuned from'
    )
  reference = SavedModel.open(path)
  if reference.digest == source.digest:
    raise config.ConfigError(
      f'--reference {path} has the same weights as --checkpoint: all rewards would be 0. Give the '
      'model before its preference tuning'
    )
  if reference.prompts.vocabulary.digest != source.prompts.vocabulary.digest:
    raise config.ConfigError(
      f'--reference {path} has another tokenizer than --checkpoint; give the model that it was '
      'tuned from'
    )
  return reference


def _check_round(args, source: SavedModel | None) -> None:
  """Raises ConfigError if a later round would sample from the model of the one before.

  Args:
    args: of the command line.
    source: the model; None = it is behind an endpoint, and its weights are not known.
  """
  if args.round == 1:
    return
  path = os.path.join(args.output_dir, f'round_{args.round - 1}', 'pairs.json')
  before = read_json(path, f'finish round {args.round - 1} first, with the same --output_dir')
  # `options` has no model.
  if source and (before['checkpoint'] or {}).get('digest') == source.digest:
    raise config.ConfigError(
      f'--round {args.round}: {args.checkpoint} has the weights that answered in round '
      f'{args.round - 1}; train on {os.path.dirname(path)}/pairs.jsonl first, and give that model'
    )


def _settings(
  args, model: dict[str, Any], questions: list[Question], asked: list[str]
) -> dict[str, Any]:
  """Everything that chunks depend on, flat."""
  digest = hashlib.sha256()
  for question in questions:
    own = {language: dataclasses.astuple(one) for language, one in question.asked.items()}
    digest.update(json.dumps([question.id, own]).encode())
  embedder = config.resolve(config.bound('nearness.embedder'))
  embedder = getattr(embedder, '__qualname__', embedder and repr(embedder))
  drawn = {f'Sampling.{k}': v for k, v in dataclasses.asdict(sampling()).items()}
  return {
    'by': args.by,
    'round': args.round,
    'digest of the prompts': digest.hexdigest(),
    'languages asked': asked,
    'prompts of a chunk': args.chunk,
    **model,
    'nearness.embedder': embedder,
    **drawn,
    'Sampling.stop': list(sampling().stop),
  }


def _assemble(
  args, directory: str, chunks: Chunks, questions, languages: list[str], left_out: Counts,
  made_by: dict,
) -> int:  # fmt: skip
  """Picks the pairs, once all chunks are there."""
  controlled = args.length_control or ('on' if args.by == 'implicit' else 'off')
  alphas = results.alphas(chunks, languages, args.by) if controlled == 'on' else {}
  tally = results.Tally(left_out)
  rows = results.rows_of(chunks, languages, args.by, alphas, tally)
  unchecked = unknown_languages(languages)
  made_by |= {'round': args.round, 'unchecked_languages': unchecked}
  return _write(
    args, directory, rows, len(questions), made_by, lambda: tally.figures(languages, alphas),
  )  # fmt: skip


# ---- files ----


def _write(args, directory: str, rows, questions: int, made_by: dict, figures) -> int:
  """Writes pairs, page and, last, the results; `figures()` has them once all rows passed."""
  path = {kind: os.path.join(directory, f'pairs.{kind}') for kind in ('jsonl', 'json', 'html')}
  with contextlib.suppress(FileNotFoundError):
    os.unlink(path['json'])  # until all files are of this run
  write_pairs(path['jsonl'], rows)
  fixed = {'checkpoint': None, 'reference': None, 'round': 1, 'samples': None}
  found = {
    'by': args.by, **fixed, 'unchecked_languages': [], **made_by, 'prompts': args.prompts,
    'questions': questions, **results.as_json(figures()),
  }  # fmt: skip
  page.write(path['html'], path['jsonl'], found, args.examples)
  write_json(path['json'], found)
  _print(found, directory)
  if not found['pairs']:
    print('warning: no pairs; pairs.html says why', file=sys.stderr)
  return command_line.finish(args, {'status': 0, 'output': path['jsonl'], **found})


def _print(found: dict, directory: str) -> None:
  """The table and where the files are."""
  lines = [('language', 'prompts', 'pairs', 'chosen', 'rejected', 'alpha', 'without a pair')]
  for language, own in found['by_language'].items():
    lengths = own['characters'] or {}
    lines.append((
      words.language_name(language), str(own['questions']), str(own['pairs']),
      *(f'{lengths[side]:.1f}' if lengths else '-' for side in ('chosen', 'rejected')),
      '-' if own['alpha'] is None else f'{own["alpha"]:.5g}',
      ', '.join(f'{reason} {n}' for reason, n in own['left_out'].items()),
    ))  # fmt: skip
  print(words.aligned(lines), file=sys.stderr)
  count = f'{found["pairs"]:,} pairs'
  if found['by'] == 'options':
    count = f'{found["pairs"]:,} rows, two for each of {found["pairs"] // 2:,} instances,'
  print(f'{count} in {directory}/pairs.jsonl; page: pairs.html', file=sys.stderr)
