"""Tasks of lm-evaluation-harness by name, and the languages that they are in."""

from collections.abc import Mapping, Sequence
import contextlib
import difflib
import os
import re
import traceback
from typing import Any, NamedTuple

from crossin_jax.errors import CrossinError, Interrupted
from crossin_jax.evaluation.harness.errors import HarnessError
from crossin_jax.languages import languages

UNDETERMINED = 'und'  # ISO 639: of a task whose language is not known
_WITH_SCRIPT = re.compile(r'(?:^|_)(([a-z]{3})_([A-Z][a-z]{3}))(?=_|$)')
_ENGLISH_WORDS = frozenset('am as be is my no or so he it to in'.split())
# Names of languages in tasks that are not those of CLDR, and codes that are not ISO's.
_OTHER_NAMES = {
  'jp': 'ja', 'tagalog': 'fil', 'farsi': 'fa', 'north macedonian': 'mk', 'north-macedonian': 'mk',
  'kiswahili': 'sw', 'bangla': 'bn', 'mandarin': 'zh',
}  # fmt: skip


class TaskLanguage(NamedTuple):
  """What a task is, apart from its language.

  Attributes:
    family: its name without the language; equal in all languages of a benchmark.
    language: a code, with the script if it is not the usual one ('zh-Hant').
  """

  family: str
  language: str


def languages_of(dataset_names: Mapping[str, str | None]) -> dict[str, TaskLanguage]:
  """The languages of all tasks of a run: those of `language_of`; where it finds none, that of a
  word in the middle of the name, if another task differs in such a word alone.

      local_mmlu_de_law, local_mmlu_en_law -> local_mmlu_law, de; local_mmlu_law, en
      bigbench_cs_algorithms               -> bigbench_cs_algorithms, und

  Args:
    dataset_names: task -> its `dataset_name`, which may be None.
  """
  found = {name: language_of(name, dataset) for name, dataset in dataset_names.items()}
  inner = {
    name: guess
    for name, one in found.items()
    if one.language == UNDETERMINED and (guess := _in_the_middle(name))
  }
  families = [one.family for one in inner.values()]
  return found | {name: one for name, one in inner.items() if families.count(one.family) > 1}


def _in_the_middle(name: str) -> TaskLanguage | None:
  for part in name.split('_')[1:-1]:
    if not part.isupper() and part not in _ENGLISH_WORDS and (code := _code(part)):
      return TaskLanguage(_without(name, part), code)
  return None


def language_of(name: str, dataset_name: str | None = None) -> TaskLanguage:
  """The language of a task, by the configuration of its data set, else by the end of its name.

      'xcopa_et', 'et'                    -> xcopa, et
      'belebele_zho_Hant', 'zho_Hant'     -> belebele, zh-Hant
      'global_mmlu_full_am_virology', 'am' -> global_mmlu_full_virology, am
      'include_base_44_greek_stem', 'Greek' -> include_base_44_stem, el
      'mgsm_direct_de'                    -> mgsm_direct, de
      'hellaswag'                         -> hellaswag, und

  Args:
    name: of the task.
    dataset_name: its `dataset_name`. It counts if the name of the task contains it as a word; a
      code of two letters elsewhere in a name could be any word.
  """
  words = '_'.join(re.split(r'[-\s]+', dataset_name)) if isinstance(dataset_name, str) else ''
  for part in dict.fromkeys((words, words.lower())):
    if part and (code := _code(part)) and (rest := _without(name, part)) is not None:
      return TaskLanguage(rest, code)
  if match := _WITH_SCRIPT.search(name):
    return TaskLanguage(_without(name, match[1]), _code(match[1]) or match[1].replace('_', '-'))
  *_, last = name.split('_')
  if '_' in name and not last.isupper() and (code := _code(last)):
    return TaskLanguage(_without(name, last), code)
  return TaskLanguage(name, UNDETERMINED)


def _without(name: str, part: str) -> str | None:
  """The name of a task without some of its words; None if it does not contain them."""
  found = re.search(rf'(?:^|_){re.escape(part)}(?=_|$)', name)
  if not found:
    return None
  return (name[: found.start()] + name[found.end() :]).strip('_') or name


