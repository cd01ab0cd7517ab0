"""Settings of `crossin xinstruction`."""

import dataclasses

import gin

from crossin_jax import config
from crossin_jax.languages import code_of
from crossin_jax.xinstruction.levels import FLAWS


@config.configurable(commands=())
@dataclasses.dataclass(frozen=True)
class XInstruction:
  """Settings of a run.

  Attributes:
    languages: codes of the output languages.
    documents: files of natural text, '{language}' standing for the code: 'text/{language}/*.jsonl';
      see `documents.find_files`.
    seed: pairs of English instruction and native response. 'data/seed' finds data/seed.sw.json with
      rows {"instruction" (English), "input", "output" (native)}; with `seed_is_parallel`,
      data/seed.en.json has the instructions and data/seed.sw.json the outputs.
    seed_is_parallel: see `seed`.
    vocabulary: tokenizer file.
    model_gin: gin files that make the model and load its weights, a tuple; see `values`.
    values: gin values for every training run: {'HF_DIR': ..., 'INITIAL_CHECKPOINT_PATH': ...}.
    kind_values: further values for one kind of model: {'generator' | 'rater' | 'response':
      {'train.epochs': 3.0}}.
    seed_pairs: most seed pairs of a language (docs/design/methods.md#c-13).
    generator: who writes the instruction of a text: 'model' = one trained on the seed, 'endpoint' =
      the `Teacher`.
    rater: who rates the candidates: 'model' = one trained on the three levels
      (docs/design/methods.md#c-16), 'endpoint' = the `Teacher`.
    rounds: of rating and keeping, at least 1 (docs/design/methods.md#c-17). With an endpoint there
      is one round, because its ratings would not change.
    keep_fraction: share of the candidates that is kept at most; least_level: expected level that
      they must reach.
    flaws: ways of spoiling seed responses for the rater to learn from, of levels.FLAWS: 'language',
      'cut', 'joined'; () = none.
    rater_from: what the rater of a round is tuned from: 'base', the base model
      (docs/design/methods.md#c-16), or 'before', the rater of the previous round.
    settled: the rounds end early when less than this share of the kept set changes.
    wanted: samples of a language in the export (docs/design/methods.md#b-5-diversification).
    chunk: documents in a file that is generated for and rated as one.
    instruction_tokens, response_tokens: most new tokens of a generated instruction and response.
    max_length: most tokens of a training example.
    benchmarks: files whose texts are looked for in the rows, for the statistics page; see `crossin
      contamination`.
  """

  languages: tuple[str, ...] = gin.REQUIRED
  documents: str = gin.REQUIRED
  seed: str = gin.REQUIRED
  vocabulary: str = gin.REQUIRED
  model_gin: tuple[str, ...] = ('gin_configs/models/huggingface.gin',)
  values: dict = dataclasses.field(default_factory=dict)
  kind_values: dict = dataclasses.field(default_factory=dict)
  seed_is_parallel: bool = False
  seed_pairs: int = 3_200
  generator: str = 'model'
  rater: str = 'model'
  rounds: int = 2
  keep_fraction: float = 0.25
  least_level: float = 2.5
  flaws: tuple[str, ...] = FLAWS
  rater_from: str = 'base'
  settled: float = 0.05
  wanted: int = 32_000
  chunk: int = 512
  instruction_tokens: int = 128
  response_tokens: int = 512
  max_length: int = 2048
  benchmarks: tuple[str, ...] = ()

  def __post_init__(self):
    object.__setattr__(self, 'languages', tuple(code_of(language) for language in self.languages))
    if self.rounds < 1 or not 0 < self.keep_fraction <= 1 or not 1 <= self.least_level <= 3:
      raise ValueError(
        'XInstruction: rounds must be at least 1, keep_fraction in (0, 1], least_level between 1 '
        'and 3'
      )
    object.__setattr__(self, 'flaws', tuple(self.flaws))
    if set(self.kind_values) - {'generator', 'rater', 'response'}:
      raise ValueError(
        f"XInstruction.kind_values = {self.kind_values}: keys are 'generator', 'rater', 'response'"
      )
    if self.rater_from not in ('base', 'before'):
      raise ValueError(f"XInstruction.rater_from = {self.rater_from!r} is not 'base' or 'before'")
    if set(self.flaws) - set(FLAWS):
      raise ValueError(f'XInstruction.flaws = {self.flaws}: any of {FLAWS}')
    if 'en' in self.languages:
      raise ValueError(
        'XInstruction.languages are the output languages; instructions are English by themselves'
      )
    for name in ('generator', 'rater'):
      if (who := getattr(self, name)) not in ('model', 'endpoint'):
        raise ValueError(f"XInstruction.{name} = {who!r} is not 'model' or 'endpoint'")
