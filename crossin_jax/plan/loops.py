"""How often each computation of a compiled program runs.

The body of a loop is in the text once and runs once for each iteration. XLA notes the number of
iterations of some loops only. For the others, the arithmetic of their counters is followed.
"""

from collections.abc import Callable
import dataclasses
import operator

from crossin_jax.plan import hlo

LIMIT = 100_000  # iterations that are followed
_SAME = frozenset(('bitcast', 'convert', 'copy', 'copy-done', 'copy-start', 'reshape'))
_BINARY: dict[str, Callable[[int, int], int]] = {
  'add': operator.add, 'subtract': operator.sub, 'multiply': operator.mul, 'and': operator.and_,
  'or': operator.or_, 'minimum': min, 'maximum': max,
}  # fmt: skip
_COMPARE = {
  'LT': operator.lt, 'LE': operator.le, 'GT': operator.gt, 'GE': operator.ge, 'EQ': operator.eq,
  'NE': operator.ne,
}  # fmt: skip

# Values of the parameters of a computation: (number, index in a tuple or None) -> value.
State = dict[tuple[int, int | None], int]


@dataclasses.dataclass
class Runs:
  """Runs of everything in one run of the program.

  Attributes:
    times: computation -> runs. Each branch of a conditional counts as if it ran.
    turns: (computation, loop) -> iterations in one run of the computation.
    guessed: names of the loops whose iterations do not follow from the text. They count as often as
      the only number in their condition says, or once.
  """

  times: dict[str, float]
  turns: dict[tuple[str, str], float]
  guessed: list[str]


def runs(module: hlo.Module) -> Runs:
  """Follows the calls of a program from its entry."""
  found = Runs({}, {}, [])
  if module.entry:
    _visit(module, module.entry, 1.0, {}, found)
  return found


def _visit(module: hlo.Module, name: str, times: float, state: State, found: Runs) -> None:
  found.times[name] = found.times.get(name, 0.0) + times
  for instruction in module.computations[name].instructions.values():
    turns, inner = 1.0, {}
    if instruction.opcode == 'while':
      turns = _turns(module, instruction, state, found)
      found.turns[name, instruction.name] = turns
      inner = _constants_of(module, instruction, state)
    for called in instruction.called:
      if called in module.computations:
        _visit(module, called, times * turns, inner, found)


def _turns(module: hlo.Module, loop: hlo.Instruction, state: State, found: Runs) -> float:
  """Iterations of a loop: XLA's note, or its counter, or a guess."""
  if noted := loop.attribute(r'known_trip_count\W+n\W+(\d+)'):
    return float(noted)
  if (followed := _followed(module, loop, state)) is not None:
    return float(followed)
  if loop.name not in found.guessed:
    found.guessed.append(loop.name)
  condition = module.callee(loop, 'condition')
  bodies = [condition] if condition else []
  for instruction in condition.instructions.values() if condition else ():
    bodies += [module.computations[name] for name in instruction.called]
  numbers = {
    int(instruction.arguments)
    for body in bodies
    for instruction in body.instructions.values()
    if instruction.opcode == 'constant' and instruction.arguments.isdigit()
  } - {0}
  return float(numbers.pop()) if len(numbers) == 1 else 1.0


def _followed(module: hlo.Module, loop: hlo.Instruction, state: State) -> int | None:
  """Iterations of a loop by the arithmetic of its counters, or None."""
  body, condition = module.callee(loop, 'body'), module.callee(loop, 'condition')
  start = module.operand(loop)
  if not (body and condition and start and body.root and condition.root):
    return None
  if start.opcode != 'tuple' or body.root.opcode != 'tuple':
    return None
  wanted, before = _indices(module, condition.root), None
  while wanted != before:
    before = set(wanted)
    for index in before:
      if (result := module.operand(body.root, index)) is not None:
        wanted |= _indices(module, result)
  operands = {index: module.operand(start, index) for index in wanted}
  results = {index: module.operand(body.root, index) for index in wanted}
  values = {(0, index): value(module, operand, state) for index, operand in operands.items()}
  for count in range(LIMIT):
    more = value(module, condition.root, values)
    if more is None:
      return None
    if not more:
      return count
    values = {(0, index): value(module, result, values) for index, result in results.items()}
  return None


def _indices(module: hlo.Module, instruction: hlo.Instruction) -> set[int]:
  """Elements of the loop's state on which an instruction of the body or condition depends."""
  found, seen, queue = set(), set(), [instruction]
  while queue:
    current = queue.pop()
    if current.name in seen:
      continue
    seen.add(current.name)
    operands = [module.operand(current, i) for i in range(len(current.operands))]
    if current.opcode == 'get-tuple-element' and operands[0] is not None:
      if operands[0].opcode == 'parameter':
        found.add(_index(current))
        continue
    queue += [operand for operand in operands if operand is not None]
  return found


def _constants_of(module: hlo.Module, loop: hlo.Instruction, state: State) -> State:
  """The integers of a loop's state that its body hands on unchanged."""
  body, start = module.callee(loop, 'body'), module.operand(loop)
  if not (body and start and body.root) or start.opcode != 'tuple' or body.root.opcode != 'tuple':
    return {}
  found = {}
  for index in range(len(start.operands)):
    result = module.operand(body.root, index)
    if result is None or result.opcode != 'get-tuple-element' or _index(result) != index:
      continue
    source = module.operand(result)
    if source is None or source.opcode != 'parameter':
      continue
    if (known := value(module, module.operand(start, index), state)) is not None:
      found[0, index] = known
  return found


def value(module: hlo.Module, instruction: hlo.Instruction | None, state: State) -> int | None:
  """The value of an integer scalar, or None if it does not follow from the text.

  Args:
    module: the program.
    instruction: that gives the scalar.
    state: known values of the parameters of its computation.
  """
  if instruction is None or any(array.shape for array in instruction.arrays):
    return None
  operand = lambda index: value(module, module.operand(instruction, index), state)
  opcode = instruction.opcode
  if opcode == 'constant':
    text = {'true': '1', 'false': '0'}.get(instruction.arguments, instruction.arguments)
    return int(text) if text.lstrip('-').isdigit() else None
  if opcode == 'parameter':
    return state.get((int(instruction.arguments), None))
  if opcode == 'get-tuple-element':
    return _element(module, instruction, state)
  if opcode in _SAME:
    return operand(0)
  if opcode in ('fusion', 'call'):
    called = module.computations.get(instruction.called[0]) if instruction.called else None
    given = {(i, None): operand(i) for i in range(len(instruction.operands))}
    return value(module, called.root, given) if called else None
  if opcode not in _BINARY and opcode != 'compare':
    return None
  left, right = operand(0), operand(1)
  if left is None or right is None:
    return None
  if opcode == 'compare':
    return int(_COMPARE[instruction.attribute(r'direction=(\w+)')](left, right))
  return _BINARY[opcode](left, right)


def _element(module: hlo.Module, instruction: hlo.Instruction, state: State) -> int | None:
  source, index = module.operand(instruction), _index(instruction)
  if source is None:
    return None
  if source.opcode == 'parameter':
    return state.get((int(source.arguments), index))
  return value(module, module.operand(source, index), state) if source.opcode == 'tuple' else None


def _index(instruction: hlo.Instruction) -> int:
  return int(instruction.attribute(r'index=(\d+)'))
