"""What process 0 alone knows, told to all processes of a run."""

import json
from typing import Any

import jax
import numpy as np


def from_chief(value) -> np.ndarray:
  """The value of process 0, an array or a number, in every process; of equal shape in all."""
  if jax.process_count() == 1:
    return np.asarray(value)
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def json_from_chief(value: Any) -> Any:
  """The JSON value of process 0 in every process; what the others give is ignored."""
  if jax.process_count() == 1:
    return value
  text = json.dumps(value).encode() if jax.process_index() == 0 else b''
  size = int(from_chief(len(text)))
  content = np.zeros(size, np.uint8)
  content[: len(text)] = np.frombuffer(text, np.uint8)
  return json.loads(from_chief(content).tobytes())
