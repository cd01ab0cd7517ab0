"""State that the steps of a run share, and the commands that train and answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import os

from crossin_jax.workflow.forwarding import ForwardedSettings
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.steps import Steps
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.filtering.filters import Filters
from crossin_jax.xinstruction.settings import XInstruction
from crossin_jax.xinstruction.teacher import Teacher

COMPONENT, PRESET = 'rows', 'default'


class Run:
  """One run directory at work.

  Attributes:
    settings: what to do.
    teacher: replaces the generator or the rater; None without an endpoint.
    rounds: of rating.
    jobs: runs the commands.
    forwarded: gin settings for them.
    filters: which documents are kept.
    steps: of this run; set by `Pipeline`.
  """

  def __init__(
    self,
    output_dir: str,
    settings: XInstruction,
    forwarded: ForwardedSettings,
    filters: Filters | None = None,
  ):
    self.settings, self.forwarded, self._output_dir = settings, forwarded, output_dir
    self.filters = filters or Filters()
    self.teacher = Teacher() if 'endpoint' in (settings.generator, settings.rater) else None
    self.rounds = 1 if settings.rater == 'endpoint' else settings.rounds
    platform = (
      {'JAX_PLATFORMS': os.environ['JAX_PLATFORMS']} if 'JAX_PLATFORMS' in os.environ else {}
    )
    self.jobs = Jobs(output_dir, 1, platform)
    self.steps = Steps(output_dir, ())

  def folder(self, step: str) -> str:
    """The folder of a step."""
    return self.steps.folder(step)

  def read(self, step: str, language: str) -> Iterator[dict]:
    """The rows that a step made in a language."""
    return rows_lib.read_language(self.folder(step), language)

  def counted(self, folder: str, field: str, name: str) -> dict:
    """Counts the rows of a folder with and without a text in a field, and the reasons."""
    counts = {name: 0, 'empty': 0}
    for language in self.settings.languages:
      for row in rows_lib.read_language(folder, language):
        counts[name if row[field] else 'empty'] += 1
        if reason := row.get('reason'):
          counts[reason] = counts.get(reason, 0) + 1
    return counts

  def train(
    self,
    folder: str,
    kind: str,
    template: str,
    rows: Callable[[str], Iterable[Mapping]],
    start: str | None = None,
  ) -> Mapping:
    """Writes rows to files, prepares them and trains on them with ordinary commands.

    Args:
      folder: of the step; the model is in folder/model.
      kind: of gin_configs/xinstruction: 'generator', 'rater' or 'response'.
      template: of the prompts.
      rows: language -> rows.
      start: the step whose model is tuned; None = the base model.
    """
    s, counts = self.settings, {}
    for language in s.languages:
      counts[language] = rows_lib.write(
        os.path.join(folder, f'rows_{language}.json'), rows(language)
      )
    languages = tuple(language for language in s.languages if counts[language])
    mixture = f'xinstruction.{COMPONENT}.all.{"_".join(("en", *languages))}.{PRESET}'
    name = os.path.basename(folder)
    self._command(
      f'{name}.prepare',
      ['prepare', '--gin_file=gin_configs/mixtures/xinstruction.gin', f'--mixture={mixture}',
       f'--output_dir={folder}/data'],
      {'ROWS': os.path.join(folder, 'rows'), 'LANGUAGES': languages, 'VOCABULARY': s.vocabulary,
       'TEMPLATE': template,
       'MixtureSettings.max_length': s.max_length},
    )  # fmt: skip
    files = [
      f'--gin_file={path}' for path in (*s.model_gin, f'gin_configs/xinstruction/{kind}.gin')
    ]
    values = {
      'DATA_DIR': f'{folder}/data',
      'MIXTURE_OR_TASK_NAME': mixture,
      'MODEL_DIR': f'{folder}/model',
      'LENGTH': s.max_length,
    }
    values |= dict(s.values) | dict(s.kind_values.get(kind, {}))
    if start:
      values['INITIAL_CHECKPOINT_PATH'] = os.path.join(self.folder(start), 'model')
    self._command(f'{name}.train', ['train', *files], values)
    return {'rows': sum(counts.values()), 'by_language': counts}

  def answer(
    self, kind: str, model_step: str, input_dir: str, output_dir: str, new_tokens: int | None = None
  ) -> None:
    """Answers chunk files with the model of a step, see `chunk_worker`."""
    # The length of a training row minus the answer; a level is one or two tokens.
    values = {'ChunkWorker.prompt_tokens': max(8, self.settings.max_length - (new_tokens or 8))}
    if new_tokens:
      values['Sampling.max_new_tokens'] = new_tokens
    flags = [
      'xinstruction',
      'chunks',
      '--kind',
      kind,
      '--checkpoint',
      os.path.join(self.folder(model_step), 'model'),
    ]
    self._command(
      f'{model_step}.{kind}', [*flags, '--input', input_dir, '--output', output_dir], values
    )

  def teach(self, kind: str, input_dir: str, output_dir: str, tokens: int) -> dict:
    """Answers chunk files with the teacher; returns its usage for the manifest."""
    # NB: outside the folders of the steps, so that paid replies outlive a stale step.
    replies = os.path.join(self._output_dir, 'replies')
    return {
      'endpoint': self.teacher.answer(
        kind, input_dir, output_dir, self.settings.languages, tokens, replies
      )
    }

  def _command(self, log: str, arguments: list[str], values: Mapping) -> None:
    command = arguments[1] if arguments[0] == 'xinstruction' else arguments[0]
    self.jobs.run(log, arguments, values, self.forwarded.flags(command), all_cores=True)
