"""Rows of a TFDS builder."""

from collections.abc import Iterator
import os
from typing import Any

from crossin_jax.data.readers import TEXT_FIELDS, Row, check_row
from crossin_jax.data.source_errors import SourceError, at, first_line


def read_tfds(name: str, split: str, data_dir: str = '') -> Iterator[Row]:
  """The rows of a prepared TFDS dataset with the features id, language, instruction, input, output,
  in order.

  Args:
    name: directory of the dataset, or its TFDS name.
    split: a TFDS split, for instance 'train' or 'train[:10%]'.
    data_dir: where TFDS looks for a name; '' = its default.

  Raises:
    SourceError: no such dataset, split or feature, a damaged file, or a row as in `check_row`.
  """
  import tensorflow as tf
  import tensorflow_datasets as tfds

  try:
    if os.path.isdir(name):
      builder = tfds.builder_from_directory(name)
    else:
      builder = tfds.builder(name, data_dir=data_dir or None)
  except Exception as error:  # TFDS raises many kinds
    raise SourceError(
      f'{name}: not a TFDS dataset ({first_line(error)}); give the directory that holds its '
      'dataset_info.json, '
      'or a TFDS name and data_dir'
    ) from error
  splits, features = ', '.join(builder.info.splits), builder.info.features
  if not splits:
    raise SourceError(
      f'{name}: not prepared, nothing in {builder.data_dir}; run its download_and_prepare()'
    )
  for field in ('id', 'language', *TEXT_FIELDS):
    if field not in features or features[field].shape != ():
      what = 'is not one value per row' if field in features else 'is missing'
      present = ', '.join(sorted(features))
      raise SourceError(
        f'{name}: feature {field!r} {what}, found {present}; build the dataset with it'
      )
  try:
    # Shards are read sequentially; otherwise the row order would depend on their number.
    reading = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    data = builder.as_dataset(
      split=split, batch_size=1024, shuffle_files=False, read_config=reading
    )
  except Exception as error:
    raise SourceError(
      f'{name}: split {split!r} cannot be opened ({first_line(error)}); it has {splits}'
    ) from error
  number = 0
  try:
    for batch in tfds.as_numpy(data):
      columns = {field: batch[field].tolist() for field in ('id', 'language', *TEXT_FIELDS)}
      if isinstance(features['language'], tfds.features.ClassLabel):
        columns['language'] = [features['language'].int2str(label) for label in columns['language']]
      for values in zip(*columns.values(), strict=True):
        yield check_row(
          _decoded(dict(zip(columns, values, strict=True)), name, number), name, number, None, True
        )
        number += 1
  except tf.errors.OpError as error:
    what = error.message.split('}} ')[-1].split(' [Op')[0]
    raise SourceError(f'{name}: damaged after row {number} ({what}); build it again') from None


def _decoded(fields: dict[str, Any], path: str, number: int) -> dict[str, Any]:
  for field, value in fields.items():
    try:
      fields[field] = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
      where = f'{at(path, number, None)}: field {field!r}'
      raise SourceError(
        f'{where}: not valid UTF-8 at its byte {error.start}; build it again with UTF-8 text'
      ) from None
  return fields
