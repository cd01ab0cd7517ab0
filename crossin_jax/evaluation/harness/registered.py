"""`--model crossin` of lm-evaluation-harness itself. Needs the extra `harness`."""

import argparse
from typing import Any

from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.evaluation.harness.engine import Engine
from crossin_jax.evaluation.harness.errors import HarnessError
from crossin_jax.evaluation.harness.lm import CrossinLM

NAME = 'crossin'


class RegisteredLM(CrossinLM):
  """A `CrossinLM` from `--model_args`."""

  def __init__(
    self,
    path: str | None = None,
    *,
    pretrained: str | None = None,
    max_length: int | None = None,
    add_bos_token: bool | None = None,
    prefix_token_id: int | None = None,
    dtype: str | None = None,
    length: int = 512,
    rows: int = 8,
    decode_rows: int = 64,
    mesh_shape: tuple[int, ...] = (1, -1, 1),
    seed: int = 1234,
    batch_size: Any = None,
    max_batch_size: Any = None,
    device: Any = None,
  ):
    """Args:
      path: as `--checkpoint` of `crossin harness`.
      pretrained: another name of it.
      max_length, add_bos_token, prefix_token_id, seed: see `CrossinLM` and `Engine`.
      dtype: 'float32' or 'bfloat16'; None = `DecoderConfig.dtype` of the model.
      length, rows: see `HarnessBatches`.
      decode_rows: rows that decode.
      mesh_shape: see `Partitioner`.
      batch_size, max_batch_size, device: ignored; the harness gives them to every model.

    Raises:
      HarnessError: neither path nor pretrained.
    """
    checkpoint = path or pretrained
    if not checkpoint:
      raise HarnessError('--model crossin needs --model_args path=CHECKPOINT')
    source = SavedModel.open(checkpoint)
    bindings = [
      f'HarnessBatches.length = {int(length)}', f'HarnessBatches.rows = {int(rows)}',
      f'Generator.rows = {int(decode_rows)}', f'Partitioner.mesh_shape = {tuple(mesh_shape)!r}',
    ]  # fmt: skip
    bindings += [] if dtype is None else [f'DecoderConfig.dtype = {dtype!r}']
    args = argparse.Namespace(gin_file=[], gin_search_paths='', gin_bindings=bindings)
    engine = Engine(source, source.module(args), Partitioner(), max_length)
    super().__init__(
      engine, add_bos_token=add_bos_token, prefix_token_id=prefix_token_id, seed=seed
    )


def register() -> None:
  """Adds `crossin` to the models of lm-evaluation-harness in this process."""
  from lm_eval.api.registry import model_registry
  import lm_eval.models  # noqa: F401  (the others: an empty registry alone is filled later)

  if NAME not in model_registry:
    model_registry.register(NAME, target=f'{__name__}:RegisteredLM')
