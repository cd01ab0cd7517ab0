"""The `filter` step: reads files of raw text and writes the kept documents of one language.

Worker processes decode, clean and sketch blocks of records. This process keeps the rows in an
unnamed file and the sketches (about 450 bytes per document) in memory. It finds duplicates among
all documents, then lines that many documents share, and writes the remaining documents in the
order of a hash of their texts. The output depends on the set of documents only, not on their
order, files or processes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import shutil
import sys
import tempfile
import time

import numpy as np

from crossin_jax.errors import Interrupted
from crossin_jax.storage.files import write_bytes, write_json
from crossin_jax.xinstruction.filtering import documents, duplicates
from crossin_jax.xinstruction.filtering.documents import Reader, Reading
from crossin_jax.xinstruction.filtering.duplicates import Sketches
from crossin_jax.xinstruction.filtering.filters import REASONS as FILTER_REASONS
from crossin_jax.xinstruction.filtering.filters import Filters, check_language
from crossin_jax.xinstruction.filtering.parts import Part, beam_parts, local_parts

# Every reason why a document is dropped, in the order of the tests.
REASONS = {
  **documents.REFUSALS,
  **FILTER_REASONS,
  'exact_duplicate': 'another document differs in case and spaces only',
  'near_duplicate': 'another document is nearly the same',
  'common_lines': 'too much of it stands in lines that many documents share',
}
_SMALL = 4 << 20  # bytes of input that are not worth worker processes


@dataclasses.dataclass(frozen=True)
class FilterCounts:
  """What `run_filter` did, as in counts.json; read = kept + all dropped.

  Attributes:
    dropped: reason of `REASONS` -> documents.
    invalid_bytes: bytes that are not UTF-8.
    unreadable: file -> its problem; it may have been read up to its damage.
  """

  language: str
  read: int
  kept: int
  dropped: dict[str, int]
  invalid_bytes: int
  files: int
  unreadable: dict[str, str]
  seconds: float
  documents_per_second: float


def run_filter(
  language: str,
  paths: str | Sequence[str],
  output_dir: str | os.PathLike,
  filters: Filters,
  *,
  chunk: int = 512,
  workers: int | None = None,
  reading: Reading | None = None,
  runner: str = 'local',
  beam_options: Sequence[str] = (),
  progress: bool = True,
) -> FilterCounts:
  """Filters documents of one language into `output_dir/<language>/`.

  The folder appears by rename, whole, with `00000.jsonl`, `00001.jsonl` ... of `chunk` rows {"id",
  "text", "language", "source"} each, fewer in the last, and `counts.json`; one of an earlier run
  stays until then. An id that several kept documents share gets '#' and a hash of its text.

  Args:
    language: code.
    paths: see `documents.find_files`.
    filters: what is kept.
    chunk: documents in a file, 1 or more.
    workers: processes; None = one for each core that this process may use; little text is
      processed in this process.
    reading: how the files hold documents; None = as gin says.
    runner: 'local', or 'beam': Apache Beam reads and filters, a file being the unit; all its
      workers must see `paths` and `output_dir`. Duplicates are found here in either case.
    beam_options: of the Beam pipeline, e.g. ['--runner=FlinkRunner'].
    progress: whether to show it on stderr.

  Raises:
    FileNotFoundError, ValueError: nothing to read, or no record with the text's field.
    Interrupted: by SIGTERM or SIGINT; nothing has changed.
  """
  from crossin_jax.processes import interruption  # NB: imports JAX, which workers do without

  reading = reading or Reading()
  if chunk < 1:
    raise ValueError(f'chunk = {chunk}: it must be 1 or more')
  if runner not in ('local', 'beam'):
    raise ValueError(f"runner = {runner!r}: it must be 'local' or 'beam'")
  if not language or '/' in language or language.startswith('.'):
    raise ValueError(f'language = {language!r}: it must be a code such as sw')
  check_language(language, filters)
  files = documents.find_files(paths)
  output_dir = Path(output_dir)
  output_dir.mkdir(parents=True, exist_ok=True)
  final, staging, old, exchange = (
    output_dir / name
    for name in (language, f'.{language}.partial', f'.{language}.old', f'.{language}.beam')
  )
  if old.exists() and not final.exists():
    os.rename(old, final)  # killed between the two renames below
  for leftover in (staging, old, exchange):
    shutil.rmtree(leftover, ignore_errors=True)
  started = time.monotonic()
  reader = Reader(files, reading)
  if workers is None:
    workers = 1 if reader.bytes_total < _SMALL else _cores()
  settings = (language, filters, reading)
  with interruption.StopSignal() as stop, tempfile.TemporaryFile(dir=output_dir) as spool:

    def check():
      if stop.received():
        raise Interrupted

    if runner == 'beam':
      parts = beam_parts(files, exchange, settings, beam_options, reader)
    else:
      parts = local_parts(reader.blocks(), settings, workers, check)
    tally, parts = _gather(parts, spool, reader, language, check, progress)
    _require_texts(tally, reader, reading)
    if progress:
      print(
        f'filter {language}: looking for duplicates among '
        f'{sum(len(part.ends) for part in parts):,} documents',
        file=sys.stderr,
      )
    kept, ends, ties, sketches = _without_duplicates(parts, filters, tally, check)
    shutil.rmtree(exchange, ignore_errors=True)
    staging.mkdir()
    _write(staging, spool, kept, ends, ties, sketches.ranks, chunk, check)
    counts = _counts(language, tally, len(kept), reader, time.monotonic() - started)
    write_json(staging / 'counts.json', dataclasses.asdict(counts))
    if final.exists():
      os.rename(final, old)
    os.rename(staging, final)
    shutil.rmtree(old, ignore_errors=True)
  if progress:
    _print(counts)
  return counts


def _cores() -> int:
  affinity = getattr(os, 'sched_getaffinity', None)
  return len(affinity(0)) if affinity else os.cpu_count()


# ---- all documents ----


def _gather(
  parts: Iterator[Part], spool, reader: Reader, language: str, check, progress: bool
) -> tuple[Counter, list[Part]]:
  """Moves the rows to the spool; their ends become positions in it."""
  import tqdm

  tally, gathered, written = Counter(), [], 0
  often = 0.5 if sys.stderr.isatty() else 30.0
  with (
    tqdm.tqdm(
      total=reader.bytes_total,
      desc=f'filter {language}',
      unit='B',
      unit_scale=True,
      mininterval=often,
      disable=not progress,
    ) as bar,
    contextlib.closing(parts),
  ):
    for part in parts:
      check()
      tally.update(part.tally)
      spool.write(part.rows)
      part.ends = part.ends + written
      written += len(part.rows)
      part.rows = b''
      gathered.append(part)
      bar.set_postfix_str(f'{tally["read"]:,} documents', refresh=False)
      bar.update(reader.bytes_read - bar.n)
    bar.update(reader.bytes_read - bar.n)
  tally.update(reader.refused)
  tally['read'] += reader.refused.total()
  spool.flush()
  return tally, gathered


def _require_texts(tally: Counter, reader: Reader, reading: Reading) -> None:
  if tally['read'] and tally['read'] == tally['no_text'] + tally['invalid_json']:
    raise ValueError(
      f'none of {tally["read"]:,} records has a text under {reading.field!r} '
      f'({tally["invalid_json"]:,} are not valid JSON); '
      'name the field of the texts with Reading.field=NAME'
    )
  if not tally['read'] and reader.problems:
    source, problem = next(iter(reader.problems.items()))
    raise ValueError(
      f'no file could be read ({len(reader.problems)} unreadable); the first: {source}: {problem}'
    )


def _without_duplicates(
  parts: list[Part], filters_: Filters, tally: Counter, check: Callable[[], None]
):
  """(kept, ends, ties, sketches): indices of what stays, in the order of their hashes, and arrays
  over all that passed.
  """
  ends = np.concatenate([np.zeros(0, np.int64), *(part.ends for part in parts)])
  ties = np.concatenate([np.zeros(0, np.uint64), *(part.ties for part in parts)])
  sketches = Sketches.joined([part.sketches for part in parts])
  verdicts = duplicates.find(sketches, ties, check, filters_.near_duplicate)
  tally['exact_duplicate'] += int((verdicts == duplicates.EXACT).sum())
  tally['near_duplicate'] += int((verdicts == duplicates.NEAR).sum())
  stays = verdicts == duplicates.KEPT
  if filters_.common_line:
    common = _common_lines(parts, stays, filters_)
    tally['common_lines'] += int(common.sum())
    stays &= ~common
  order = duplicates.in_order(sketches, ties)
  return order[stays[order]], ends, ties, sketches


def _common_lines(parts: list[Part], stays: np.ndarray, filters_: Filters) -> np.ndarray:
  """(n,) bool: which of the documents that stay consist of boilerplate. NB: counted among those
  that stay, or the copies of a document would make boilerplate of it."""
  first, hashes = 0, [np.zeros(0, np.uint64)]
  for part in parts:
    hashes.append(part.line_hashes[stays[first + part.line_owners]])
    first += len(part.ends)
  distinct, times = np.unique(np.concatenate(hashes), return_counts=True)
  common = distinct[times >= filters_.common_line]
  result, first = np.zeros(len(stays), bool), 0
  for part in parts:
    shares = part.line_shares * np.isin(part.line_hashes, common)
    share = np.bincount(part.line_owners, shares, minlength=len(part.ends))
    result[first : first + len(part.ends)] = share > filters_.most_common_lines
    first += len(part.ends)
  return result & stays


def _write(folder: Path, spool, kept, ends, ties, ranks, chunk: int, check) -> None:
  starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
  ids, times = np.unique(ties[kept] >> np.uint64(16), return_counts=True)
  shared = np.isin(ties[kept] >> np.uint64(16), ids[times > 1])
  for number, first in enumerate(range(0, len(kept), chunk)):
    check()
    rows = []
    for place in range(first, min(first + chunk, len(kept))):
      one = kept[place]
      row = os.pread(spool.fileno(), int(ends[one] - starts[one]), int(starts[one]))
      if shared[place]:
        record = json.loads(row)
        record['id'] += f'#{int(ranks[one, 0]):016x}'
        row = json.dumps(record, ensure_ascii=False).encode() + b'\n'
      rows.append(row)
    write_bytes(folder / f'{number:05d}.jsonl', b''.join(rows))


def _counts(
  language: str, tally: Counter, kept: int, reader: Reader, seconds: float
) -> FilterCounts:
  dropped = {reason: tally[reason] for reason in REASONS if tally[reason]}
  if tally['read'] != kept + sum(dropped.values()):
    raise AssertionError(
      f'{tally["read"]} documents read, {kept} kept, dropped: {dropped}: some are not accounted for'
    )
  return FilterCounts(
    language,
    read=tally['read'],
    kept=kept,
    dropped=dropped,
    invalid_bytes=tally['invalid_bytes'],
    files=len(reader.files),
    unreadable=dict(sorted(reader.problems.items())),
    seconds=round(seconds, 2),
    documents_per_second=round(tally['read'] / max(seconds, 1e-9), 1),
  )


def _print(counts: FilterCounts) -> None:
  lines = [
    f'{counts.language}: {counts.kept:,} of {counts.read:,} documents kept, in '
    f'{counts.seconds:.0f} s ({counts.documents_per_second:,.0f} a second)'
  ]
  lines += [
    f'  {number:>9,} {reason}: {REASONS[reason]}' for reason, number in counts.dropped.items()
  ]
  problems = [f'  {source}: {problem}' for source, problem in counts.unreadable.items()]
  lines += problems[:10]
  if len(problems) > 10:
    lines.append(f'  and {len(problems) - 10} more files with problems, see counts.json')
  print('\n'.join(lines), file=sys.stderr)
