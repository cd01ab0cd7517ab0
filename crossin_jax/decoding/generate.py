"""`crossin generate`: answers the prompts of a JSONL file, one output row for each input row."""

import collections
from collections.abc import Iterator
import contextlib
import dataclasses
import hashlib
import os
import sys
import time

import jax
import numpy as np

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data import conversations
from crossin_jax.decoding import flags, nonfinite
from crossin_jax.decoding import journal as journals
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.journal import Journal
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Generation, Prompt
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.errors import Interrupted
from crossin_jax.processes import distributed, interruption, sharing
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.progress import Progress
from crossin_jax.storage import lease, mirror, records, remote
from crossin_jax.storage.json_rows import JsonRows
from crossin_jax.workflow import command_line


def read_rows(path: str, tags: bool = False) -> list[dict]:
  """Reads and checks all rows of an input file.

  Args:
    path: JSONL. A row has "prompt" (text that is used as it is), "instruction" and "input"
      (rendered with the model's training template), or "messages" (a conversation that ends with a
      question, rendered with the chat template); "id" and "language" are optional.
    tags: require "language" in every row that is rendered.

  Raises:
    ValueError: a malformed row. Names file, line and field of the first one, and how many others
      there are.
  """
  rows, problems = [], []
  for where, row in records.read_records(path, problems):
    if problem := _problem(row, tags):
      problems.append(f'{where}: {problem}')
    rows.append(row)
  if problems:
    more = f' ({len(problems) - 1} more rows are malformed)' if len(problems) > 1 else ''
    raise ValueError(f'{problems[0]}{more}')
  if not rows:
    raise ValueError(f'{path} has no rows')
  return rows


def _problem(row: dict, tags: bool) -> str | None:
  """What is wrong with a row, and the remedy; None if it is valid."""
  if sum(field in row for field in ('prompt', 'instruction', 'messages')) != 1:
    return (
      'give either field "prompt" (text as it is), or "instruction" or "messages" (rendered with '
      'the template)'
    )
  if 'messages' in row:
    if not isinstance(row['messages'], list):
      return f'field "messages" is a {type(row["messages"]).__name__}, it must be a list of turns'
    try:
      conversations.question(row['messages'])
    except ValueError as error:
      return str(error)
  for field in ('prompt', 'instruction', 'input', 'language'):
    if field in row and not isinstance(row[field], str):
      return f'field "{field}" is a {type(row[field]).__name__}, it must be a string'
  if 'id' in row and not isinstance(row['id'], (str, int)):
    return f'field "id" is a {type(row["id"]).__name__}, it must be a string or an integer'
  if 'instruction' in row and not row['instruction'].strip():
    return 'field "instruction" is empty; write the instruction, or give "prompt" for plain text'
  if tags and 'prompt' not in row and not row.get('language'):
    return 'field "language" is missing; generate.tags needs it to name the answer\'s language'
  return None


def prompt_tokens(row: dict, prompts: Prompts, tags: bool = False) -> list[int]:
  """Token ids of the prompt of one row, with BOS if the tokenizer has one.

  Args:
    row: see `read_rows`.
    prompts: template and tokenizer.
    tags: append "[language]" to instructions, as the cross-lingual modes do in training.
  """
  if 'prompt' not in row:
    return prompts.tokens(row, f'[{row["language"]}]' if tags else '')
  return prompts.plain(row['prompt'])


@config.configurable(commands=('chunks',))
def generate(
  checkpoint: str,
  input_path: str,
  output_path: str,
  model,
  *,
  tags: bool = False,
  sampling: Sampling | None = None,
  partitioner=Partitioner,
) -> dict | None:
  """Answers the rows of a file, or continues an earlier run on it.

  Appends each answer as it finishes: the input row, with "id", "index", "sample" (if there are
  several), "output", "tokens" and "finish_reason". At the end it sorts the output into the order
  of the input. `Sampling` and `Generator` have the settings, in gin.

  Args:
    checkpoint: a MODEL_DIR, one of its checkpoints, or a Hugging Face directory.
    input_path: see `read_rows`.
    output_path: JSONL. `output_path`.run.json records the settings of the run. An output on gs://
      is uploaded every 30 s.
    model: the model of the checkpoint.
    tags: append "[language]" to instructions, as the cross-lingual modes do in training.
    sampling: how to choose the next token; None = the gin settings.
    partitioner: mesh and axis rules.

  Returns:
    Counts of the complete output, or None after an interruption.

  Raises:
    ValueError: a malformed row, or a vocabulary that does not fit the model.
    JournalError: the output belongs to another run.
    InUse: another process writes the remote output.
    NonFiniteLogits: names row and step; the answers that ended before are in the output.
  """
  rows = read_rows(input_path := remote.fetched(input_path), tags)
  sampling = sampling or Sampling()
  source = SavedModel.open(checkpoint)
  check_vocabulary(model, source.prompts.vocabulary)
  settings = lambda: _run_settings(input_path, source, sampling, tags)
  with (
    _local_output(output_path) as (local_path, check_lock),
    interruption.StopSignal(at_once=True),
    journals.on_chief(local_path, output_path, settings) as journal,
  ):
    done = _finished_answers(journal, len(rows), sampling.samples)
    progress = Progress(done.size, f'generate {os.path.basename(output_path)}: answer')
    finished, tokens = int(done.sum()), 0
    progress.show(finished, force=True)
    try:
      stream = _answers(source, model, partitioner, rows, done, sampling, tags)
      with contextlib.closing(stream):
        for index, answer, seconds in stream:
          if journal:
            check_lock()
            journal.append(_output_row(rows, index, answer, sampling))
          finished, tokens = finished + 1, tokens + len(answer.tokens)
          if jax.process_index() == 0:
            progress.show(finished, f'{tokens / max(1e-9, seconds):.0f} tokens/s')
    except Interrupted:
      print(
        f'interrupted: {finished} of {done.size} answers are in {output_path}; start the same '
        'command again to continue',
        file=sys.stderr,
      )
      return None
    if journal:
      journal.finish()
    return summary(local_path) | {'output': output_path} if jax.process_index() == 0 else {}


