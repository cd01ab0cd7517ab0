"""A client of OpenAI-compatible chat endpoints with a cache, retries and a budget.

The `openai` package is the transport; this module decides when to send, retry, fail and stop.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import json
import queue
import random
import sys
import threading
import time

from crossin_jax import config
from crossin_jax.data.thoughts import without_thoughts
from crossin_jax.endpoint.ledger import TOKENS, Counts, Ledger
from crossin_jax.endpoint.pace import Pace
from crossin_jax.endpoint.replies import ReplyCache
from crossin_jax.endpoint.transport import Failure, Transport
from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.processes import interruption

LONGEST_BACKOFF = 60.0  # seconds between two tries without a Retry-After
LIMIT_RETRIES = 10  # times `retries` for 429, which is no failure


class EndpointError(CrossinError, ValueError):
  """The endpoint cannot be used; the message has the remedy. Received replies are stored."""


@dataclasses.dataclass(frozen=True)
class Request:
  """One chat completion.

  Attributes:
    messages: [{'role': 'user', 'content': '...'}, ...].
    parameters: of the request: temperature, top_p, max_tokens ...
    sample: number of the answer, if the same messages are sent several times.
    model: None = the model of the endpoint.
    accept: whether a text is usable; None = `accept` of `complete`. Requests with equal content
      need equal functions.
    complete: reject a reply that reached the token limit.
    retry_parameters: replace parameters when the request is repeated after an unusable reply.
    expected_tokens: of the reply, for estimates; None = max_tokens, or 256 without one.
  """

  messages: Sequence[Mapping[str, str]]
  parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)
  sample: int = 0
  model: str | None = None
  accept: Callable[[str], bool] | None = None
  complete: bool = False
  retry_parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)
  expected_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Reply:
  """The result of a request.

  Attributes:
    index: of the request among those given to `complete`.
    text: without the thoughts of a reasoning model; None if the request failed, see `error`.
    accepted: False if no reply was usable; `text` is then the last one.
    attempts: number of replies, including unusable ones.
    cached: nothing was sent for it.
    usage: {'prompt_tokens', 'completion_tokens'} of all its replies.
    finish_reason: of the server: 'stop', 'length' ...
    error: why it failed.
  """

  index: int
  text: str | None
  accepted: bool
  attempts: int
  cached: bool
  usage: Mapping[str, int]
  finish_reason: str | None = None
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Estimated cost of requests; tokens are a guess.

  Attributes:
    requests: number of different requests.
    cached: of these, the number with a stored reply.
    prompt_tokens, completion_tokens, usd: of the others; usd is None without prices.
    spent: USD of the stored replies.
  """

  requests: int
  cached: int
  prompt_tokens: int
  completion_tokens: int
  usd: float | None
  spent: float | None

  def __str__(self) -> str:
    price = 'no price given' if self.usd is None else f'about {self.usd:.2f} USD'
    if self.spent:
      price += f' (and {self.spent:.2f} USD for what is cached)'
    return (
      f'{self.requests - self.cached:,} requests to make, {self.cached:,} of {self.requests:,} '
      f'cached; about {self.prompt_tokens:,} tokens to send and {self.completion_tokens:,} to '
      f'receive, guessed from the characters; {price}'
    )


class _Stopped(Exception):
  """`complete` has ended."""


