"""Writes a source as a TFDS dataset, which `TfdsRows`, plain SeqIO and tfds.load can read."""

import os

import tensorflow_datasets as tfds

from seqio_tasks.sources import TEXT_FIELDS, Source, SourceError


class AlignedInstructions(tfds.core.GeneratorBasedBuilder):
  """One example per row and language, in row order, with the languages of a row adjacent.

  Features, all text: id, language (code), instruction, input, output. Split: 'train'. The config is
  named as the source, so several sources share a `data_dir`:
  DATA_DIR/aligned_instructions/NAME/1.0.0/.

      # source with the row ('0', en 'Name a colour.' / 'Red', zh '说出一种颜色。' / '红色') gives
      {'id': '0', 'language': 'en', 'instruction': 'Name a colour.', 'input': '', 'output': 'Red'}
      {'id': '0', 'language': 'zh', 'instruction': '说出一种颜色。', 'input': '', 'output': '红色'}

  Args (keywords):
    source: the rows; may be left out where the dataset is already prepared.
    others: as in any TFDS builder.
  """

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded. TFDS would look for a checksums file beside this module, and needs for
  # that the package importlib_resources, which it does not require.
  url_infos = None

  def __init__(self, *, source: Source | None = None, config=None, **kwargs):
    self._source = source
    if source is not None and config is None:
      config = tfds.core.BuilderConfig(
        name=source.name, description=f'Languages: {", ".join(source.languages)}'
      )
    super().__init__(config=config, **kwargs)

  def __getstate__(self):
    return {**super().__getstate__(), 'source': self._source}

  def __setstate__(self, state):
    self.__init__(source=state['source'], **state['_original_state'])

  def _info(self) -> tfds.core.DatasetInfo:
    fields = ('id', 'language', *TEXT_FIELDS)
    return tfds.core.DatasetInfo(
      builder=self,
      description='Instruction rows that say the same thing in every language.',
      features=tfds.features.FeaturesDict({field: tfds.features.Text() for field in fields}),
      # Keeps the rows in order. Keys must then be integers.
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    if self._source is None:
      raise SourceError(
        'AlignedInstructions has nothing to write: give it a source, '
        'AlignedInstructions(source=...)'
      )
    self.info.metadata['digest'] = self._source.digest()
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    source = self._source
    for i, id_ in enumerate(source.ids()):
      for j, language in enumerate(source.languages):
        row = source.row(i, language)
        if 'messages' in row:
          raise SourceError(
            f'{source.name}, id {id_!r}: is a conversation, and this dataset holds instruction, '
            'input and output only; read the files with ParallelFiles, or leave such rows out'
          )
        yield i * len(source.languages) + j, {'id': id_, 'language': language, **row}


def build(source: Source, data_dir: str) -> str:
  """Writes the source as a TFDS dataset and returns its directory.

      build(ParallelFiles('/data/alpaca', ('en', 'zh')), '/data/tfds') ==
      '/data/tfds/aligned_instructions/alpaca/1.0.0'

  The directory appears whole or not at all. If it is there with the same rows, nothing is written.

  Args:
    source: what to write; its rows that were set aside are not written.
    data_dir: TFDS data directory.

  Raises:
    SourceError: the source cannot be read or keeps no row, or the directory holds other rows.
  """
  if not len(source):
    raise SourceError(
      f'{source.name}: no row is left to write, set aside: {source.set_aside()}; mend its files'
    )
  builder = AlignedInstructions(source=source, data_dir=os.path.expanduser(data_dir))
  directory = os.fspath(builder.data_dir)
  if builder.is_prepared():
    if (builder.info.metadata or {}).get('digest') == source.digest():
      return directory
    raise SourceError(
      f'{directory}: holds other rows than {source.name} has now; delete it, or rename the source'
    )
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  return directory
