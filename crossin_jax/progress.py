"""Progress lines with rate and time left, or with the time that one long call takes."""

import contextlib
import sys
import threading
import time


class Progress:
  """One line on stderr: step, loss, rate, time left. On a terminal it overwrites itself."""

  def __init__(self, total: int, label: str, stream=None):
    self._total, self._label, self._stream = total, label, stream or sys.stderr
    self._start, self._first, self._shown = time.monotonic(), None, 0.0

  def show(self, done: int, text: str = '', force: bool = False) -> None:
    """At most every half second on a terminal, every 30 seconds elsewhere."""
    now = time.monotonic()
    if self._first is None:
      self._first, self._start = done, now
    terminal = self._stream.isatty()
    if not force and done < self._total and now - self._shown < (0.5 if terminal else 30):
      return
    self._shown = now
    rate = (done - self._first) / max(1e-9, now - self._start)
    left = (
      f', {duration((self._total - done) / rate)} left' if rate > 0 and done < self._total else ''
    )
    line = (
      f'{self._label} {done:,}/{self._total:,} ({rate:.3g}/s{left}){" " + text if text else ""}'
    )
    end = '\n' if not terminal or done >= self._total else ''
    self._stream.write(f'\r\033[K{line}{end}' if terminal else f'{line}{end}')
    self._stream.flush()


def duration(seconds: float) -> str:
  """Seconds as people say them: '45 s', '12 min', '3.5 h'."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  return f'{seconds / 60:.0f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


@contextlib.contextmanager
def announced(what: str):
  """Prints on stderr what runs and for how long: a compilation may take minutes."""
  started, done = time.monotonic(), threading.Event()
  live = sys.stderr.isatty()

  def report():
    period = 1 if live else 30
    while not done.wait(period):
      line = f'{what}: {time.monotonic() - started:.0f} s'
      print(f'\r{line} ' if live else line, end='' if live else '\n', file=sys.stderr, flush=True)

  print(f'{what} ...', end='' if live else '\n', file=sys.stderr, flush=True)
  thread = threading.Thread(target=report, daemon=True, name='announced')
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
    if live:
      print(f'\r{what}: {time.monotonic() - started:.0f} s', file=sys.stderr)
