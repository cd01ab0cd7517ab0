"""`crossin xinstruction chunks`: runs a model over chunk files, one output file per input file.

Any number of hosts can share the files of a folder: worker i of n takes every n-th file and skips
existing outputs. Each chunk is computed separately in fixed shapes, so the result does not depend
on the worker.
"""

import os
import sys
import time

import numpy as np

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.decoding import nonfinite
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.decoding.scoring import continuation_losses
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.errors import Interrupted
from crossin_jax.processes import interruption
from crossin_jax.processes.exit_status import RESTART
from crossin_jax.progress import Progress
from crossin_jax.workflow import command_line, forwarding
from crossin_jax.xinstruction import flags, levels
from crossin_jax.xinstruction import rows as rows_lib


@config.configurable(commands=('chunks',))
class ChunkWorker:
  """A model that turns the rows of a chunk into others."""

  def __init__(
    self,
    checkpoint: str,
    model,
    kind: str,
    *,
    prompt_tokens: int = 1024,
    rows: int = 32,
    partitioner=Partitioner,
  ):
    """Args:
    checkpoint: a MODEL_DIR or a Hugging Face directory.
    model: its model.
    kind: of KINDS.
    prompt_tokens: longer texts are cut to fit, at their end.
    rows: of a batch.
    partitioner: mesh and axis rules.
    """
    source = SavedModel.open(checkpoint)
    self._kind, self._prompt_tokens, self._rows, self._model = kind, prompt_tokens, rows, model
    self._prompts = source.prompts
    self._partition = partitioner()
    with self._partition.activate():
      self._params = source.params(model, self._partition)
      vocabulary = self._prompts.vocabulary
      if kind == 'rate':
        self._levels = [vocabulary.encode(str(level)) for level in levels.LEVELS]
      else:
        self._generate = Generator(
            model, self._params, self._partition, bos_id=None,
            stop_ids=source.stop_ids,
            sampling=Sampling(), decode=vocabulary.decode, rows=rows,
        )  # fmt: skip

  def __call__(self, rows: list[dict]) -> list[dict]:
    """The rows of one chunk, in order.

    Raises:
      NonFiniteLikelihood, NonFiniteLogits: name the row.
    """
    name = lambda index: f'row {index + 1} of the chunk (id {rows[index]["id"]!r})'
    with self._partition.activate(), nonfinite.naming(name):
      if self._kind == 'rate':
        asked = [rows_lib.plain(row['instruction'], row['language']) for row in rows]
        prompts = [
          self._tokens(instruction, row['output']) for instruction, row in zip(asked, rows)
        ]
        # One pass per sample: the levels are branches of the same prompt.
        losses = continuation_losses(
            self._model, self._params, self._partition, prompts, [self._levels] * len(rows),
            bos_id=None, length=self._prompt_tokens + 64,
            rows=self._rows,
        )  # fmt: skip
        scores = levels.expected_level(-np.array(losses))
        return [
          {'id': row['id'], 'score': round(float(score), 6)} for row, score in zip(rows, scores)
        ]
      field, made = ('text', 'instruction') if self._kind == 'write' else ('instruction', 'output')
      answers = self._generate(
        [Prompt(self._tokens(row[field]), id=i) for i, row in enumerate(rows)]
      )
      return [{'id': row['id'], made: answer.text.strip()} for row, answer in zip(rows, answers)]

  def _tokens(self, instruction: str, context: str = '') -> list[int]:
    """The prompt; the context, or without one the instruction, is truncated to fit."""
    make = lambda cut: self._prompts.tokens(
      {'instruction': instruction, 'input': cut} if context else {'instruction': cut, 'input': ''}
    )
    text = context or instruction
    if len(tokens := make(text)) <= self._prompt_tokens:
      return tokens
    low, high = 1, len(text)
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (
        (middle, high) if len(make(text[:middle])) <= self._prompt_tokens else (low, middle - 1)
      )
    return make(text[:low])


def run(
  checkpoint: str,
  model,
  kind: str,
  input_dir: str,
  output_dir: str,
  share: tuple[int, int] = (0, 1),
) -> bool:
  """Computes the missing chunks of this worker's share; returns False when interrupted.

  Args:
    checkpoint, model, kind: see `ChunkWorker`.
    input_dir: a folder for each language, chunk files in it.
    output_dir: gets the same folders and names.
    share: (i, n): every n-th chunk, from the i-th.
  """
  names = [
    os.path.join(language, name)
    for language in sorted(os.listdir(input_dir))
    if os.path.isdir(os.path.join(input_dir, language))
    for name in map(os.path.basename, rows_lib.chunks(input_dir, language))
  ]
  assigned = names[share[0] :: share[1]]
  todo = [name for name in assigned if not os.path.exists(os.path.join(output_dir, name))]
  progress = Progress(len(assigned), f'{kind} {os.path.basename(output_dir)}: chunk')
  progress.show(len(assigned) - len(todo), force=True)
  try:
    with interruption.StopSignal(at_once=True):
      worker, started, done = None, time.monotonic(), 0
      for number, name in enumerate(todo):
        interruption.check()
        worker = worker or ChunkWorker(checkpoint, model, kind)
        rows = list(rows_lib.read(os.path.join(input_dir, name)))
        rows_lib.write(os.path.join(output_dir, name), worker(rows) if rows else [])
        done += len(rows)
        rate = done / max(1e-9, time.monotonic() - started)
        progress.show(len(assigned) - len(todo) + number + 1, f'{rate:.1f} rows/s')
  except Interrupted:
    print(
      'interrupted; finished chunks are kept, start the same command again to continue',
      file=sys.stderr,
    )
    return False
  return True


def main(argv: list[str]) -> int:
  """The command line of `crossin xinstruction chunks`."""
  args = flags.chunks_parser().parse_args(argv)
  args.known_macros = forwarding.known_macros()
  share = command_line.share_of(args)
  model = SavedModel.open(args.checkpoint).module(args)
  return 0 if run(args.checkpoint, model, args.kind, args.input, args.output, share) else RESTART
