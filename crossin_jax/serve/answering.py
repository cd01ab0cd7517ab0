"""The answers to one request as they come from the engine, on the event loop."""

import asyncio
from collections.abc import AsyncIterator, Sequence
import dataclasses

from crossin_jax.decoding.schedule import Generation, Prompt, TokenLogprob
from crossin_jax.decoding.token_scores import TokenScores
from crossin_jax.serve import fields
from crossin_jax.serve.engine import Job, Progress
from crossin_jax.serve.served import Served

# Tokens of an unfinished character decode to it.
_INCOMPLETE = '\N{REPLACEMENT CHARACTER}'


@dataclasses.dataclass(frozen=True)
class Delta:
  """What is new of a choice.

  Attributes:
    index: of the choice.
    text: to append.
    tokens: to append.
    logprobs: of these, and of a stop token where a completion asks for them.
    finish_reason: 'stop' or 'length' with the last one, else None.
  """

  index: int
  text: str
  tokens: Sequence[int]
  logprobs: Sequence[TokenLogprob]
  finish_reason: str | None = None


@dataclasses.dataclass
class _Choice:
  """What of a choice was handed on.

  Attributes:
    text: so far.
    tokens, logprobs: their numbers.
    held: events that wait for the scores of the echoed prompt.
  """

  text: str = ''
  tokens: int = 0
  logprobs: int = 0
  begun: bool = False
  held: list = dataclasses.field(default_factory=list)


