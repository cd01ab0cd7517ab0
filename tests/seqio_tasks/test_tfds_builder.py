"""A source written as a TFDS dataset gives the same rows again."""

import os
import pathlib
import pickle

import pytest
import tensorflow_datasets as tfds

from seqio_tasks import tfds_builder
from seqio_tasks.sources import ParallelFiles, Source, SourceError, TfdsRows

ENGLISH = (
  '{"id": "a", "instruction": "Name a colour.", "output": "Red"}\n'
  '{"id": "b", "instruction": "Split\u2028this", "input": "x\\r\\ny", "output": "\\"1\\"\\n😀"}\n'
  '{"id": "c", "instruction": "", "output": " "}\n'
)
CHINESE = (
  '{"id": "b", "instruction": "分开", "input": "x\\r\\ny", "output": "一"}\n'
  '{"id": "a", "instruction": "说出一种颜色。", "output": "红色"}\n'
  '{"id": "c", "instruction": "", "output": "文本"}\n'
)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(source, directory of the dataset, its data_dir)."""
  path = tmp_path_factory.mktemp('tfds')
  (path / 'tiny_en.jsonl').write_text(ENGLISH, encoding='utf-8')
  (path / 'tiny_zh.jsonl').write_text(CHINESE, encoding='utf-8')
  source = ParallelFiles(str(path / 'tiny'), ('en', 'zh'))
  return source, tfds_builder.build(source, str(path)), str(path)


def test_the_same_rows(written):
  source, directory, data_dir = written
  assert directory == os.path.join(data_dir, 'aligned_instructions', 'tiny', '1.0.0')
  for read in (
    TfdsRows(directory, ('en', 'zh')),
    TfdsRows('aligned_instructions/tiny:1.0.0', ('en', 'zh'), data_dir=data_dir),
  ):
    assert isinstance(read, Source)
    assert (read.name, read.ids(), read.set_aside()) == ('tiny', ['a', 'b'], {})
    for i in range(len(source)):
      for language in source.languages:
        assert read.row(i, language) == source.row(i, language)
    assert read.digest() == source.digest()
    assert pickle.loads(pickle.dumps(read)).digest() == source.digest()


def test_plain_tfds_reads_it(written):
  _, directory, _ = written
  rows = list(
    tfds.as_numpy(
      tfds.builder_from_directory(directory).as_dataset(split='train', shuffle_files=False)
    )
  )
  assert [(row['id'], row['language']) for row in rows] == [
    (b'a', b'en'),
    (b'a', b'zh'),
    (b'b', b'en'),
    (b'b', b'zh'),
  ]
  assert set(rows[0]) == {'id', 'language', 'instruction', 'input', 'output'}


def test_building_twice(written, tmp_path):
  source, directory, data_dir = written
  assert tfds_builder.build(source, data_dir) == directory
  (tmp_path / 'tiny_en.jsonl').write_text(ENGLISH.replace('Red', 'Blue'), encoding='utf-8')
  other = ParallelFiles(str(tmp_path / 'tiny'))
  with pytest.raises(SourceError, match='holds other rows'):
    tfds_builder.build(other, data_dir)


def test_nothing_to_write(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"instruction": "a", "output": ""}')
  with pytest.raises(SourceError, match='empty_response'):
    tfds_builder.build(ParallelFiles(str(tmp_path / 'a.jsonl')), str(tmp_path))
  with pytest.raises(SourceError, match='source='):
    tfds_builder.AlignedInstructions(data_dir=str(tmp_path)).download_and_prepare()


def test_builder_pickles(written):
  source, directory, data_dir = written
  builder = tfds_builder.AlignedInstructions(source=source, data_dir=data_dir)
  assert os.fspath(pickle.loads(pickle.dumps(builder)).data_dir) == directory


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({'languages': ('en', 'vi')}, "no rows in language 'vi', found en, zh"),
    ({'split': 'test'}, "split 'test' cannot be opened .*; it has train"),
    ({'builder': 'DATA_DIR'}, 'not a TFDS dataset'),
    ({'builder': '/no/such/directory'}, 'not a TFDS dataset'),
    ({'builder': 'no_such_dataset_at_all'}, 'not a TFDS dataset'),
  ],
)
def test_errors(written, settings, expected):
  _, directory, data_dir = written
  settings = {'builder': directory, **settings}
  settings['builder'] = settings['builder'].replace('DATA_DIR', data_dir)
  with pytest.raises(SourceError, match=expected):
    len(TfdsRows(**settings))


def test_damaged_shard(written, tmp_path):
  _, directory, _ = written
  for file in pathlib.Path(directory).iterdir():
    data = bytearray(file.read_bytes())
    if 'tfrecord' in file.name:
      data[len(data) // 2] ^= 1
    (tmp_path / file.name).write_bytes(data)
  with pytest.raises(SourceError, match='damaged'):
    len(TfdsRows(str(tmp_path)))


def test_other_features(tmp_path):
  class Other(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    url_infos = None
    fields = ('id', 'instruction', 'input', 'output')

    def _info(self):
      features = tfds.features.FeaturesDict({field: tfds.features.Text() for field in self.fields})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {'train': [(0, dict.fromkeys(self.fields, 'x'))]}

    def _generate_examples(self):
      raise NotImplementedError

  Other.pkg_dir_path = tmp_path
  builder = Other(data_dir=str(tmp_path))
  builder.download_and_prepare()
  with pytest.raises(
    SourceError, match="feature 'language' is missing, found id, input, instruction, output"
  ):
    len(TfdsRows(os.fspath(builder.data_dir)))
