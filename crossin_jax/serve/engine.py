"""One model in a thread of its own, which decodes and scores what other threads submit."""

from collections.abc import Callable, Sequence
import dataclasses
import queue as queue_lib
import sys
import threading
import time
import traceback

from crossin_jax.decoding.admission import OpenSchedule
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.nonfinite import NonFiniteLogits
from crossin_jax.decoding.schedule import Generation, Prompt, TokenLogprob
from crossin_jax.decoding.token_scores import TokenScores, padded_length, token_scores
from crossin_jax.serve.refusal import Refusal

SCORED_AT_ONCE = 8
CHUNK_SECONDS = 0.1  # of a chunk, so that nobody waits long to be admitted, cancelled or shown
# After an answer its client may ask again: a chunk that begins before that leaves its row empty.
PAUSE, LONGEST_PAUSE = 0.1, 0.02  # of the seconds of a chunk, and seconds
NOT_FINITE = 'logits_not_finite'
_DAMAGED = (
  'the logits of the model are not finite for this request: the weights are damaged, or they '
  "overflow in the model's precision; serve with DecoderConfig.dtype=float32"
)


@dataclasses.dataclass(frozen=True)
class Progress:
  """What an answer has so far. `tokens` and `logprobs` are copies."""

  sample: int
  tokens: list[int]
  logprobs: list[TokenLogprob]


Event = Progress | Generation | TokenScores | Exception


@dataclasses.dataclass(eq=False)
class Job:
  """A prompt to answer, or a sequence to score.

  Attributes:
    listener: called in the engine's thread with each event: the `Generation` of each sample or the
      `TokenScores`; or one exception, and nothing after it.
    prompt: None = only score.
    scored: tokens to score; None = only generate.
    streams: whether `listener` gets `Progress`.
  """

  listener: Callable[[Event], None]
  prompt: Prompt | None = None
  scored: Sequence[int] | None = None
  streams: bool = False
  index: int | None = None

  @property
  def answers(self) -> int:
    """Rows that it will take; scoring counts as one."""
    return len(self.prompt.samples) if self.prompt else 1


@dataclasses.dataclass
class Counts:
  """What the engine has done since its start."""

  prompt_tokens: int = 0
  generated_tokens: int = 0
  scored_tokens: int = 0
  answers: int = 0
  cancelled: int = 0
  failed: int = 0


