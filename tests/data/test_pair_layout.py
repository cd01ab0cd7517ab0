"""Pairs in a row: each token has its target, its context and its pair, in either layout."""

import os
import shutil

from conftest import write_prepared
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pytest

from crossin_jax.data import pair_layout, prepared, references
from crossin_jax.data.prepared import PreparedDataError, PreparedMixture
from crossin_jax.data.stream import FEATURES, BatchStream, check_resume, empty_rows


def pair(prompt, chosen, rejected, second=None):
  """(tokens, weights, branches) of an example."""
  parts = [(prompt, 0), (chosen, 1), (rejected, 2)]
  if second:
    parts += [(tokens, number) for tokens, number in zip(second, (0, 3, 4))]
  tokens = np.concatenate([np.array(tokens, np.int32) for tokens, _ in parts])
  branches = np.concatenate([np.full(len(tokens), number, np.int8) for tokens, number in parts])
  return tokens, (branches > 0).astype(np.float32), branches


def written(layout, example, bos_id=1, logps=None, length=24):
  batch = empty_rows(1, length, FEATURES | pair_layout.features(layout, logps is not None))
  end, segment = pair_layout.write(batch, 0, 0, 1, *example, bos_id, 0, logps)
  return {name: array[0, :end].tolist() for name, array in batch.items()}, segment


def test_the_example_of_the_docstring():
  example = pair([11, 12], [21, 22], [31])
  batch, segment = written('branches', example)
  assert batch['decoder_input_tokens'] == [1, 11, 12, 21, 12] and segment == 2
  assert batch['decoder_target_tokens'] == [11, 12, 21, 22, 31]
  assert batch['decoder_positions'] == [0, 1, 2, 3, 2]
  assert batch['decoder_branches'] == [0, 0, 1, 1, 2]
  batch, segment = written('plain', example, logps=[-1.0, -2.0, 0, 0])
  assert batch['decoder_input_tokens'] == [1, 11, 12, 21, 1, 11, 12] and segment == 3
  assert batch['decoder_target_tokens'] == [11, 12, 21, 22, 11, 12, 31]
  assert batch['decoder_segment_ids'] == [1, 1, 1, 1, 2, 2, 2]
  assert batch['decoder_answers'] == [0, 0, 1, 1, 0, 0, 2]
  assert batch['decoder_pair_ids'] == [1] * 7
  assert batch['decoder_reference_logps'] == [0, 0, -1, 0, 0, 0, -2]


parts = st.lists(st.integers(3, 50), min_size=1, max_size=4)


@given(
  first=st.tuples(st.lists(st.integers(3, 50), max_size=4), parts, parts),
  second=st.none() | st.tuples(parts, parts, parts),
  bos_id=st.sampled_from((1, None)),
)
def test_every_token_of_an_answer_sees_what_it_would_see_alone(first, second, bos_id):
  """Context of a column: earlier columns of its segment that are trunk or its own branch."""
  if bos_id is None and not first[0]:
    return
  example = pair(*first, second)
  expected = {}
  for number, half in ((0, first), (2, second)):
    for i in (1, 2) if half else ():
      expected[number + i] = ([bos_id] if bos_id else []) + [*half[0], *half[i]], len(half[i])
  for layout in pair_layout.LAYOUTS:
    batch, _ = written(layout, example, bos_id, length=48)
    columns = len(batch['decoder_input_tokens'])
    lengths = pair_layout.lengths(layout, len(example[0]), int((example[2] == 0).sum()))
    assert columns == lengths - (bos_id is None) * max(batch['decoder_segment_ids'])
    numbers = batch['decoder_branches' if layout == 'branches' else 'decoder_answers']
    found = {}
    for j in range(columns):
      if not numbers[j]:
        assert not batch['decoder_loss_weights'][j]
        continue
      seen = [
        i
        for i in range(j + 1)
        if batch['decoder_segment_ids'][i] == batch['decoder_segment_ids'][j]
        and numbers[i] in (0, numbers[j])
      ]
      assert [batch['decoder_positions'][i] for i in seen] == list(range(len(seen)))
      text = [batch['decoder_input_tokens'][i] for i in seen] + [batch['decoder_target_tokens'][j]]
      found.setdefault(numbers[j], []).append(text)
    assert found == {
      number: [text[: len(text) - answer + 1 + k] for k in range(answer)]
      for number, (text, answer) in expected.items()
    }


@pytest.mark.parametrize('branches', [[], [1, 1], [0, 2, 1], [0, 1, 2, 0], [0, 1, 2, 0, 3], [0, 0]])
def test_parts_that_are_no_pair(branches):
  with pytest.raises(ValueError, match='the parts of a pair are'):
    pair_layout.halves(np.array(branches, np.int8))


def mixture_of(directory, count=40, dco=False, seed=0):
  """Pairs and rows, one to two."""
  rng = np.random.default_rng(seed)
  draw = lambda low, high: rng.integers(3, 60, int(rng.integers(low, high))).tolist()
  triple = lambda: (draw(3, 9), draw(1, 6), draw(1, 6))
  examples = [pair(*triple(), triple() if dco else None) for _ in range(count)]
  rows = []
  for _ in range(count):
    tokens = np.array(draw(4, 12), np.int32)
    rows.append((tokens, (np.arange(len(tokens)) > 1).astype(np.float32)))
  tasks = {'pairs.vi': (1.0, None, examples), 'rows.en': (2.0, None, rows)}
  return write_prepared(directory, tasks), examples


