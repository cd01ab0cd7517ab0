"""A client of OpenAI-compatible chat endpoints: no reply is lost, none is paid for twice, and no
more is spent than allowed.

Transport is the `openai` package; when to send, send again, give up and stop is decided here.
`crossin judge` and `crossin translate` use it, and the teacher of X-Instruction.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import queue
import random
import sys
import threading
import time

from crossin_jax import config
from crossin_jax.endpoint.ledger import TOKENS, Ledger
from crossin_jax.endpoint.pace import Pace
from crossin_jax.endpoint.replies import ReplyCache
from crossin_jax.endpoint.transport import Failure, Transport
from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.processes import interruption

LONGEST_BACKOFF = 60.0  # seconds between two tries without a Retry-After
LIMIT_RETRIES = 10  # times `retries`: being told to wait is no failure


class EndpointError(CrossinError, ValueError):
  """The endpoint cannot be used as it is; the message says why and what to do. Replies had so far
  are kept.
  """


@dataclasses.dataclass(frozen=True)
class Request:
  """One chat completion to ask for.

  Attributes:
    messages: [{'role': 'user', 'content': '...'}, ...].
    parameters: of the request: temperature, top_p, max_tokens ...
    sample: number of the answer, where several to the same messages are wanted.
    model: None = the endpoint's.
    accept: whether a text is usable; None = what `complete` was given. Requests with equal content
      need equal ones.
    whole: a reply that ended for want of tokens is not usable.
    again: parameters that change when a reply was not usable and the request is made again.
    expected_tokens: of the reply, for estimates; None = max_tokens, or 256 without one.
  """

  messages: Sequence[Mapping[str, str]]
  parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)
  sample: int = 0
  model: str | None = None
  accept: Callable[[str], bool] | None = None
  whole: bool = False
  again: Mapping[str, object] = dataclasses.field(default_factory=dict)
  expected_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Reply:
  """What came of a request.

  Attributes:
    index: place of the request among those given.
    text: None if it was given up on; see `error`.
    accepted: False if no reply was usable; `text` is then the last one.
    attempts: replies that were looked at, unusable ones included.
    cached: nothing had to be sent for it.
    usage: {'prompt_tokens', 'completion_tokens'} of all its replies.
    finish_reason: as the server said: 'stop', 'length' ...
    error: why it was given up on.
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
  """What requests will take; tokens are a guess.

  Attributes:
    requests: different ones. cached: those of them that have a reply.
    prompt_tokens, completion_tokens, usd: of those without one; usd is None without prices.
    spent: USD for the replies that are there.
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
      'cached; about '
      f'{self.prompt_tokens:,} tokens to send and {self.completion_tokens:,} to receive, guessed '
      f'from the letters; {price}'
    )


class _Stopped(Exception):
  """The call around this worker is over."""


def rough_tokens(text: str) -> int:
  """A guess without a tokenizer: four ASCII characters a token, two others. Written Tamil may take
  twice as many.
  """
  ascii_ = sum(map(str.isascii, text)) if not text.isascii() else len(text)
  return -(-ascii_ // 4) + -(-(len(text) - ascii_) // 2)


@config.configurable(commands=())
class Endpoint:
  """A model behind a URL. Use as a context manager, or `close` it; one `complete` at a time."""

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
    """Args:
      base_url: up to and with `/v1`.
      model: name of the model there; a `Request` may name another.
      api_key_env: environment variable with the key; where it is not set none is sent that means
        anything.
      concurrency: requests under way at a time.
      requests_per_minute: None = as many as the server takes; it is slowed down by 429 in any case.
      timeout_seconds: without a byte from the server.
      retries: times a request is repeated after a lost connection, a time-out, 408, 409, 425, 429
        or 5xx.
      garbage_retries: times it is repeated after a reply that was not usable.
      cache_dir: replies are kept there and never asked for again; None = only in memory.
      budget: most USD for the requests given to this object, replies from earlier starts included;
        needs both prices. It may be overstepped by the one request under way.
      price_in, price_out: USD per million tokens; a mapping gives them by model.
      budget_requests: most requests, repeats and replies from earlier starts included.
      parameters: put into every request; None as value takes a parameter out of it.
      tokens: counts tokens for estimates.
      backoff_seconds: wait before the first repeat; doubled at each, with jitter, up to 60 s.
      drain_seconds: when told to stop, how long to wait for replies under way, which are paid for.

    Raises:
      ValueError: a setting out of range; a cache in use.
    """
    legal = {
      'concurrency': (concurrency >= 1, 'at least 1'),
      'requests_per_minute': (requests_per_minute is None or requests_per_minute > 0, 'above 0'),
      'timeout_seconds': (timeout_seconds > 0, 'above 0'),
      'retries': (retries >= 0, 'at least 0'),
      'garbage_retries': (garbage_retries >= 0, 'at least 0'),
    }
    for name, (ok, wanted) in legal.items():
      if not ok:
        raise ValueError(f'Endpoint.{name} must be {wanted}')
    self.model, self._transport = model, Transport(base_url, api_key_env, timeout_seconds)
    self._concurrency, self._retries, self._garbage_retries = concurrency, retries, garbage_retries
    self._parameters, self._tokens = parameters or {}, tokens
    self._backoff, self._drain = backoff_seconds, drain_seconds
    self._ledger, self._pace = (
      Ledger(price_in, price_out, budget, budget_requests),
      Pace(requests_per_minute),
    )
    self._cache = ReplyCache(cache_dir)

  def __enter__(self) -> 'Endpoint':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Lets go of the cache and the connections."""
    self._cache.close()
    self._transport.close()

  def counts(self) -> dict:
    """What this object did: requests sent, repeats among them (after errors and unusable replies),
    unusable replies, requests answered from the cache, given up on, tokens and USD of the replies
    received now, errors by kind.
    """
    return self._ledger.counts()

  def key(self, request: Request, attempt: int = 0) -> str:
    """What a reply is cached by: SHA-256 of model, messages, parameters, number of the sample and
    of the attempt.
    """
    content = [
      self._model(request),
      [dict(m) for m in request.messages],
      self._sent_parameters(request, attempt),
    ]
    return hashlib.sha256(
      json.dumps([*content, request.sample, attempt], sort_keys=True).encode()
    ).hexdigest()

  def estimate(self, requests: Sequence[Request]) -> Estimate:
    """What the requests will take. Asks nobody."""
    seen, cached, tokens_in, tokens_out, usd, spent = set(), 0, 0, 0, 0.0, 0.0
    for request in requests:
      key = self.key(request)
      if key in seen:
        continue
      seen.add(key)
      had = self._had(request)
      spent += sum(self._ledger.cost(self._model(request), reply['usage']) for _, reply in had)
      if had:
        cached += 1
        continue
      usage = self._guess(request)
      tokens_in, tokens_out = (
        tokens_in + usage['prompt_tokens'],
        tokens_out + usage['completion_tokens'],
      )
      usd += self._ledger.cost(self._model(request), usage)
    priced = self._ledger.priced
    return Estimate(
      len(seen), cached, tokens_in, tokens_out, usd if priced else None, spent if priced else None
    )

  def check_budget(self, estimate: Estimate) -> None:
    """Raises BudgetError where the estimate is over the budget."""
    self._ledger.check((estimate.usd or 0.0) + (estimate.spent or 0.0), estimate.requests)

  def complete(
    self,
    requests: Sequence[Request],
    accept: Callable[[str], bool] | None = None,
    *,
    progress: str | None = 'endpoint',
    check: Callable[[], None] = interruption.check,
  ) -> Iterator[Reply]:
    """Replies as they come, one for each request; requests with equal content are sent once.

    A reply is on the disk before it is given out. One that is not accepted is asked for again, up
    to `garbage_retries`.

    Args:
      requests: of one kind or several.
      accept: whether a text is usable; None = all are.
      progress: label of the line on stderr; None = none.
      check: called between replies and while waiting; what it raises ends the call. With several
        hosts, of which only one may ask an endpoint, give another than the default, in which all
        hosts take part.

    Raises:
      BudgetError: the estimate is over the budget (before anything is sent), or the budget is used
        up.
      EndpointError: the key is not accepted, the model is not there, or request after request
        fails.
      Interrupted: the run around it was told to stop.
    """
    requests = list(requests)
    self._begin(requests)
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
      groups.setdefault(self.key(request), []).append(index)
    jobs, jobs_lock, outcomes, stop = (
      iter(groups.values()),
      threading.Lock(),
      queue.SimpleQueue(),
      threading.Event(),
    )

    def work():
      while not stop.is_set():
        with jobs_lock:
          indices = next(jobs, None)
        if indices is None:
          return
        try:
          outcomes.put((indices, self._ask(requests[indices[0]], accept, stop)))
        except _Stopped:
          return
        except BaseException as error:  # raised in the thread of the caller
          stop.set()
          outcomes.put((indices, error))

    names = [f'endpoint-{i}' for i in range(min(self._concurrency, len(groups)))]
    workers = [threading.Thread(target=work, daemon=True, name=name) for name in names]
    left, failure, in_a_row, replied = len(groups), None, 0, False
    with self._bar(progress, len(groups)) as bar:
      try:
        for worker in workers:
          worker.start()
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
          yield from _for_each(indices, outcome)
          replied |= outcome.text is not None
          in_a_row = (
            0
            if outcome.text is not None and not outcome.cached
            else in_a_row + (outcome.text is None)
          )
          if in_a_row >= max(8, self._concurrency) or (in_a_row and not left and not replied):
            failure = EndpointError(f'{in_a_row} requests in a row brought no reply from '
                                    f'{self._transport.url}, the last one because: '
                                    f'{outcome.error}. What was received is kept; start the same '
                                    'command again once that is mended')  # fmt: skip
      finally:
        stop.set()
        until = time.monotonic() + self._drain
        for worker in workers:
          if worker.is_alive():
            worker.join(max(0.0, until - time.monotonic()))
    while failure is not None and not outcomes.empty():
      indices, outcome = outcomes.get()
      if isinstance(outcome, Reply):
        yield from _for_each(indices, outcome)
    if failure is not None:
      raise failure

  def _begin(self, requests: Sequence[Request]) -> None:
    for request in requests:
      for key, reply in self._had(request):
        self._ledger.earlier(key, self._ledger.cost(self._model(request), reply['usage']))
    coming = self.estimate(requests)
    self._ledger.check(
      self._ledger.spent + (coming.usd or 0.0), self._ledger.had + coming.requests - coming.cached
    )

  def _had(self, request: Request) -> list[tuple[str, dict]]:
    """(key, reply) of the attempts in the cache."""
    found = []
    for attempt in range(self._garbage_retries + 1):
      key = self.key(request, attempt)
      if (reply := self._cache.get(key)) is None:
        break
      found.append((key, reply))
    return found

  def _ask(self, request: Request, accept, stop: threading.Event) -> Reply:
    """All attempts at one request, from the cache or the server."""
    accept, usage, sent, accepted, reply, attempt = request.accept or accept, {}, 0, False, {}, 0
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
      cut = request.whole and reply['finish_reason'] == 'length'
      accepted = not cut and (accept is None or bool(accept(reply['text'])))
      if accepted:
        break
      self._ledger.count('refused')
    if not sent:
      self._ledger.count('cached')
    return Reply(-1, reply['text'], accepted, attempt, not sent, usage, reply['finish_reason'])

  def _send(self, request: Request, attempt: int, key: str, stop: threading.Event) -> dict:
    """One reply from the server, on the disk when this returns; repeats what may be repeated."""
    errors = limits = 0
    held = self._ledger.cost(self._model(request), self._guess(request))
    while True:
      if not self._pace.turn(stop) or not self._ledger.reserve(held, stop.is_set):
        raise _Stopped
      try:
        if attempt + errors + limits:
          self._ledger.count('repeated')
        started = time.monotonic()
        reply = self._transport.post(
          self._model(request), request.messages, self._sent_parameters(request, attempt)
        )
        if reply['usage'] is None:
          reply['usage'] = {
            **self._guess(request),
            'completion_tokens': self._tokens(reply['text']),
          }
          self._ledger.count('without_usage')
        self._cache.put(key, reply)
        self._pace.speed_up()
        self._ledger.pay(
          key, self._ledger.cost(self._model(request), reply['usage']), reply['usage']
        )
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
      wait = min(
        LONGEST_BACKOFF, self._backoff * 2.0 ** min(errors + limits - 1, 30)
      ) * random.uniform(0.5, 1.0)
      if lost.kind == '429':
        self._pace.slow_down(wait if lost.wait is None else lost.wait, started)
      if stop.wait(wait if lost.wait is None else lost.wait + random.uniform(0.0, 0.1)):
        raise _Stopped

  def _model(self, request: Request) -> str:
    return request.model or self.model

  def _sent_parameters(self, request: Request, attempt: int) -> dict:
    found = {**request.parameters, **(request.again if attempt else {}), **self._parameters}
    return {name: value for name, value in found.items() if value is not None}

  def _guess(self, request: Request) -> dict[str, int]:
    expected = request.expected_tokens
    if expected is None:
      expected = request.parameters.get('max_tokens') or 256
    sent = sum(4 + self._tokens(message['content']) for message in request.messages)
    return {'prompt_tokens': sent, 'completion_tokens': expected}

  @contextlib.contextmanager
  def _bar(self, label: str | None, total: int):
    import tqdm

    often = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm.tqdm(
      total=total, desc=label, unit='reply', mininterval=often, disable=label is None
    ) as bar:
      yield bar

  def _show(self, bar) -> None:
    found = self.counts()
    told = {name: found[name] for name in ('cached', 'repeated', 'failed') if found[name]}
    bar.set_postfix(
      {**told, **({'usd': f'{found["usd"]:.2f}'} if found['usd'] else {})}, refresh=False
    )
    bar.update()


def _for_each(indices: Sequence[int], reply: Reply) -> Iterator[Reply]:
  """The reply to requests of equal content, of which only the first was sent."""
  for n, index in enumerate(indices):
    yield dataclasses.replace(reply, index=index, cached=reply.cached or n > 0)


@contextlib.contextmanager
def stoppable():
  """Within it SIGTERM and SIGINT are heard; gives the `check` for `complete`.

  NB: not `interruption.check`, which asks JAX: that would take the accelerator of a machine that
  only waits for replies.
  """
  with interruption.StopSignal() as signal:

    def check():
      if signal.received():
        raise Interrupted

    yield check
