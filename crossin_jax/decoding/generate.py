"""`crossin generate`: answers to the prompts of a JSONL file, one row each."""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time

import jax
import numpy as np

from crossin_jax import config
from crossin_jax import progress as metrics
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data.prepared import PreparedDataError
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.journal import Journal, JournalError
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.errors import Interrupted
from crossin_jax.processes import distributed, interruption
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.storage import lease, mirror, remote
from crossin_jax.workflow import command_line


def read_rows(path: str, tags: bool = False) -> list[dict]:
  """The rows of an input file, all checked.

  Args:
    path: JSONL, a row a line: {"prompt"} for text that is taken as it is, or {"instruction",
      "input"} for the template that the model was trained with; "id" and "language" if you like.
    tags: every row with an instruction needs its "language".

  Raises:
    ValueError: names file, line and field of the first malformed row, and how many there are.
  """
  rows, problems = [], []
  try:
    with open(path, encoding='utf-8') as f:
      for number, line in enumerate(f, start=1):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
          problem = _problem(row, tags)
        except ValueError as error:
          row, problem = None, f'not valid JSON ({error})'
        if problem:
          problems.append(f'{path}, line {number}: {problem}')
        rows.append(row)
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 ({error}); convert it') from None
  if problems:
    more = f' ({len(problems) - 1} more rows are malformed)' if len(problems) > 1 else ''
    raise ValueError(f'{problems[0]}{more}')
  if not rows:
    raise ValueError(f'{path} holds no row')
  return rows


def _problem(row, tags: bool) -> str | None:
  """What is wrong with a row, with the remedy; None if nothing is."""
  if not isinstance(row, dict):
    return f'a {type(row).__name__}, it must be an object like {{"prompt": "..."}}'
  if ('prompt' in row) == ('instruction' in row):
    return (
      'give either field "prompt" (text as it is) or "instruction" (rendered with the template)'
    )
  for field in ('prompt', 'instruction', 'input', 'language'):
    if field in row and not isinstance(row[field], str):
      return f'field "{field}" is a {type(row[field]).__name__}, it must be a text'
  if 'id' in row and not isinstance(row['id'], (str, int)):
    return f'field "id" is a {type(row["id"]).__name__}, it must be a text or a whole number'
  if 'instruction' in row and not row['instruction'].strip():
    return 'field "instruction" is empty; write what is asked, or give "prompt" for plain text'
  if tags and 'instruction' in row and not row.get('language'):
    return 'field "language" is missing; with generate.tags it says in which language to answer'
  return None


def prompt_tokens(row: dict, prompts: Prompts, tags: bool = False) -> list[int]:
  """Ids of the prompt of one row, without BOS.

  Args:
    row: see `read_rows`.
    prompts: template and tokenizer.
    tags: put "[language]" on instructions, as the cross-lingual modes do in training.
  """
  if 'instruction' in row:
    return prompts.tokens(row, f'[{row["language"]}]' if tags else '')
  ids = prompts.vocabulary.encode_with_specials(row['prompt']) if row['prompt'] else []
  return ids[1:] if ids[:1] == [prompts.vocabulary.bos_id] else ids


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
  """Answers the rows of a file, or goes on with it.

  Rows {"id", "index", "sample" where there are several, "output", "tokens", "finish_reason"}, and
  what else the input row has, are appended as they finish; at the end they are put into the order
  of the input. How they are generated is `Sampling` and `Generator`, in gin.

  Args:
    checkpoint: a MODEL_DIR, one of its checkpoints, or a Hugging Face directory.
    input_path: see `read_rows`.
    output_path: JSONL; what made it is noted in `output_path`.run.json. On gs:// it is pushed every
      30 s.
    model: the model of the checkpoint.
    tags: put "[language]" on instructions, as the cross-lingual modes do in training.
    sampling: how the next token is chosen; None = as gin says.
    partitioner: mesh and axis rules.

  Returns:
    Figures of the whole output, or None when told to stop.

  Raises:
    ValueError: a malformed row, a vocabulary that is not the model's. JournalError: an output of
      another run. InUse: a remote output that another process writes.
  """
  rows = read_rows(input_path := remote.fetched(input_path), tags)
  sampling = sampling or Sampling()
  source = SavedModel.open(checkpoint)
  prompts = source.prompts
  vocabulary = prompts.vocabulary
  if (
    size := getattr(getattr(model, 'config', None), 'vocab_size', None)
  ) is not None and size < vocabulary.size:
    raise ValueError(
      f'{vocabulary.path} has {vocabulary.size} ids, the model {size}; they do not belong together'
    )
  with (
    _local(output_path) as (local_path, check),
    interruption.StopSignal(),
    _journal_on_chief(
      local_path, output_path, lambda: _made_from(input_path, source, sampling, tags)
    ) as journal,
  ):
    done = _agreed(journal, len(rows), sampling.samples)
    progress = metrics.Progress(done.size, f'generate {os.path.basename(output_path)}: answer')
    finished = int(done.sum())
    progress.show(finished, force=True)
    try:
      if finished < done.size:
        wanted = [i for i in range(len(rows)) if not done[i].all()]
        todo = [
          Prompt(
            prompt_tokens(rows[i], prompts, tags), id=i, samples=np.flatnonzero(~done[i]).tolist()
          )
          for i in wanted
        ]
        partition = partitioner()
        partition.suit(model, training=False)
        with partition.activate():
          params = source.params(model, partition)
          interruption.check()
          generator = Generator(
            model,
            params,
            partition,
            bos_id=vocabulary.bos_id,
            stop_ids=source.stop_ids,
            sampling=sampling,
            decode=vocabulary.decode,
          )
          del params
          tokens, started = 0, time.monotonic()
          for answer in generator.stream(todo):
            if journal:
              check()
              journal.append(_output_row(rows, wanted[answer.index], answer, sampling))
            finished, tokens = finished + 1, tokens + len(answer.tokens)
            if jax.process_index() == 0:
              progress.show(
                finished, f'{tokens / max(1e-9, time.monotonic() - started):.0f} tokens/s'
              )
    except Interrupted:
      print(f'told to stop: {finished} of {done.size} answers are in {output_path}; start the '
            'same command again to go on', file=sys.stderr)  # fmt: skip
      return None
    if journal:
      journal.finish()
    return summary(local_path) | {'output': output_path} if jax.process_index() == 0 else {}