def with_pairs(mixture, directory) -> tuple[str, str]:
  """A copy of a prepared mixture with pairs in the place of its first task, in both splits: an
  answer against that of another row; returns (directory, name).
  """
  shutil.copytree(mixture[0], directory)
  task = PreparedMixture(str(directory), mixture[1]).tasks[0].split.name
  for name in ('train', 'validation'):
    split = prepared.TaskSplit(str(directory), task, name)
    cut = lambda i, split=split: (split.example(i)[0], int(np.argmax(split.example(i)[1] > 0)))
    examples = []
    for i in range(len(split)):
      (tokens, first), (other, start) = cut(i), cut((i + 1) % len(split))
      example = pair(tokens[:first], tokens[first:], other[start:])
      examples.append((split.id(i), int(split.ranks[i]), *example))
    for part in split.parts:
      os.unlink(path := os.path.join(split.directory, part['file']))  # the old one is mapped
      prepared.write_part(path, examples[: part['examples']])
      del examples[: part['examples']]
  return str(directory), mixture[1]


def test_a_file_without_pairs_is_as_before(tmp_path):
  """Byte for byte: the schema is the old one."""
  prepared.write_part(tmp_path / 'rows.arrow', [('a', 0, [1, 2], [0.0, 1.0])])
  table = pa.ipc.open_file(pa.memory_map(str(tmp_path / 'rows.arrow'))).read_all()
  assert table.schema == prepared.SCHEMA


@pytest.mark.parametrize('layout', pair_layout.LAYOUTS)
@pytest.mark.parametrize('dco', [False, True])
def test_a_stream_of_pairs_and_rows(tmp_path, layout, dco):
  name, examples = mixture_of(tmp_path, dco=dco)
  mixture = PreparedMixture(str(tmp_path), name)
  make = lambda: BatchStream(mixture, batch_size=4, length=48, pairs=layout, window=64)
  stream = make()
  counted = {'pairs.vi': 0, 'rows.en': 0}
  for step in range(20):
    batch = stream.batch(step)
    again = make().batch(step)
    assert list(batch) == list(stream.features)
    for array, other in zip(batch.values(), again.values()):
      np.testing.assert_array_equal(array, other)
    for row, (named, segments) in enumerate(zip(stream.examples(step), stream.segments(step))):
      assert set(segments) == set(named)
      assert batch['decoder_segment_ids'][row].max() == len(segments)
      for segment, (task, _) in enumerate(segments, start=1):
        of = batch['decoder_segment_ids'][row] == segment
        assert (batch['decoder_pair_ids'][row][of] > 0).all() == (task == 'pairs.vi')
      for task, _ in named:
        counted[task] += 1
  assert abs(counted['rows.en'] - 2 * counted['pairs.vi']) <= 6, 'the rates hold'
  assert stream.settings['pairs'] == layout
  assert mixture.tasks[0].split.halves.tolist() == [1 + dco] * len(examples)


def test_auto_keeps_the_layout_of_a_run(tmp_path):
  name, _ = mixture_of(tmp_path)
  mixture = PreparedMixture(str(tmp_path), name)
  make = lambda **options: BatchStream(mixture, batch_size=4, length=48, **options)
  begun, now = make(auto_pairs='plain'), make(auto_pairs='branches')
  assert now.as_begun(begun.settings).settings == begun.settings
  with pytest.raises(ValueError, match='pairs was plain, now branches'):
    check_resume(begun.settings, make(pairs='branches').as_begun(begun.settings).settings)
  with pytest.raises(ValueError, match="BatchStream.pairs = 'twice' is none of"):
    make(pairs='twice')
  with pytest.raises(ValueError, match='the prompt of a pair twice.*increase the row length'):
    BatchStream(mixture, batch_size=4, length=20, pairs='plain')


def test_stored_references(tmp_path):
  name, examples = mixture_of(tmp_path)
  mixture = PreparedMixture(str(tmp_path), name)
  split, digest = mixture.tasks[0].split, 'ab' * 32
  logps = -np.random.default_rng(0).random((len(examples), 4)).astype(np.float32)
  make = lambda digest: BatchStream(mixture, batch_size=4, length=48, reference=digest)
  with pytest.raises(PreparedDataError, match='no log-probabilities of the model.*--reference'):
    make(digest)
  first = 0
  for part in split.parts:
    references.write(split, digest, part, logps[first : first + part['examples']])
    first += part['examples']
  np.testing.assert_array_equal(references.read(split, digest), logps)
  stream = make(digest)
  batch, found = stream.batch(0), []
  at = batch['decoder_reference_logps'] != 0
  for row, segments in enumerate(stream.segments(0)):
    for segment, (task, id_) in enumerate(segments, start=1):
      if task == 'pairs.vi':
        columns = at[row] & (batch['decoder_segment_ids'][row] == segment)
        found.append((int(id_.split('/')[1]), batch['decoder_reference_logps'][row][columns]))
  assert found and all((values == logps[index, :2]).all() for index, values in found)
  assert stream.settings['reference'] == digest
  with pytest.raises(PreparedDataError, match='no log-probabilities of the model'):
    make('cd' * 32)
  # Of another version of the task, and damaged.
  split.manifest['fingerprint'] = 'changed'
  with pytest.raises(PreparedDataError, match='no log-probabilities of the model'):
    references.read(split, digest)
  (tmp_path / references.path_of(split, digest, split.parts[0])).write_bytes(b'no')
  with pytest.raises(PreparedDataError, match='cannot be read.*store it again'):
    references.read(split, digest)
