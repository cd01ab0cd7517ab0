"""A model on its mesh: scores continuations and generates answers as they are finished."""

from collections.abc import Iterator, Sequence
import dataclasses

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.decoding.schedule import Generation, Prompt
from crossin_jax.decoding.scoring import Score, continuation_scores
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.models.decoder import unrolled

DEFAULT_LENGTH = 2048  # of lm-evaluation-harness, where a model names no limit


@config.configurable(commands=())
@dataclasses.dataclass(frozen=True)
class HarnessBatches:
  """Batches that score requests of `crossin harness`; `Generator.rows` are those that decode.

  Attributes:
    length: tokens in a row of short requests; longer ones get rows of 2, 4, 8 ... times as many.
    rows: rows in a batch of short requests; longer requests get fewer.
  """

  length: int = 512
  rows: int = 8


class Engine:
  """A model that answers requests; every process of a run computes all answers.

  Attributes:
    source: where the model is from.
    vocabulary: its tokenizer.
    config: its `DecoderConfig`.
    parameters: their number.
    max_length: most decoder inputs of a request.
  """

  def __init__(self, source: SavedModel, model, partition: Partitioner, max_length: int | None):
    """Args:
    source: the model on disk.
    model: its Linen module.
    partition: the mesh.
    max_length: None = what the model's own files say, else 2,048 as lm-evaluation-harness has it.

    Raises:
      CheckpointError, PreparedDataError: damaged files.
    """
    import jax

    self.source, self.vocabulary = source, source.prompts.vocabulary
    self.config, self._partition = model.config, partition
    self.max_length = max_length or source.context_length or DEFAULT_LENGTH
    self._batches, self._decodes = HarnessBatches(), False
    partition.suit(model, training=False)
    with partition.activate():
      self._model, self._params = model, source.params(model, partition)
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._params))

  def scores(self, prefixes, continuations) -> Iterator[Score]:
    """See `continuation_scores`; prefixes start with BOS if sequences do."""
    with self._partition.activate():
      yield from continuation_scores(
        self._model, self._params, self._partition, prefixes, continuations, bos_id=None,
        length=self._batches.length, rows=self._batches.rows,
      )  # fmt: skip

  def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Generation]:
    """Answers as they are finished; prompts start with BOS if sequences do, and have their own stop
    texts.
    """
    with self._partition.activate():
      if not self._decodes:
        # Scoring can use these, too: the model is in memory once.
        self._model, self._params = unrolled(
          self._model, self._params, transposed=self._partition.on_cpu
        )
        self._decodes = True
      generator = Generator(
        self._model, self._params, self._partition, bos_id=None,
        stop_ids=self.source.generation_stop_ids, sampling=sampling,
        decode=self.vocabulary.decode, stop_texts=any(prompt.stop for prompt in prompts),
      )  # fmt: skip
      yield from generator.stream(prompts)