def _code(text: str) -> str | None:
  """Code of 'et', 'est', 'est_Latn', 'Albanian' or 'pt_BR'; None if it is no known language."""
  known = languages()
  alpha3 = {long: code for code, entry in known.items() for long in entry.alpha3}
  names = {entry.name.lower(): code for code, entry in known.items()}
  first, _, rest = text.partition('_')
  for key in (text.replace('_', ' ').lower(), text.lower()):
    code = _OTHER_NAMES.get(key) or names.get(key) or alpha3.get(key, key)
    if code in known:
      return code
  code = alpha3.get(first.lower(), first.lower())
  if code not in known or not re.fullmatch(r'[A-Z][a-z]{3}|[A-Za-z]{2}', rest):
    return None
  return code if rest == known[code].script or len(rest) == 2 else f'{code}-{rest}'


def matched(manager, patterns: Sequence[str]) -> list[str]:
  """Names of tasks, groups and tags, and paths of YAML files.

  Args:
    manager: a `TaskManager` of the harness.
    patterns: names with * and ?, or paths.

  Raises:
    HarnessError: a pattern that matches nothing, with similar names.
  """
  names = []
  for pattern in patterns:
    found = [pattern] if os.path.isfile(pattern) else manager.match_tasks([pattern])
    if not found:
      near = difflib.get_close_matches(pattern, manager.all_tasks, n=3)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise HarnessError(
        f'--tasks: no task, group or tag is called {pattern!r}{hint} `lm_eval ls tasks` lists all; '
        '--include_path adds a folder of YAML files'
      )
    names += [name for name in found if name not in names]
  return names


def task_manager(include_path: str | None, patterns: Sequence[str], metadata: dict[str, Any]):
  """A `TaskManager` of the harness that keeps what it loaded as `loaded`, and whose errors name the
  task.

  It knows the harness' own tasks (14,000 files, read in about ten seconds) unless all `patterns`
  are names of tasks in `include_path`.

  Raises:
    HarnessError: `include_path` is not a folder.
  """
  from lm_eval.tasks import TaskManager

  if include_path is not None and not os.path.isdir(include_path):
    raise HarnessError(f'--include_path {include_path} is not a folder; give one of YAML files')

  class Manager(TaskManager):
    loaded: dict[str, Any] | None = None

    def _load_spec(self, spec):
      try:
        return super()._load_spec(spec)
      except Exception as error:  # of datasets, of YAML, or of a task's own code
        raise _not_loaded(spec, error) from error

    def load(self, task_list):
      self.loaded = super().load(task_list)
      return self.loaded

  if include_path is not None:
    own = Manager(include_path=include_path, include_defaults=False, metadata=metadata)
    if set(patterns) <= set(own.all_subtasks):
      return own
  return Manager(include_path=include_path, metadata=metadata)


@contextlib.contextmanager
def naming_the_harness():
  """Errors of the harness and of a task's own code become a HarnessError; those of this project
  pass.
  """
  try:
    yield
  except (CrossinError, Interrupted):
    raise
  except Exception as error:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = next((i for i, file in enumerate(files) if f'lm_eval{os.sep}' in file), len(files))
    if any(f'crossin_jax{os.sep}' in file for file in files[inside:]) or inside == len(files):
      raise
    raise HarnessError(
      f'lm-evaluation-harness failed: {type(error).__name__}: {" ".join(str(error).split())[:300]}.'
      ' Check the YAML file of the task and its data, or run `lm_eval` with --model dummy on it'
    ) from error


_NETWORK = re.compile(
  r'connect|resolve|offline|hub|network|timed? ?out|max retries|unreachable', re.IGNORECASE
)


def _not_loaded(spec, error: Exception) -> HarnessError:
  causes = [error]
  while (cause := causes[-1].__cause__) is not None:
    causes.append(cause)
  reason = ': '.join(' '.join(str(one).split()) or type(one).__name__ for one in causes)
  remedy = (
    'its data are on the Hugging Face hub: give this machine access, or download them and point '
    "the task at the files with dataset_kwargs (docs/guides/harness.md, 'Local data')"
    if isinstance(error, ConnectionError) or _NETWORK.search(f'{type(error).__name__} {reason}')
    else 'check the YAML file of the task and its data'
  )
  return HarnessError(f'task {spec!r} cannot be loaded: {reason[:300]}. Remedy: {remedy}')
