"""Prices, a budget that threads share, and counters of requests."""

from collections import Counter
from collections.abc import Callable, Mapping
import dataclasses
import threading

from crossin_jax.errors import CrossinError

TOKENS = ('prompt_tokens', 'completion_tokens')
_KEPT = 'received replies are stored: raise it and start the same command again to continue'


class BudgetError(CrossinError, ValueError):
  """The budget is too small or used up; received replies are stored."""

  exit_status = 2


@dataclasses.dataclass(frozen=True)
class Counts:
  """Counts of one start.

  Attributes:
    repeated: of those sent: after errors and unusable replies.
    refused: unusable replies.
    cached: requests that sent nothing.
    failed: requests without a reply.
    without_usage: replies whose tokens are a guess.
    usd: None without prices.
    errors: kind -> number.
  """

  sent: int
  repeated: int
  refused: int
  cached: int
  failed: int
  prompt_tokens: int
  completion_tokens: int
  without_usage: int
  usd: float | None
  errors: dict[str, int]

  def as_json(self) -> dict:
    return dataclasses.asdict(self)


class Ledger:
  """Costs and counts. Threads may share it.

  Attributes:
    priced: whether both prices are known.
    spent: USD, including replies of earlier starts.
  """

  def __init__(
    self,
    price_in: float | Mapping[str, float] | None = None,
    price_out: float | Mapping[str, float] | None = None,
    budget: float | None = None,
    budget_requests: int | None = None,
  ):
    """See `Endpoint`. Raises ValueError for a budget without prices."""
    self.priced = price_in is not None and price_out is not None
    if budget is not None and not self.priced:
      raise ValueError(
        'a budget needs both prices (price_in, price_out, USD per million tokens); '
        'without prices limit the requests (budget_requests)'
      )
    self._prices, self._budget, self._most = (price_in, price_out), budget, budget_requests
    self._changed = threading.Condition()
    self.spent, self._now, self._reserved = 0.0, 0.0, 0.0
    self._paid, self._earlier = set(), 0
    self._counts, self._errors = Counter(), Counter()

  def cost(self, model: str, usage: Mapping[str, int]) -> float:
    """USD; 0 without prices."""
    if not self.priced:
      return 0.0
    try:
      prices = [price[model] if isinstance(price, Mapping) else price for price in self._prices]
    except KeyError:
      raise ValueError(f'no price is given for the model {model!r}') from None
    return sum(price * usage[name] for price, name in zip(prices, TOKENS)) / 1e6

  def check(self, usd: float, requests: int) -> None:
    """Raises BudgetError if these totals exceed the budget."""
    if self._budget is not None and usd > self._budget:
      raise BudgetError(
        f'the estimate of {usd:.2f} USD is over the budget of {self._budget:.2f} USD; raise '
        '--budget, or send fewer requests'
      )
    if self._most is not None and requests > self._most:
      raise BudgetError(
        f'{requests:,} requests are over the limit of {self._most:,}; raise --budget_requests'
      )

  @property
  def requests(self) -> int:
    """Requests that count towards the limit: those sent, and replies of earlier starts."""
    return self._counts['sent'] + self._earlier

  def earlier(self, key: str, usd: float) -> None:
    """Counts a stored reply towards the budget, once."""
    if key not in self._paid:
      self._paid.add(key)
      self._earlier += 1
      self.spent += usd

  def reserve(self, usd: float, stopped: Callable[[], bool]) -> bool:
    """Waits until the budget allows one more request and counts it; False if stopped.

    Raises:
      BudgetError: the budget is used up.
    """
    budget = float('inf') if self._budget is None else self._budget
    with self._changed:
      while self.spent < budget <= self.spent + self._reserved and not stopped():
        self._changed.wait(0.2)
      if stopped():
        return False
      if self.spent >= budget:
        raise BudgetError(
          f'the budget of {budget:.2f} USD is used up ({self.spent:.2f} USD); {_KEPT}'
        )
      if self._most is not None and self.requests >= self._most:
        raise BudgetError(f'the limit of {self._most:,} requests is reached; {_KEPT}')
      self._reserved += usd
      self._counts['sent'] += 1
      return True

  def release(self, usd: float) -> None:
    """Frees what `reserve` reserved for a request."""
    with self._changed:
      self._reserved -= usd
      self._changed.notify_all()

  def pay(self, key: str, usd: float, usage: Mapping[str, int]) -> None:
    """Counts a received reply."""
    with self._changed:
      self._paid.add(key)
      self.spent, self._now = self.spent + usd, self._now + usd
      self._counts.update({name: usage[name] for name in TOKENS})

  def count(self, name: str) -> None:
    """Increments a counter."""
    with self._changed:
      self._counts[name] += 1

  def error(self, kind: str) -> None:
    """Counts a request without a reply."""
    with self._changed:
      self._errors[kind] += 1

  def counts(self) -> Counts:
    with self._changed:
      usd, errors = self._now if self.priced else None, dict(sorted(self._errors.items()))
      counted = [field.name for field in dataclasses.fields(Counts)][:-2]
      return Counts(*(self._counts[name] for name in counted), usd, errors)
