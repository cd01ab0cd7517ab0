"""Counts of the server in Prometheus' text format."""

from collections.abc import Iterable
import dataclasses
import resource
import sys
import threading

from crossin_jax.serve.served import Served

SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # upper bounds of the histogram


@dataclasses.dataclass
class _Durations:
  """A histogram of seconds."""

  buckets: list[int] = dataclasses.field(default_factory=lambda: [0] * len(SECONDS))
  total: float = 0.0
  count: int = 0


class Metrics:
  """Requests by path and status; threads may share it."""

  def __init__(self):
    self._lock = threading.Lock()
    self._requests: dict[tuple[str, int], int] = {}
    self._durations: dict[str, _Durations] = {}

  def count(self, path: str, status: int, seconds: float) -> None:
    """Counts a request that has ended. `path` is one of the server's own, so they are few."""
    with self._lock:
      self._requests[path, status] = self._requests.get((path, status), 0) + 1
      durations = self._durations.setdefault(path, _Durations())
      durations.total, durations.count = durations.total + seconds, durations.count + 1
      for i, bound in enumerate(SECONDS):
        durations.buckets[i] += seconds <= bound

  def text(self, models: Iterable[Served]) -> str:
    """All metrics."""
    models = list(models)
    gauges = {
      'active_answers': ('gauge', 'answers decoded or scored now', lambda e: e.active),
      'waiting_answers': ('gauge', 'answers in the queue', lambda e: e.waiting),
      'rows': ('gauge', 'answers decoded at a time at most', lambda e: e.rows),
      'queue_size': ('gauge', 'answers that may wait', lambda e: e.queue),
      'prompt_tokens_total': ('counter', 'tokens of prompts', lambda e: e.counts.prompt_tokens),
      'generated_tokens_total': (
        'counter', 'tokens generated', lambda e: e.counts.generated_tokens,
      ),
      'scored_tokens_total': ('counter', 'tokens scored', lambda e: e.counts.scored_tokens),
      'answers_total': ('counter', 'answers that ended', lambda e: e.counts.answers),
      'cancelled_total': ('counter', 'jobs of clients that left', lambda e: e.counts.cancelled),
      'failed_total': ('counter', 'jobs that failed', lambda e: e.counts.failed),
    }  # fmt: skip
    lines = []
    for name, (kind, what, value) in gauges.items():
      lines += _head(name, kind, what)
      lines += [
        f'crossin_{name}{{model="{_escaped(one.name)}"}} {value(one.engine)}' for one in models
      ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
      1 if sys.platform == 'darwin' else 1024
    )
    lines += [*_head('peak_memory_bytes', 'gauge', 'of the process'),
              f'crossin_peak_memory_bytes {peak}']  # fmt: skip
    return '\n'.join([*lines, *self._of_requests()]) + '\n'

  def _of_requests(self) -> list[str]:
    lines = _head('requests_total', 'counter', 'requests that ended')
    with self._lock:
      for (path, status), count in sorted(self._requests.items()):
        lines.append(f'crossin_requests_total{{path="{path}",status="{status}"}} {count}')
      lines += _head('request_seconds', 'histogram', 'from the request to the end of the answer')
      for path, durations in sorted(self._durations.items()):
        for bound, count in zip((*SECONDS, '+Inf'), (*durations.buckets, durations.count)):
          lines.append(f'crossin_request_seconds_bucket{{path="{path}",le="{bound}"}} {count}')
        lines.append(f'crossin_request_seconds_sum{{path="{path}"}} {durations.total:.6f}')
        lines.append(f'crossin_request_seconds_count{{path="{path}"}} {durations.count}')
    return lines


def _head(name: str, kind: str, what: str) -> list[str]:
  return [f'# HELP crossin_{name} {what}', f'# TYPE crossin_{name} {kind}']


def _escaped(text: str) -> str:
  return text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')
