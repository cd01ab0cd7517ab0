"""Documents from JSONL and Parquet: all of their text is trained, without a prompt."""

import gzip
import json
import pickle

import gin
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crossin_jax.data.prepared import PreparedMixture
from crossin_jax.data.source_errors import SourceError
from seqio_tasks.mixtures import MixtureSettings
from seqio_tasks.prepare import prepare
from seqio_tasks.texts import TextFiles, parts, text_components

TEXTS = ['Mto ni mrefu.\n\nUnapita katika nchi mbili. ' + 'maji ' * 30, 'Fupi.', '']


def write_jsonl(path, rows):
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())


def write(folder, kind):
  rows = [{'text': text, 'url': 'x'} for text in TEXTS]
  path = folder / f'sw{kind}'
  if kind == '.parquet':
    pq.write_table(pa.Table.from_pylist(rows), path)
  elif kind == '.json':
    path.write_text(json.dumps(rows))
  elif kind == '':
    path.mkdir()
    for i, row in enumerate(rows):
      write_jsonl(path / f'part-{i}.jsonl', [row])
    (path / 'README.md').write_text('not a file of rows')
  else:
    write_jsonl(path, rows)
  return str(path)


@pytest.mark.parametrize('kind', ['.jsonl', '.jsonl.gz', '.json', '.parquet', ''])
def test_every_layout_gives_the_same_rows(tmp_path, kind):
  source = TextFiles(write(tmp_path, kind), ('sw',), part_characters=60, name='x')
  found = [source.row(i, 'sw') for i in range(len(source))]
  assert {(row['instruction'], row['input']) for row in found} == {('', '')}
  joined = ' '.join(row['output'] for row in found)
  assert joined.split() == ' '.join(TEXTS).split()
  assert max(len(row['output']) for row in found) <= 60
  assert source.set_aside() == {('sw', 'empty_response'): 1}
  again = pickle.loads(pickle.dumps(source))
  assert again.digest() == source.digest()


def test_documents_are_cut_where_a_reader_would():
  assert list(parts('One.\n\nTwo three.', 8)) == ['One.', 'Two', 'three.']
  assert list(parts('a' * 10, 4)) == ['aaaa', 'aaaa', 'aa']
  text = '\n\n'.join(f'Paragraph {i} ' + 'word ' * (7 * i % 40) for i in range(50))
  for most in (37, 100, 1000):
    pieces = list(parts(text, most))
    assert ' '.join(pieces).split() == text.split()
    assert max(map(len, pieces)) <= most


@pytest.mark.parametrize('rows, message', [
    ([{'body': 'x'}], "an object with the text in 'text'"),
    ([{'text': 7}], "an object with the text in 'text'"),
    (['x', ['y']], 'a document must be an object'),
])  # fmt: skip
def test_rows_that_are_no_documents(tmp_path, rows, message):
  write_jsonl(tmp_path / 'sw.jsonl', rows)
  with pytest.raises(SourceError, match=message):
    len(TextFiles(str(tmp_path / 'sw.jsonl'), ('sw',)))


def test_files_that_are_none(tmp_path):
  pq.write_table(pa.table({'body': ['x']}), tmp_path / 'a.parquet')
  for path, message in (
    ('a.parquet', "column 'text' is missing, found the columns body"),
    ('b.jsonl', 'no such file'), ('b.txt', 'unknown kind of file'), ('.', None),
  ):  # fmt: skip
    if message:
      with pytest.raises(SourceError, match=message):
        len(TextFiles(str(tmp_path / path), ('sw',), name='x'))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(SourceError, match='no file that ends in .jsonl'):
    len(TextFiles(str(tmp_path / 'empty'), ('sw',)))
  assert len(TextFiles(str(tmp_path / 'a.parquet'), ('sw',), column='body')) == 1
  write_jsonl(tmp_path / 'null.jsonl', [{'text': None}, {'text': 'x' * 99}, {'text': 'y'}])
  source = TextFiles(str(tmp_path / 'null.jsonl'), ('sw',), max_characters=50)
  assert len(source) == 1
  assert source.set_aside() == {('sw', 'null_field'): 1, ('sw', 'too_long'): 1}


def test_a_mixture_of_documents_and_instructions(tmp_path, tiny_vocabulary):
  """Whatever the template of the instruction rows, a document has no prompt and is all trained."""
  native = write(tmp_path, '.parquet')
  write_jsonl(tmp_path / 'en.jsonl', [{'text': f'English text {i}.'} for i in range(40)])
  for language in ('en', 'sw'):
    rows = [{'instruction': f'Say {i}', 'output': f'{i}'} for i in range(40)]
    write_jsonl(tmp_path / f'rows_{language}.jsonl', rows)
  documents = {'native': ('sw', native), 'replay': ('en', str(tmp_path / 'en.jsonl'))}
  settings = MixtureSettings(
    texts=text_components(documents, str(tmp_path / 'rows'), ('en', 'sw'), part_characters=60),
    vocabulary=tiny_vocabulary, template='alpaca', max_length=512, rates='shares',
    shares={'native': 0.7, 'replay': 0.2, 'rows': 0.1}, validation_rows=2,
  )  # fmt: skip
  name = 'continued.native_replay_rows.all.en_sw.default'
  prepare(name, str(tmp_path / 'prepared'), settings, workers=1)
  mixture = PreparedMixture(str(tmp_path / 'prepared'), name)
  rates = {task.split.name: task.rate for task in mixture.tasks}
  assert sum(rate for task, rate in rates.items() if '.rows.' in task) == pytest.approx(0.1)
  assert next(rate for task, rate in rates.items() if '.native.' in task) == pytest.approx(0.7)
  for task in mixture.tasks:
    tokens, weights = task.split.example(0)
    text = tiny_vocabulary.decode([int(i) for i in tokens])
    is_document = '.rows.' not in task.split.name
    assert np.all(weights == 1) == is_document
    assert ('### Response' in text) != is_document


def test_the_gin_file(tmp_path, tiny_vocabulary):
  from conftest import REPOSITORY

  native = write(tmp_path, '')
  bindings = [
    f'NATIVE = {native!r}', f'REPLAY = {native!r}', "LANGUAGE = 'sw'",
    f'VOCABULARY = {tiny_vocabulary.path!r}',
  ]  # fmt: skip
  gin.parse_config_files_and_bindings(
    [str(REPOSITORY / 'gin_configs/mixtures/continued.gin')], bindings
  )
  texts = MixtureSettings().texts
  assert {name: sources[0].languages for name, sources in texts.items()} == {
    'native': ('sw',), 'replay': ('en',),
  }  # fmt: skip