def check_vocabulary(model, vocabulary) -> None:
  size = getattr(getattr(model, 'config', None), 'vocab_size', None)
  if size is not None and size < vocabulary.size:
    raise ValueError(
      f'{vocabulary.path} has {vocabulary.size} ids, the model {size}. Give the tokenizer of the '
      f'model; or, where it has new tokens, DecoderConfig.vocab_size={vocabulary.size} adds '
      'rows for them (untrained: the mean of the others)'
    )


def _named(rows: list[dict], row: int) -> str:
  return f'row {row + 1} of the input (id {rows[row].get("id", row)!r})'


def _answers(
  source: SavedModel, model, partitioner, rows: list[dict], done: np.ndarray, sampling, tags: bool
) -> Iterator[tuple[int, Generation, float]]:
  """Generates the answers that `done`, bool [rows, samples], lacks.

  Yields:
    (row index, answer, seconds since generation began).
  """
  if done.all():
    return
  missing = [i for i in range(len(rows)) if not done[i].all()]
  todo = [
    Prompt(
      prompt_tokens(rows[i], source.prompts, tags), i, samples=np.flatnonzero(~done[i]).tolist()
    )
    for i in missing
  ]
  vocabulary, partition = source.prompts.vocabulary, partitioner()
  partition.suit(model, training=False)
  with partition.activate():
    params = source.params(model, partition)
    interruption.check()
    generator = Generator(
      model, params, partition, bos_id=None, stop_ids=source.stop_ids,
      sampling=sampling, decode=vocabulary.decode,
    )  # fmt: skip
    del params
    started = time.monotonic()
    with nonfinite.naming(lambda index: _named(rows, missing[index])):
      for answer in generator.stream(todo):
        yield missing[answer.index], answer, time.monotonic() - started


@contextlib.contextmanager
def _local_output(path: str):
  """Locks a remote output, copies it to this machine and uploads it as it grows.

  Yields:
    (local path, function that raises InUse once another process has taken the output over).
  """
  if not remote.is_remote(path) or jax.process_index():
    yield path, lambda: None
    return
  folder, name = path.rsplit('/', 1)
  with (
    lease.Lock(f'{path}.lock') as lock,
    mirror.Mirror(folder, names=(name, f'{name}.run.json'), markers=(name,)) as files,
  ):
    files.check = lock.check
    yield os.path.join(files.path, name), lock.check


def _output_row(rows: list[dict], index: int, answer: Generation, sampling: Sampling) -> dict:
  return {
    **rows[index],
    'id': rows[index].get('id', index),
    'index': index,
    **({'sample': answer.sample} if sampling.samples > 1 else {}),
    'output': answer.text,
    'tokens': len(answer.tokens),
    'finish_reason': answer.finish_reason,
  }


def _run_settings(input_path: str, source: SavedModel, sampling: Sampling, tags: bool) -> dict:
  """Everything the answers depend on, flat, for the journal to compare."""
  with open(input_path, 'rb') as f:
    digest = hashlib.file_digest(f, 'sha256').hexdigest()
  settings = {f'Sampling.{name}': value for name, value in dataclasses.asdict(sampling).items()}
  settings['Sampling.stop'] = list(sampling.stop)
  return {
    'sha256 of the input': digest,
    'digest of the weights': source.digest,
    'template': source.prompts.template,
    'tokenizer': source.prompts.vocabulary.digest,
    'generate.tags': tags,
    **settings,
  }


def _finished_answers(journal: Journal | None, rows: int, samples: int) -> np.ndarray:
  """Which answers host 0 has in its journal: bool [rows, samples], the same on every host."""
  done = np.zeros((rows, samples), bool)
  for index, sample in journal.done if journal else ():
    if index < rows and sample < samples:
      done[index, sample] = True
  return sharing.from_chief(done)


def summary(output_path: str) -> dict:
  """{'output', 'answers', 'tokens', 'finish_reasons'} of a finished file."""
  rows = (row for _, row in JsonRows(output_path).lines())
  counts = [(row['finish_reason'], row['tokens']) for row in rows]
  return {
    'output': output_path,
    'answers': len(counts),
    'tokens': sum(tokens for _, tokens in counts),
    'finish_reasons': dict(collections.Counter(reason for reason, _ in counts)),
  }


def main(argv: list[str]) -> int:
  """The command line of `crossin generate`."""
  args = flags.parser().parse_args(argv)
  if not remote.exists(args.input):
    raise ValueError(f'{args.input} is not a file; give a JSONL file with --input')
  model = SavedModel.open(args.checkpoint).module(args)
  distributed.initialize(args)
  counts = generate(args.checkpoint, args.input, args.output, model)
  if counts is None:
    return command_line.finish(args, {'status': RESTART}, RESTART)
  return command_line.finish(args, {'status': 0, **counts})