def rough_tokens(text: str) -> int:
  """Guesses four ASCII characters a token, or two others. Tamil may take twice as many tokens."""
  ascii_ = sum(map(str.isascii, text)) if not text.isascii() else len(text)
  return -(-ascii_ // 4) + -(-(len(text) - ascii_) // 2)


@config.configurable(commands=())
class Endpoint:
  """A model at a URL. Use it as a context manager, with one `complete` at a time."""

  def __init__(
    self,
    base_url: str,
    model: str,
    api_key_env: str = 'OPENAI_API_KEY',
    concurrency: int = 8,
    requests_per_minute: float | None = None,
    timeout_seconds: float = 120.0,
    retries: int = 8,
    garbage_retries: int = 2,
    cache_dir: str | None = None,
    budget: float | None = None,
    price_in: float | Mapping[str, float] | None = None,
    price_out: float | Mapping[str, float] | None = None,
    budget_requests: int | None = None,
    parameters: Mapping[str, object] | None = None,
    tokens: Callable[[str], int] = rough_tokens,
    backoff_seconds: float = 0.5,
    drain_seconds: float = 20.0,
  ):
    """Opens the cache.

    Args:
      base_url: up to and including `/v1`.
      model: name of the model there; a `Request` may name another.
      api_key_env: environment variable with the key; without it a dummy is sent.
      concurrency: requests at a time.
      requests_per_minute: None = as many as the server accepts; 429 slows requests down anyway.
      timeout_seconds: without a byte from the server.
      retries: of a request after a lost connection, a time-out, 408, 409, 425, 429 or 5xx.
      garbage_retries: of a request after an unusable reply.
      cache_dir: stores replies, which are never requested again; None = in memory.
      budget: USD limit for this object, including replies from earlier starts; needs both prices.
        The last request may exceed it.
      price_in, price_out: USD per million tokens; a mapping gives them by model.
      budget_requests: limit of requests, including repeats and replies from earlier starts.
      parameters: added to every request; the value None removes one.
      tokens: counts tokens for estimates.
      backoff_seconds: wait before the first retry; it doubles each time, with jitter, up to 60 s.
      drain_seconds: how long an interrupted call waits for replies to requests already sent.

    Raises:
      ValueError: a setting is out of range, or the cache is in use.
    """
    for name, ok, wanted in (
      ('concurrency', concurrency >= 1, 'at least 1'),
      ('requests_per_minute', requests_per_minute is None or requests_per_minute > 0, 'above 0'),
      ('timeout_seconds', timeout_seconds > 0, 'above 0'),
      ('retries', retries >= 0, 'at least 0'),
      ('garbage_retries', garbage_retries >= 0, 'at least 0'),
    ):
      if not ok:
        raise ValueError(f'Endpoint.{name} must be {wanted}')
    self.model, self._transport = model, Transport(base_url, api_key_env, timeout_seconds)
    self._concurrency, self._retries, self._garbage_retries = concurrency, retries, garbage_retries
    self._parameters, self._tokens = parameters or {}, tokens
    self._backoff, self._drain = backoff_seconds, drain_seconds
    self._ledger = Ledger(price_in, price_out, budget, budget_requests)
    self._pace = Pace(requests_per_minute)
    self._cache = ReplyCache(cache_dir)

  def __enter__(self) -> 'Endpoint':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Closes the cache and the connections."""
    self._cache.close()
    self._transport.close()

  def counts(self) -> Counts:
    """Counts of this start."""
    return self._ledger.counts()

  def key(self, request: Request, attempt: int = 0) -> str:
    """Cache key: SHA-256 of model, messages, parameters, number of sample and attempt."""
    messages = [dict(message) for message in request.messages]
    parameters = self._sent_parameters(request, attempt)
    content = [self._model(request), messages, parameters, request.sample, attempt]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

  def estimate(self, requests: Sequence[Request]) -> Estimate:
    """Estimates the cost of requests without sending any."""
    distinct = {self.key(request): request for request in reversed(requests)}
    cached, tokens, usd, spent = 0, collections.Counter(), 0.0, 0.0
    for request in distinct.values():
      cost = functools.partial(self._ledger.cost, self._model(request))
      stored = self._stored(request)
      spent += sum(cost(reply['usage']) for _, reply in stored)
      if stored:
        cached += 1
        continue
      usage = self._guess(request)
      tokens.update(usage)
      usd += cost(usage)
    if not self._ledger.priced:
      usd = spent = None
    return Estimate(len(distinct), cached, *(tokens[name] for name in TOKENS), usd, spent)

  def check_budget(self, estimate: Estimate) -> None:
    """Raises BudgetError if the estimate exceeds the budget."""
    self._ledger.check((estimate.usd or 0.0) + (estimate.spent or 0.0), estimate.requests)

  def complete(
    self,
    requests: Sequence[Request],
    accept: Callable[[str], bool] | None = None,
    *,
    progress: str | None = 'endpoint',
    check: Callable[[], None] = interruption.check,
  ) -> Iterator[Reply]:
    """Yields a reply for each request as it arrives; requests with equal content are sent once.

    A reply is on disk before it is yielded. An unusable one is requested again, up to
    `garbage_retries` times; not if it was cut at its limit of tokens and would be cut again.

    Args:
      requests: of one kind or several.
      accept: whether a text is usable; None = all are.
      progress: label of the progress bar on stderr; None = no bar.
      check: called between replies and while waiting; an exception of it ends the call. The
        default involves all hosts of a run; give another one if only one host calls this.

    Raises:
      BudgetError: the estimate exceeds the budget (before anything is sent), or it is used up.
      EndpointError: the key is not accepted, the model does not exist, or all requests fail.
      Interrupted: the run was interrupted.
    """
    requests = list(requests)
    self._begin(requests)
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
      groups.setdefault(self.key(request), []).append(index)
    left, failure, in_a_row, replied = len(groups), None, 0, False
    with (
      _bar(progress, left) as bar,
      self._sending(requests, list(groups.values()), accept) as outcomes,
    ):
      while left and failure is None:
        check()
        try:
          indices, outcome = outcomes.get(timeout=0.1)
        except queue.Empty:
          continue
        left -= 1
        if isinstance(outcome, BaseException):
          failure = outcome
          break
        self._show(bar)
        yield from _copies(indices, outcome)
        if outcome.text is None:
          in_a_row += 1
        else:
          replied, in_a_row = True, in_a_row if outcome.cached else 0
        if in_a_row >= max(8, self._concurrency) or (in_a_row and not left and not replied):
          failure = EndpointError(
            f'{in_a_row} requests in a row got no reply from {self._transport.url}, the last one '
            f'because: {outcome.error}. Received replies are stored; once that is fixed, start '
            'the same command again'
          )
    if failure is None:
      return
    while not outcomes.empty():
      indices, outcome = outcomes.get()
      if isinstance(outcome, Reply):
        yield from _copies(indices, outcome)
    raise failure

  @contextlib.contextmanager
  def _sending(self, requests: Sequence[Request], groups: Sequence[list[int]], accept):
    """Sends the first request of each group in threads; waits for sent requests at the end.

    Yields a queue of (group, Reply or exception).
    """
    jobs, lock = iter(groups), threading.Lock()
    outcomes, stop = queue.SimpleQueue(), threading.Event()

    def work():
      while not stop.is_set():
        with lock:
          indices = next(jobs, None)
        if indices is None:
          return
        try:
          outcomes.put((indices, self._ask(requests[indices[0]], accept, stop)))
        except _Stopped:
          return
        except BaseException as error:  # raised again in the thread of the caller
          stop.set()
          outcomes.put((indices, error))

    names = [f'endpoint-{i}' for i in range(min(self._concurrency, len(groups)))]
    workers = [threading.Thread(target=work, daemon=True, name=name) for name in names]
    try:
      for worker in workers:
        worker.start()
      yield outcomes
    finally:
      stop.set()
      until = time.monotonic() + self._drain
      for worker in workers:
        if worker.is_alive():
          worker.join(max(0.0, until - time.monotonic()))

  def _begin(self, requests: Sequence[Request]) -> None:
    for request in requests:
      for key, reply in self._stored(request):
        self._ledger.earlier(key, self._ledger.cost(self._model(request), reply['usage']))
    estimate, ledger = self.estimate(requests), self._ledger
    new = estimate.requests - estimate.cached
    ledger.check(ledger.spent + (estimate.usd or 0.0), ledger.requests + new)

  def _stored(self, request: Request) -> list[tuple[str, dict]]:
    """(key, reply) of the attempts in the cache."""
    stored = []
    for attempt in range(self._garbage_retries + 1):
      key = self.key(request, attempt)
      if (reply := self._cache.get(key)) is None:
        break
      stored.append((key, reply))
    return stored

  def _ask(self, request: Request, accept, stop: threading.Event) -> Reply:
    """All attempts at one request, from the cache or the server."""
    accept, usage, sent, accepted, text = request.accept or accept, {}, 0, False, ''
    for attempt in range(1, self._garbage_retries + 2):
      key = self.key(request, attempt - 1)
      reply = self._cache.get(key)
      if reply is None:
        try:
          reply = self._send(request, attempt - 1, key, stop)
        except Failure as failure:
          self._ledger.count('failed')
          return Reply(-1, None, False, attempt - 1, False, usage, error=str(failure))
        sent += 1
      usage = {name: usage.get(name, 0) + reply['usage'][name] for name in TOKENS}
      text, cut = without_thoughts(reply['text']), reply['finish_reason'] == 'length'
      is_complete = not (cut and (request.complete or not text.strip()))
      accepted = is_complete and (accept is None or bool(accept(text)))
      if accepted:
        break
      self._ledger.count('refused')
      same = self._sent_parameters(request, attempt) == self._sent_parameters(request, attempt - 1)
      if cut and same:
        break  # it would be cut again
    if not sent:
      self._ledger.count('cached')
    return Reply(-1, text, accepted, attempt, not sent, usage, reply['finish_reason'])

  def _send(self, request: Request, attempt: int, key: str, stop: threading.Event) -> dict:
    """One reply from the server, stored when this returns; retries errors."""
    errors = limits = 0
    model, guess = self._model(request), self._guess(request)
    held = self._ledger.cost(model, guess)
    while True:
      if not self._pace.turn(stop) or not self._ledger.reserve(held, stop.is_set):
        raise _Stopped
      try:
        if attempt + errors + limits:
          self._ledger.count('repeated')
        started = time.monotonic()
        parameters = self._sent_parameters(request, attempt)
        reply = self._transport.post(model, request.messages, parameters)
        if reply['usage'] is None:
          reply['usage'] = guess | {'completion_tokens': self._tokens(reply['text'])}
          self._ledger.count('without_usage')
        self._cache.put(key, reply)
        self._pace.speed_up()
        self._ledger.pay(key, self._ledger.cost(model, reply['usage']), reply['usage'])
        return reply
      except Failure as failure:
        lost = failure
      finally:
        self._ledger.release(held)
      self._ledger.error(lost.kind)
      if lost.fate == 'fatal':
        raise EndpointError(str(lost))
      limits, errors = limits + (lost.kind == '429'), errors + (lost.kind != '429')
      if lost.fate == 'give up' or errors > self._retries or limits > LIMIT_RETRIES * self._retries:
        raise lost
      wait = min(LONGEST_BACKOFF, self._backoff * 2.0 ** min(errors + limits - 1, 30))
      wait *= random.uniform(0.5, 1.0)
      if lost.kind == '429':
        self._pace.slow_down(wait if lost.wait is None else lost.wait, started)
      if stop.wait(wait if lost.wait is None else lost.wait + random.uniform(0.0, 0.1)):
        raise _Stopped

  def _model(self, request: Request) -> str:
    return request.model or self.model

  def _sent_parameters(self, request: Request, attempt: int) -> dict:
    retry = request.retry_parameters if attempt else {}
    parameters = {**request.parameters, **retry, **self._parameters}
    return {name: value for name, value in parameters.items() if value is not None}

  def _guess(self, request: Request) -> dict[str, int]:
    expected = request.expected_tokens
    if expected is None:
      expected = request.parameters.get('max_tokens') or 256
    sent = sum(4 + self._tokens(message['content']) for message in request.messages)
    return {'prompt_tokens': sent, 'completion_tokens': expected}

  def _show(self, bar) -> None:
    counts = self.counts()
    shown = {'cached': counts.cached, 'repeated': counts.repeated, 'failed': counts.failed}
    shown['usd'] = f'{counts.usd:.2f}' if counts.usd else None
    bar.set_postfix({name: value for name, value in shown.items() if value}, refresh=False)
    bar.update()


def _bar(label: str | None, total: int):
  import tqdm

  interval = 0.5 if sys.stderr.isatty() else 30.0
  return tqdm.tqdm(
    total=total, desc=label, unit='reply', mininterval=interval, disable=label is None
  )


def _copies(indices: Sequence[int], reply: Reply) -> Iterator[Reply]:
  """The reply for each request of equal content, of which only the first was sent."""
  for n, index in enumerate(indices):
    yield dataclasses.replace(reply, index=index, cached=reply.cached or n > 0)


@contextlib.contextmanager
def stoppable():
  """Handles SIGTERM and SIGINT; yields the `check` for `complete`.

  NB: `interruption.check` would initialise JAX, and with it the accelerator.
  """
  with interruption.StopSignal() as signal:

    def check():
      if signal.received():
        raise Interrupted

    yield check
