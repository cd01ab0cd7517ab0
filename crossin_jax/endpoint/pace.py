"""When the next request may be sent: a rate, waits that a server asked for, and more room after
each refusal for haste.
"""

import datetime
import email.utils
import threading
import time

LONGEST_WAIT = 600.0  # seconds; a server that asks for more is asked again after these
WIDEST = 10.0  # seconds between two requests, whatever the server refuses


class Pace:
  """Shared by the threads that send."""

  def __init__(self, per_minute: float | None = None):
    """Args:
    per_minute: most requests in a minute, evenly spread; None = no limit but what the server
      refuses.
    """
    self._lock = threading.Lock()
    self._least = 60.0 / per_minute if per_minute else 0.0
    self._between, self._next, self._widened = self._least, 0.0, 0.0

  def turn(self, stop: threading.Event) -> bool:
    """Waits for the turn of this thread; False if told to stop."""
    while not stop.is_set():
      with self._lock:
        now = time.monotonic()
        wait = self._next - now
        if wait <= 0:
          self._next = now + self._between
          return True
      stop.wait(min(wait, 1.0))
    return False

  def slow_down(self, seconds: float, sent: float) -> None:
    """Nobody sends for so long, and then half as often, after a refusal of what was sent at `sent`
    (monotonic).
    """
    with self._lock:
      now = time.monotonic()
      self._next = max(self._next, now + seconds)
      if sent >= self._widened:  # several refusals at once are one
        self._between, self._widened = min(WIDEST, max(2 * self._between, 0.02)), now

  def speed_up(self) -> None:
    """A tenth less room, after a reply."""
    with self._lock:
      self._between = self._least if self._between < 0.01 else max(self._least, 0.9 * self._between)


def retry_after(headers) -> float | None:
  """Seconds that a server asks to wait: Retry-After in seconds or as a date, or retry-after-ms;
  None if it does not.

  retry_after({'retry-after': '1.5'}) == 1.5
  """
  try:
    if headers.get('retry-after-ms'):
      found = float(headers['retry-after-ms']) / 1000
    else:
      found = float(headers.get('retry-after', ''))
  except ValueError:
    try:
      until = email.utils.parsedate_to_datetime(headers.get('retry-after', ''))
      found = (until - datetime.datetime.now(until.tzinfo or datetime.UTC)).total_seconds()
    except (TypeError, ValueError):
      return None
  return min(max(found, 0.0), LONGEST_WAIT) if found == found else None