class Engine:
  """Decodes the jobs of one model. Start it, submit from any thread, close it.

  Attributes:
    rows: answers that are decoded at a time.
    queue: answers that may wait beyond these.
    stop_ids: tokens that end an answer.
    counts: see `Counts`; written by the engine's thread.
  """

  def __init__(self, name: str, generator: Generator, queue: int):
    """Args:
    name: of the model, for messages.
    generator: with `by_row`.
    queue: answers that may wait.
    """
    self.name, self.queue, self.counts = name, queue, Counts()
    self._generator, self.stop_ids = generator, frozenset(generator.stop_ids)
    self._seconds_an_answer = 1.0
    self._condition = threading.Condition()
    self._inbox: list[Callable[[], None]] = []
    self._outstanding: dict[Job, int] = {}  # job -> answers that have not ended
    self._by_index: dict[int, Job] = {}
    self._to_score: list[Job] = []
    self._closing = False
    self._reset()
    self.rows = self._schedule.most_rows
    self._thread = threading.Thread(target=self._run, daemon=True, name=f'engine {name}')

  def _reset(self) -> None:
    self._schedule: OpenSchedule = self._generator.schedule([], kind=OpenSchedule)
    self._slots = None
    self._step_seconds = self._chunk_seconds = 0.0

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def warm_up(self) -> None:
    """Compiles what a single short request needs; shapes that are new compile when they come.

    Raises:
      Refusal: the model fails.
    """
    events: queue_lib.SimpleQueue[Event] = queue_lib.SimpleQueue()
    prompt = Prompt([min(self.stop_ids)], max_new_tokens=1, samples=range(1))
    self.submit([Job(events.put, prompt=prompt)])
    event = events.get()
    self.counts = Counts()
    if isinstance(event, Refusal) and event.code != NOT_FINITE:
      raise event

  def close(self, seconds: float = 10.0) -> bool:
    """Ends the thread after its chunk; jobs that are left get an error. Whether it has ended."""
    with self._condition:
      self._closing = True
      self._condition.notify()
    if self._thread.ident is None:  # never started
      return True
    self._thread.join(seconds)
    return not self._thread.is_alive()

  @property
  def alive(self) -> bool:
    """Whether the thread runs."""
    return self._thread.is_alive()

  @property
  def active(self) -> int:
    """Answers that are decoded or scored now."""
    return len(self._schedule.active_rows()) + len(self._to_score)

  @property
  def waiting(self) -> int:
    """Answers that were submitted and wait."""
    with self._condition:
      return max(0, sum(self._outstanding.values()) - self.active)

  def submit(self, jobs: Sequence[Job]) -> None:
    """Takes all jobs or none.

    Raises:
      Refusal: 400, more answers than the engine ever takes; 429, the queue is full now; 503, it is
        closing.
    """
    answers, most = sum(job.answers for job in jobs), self.rows + self.queue
    if answers > most:
      message = f'the request asks for {answers} answers; this server takes at most {most} at once'
      raise Refusal(400, f'{message} (prompts times n)', param='n')
    with self._condition:
      if self._closing:
        raise Refusal(503, 'the server is shutting down; ask again later')
      outstanding = sum(self._outstanding.values())
      if outstanding + answers > most:
        seconds = self._seconds_an_answer * (outstanding + answers - most) / self.rows
        wait = {'Retry-After': str(min(60, max(1, round(seconds))))}
        raise Refusal(
          429, f'the queue of {self.queue} answers is full; ask again later', headers=wait,
          code='queue_full',
        )  # fmt: skip
      for job in jobs:
        self._outstanding[job] = job.answers
        self._inbox.append(lambda job=job: self._admit(job))
      self._condition.notify()

  def cancel(self, jobs: Sequence[Job]) -> None:
    """Frees the rows and the places in the queue of jobs that have not ended."""
    with self._condition:
      for job in jobs:
        if self._outstanding.pop(job, None) is not None:
          self.counts.cancelled += 1
          self._inbox.append(lambda job=job: self._withdraw(job))
      self._condition.notify()

  # In the engine's thread:

  def _run(self) -> None:
    with self._generator.partition.activate():
      while (commands := self._await_work()) is not None:
        try:
          for command in commands:
            command()
          if self._to_score:
            self._score()
          if self._schedule.unfinished():
            self._decode()
        except Exception as error:  # such as memory: what was in work fails, the server lives on
          traceback.print_exc(file=sys.stderr)
          reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
          self._fail_all(Refusal(500, f'the model failed: {reason}'))
    self._fail_all(Refusal(503, 'the server is shutting down; ask again later'))

  def _await_work(self) -> list[Callable[[], None]] | None:
    """Waits for work. Returns what was submitted and cancelled, or None at the end."""
    with self._condition:
      busy = lambda: self._schedule.unfinished() or self._to_score
      self._condition.wait_for(lambda: self._inbox or self._closing or busy())
      commands, self._inbox = self._inbox, []
      return None if self._closing else commands

  def _admit(self, job: Job) -> None:
    if job not in self._outstanding:  # cancelled meanwhile
      return
    if job.prompt is None:
      self._to_score.append(job)
      return
    job.index = self._schedule.add(job.prompt)
    self._by_index[job.index] = job
    self.counts.prompt_tokens += len(job.prompt.tokens)

  def _withdraw(self, job: Job) -> None:
    if job in self._to_score:
      self._to_score.remove(job)
    if job.index is not None:
      self._schedule.cancel(job.index)
      self._by_index.pop(job.index, None)

  def _end(self, job: Job, event: Event, answers: int = 1) -> None:
    """Reports an answer, and forgets the job with its last one."""
    with self._condition:
      if job not in self._outstanding:
        return
      self._outstanding[job] -= answers
      if over := self._outstanding[job] <= 0 or isinstance(event, Exception):
        del self._outstanding[job]
    if over and job.index is not None:
      self._by_index.pop(job.index, None)
    if isinstance(event, Exception):
      self.counts.failed += 1
    else:
      self.counts.answers += answers
    job.listener(event)

  def _decode(self) -> None:
    started = time.monotonic()
    if self._slots is not None and self._step_seconds:
      self._schedule.most_steps = max(1, round(CHUNK_SECONDS / self._step_seconds))
    self._slots, chunk = self._generator.advance(self._schedule, self._slots)
    rows = self._schedule.active_rows()
    before = [len(row.tokens) for row in rows]
    outcomes = list(self._schedule.collect(chunk))
    new = [len(row.tokens) - count for row, count in zip(rows, before)]
    self.counts.generated_tokens += sum(new)
    self._chunk_seconds = time.monotonic() - started
    # The fastest of late: one that compiles says nothing about the next.
    step = self._chunk_seconds / max([1, *new])
    self._step_seconds = min(step, 1.2 * self._step_seconds) if self._step_seconds else step
    for outcome in outcomes:
      if job := self._by_index.get(outcome.index):
        is_damage = isinstance(outcome, NonFiniteLogits)
        self._end(job, Refusal(500, _DAMAGED, code=NOT_FINITE) if is_damage else outcome)
    for row in self._schedule.active_rows():
      job = self._by_index.get(row.prompt)
      if job and job.streams:
        job.listener(Progress(row.sample, list(row.tokens), list(row.logprobs)))
    if ended := len(outcomes):
      seconds = self._chunk_seconds * len(rows) / ended
      self._seconds_an_answer += 0.1 * (seconds - self._seconds_an_answer)
      if self._schedule.unfinished():
        with self._condition:
          asked = lambda: self._closing or len(self._inbox) >= ended
          self._condition.wait_for(asked, min(LONGEST_PAUSE, PAUSE * self._chunk_seconds))

  def _score(self) -> None:
    # The first, and those that are padded to the same length.
    width = lambda job: padded_length(len(job.scored))
    first, generator = self._to_score[0], self._generator
    jobs = [job for job in self._to_score if width(job) == width(first)][:SCORED_AT_ONCE]
    rows = 1 << (len(jobs) - 1).bit_length()
    scores = token_scores(
      generator.model, generator.params, generator.partition, [job.scored for job in jobs], rows
    )
    self._to_score = [job for job in self._to_score if job not in jobs]
    for job, result in zip(jobs, scores):
      self.counts.scored_tokens += len(job.scored)
      damage = Refusal(500, _DAMAGED, code=NOT_FINITE)
      self._end(job, result if result.finite else damage)

  def _fail_all(self, error: Refusal) -> None:
    with self._condition:
      jobs, self._inbox = list(self._outstanding), []
    self._to_score = []
    self._by_index.clear()
    self._reset()
    for job in jobs:
      self._end(job, error)
