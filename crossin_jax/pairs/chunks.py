"""Chunks of questions: sampled and scored one by one, by any number of processes and hosts."""

from collections.abc import Callable, Iterator, Sequence
import os
import time
from typing import Any

import jax

from crossin_jax.decoding import journal
from crossin_jax.pairs import answers as answers_lib
from crossin_jax.pairs.answers import Answers
from crossin_jax.pairs.questions import Question
from crossin_jax.processes import interruption, sharing
from crossin_jax.progress import Progress
from crossin_jax.storage import locks
from crossin_jax.storage.files import write_json

# (questions of a chunk, function to call with the tokens of each finished answer) -> their answers
Worker = Callable[[Sequence[Question], Callable[[int], None]], list[Answers]]


class Chunks:
  """The folder of a run: run.json, and chunks/NNNNN.jsonl with the answers to `size` questions.

  A chunk is computed in shapes and with draws of its own, so its bytes depend neither on who
  computes it nor on when.
  """

  def __init__(self, directory: str, questions: Sequence[Question], size: int):
    """Args:
    directory: of the run.
    questions: all of them.
    size: questions of a chunk.
    """
    self._directory = directory
    self._parts = [questions[i : i + size] for i in range(0, len(questions), size)]

  def __len__(self) -> int:
    return len(self._parts)

  def path(self, number: int) -> str:
    """Where a chunk is."""
    return os.path.join(self._directory, 'chunks', f'{number:05d}.jsonl')

  def missing(self) -> list[int]:
    """Numbers of the chunks that are not there, as process 0 sees them."""
    absent = [i for i in range(len(self._parts)) if not os.path.exists(self.path(i))]
    return sharing.json_from_chief(absent)

  def begin(self, settings: dict[str, Any]) -> None:
    """Writes run.json, or compares it.

    Args:
      settings: what the chunks depend on, as a flat JSON object.

    Raises:
      JournalError: the folder holds chunks of other settings.
    """
    if jax.process_index():
      return
    manifest = os.path.join(self._directory, 'run.json')
    # Several hosts may begin at once.
    with locks.locked(f'{manifest}.lock', self._directory, wait=True):
      if not os.path.exists(manifest):
        write_json(manifest, {'format': journal.FORMAT, **settings})
    remedy = f'choose another --output_dir, or delete {self._directory} to restart'
    journal.check_settings(manifest, settings, self._directory, remedy)

  def compute(
    self, worker: Callable[[], Worker], share: tuple[int, int], answers: Callable[[Question], int]
  ) -> None:
    """Computes the missing chunks of a share.

    Args:
      worker: makes the worker; called once, if there is something to do.
      share: (i, n): every n-th chunk, from the i-th.
      answers: how many a question gets, for the progress.

    Raises:
      Interrupted: finished chunks are kept.
    """
    assigned = range(share[0], len(self._parts), share[1])
    missing = set(self.missing())
    total = lambda numbers: sum(answers(q) for i in numbers for q in self._parts[i])
    done = total(i for i in assigned if i not in missing)
    progress = Progress(total(assigned), 'pairs: answer')
    is_chief, work = jax.process_index() == 0, None
    started, read = time.monotonic(), 0

    def finished(tokens: int) -> None:
      nonlocal done, read
      done, read = done + 1, read + tokens
      if is_chief:
        progress.show(done, f'{read / max(1e-9, time.monotonic() - started):.0f} tokens/s')

    if is_chief:
      progress.show(done, force=True)
    with interruption.StopSignal(at_once=True):
      for number in (i for i in assigned if i in missing):
        interruption.check()
        if work is None:
          work, started = worker(), time.monotonic()
        found = work(self._parts[number], finished)
        if is_chief:
          answers_lib.write(self.path(number), found)
        done = total(i for i in assigned if i not in missing or i <= number)

  def read(self) -> Iterator[tuple[Sequence[Question], list[Answers]]]:
    """(questions, answers) of each chunk."""
    for number, part in enumerate(self._parts):
      yield part, list(answers_lib.read(self.path(number)))