@contextlib.contextmanager
def _local(path: str):
  """The output on this machine; a remote one is brought here, pushed as it grows, and nobody else
  writes it meanwhile.

  Yields:
    Its path here, and what raises InUse once another process writes it.
  """
  if not remote.is_remote(path) or jax.process_index():
    yield path, lambda: None
    return
  folder, name = path.rsplit('/', 1)
  note = f'{name}.run.json'
  with (
    lease.Lock(f'{path}.lock') as lock,
    mirror.Mirror(folder, names=(name, note), markers=(name,)) as files,
  ):
    files.check = lock.check
    yield os.path.join(files.path, name), lock.check


def _output_row(rows: list[dict], index: int, answer, sampling: Sampling) -> dict:
  sample = {'sample': answer.sample} if sampling.samples > 1 else {}
  return {
    **rows[index],
    'id': rows[index].get('id', index),
    'index': index,
    **sample,
    'output': answer.text,
    'tokens': len(answer.tokens),
    'finish_reason': answer.finish_reason,
  }


def _made_from(input_path: str, source: SavedModel, sampling: Sampling, tags: bool) -> dict:
  """What the answers depend on, flat, for the journal to compare."""
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


@contextlib.contextmanager
def _journal_on_chief(path: str, name: str, made_from):
  """The journal on host 0, None elsewhere; if it cannot be opened, all hosts raise. Messages speak
  of `name`.
  """
  problem, journal = None, None
  if jax.process_index() == 0:
    try:
      journal = Journal(path, made_from())
    except (JournalError, PreparedDataError) as error:
      # Where this disk cannot be written, it is about the file here.
      is_here = isinstance(error.__context__, OSError) and not isinstance(
        error.__context__, BlockingIOError
      )
      problem = error if is_here else type(error)(str(error).replace(path, name))
    except Exception as error:  # raised again once the others know
      problem = error
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    if multihost_utils.broadcast_one_to_all(np.asarray(problem is not None)) and problem is None:
      raise ValueError('host 0 cannot open the output; it says why')
  if problem is not None:
    raise problem
  try:
    yield journal
  finally:
    if journal:
      journal.close()


def _agreed(journal: Journal | None, rows: int, samples: int) -> np.ndarray:
  """What host 0 finds done, bool [rows, samples], on every host."""
  done = np.zeros((rows, samples), bool)
  for index, sample in journal.done if journal else ():
    if index < rows and sample < samples:
      done[index, sample] = True
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    done = np.asarray(multihost_utils.broadcast_one_to_all(done))
  return done


def summary(output_path: str) -> dict:
  """{'output', 'answers', 'tokens', 'finish_reasons'} of a finished file."""
  reasons, tokens = collections.Counter(), 0
  with open(output_path, encoding='utf-8') as f:
    for line in f:
      row = json.loads(line)
      reasons[row['finish_reason']] += 1
      tokens += row['tokens']
  return {
    'output': output_path,
    'answers': sum(reasons.values()),
    'tokens': tokens,
    'finish_reasons': dict(reasons),
  }


def main(argv: list[str]) -> int:
  """The command line of `crossin generate`."""
  parser = command_line.Parser(
    'generate',
    'Answer the rows of a JSONL file ({"prompt"}, or {"instruction", "input"}).',
    'crossin generate --checkpoint runs/a --input questions.jsonl --output answers.jsonl '
    '--gin.Sampling.temperature=0.7 --gin.Sampling.max_new_tokens=200 --gin.Generator.rows=128',
    gin=True,
    processes=True,
  )
  parser.add_argument(
    '--checkpoint',
    required=True,
    help='a MODEL_DIR, one of its checkpoints, or a Hugging Face directory',
  )
  parser.add_argument('--input', required=True, help='JSONL; a row a line')
  parser.add_argument(
    '--output', required=True, help='JSONL; appended to, and put into order at the end'
  )
  args = parser.parse_args(argv)
  if not remote.exists(args.input):
    raise ValueError(f'{args.input} is not a file; give a JSONL file with --input')
  model = SavedModel.open(args.checkpoint).module(args)
  distributed.initialize(args)
  found = generate(args.checkpoint, args.input, args.output, model)
  if found is None:
    return command_line.finish(args, {'status': RESTART}, RESTART)
  return command_line.finish(args, {'status': 0, **found})
