"""When the next request may be sent: a rate, Retry-After, and slower after each 429."""

import datetime
import email.utils
import math
import threading
import time

LONGEST_WAIT = 600.0  # seconds; a longer Retry-After is cut to this
WIDEST = 10.0  # seconds; longest interval between requests


class Pace:
  """Spaces out requests. Threads may share it."""

  def __init__(self, per_minute: float | None = None):
    """`per_minute` limits the rate, evenly spread; None = only the server does."""
    self._lock = threading.Lock()
    self._least = 60.0 / per_minute if per_minute else 0.0
    self._interval, self._next, self._widened = self._least, 0.0, 0.0

  def turn(self, stop: threading.Event) -> bool:
    """Waits for the turn of this thread; False if `stop` is set."""
    while not stop.is_set():
      with self._lock:
        now = time.monotonic()
        wait = self._next - now
        if wait <= 0:
          self._next = now + self._interval
          return True
      stop.wait(min(wait, 1.0))
    return False

  def slow_down(self, seconds: float, sent: float) -> None:
    """Pauses all threads after a 429 to a request sent at `sent` (monotonic); halves the rate."""
    with self._lock:
      now = time.monotonic()
      self._next = max(self._next, now + seconds)
      if sent >= self._widened:  # simultaneous refusals count once
        self._interval, self._widened = min(WIDEST, max(2 * self._interval, 0.02)), now

  def speed_up(self) -> None:
    """Shortens the interval by a tenth, after a reply."""
    with self._lock:
      faster = 0.9 * self._interval if self._interval >= 0.01 else 0.0
      self._interval = max(self._least, faster)


def retry_after(headers) -> float | None:
  """Seconds that a server asks to wait (Retry-After as number or date, or retry-after-ms), or None.

  retry_after({'retry-after': '1.5'}) == 1.5
  """
  try:
    if headers.get('retry-after-ms'):
      seconds = float(headers['retry-after-ms']) / 1000
    else:
      seconds = float(headers.get('retry-after', ''))
  except ValueError:
    try:
      until = email.utils.parsedate_to_datetime(headers.get('retry-after', ''))
      seconds = (until - datetime.datetime.now(until.tzinfo or datetime.UTC)).total_seconds()
    except (TypeError, ValueError):
      return None
  return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT)