class Answers:
  """Submits a request and yields what comes of it. Use it as a context manager: leaving it frees
  the rows of what has not ended.

  Attributes:
    prompt_tokens, completion_tokens: counts so far.
  """

  def __init__(self, served: Served, asked: fields.Asked, prompts: list[list[int]]):
    """Args:
      served: the model.
      asked: the request.
      prompts: token ids.

    Raises:
      Refusal: 400, a prompt that is too long.
    """
    self._served, self._asked, self._prompts = served, asked, prompts
    self._decode = served.prompts.vocabulary.decode
    self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue()
    self.prompt_tokens, self.completion_tokens = sum(map(len, prompts)), 0
    self._choices = [_Choice() for _ in range(len(prompts) * asked.n)]
    self._scores: dict[int, TokenScores] = {}
    self._scoring = asked.echo and asked.logprobs is not None
    param = 'messages' if asked.kind == 'chat' else 'prompt'
    self._limits = [
      fields.check_length(len(ids), asked.max_tokens, served.max_length, param) for ids in prompts
    ]
    # Harnesses that read the log-probabilities of a prompt ask for one token behind it, which the
    # scores of the prompt already have.
    greedy = asked.sampling.greedy and not asked.sampling.needs_history
    self._next_from_scores = self._scoring and asked.max_tokens == 1 and greedy
    self._jobs = [job for i in range(len(prompts)) for job in self._jobs_of(i)]

  def _jobs_of(self, i: int) -> list[Job]:
    asked, jobs = self._asked, []
    listener = lambda event: self._hear(i, event)
    if self._scoring:
      jobs.append(Job(listener, scored=self._prompts[i]))
    if self._limits[i] and not self._next_from_scores:
      prompt = Prompt(
        self._prompts[i],
        max_new_tokens=self._limits[i],
        samples=range(asked.n),
        sampling=asked.sampling,
        logprobs=asked.logprobs is not None,
      )
      jobs.append(Job(listener, prompt=prompt, streams=asked.stream))
    return jobs

  def _hear(self, prompt: int, event) -> None:
    """Called in the thread of the engine."""
    try:
      self._loop.call_soon_threadsafe(self._events.put_nowait, (prompt, event))
    except RuntimeError:  # the server has ended, and its loop with it
      pass

  def __enter__(self) -> 'Answers':
    """Submits the jobs.

    Raises:
      Refusal: the engine does not take them.
    """
    self._served.engine.submit(self._jobs)
    return self

  def __exit__(self, *_) -> None:
    self._served.engine.cancel(self._jobs)

  async def deltas(self) -> AsyncIterator[Delta]:
    """Yields what is new until all choices have ended.

    Raises:
      Refusal: the engine failed.
    """
    left = len(self._choices)
    if not self._jobs:  # an echo of text alone
      for prompt in range(len(self._prompts)):
        for delta in self._without_answers(prompt):
          yield delta
      return
    while left:
      prompt, event = await self._events.get()
      if isinstance(event, Exception):
        raise event
      for delta in self._new(prompt, event):
        left -= delta.finish_reason is not None
        yield delta

  def _new(self, prompt: int, event) -> list[Delta]:
    n = self._asked.n
    if isinstance(event, TokenScores):
      self._scores[prompt] = event
      if self._next_from_scores:
        return self._answers_from_scores(prompt)
      if not self._limits[prompt]:
        return self._without_answers(prompt)
      choices = range(prompt * n, (prompt + 1) * n)
      return [d for i in choices for held in self._choices[i].held for d in self._of(i, held)]
    index = prompt * n + event.sample
    if self._scoring and prompt not in self._scores:
      self._choices[index].held.append(event)
      return []
    return self._of(index, event)

  def _of(self, index: int, event: Progress | Generation) -> list[Delta]:
    """The delta of a choice, with the echo in front of its first one."""
    choice = self._choices[index]
    ended = isinstance(event, Generation)
    text = event.text if ended else self._safe_text(event.tokens)
    # In rare scripts further tokens change the text before them: it is held until it is final.
    common = len(choice.text) if text.startswith(choice.text) else _common(text, choice.text)
    new = text[common:] if ended or common == len(choice.text) else ''
    reason, logprobs = None, event.logprobs or []
    if ended:
      reason = 'length' if event.finish_reason == 'length' else 'stop'
      self.completion_tokens += len(event.tokens)
      if self._asked.kind == 'chat':
        logprobs = logprobs[: len(event.tokens)]
    delta = Delta(index, new, event.tokens[choice.tokens :], logprobs[choice.logprobs :], reason)
    choice.text = text if new else choice.text
    choice.tokens, choice.logprobs = len(event.tokens), len(logprobs)
    if self._asked.echo and not choice.begun:
      delta = _joined(self._echo(index), delta)
    choice.begun = True
    return [delta]

  def _safe_text(self, tokens: list[int]) -> str:
    """The text of an unfinished answer without its end, where that may still change."""
    text = self._decode(tokens).rstrip(_INCOMPLETE)
    longest = max(map(len, self._asked.sampling.stop), default=0)
    for size in range(min(longest, len(text)), 0, -1):
      if any(stop.startswith(text[-size:]) for stop in self._asked.sampling.stop):
        return text[:-size]
    return text

  def _echo(self, index: int) -> Delta:
    """The prompt as the beginning of a choice."""
    prompt = index // self._asked.n
    given, ids = self._asked.prompts[prompt], self._prompts[prompt]
    text = given if isinstance(given, str) else self._decode(ids)
    scores = self._scores.get(prompt)
    return Delta(index, text, ids, scores.logprobs if scores else [])

  def _without_answers(self, prompt: int) -> list[Delta]:
    """The choices of max_tokens = 0."""
    choices = range(prompt * self._asked.n, (prompt + 1) * self._asked.n)
    return [dataclasses.replace(self._echo(i), finish_reason='length') for i in choices]

  def _answers_from_scores(self, prompt: int) -> list[Delta]:
    """The choices of one greedy token behind an echoed prompt."""
    after = self._scores[prompt].next
    token, logprob = after[0]
    tokens = [] if token in self._served.engine.stop_ids else [token]
    text = self._decode(tokens)
    cut = min((at for s in self._asked.sampling.stop if (at := text.find(s)) >= 0), default=None)
    reason = 'stop' if not tokens or cut is not None else 'length'
    choices = range(prompt * self._asked.n, (prompt + 1) * self._asked.n)
    self.completion_tokens += len(tokens) * len(choices)
    scored = [TokenLogprob(token, logprob, after)]
    return [_joined(self._echo(i), Delta(i, text[:cut], tokens, scored, reason)) for i in choices]


def _joined(first: Delta, second: Delta) -> Delta:
  return dataclasses.replace(
    second,
    text=first.text + second.text,
    tokens=[*first.tokens, *second.tokens],
    logprobs=[*first.logprobs, *second.logprobs],
  )


def _common(a: str, b: str) -> int:
  """Length of the common beginning."""
  return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
