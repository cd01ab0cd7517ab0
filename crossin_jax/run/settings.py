"""The settings of `crossin run` that no other command has."""

import dataclasses

import gin

from crossin_jax import config
from crossin_jax.evaluation.benchmarks.names import BENCHMARKS
from crossin_jax.evaluation.results import METHODS

EXPORTS = ('auto', 'merged', 'full', 'peft', 'none')


@config.configurable('run', commands=())
@dataclasses.dataclass(frozen=True)
class RunSettings:
  """Where a job writes, what it measures before and after training, and what it exports.

  Attributes:
    output_dir: of all steps; local.
    benchmarks: 'NAME=PATH' of each, see `crossin evaluate --benchmark`; () = none.
    questions: question files (JSONL) to answer too; () = none.
    languages: asked of the benchmarks; None = all that they have.
    limit: items of each benchmark and question file; None = all.
    prompts: numbers of prompt forms, from 1; None = all of a benchmark.
    methods: of 'likelihood' and 'generate'; None = both, where a benchmark has both.
    export: 'auto' = 'merged' for LoRA and 'full' without; or 'merged', 'full', 'peft', 'none'.
  """

  output_dir: str = gin.REQUIRED
  benchmarks: tuple[str, ...] = ()
  questions: tuple[str, ...] = ()
  languages: tuple[str, ...] | None = None
  limit: int | None = None
  prompts: tuple[int, ...] | None = None
  methods: tuple[str, ...] | None = None
  export: str = 'auto'

  def __post_init__(self):
    for benchmark in self.benchmarks:
      name, _, path = benchmark.partition('=')
      if name not in BENCHMARKS or not path:
        raise config.ConfigError(
          f'run.benchmarks: {benchmark!r} is not NAME=PATH with NAME one of {", ".join(BENCHMARKS)}'
        )
    if unknown := set(self.methods or ()) - set(METHODS):
      raise config.ConfigError(
        f'run.methods: {", ".join(sorted(unknown))} is none of {", ".join(METHODS)}'
      )
    if self.export not in EXPORTS:
      raise config.ConfigError(f'run.export = {self.export!r} is none of {", ".join(EXPORTS)}')

  @property
  def measures(self) -> bool:
    """Whether the model is evaluated before and after training."""
    return bool(self.benchmarks or self.questions)

  def evaluate_flags(self) -> list[str]:
    """The flags of `crossin evaluate` that say what to measure."""
    flags = [f'--benchmark={benchmark}' for benchmark in self.benchmarks]
    flags += [f'--questions={path}' for path in self.questions]
    for name in ('languages', 'prompts', 'methods'):
      if (value := getattr(self, name)) is not None:
        flags.append(f'--{name}={",".join(map(str, value))}')
    return flags + ([] if self.limit is None else [f'--limit={self.limit}'])

  def measured_files(self) -> list[str]:
    """Files and folders that the evaluation reads."""
    return [benchmark.partition('=')[2] for benchmark in self.benchmarks] + list(self.questions)
