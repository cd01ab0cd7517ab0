"""The text of a compiled program: its computations and instructions.

Read from `compiled.as_text()`. XLA prints the instructions of a scheduled program in the order in
which they run.
"""

import dataclasses
import functools
import math
import re

SIZES = {
  'pred': 1, 's2': 0.25, 'u2': 0.25, 's4': 0.5, 'u4': 0.5, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2,
  's32': 4, 'u32': 4, 's64': 8, 'u64': 8, 'f4e2m1fn': 0.5, 'f8e3m4': 1, 'f8e4m3': 1,
  'f8e4m3b11fnuz': 1, 'f8e4m3fn': 1, 'f8e4m3fnuz': 1, 'f8e5m2': 1, 'f8e5m2fnuz': 1,
  'f8e8m0fnu': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'c64': 8, 'c128': 16,
}  # fmt: skip
COLLECTIVES = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'ragged-all-to-all',
  'collective-permute', 'collective-broadcast',
)  # fmt: skip
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_START = re.compile(r'\s+(?:ROOT )?%?[\w.\-]+ = ')
# No type has a word in front of a parenthesis, so the first one is the opcode.
_INSTRUCTION = re.compile(
  r'\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.*?) (?P<opcode>[a-z][a-z\d\-]*)\(',
  re.DOTALL,
)
_ARRAY = re.compile(r'\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](?:\{([^{}]*)\})?')
_OPERAND = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)'
)
_CALLED_LIST = re.compile(r'(?:branch_computations|called_computations)=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
  """One array of a type.

  Attributes:
    dtype: XLA's name, such as 'bf16'.
    shape: sides.
    space: number of the memory space; 0 = HBM. The others are on the chip: 1 = VMEM.
  """

  dtype: str
  shape: tuple[int, ...]
  space: int = 0

  @property
  def elements(self) -> int:
    """The product of the sides."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> float:
    """Without padding."""
    return SIZES[self.dtype] * self.elements

  @property
  def hbm_bytes(self) -> float:
    """`bytes`, or 0 for an array that is not in HBM."""
    return 0.0 if self.space else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a computation.

  Attributes:
    name, opcode: as in the text.
    type: of the result.
    arguments: the text between the parentheses: operands, or the value of a constant.
    attributes: the text after the parentheses.
    computation: name of the computation that contains it.
  """

  name: str
  opcode: str
  type: str
  arguments: str
  attributes: str
  computation: str

  @functools.cached_property
  def operands(self) -> tuple[str, ...]:
    """Names of the operands."""
    return tuple(_OPERAND.findall(self.arguments))

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of the result; of a tuple all, in order."""
    return arrays_of(self.type)

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that it calls."""
    names = _CALLED.findall(self.attributes)
    for group in _CALLED_LIST.findall(self.attributes):
      names += [name.strip().lstrip('%') for name in group.split(',') if name.strip()]
    return tuple(names)

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regular expression in the attributes, or None."""
    match = re.search(pattern, self.attributes)
    return match[1] if match else None


def arrays_of(text: str) -> tuple[Array, ...]:
  """The arrays in the text of a type.

  >>> arrays_of('(bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, u32[])')
  (Array(dtype='bf16', shape=(8, 4), space=1), Array(dtype='u32', shape=(), space=0))
  """
  found = []
  for dtype, sides, layout in _ARRAY.findall(text):
    if dtype in SIZES:
      space = re.search(r'S\((\d+)\)', layout)
      shape = tuple(map(int, filter(None, sides.split(','))))
      found.append(Array(dtype, shape, int(space[1]) if space else 0))
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class Computation:
  """A list of instructions.

  Attributes:
    name: as in the text.
    instructions: name -> instruction, in the order in which they run.
    root: the instruction that gives the result, or None if the text marks none.
    parameters: the instructions of its parameters, by number.
  """

  name: str
  instructions: dict[str, Instruction]
  root: Instruction | None
  parameters: dict[int, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: name of the computation that runs first.
  """

  computations: dict[str, Computation]
  entry: str

  def operand(self, instruction: Instruction, index: int = 0) -> Instruction | None:
    """The instruction that gives an operand, or None if the text has none of that name."""
    if index >= len(instruction.operands):
      return None
    inside = self.computations[instruction.computation].instructions
    return inside.get(instruction.operands[index])

  def callee(self, instruction: Instruction, kind: str) -> Computation | None:
    """The computation called as `kind`: 'body', 'condition', 'calls' or 'to_apply'."""
    return self.computations.get(instruction.attribute(rf'\b{kind}=%?([\w.\-]+)'))

  def inside(self, instruction: Instruction):
    """The instructions of a fusion, including those of the fusions in it."""
    for name in instruction.called:
      for inner in self._of(name):
        if inner.opcode in ('fusion', 'call'):
          yield from self.inside(inner)
        else:
          yield inner

  def _of(self, name: str):
    computation = self.computations.get(name)
    return computation.instructions.values() if computation else ()


def parse(text: str) -> Module:
  """Reads the text of a compiled program.

  Args:
    text: `compiled.as_text()`. Metadata of kernels may continue an instruction on more lines.
  """
  computations, entry, lines, name = {}, '', [], ''
  for line in text.splitlines():
    if not name:
      if match := _HEADER.match(line):
        name, lines = match[2], []
        entry = name if match[1] else entry
    elif line == '}' or line.startswith('}, execution_thread='):
      computations[name] = _computation(name, lines)
      name = ''
    elif _START.match(line):
      lines.append([line])
    elif lines:
      lines[-1].append(line)
  return Module(computations, entry)


def _computation(name: str, lines: list[list[str]]) -> Computation:
  instructions, root, parameters = {}, None, {}
  for parts in lines:
    text = '\n'.join(parts)
    match = _INSTRUCTION.match(text)
    if match is None:
      continue
    end = _closing(text, match.end())
    instruction = Instruction(
      match['name'], match['opcode'], match['type'], text[match.end() : end], text[end + 1 :], name
    )
    instructions[instruction.name] = instruction
    if match['root']:
      root = instruction
    if instruction.opcode == 'parameter':
      parameters[int(instruction.arguments)] = instruction
  return Computation(name, instructions, root, parameters)


def _closing(text: str, start: int) -> int:
  """Position of the parenthesis that closes the one in front of `start`."""
  depth = 1
  for match in re.compile(r'[()]').finditer(text, start):
    depth += 1 if match[0] == '(' else -1
    if not depth:
      return match.start()
  return len(text)
