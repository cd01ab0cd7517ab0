"""LoRA of PEFT on a parameter that has the matrices of all experts (`target_parameters`).

Letters: X experts, R rank, I inputs, O outputs of one of K matrices that alternate along the last
axis of the parameter.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def module_name(parameter: str, targets: Iterable[str]) -> str:
  """The module under which PEFT stores the adapter of a parameter.

      `x.gate_up_proj`, if `x.down_proj` has an adapter too:  `x.base_layer`
      `x.down_proj`:  `x`

  PEFT wraps one parameter of a module after the other; the last one has the name of the module.

  Args:
    parameter: its name in the model.
    targets: names or ends of names of the parameters with adapters.
  """
  module, _, last = parameter.rpartition('.')
  is_inner = last == 'gate_up_proj' and is_target(f'{module}.down_proj', targets)
  return f'{module}.base_layer' if is_inner else module


def is_target(parameter: str, targets: Iterable[str]) -> bool:
  """Whether a parameter has an adapter by `target_parameters`."""
  return any(f'.{parameter}'.endswith(f'.{target}') for target in targets)


def stored_a(parts_XIR: Sequence[np.ndarray | None]) -> np.ndarray:
  """A as PEFT stores it, [X R, I]; R is the sum of the ranks of the parts."""
  parts_XIR = [part for part in parts_XIR if part is not None]
  a_XRI = np.concatenate(parts_XIR, axis=2).swapaxes(1, 2)
  return a_XRI.reshape(-1, a_XRI.shape[-1])


def stored_b(parts_XRO: Sequence[np.ndarray | None]) -> np.ndarray:
  """B as PEFT stores it, [O K, R X]: block-diagonal, and zero for a matrix without a part."""
  experts, part_rank, outputs = next(part for part in parts_XRO if part is not None).shape
  rank = part_rank * sum(part is not None for part in parts_XRO)
  b_XROK, first = np.zeros((experts, rank, outputs, len(parts_XRO)), np.float32), 0
  for k, part in enumerate(parts_XRO):
    if part is not None:
      b_XROK[:, first : first + part_rank, :, k] = part
      first += part_rank
  return b_XROK.reshape(experts, rank, -1).transpose(2, 1, 0).reshape(-1, rank * experts)


def a_of(stored: np.ndarray, experts: int) -> np.ndarray:
  """A of each expert, [X, I, R]."""
  return stored.reshape(experts, -1, stored.shape[-1]).swapaxes(1, 2)


def b_of(stored: np.ndarray, experts: int, number: int, matrices: int) -> np.ndarray:
  """B of each expert, [X, R, O], for one of the matrices."""
  return stored.reshape(len(stored), -1, experts).transpose(2, 1, 0)[..., number::matrices]
