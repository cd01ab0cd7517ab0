"""Filters single documents block by block, in this process, in several, or in Apache Beam."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
from pathlib import Path
import signal
import threading

import numpy as np

from crossin_jax.storage.files import write_bytes, write_text
from crossin_jax.xinstruction.filtering import documents, filters
from crossin_jax.xinstruction.filtering.documents import Reader, Reading
from crossin_jax.xinstruction.filtering.duplicates import Sketches
from crossin_jax.xinstruction.filtering.filters import Filters

_LEAST_LINE = 10  # characters of a line that can be boilerplate


@dataclasses.dataclass
class Part:
  """What passed the filters of single documents, from one block.

  Attributes:
    rows: JSON lines, one behind the other; ends: (n,) int64, where each ends.
    sketches: of the n texts. ties: (n,) uint64, hash of id (48 bits) and source (16), decides
      between identical texts.
    line_hashes: (l,) uint64 of the different longer lines, or sentences of lines with several.
    line_shares: (l,) float32, share of the document's characters. line_owners: (l,) int32, the
      document, from 0.
    tally: 'read', 'invalid_bytes' and reasons.
  """

  rows: bytes
  ends: np.ndarray
  sketches: Sketches
  ties: np.ndarray
  line_hashes: np.ndarray
  line_shares: np.ndarray
  line_owners: np.ndarray
  tally: Counter[str]


def filter_block(
  block: documents.Block, language: str, filters_: Filters, reading: Reading
) -> Part:
  """Decodes, cleans and sketches the records of a block."""
  tally: Counter[str] = Counter()
  rows, texts, ties = [], [], []
  hashes, shares, owners = [], [], []
  for document in documents.decode(block, reading, tally):
    text, reason = filters.clean(document.text, language, filters_)
    if reason:
      tally[reason] += 1
      continue
    row = {'id': document.id, 'text': text, 'language': language, 'source': document.source}
    rows.append(json.dumps(row, ensure_ascii=False).encode() + b'\n')
    ties.append(_hash(document.id.encode(), 6) + _hash(document.source.encode(), 2))
    for line in filters.sentences(text):
      if len(line) >= _LEAST_LINE:
        hashes.append(_hash(line.encode(), 8))
        shares.append(len(line) / len(text))
        owners.append(len(texts))
    texts.append(text)
  return Part(
    b''.join(rows),
    np.cumsum([len(row) for row in rows], dtype=np.int64),
    Sketches.of(texts),
    np.frombuffer(b''.join(ties), '>u8').astype(np.uint64),
    np.frombuffer(b''.join(hashes), '>u8').astype(np.uint64),
    np.array(shares, np.float32),
    np.array(owners, np.int32),
    tally,
  )


def _hash(content: bytes, size: int) -> bytes:
  return hashlib.blake2b(content, digest_size=size).digest()


# ---- blocks in several processes ----


def local_parts(
  blocks: Iterable[documents.Block], settings: tuple, workers: int, check: Callable[[], None]
) -> Iterator[Part]:
  """Parts in the order of their blocks.

  Args:
    settings: language, filters, reading. workers: processes.
    check: raises if this process was interrupted.
  """
  if workers <= 1:
    for block in blocks:
      yield filter_block(block, *settings)
    return
  # NB: a process with the threads of JAX must not fork
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, settings) as pool:
    waiting: deque = deque()
    try:
      for block in blocks:
        waiting.append((block, pool.submit(_filter_in_worker, block)))
        if len(waiting) > 2 * workers:
          yield _result(*waiting.popleft(), check)
      while waiting:
        yield _result(*waiting.popleft(), check)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _result(block: documents.Block, future, check) -> Part:
  try:
    return future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    check()  # NB: a signal to the process group kills the workers first
    raise ValueError(
      f'a worker process was killed at or after {block.source}, position {block.first}; if memory '
      'ran out, use fewer workers'
    ) from error


_settings: tuple | None = None


def _start_worker(*settings) -> None:
  global _settings  # set once per worker process
  _settings = settings
  # The terminal signals all processes; the main process handles it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def leave_with_parent():
    parent.join()
    # NB: after SIGKILL of the parent, the pool would wait for its queue for ever.
    os._exit(1)

  threading.Thread(target=leave_with_parent, daemon=True).start()


def _filter_in_worker(block: documents.Block) -> Part:
  return filter_block(block, *_settings)


def beam_parts(
  files: dict, exchange: Path, settings: tuple, options: Sequence[str], reader: Reader
) -> Iterator[Part]:
  """Parts of all files, through Apache Beam and files in `exchange`."""
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError:
    raise ValueError(
      "runner = 'beam' needs Apache Beam, in an environment of its own: pip install "
      'crossin-jax[beam]'
    ) from None
  exchange.mkdir(parents=True)
  with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
    (
      pipeline
      | beam.Create(list(enumerate(files.items())))
      | beam.Reshuffle()
      | beam.Map(_filter_file, str(exchange), settings)
    )
  for number in range(len(files)):
    summary = json.loads((exchange / f'{number:06d}.json').read_text(encoding='utf-8'))
    reader.problems.update(summary['problems'])
    reader.refused.update(summary['refused'])
    reader.bytes_read += summary['bytes']
    for part in range(summary['parts']):
      yield _load_part(exchange / f'{number:06d}-{part:06d}.npz')


def _filter_file(numbered: tuple, exchange: str, settings: tuple) -> None:
  """Filters one file on a worker of Beam; a repeated attempt writes the same again."""
  number, (source, path) = numbered
  reader, parts = Reader({source: path}, settings[2]), 0
  for block in reader.blocks():
    _save_part(Path(exchange) / f'{number:06d}-{parts:06d}.npz', filter_block(block, *settings))
    parts += 1
  summary = {
    'parts': parts,
    'problems': reader.problems,
    'refused': reader.refused,
    'bytes': reader.bytes_total,
  }
  write_text(Path(exchange) / f'{number:06d}.json', json.dumps(summary))


def _save_part(path: Path, part: Part) -> None:
  arrays = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
  sketches, tally = arrays.pop('sketches'), arrays.pop('tally')
  arrays['rows'] = np.frombuffer(part.rows, np.uint8)
  arrays['tally'] = np.frombuffer(json.dumps(tally).encode(), np.uint8)
  buffer = io.BytesIO()
  np.savez(buffer, **arrays, **{f'sketch_{name}': value for name, value in vars(sketches).items()})
  write_bytes(path, buffer.getvalue())


def _load_part(path: Path) -> Part:
  with np.load(path, allow_pickle=False) as file:
    arrays = dict(file)
  sketches = Sketches(
    **{
      name.removeprefix('sketch_'): arrays.pop(name)
      for name in list(arrays)
      if name.startswith('sketch_')
    }
  )
  tally = Counter(json.loads(arrays.pop('tally').tobytes()))
  return Part(arrays.pop('rows').tobytes(), sketches=sketches, tally=tally, **arrays)
