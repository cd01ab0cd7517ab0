"""The model class of lm-evaluation-harness. Needs the extra `harness`."""

from collections.abc import Sequence
import functools
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import postprocess_generated_text

from crossin_jax.data.chat import ChatTemplateError
from crossin_jax.decoding import nonfinite
from crossin_jax.decoding.schedule import Prompt
from crossin_jax.evaluation.harness import answered, generation_settings
from crossin_jax.evaluation.harness.answered import Answered, Key
from crossin_jax.evaluation.harness.engine import Engine
from crossin_jax.evaluation.harness.errors import HarnessError
from crossin_jax.evaluation.harness.generation_settings import MAX_GEN_TOKS, GenerationSettings
from crossin_jax.progress import Progress


class CrossinLM(TemplateLM):
  """Answers requests as `--model hf` does on the same directory, ids and truncation included.

  Requests of one kind are answered together, whatever their tasks: what they have in common is
  computed once.
  """

  def __init__(
    self,
    engine: Engine,
    known: Answered | None = None,
    *,
    add_bos_token: bool | None = None,
    prefix_token_id: int | None = None,
    seed: int = 0,
    shows_progress: bool = True,
  ):
    """Args:
    engine: the model.
    known: answers of earlier runs, to which new ones are added; None = none.
    add_bos_token: whether texts get BOS; None = as the tokenizer has it.
    prefix_token_id: token before a text without context; None = BOS, or else the stop token.
    seed: of sampled answers.
    shows_progress: on stderr.
    """
    super().__init__()
    self.engine, self._vocabulary = engine, engine.vocabulary
    self._known = Answered() if known is None else known
    self.add_bos_token, self._prefix_id, self._seed = add_bos_token, prefix_token_id, seed
    self._shows_progress = shows_progress
    self._encode = functools.lru_cache(maxsize=65536)(self._encoded)

  # What the harness reads.

  @property
  def max_length(self) -> int:
    """Most decoder inputs of a request."""
    return self.engine.max_length

  @property
  def max_gen_toks(self) -> int:
    """Most tokens of an answer, where a task names no number."""
    return MAX_GEN_TOKS

  @property
  def eot_token_id(self) -> int:
    """The stop token."""
    return self._vocabulary.eos_id

  @property
  def prefix_token_id(self) -> int:
    """The token before a text without context."""
    return self._vocabulary.prefix_id if self._prefix_id is None else self._prefix_id

  @property
  def tokenizer_name(self) -> str:
    """Names the tokenizer in the harness' cache of requests."""
    return f'{self.engine.source.name}-{self._vocabulary.digest[:16]}'

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The text of the chat template; None if it is not to be used.

    Raises:
      HarnessError: a template is asked for by name.
    """
    if isinstance(chat_template, str):
      raise HarnessError(
        f'the chat template cannot be chosen by the name {chat_template!r}; give '
        '--apply_chat_template alone for the default one'
      )
    return self._vocabulary.chat if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """A conversation as text; without the system message where the template refuses it.

    Raises:
      ChatTemplateError: no template, or one that refuses the conversation.
    """
    render = functools.partial(self._vocabulary.chat_text, begun=not add_generation_prompt)
    try:
      return render(chat_history)
    except ChatTemplateError:
      others = [message for message in chat_history if message['role'] != 'system']
      if len(others) == len(chat_history):
        raise
      return render(others)

  def get_model_info(self) -> dict[str, Any]:
    """What results.json of the harness says about the model."""
    return {
      'model_num_parameters': self.engine.parameters,
      'model_dtype': self.engine.config.dtype,
      'model_revision': 'N/A',
      'model_sha': self.engine.source.digest,
    }

  # Text to ids.

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Ids as HFLM has them: with the tokenizer's BOS, unless the text itself begins with it."""
    if add_special_tokens is None:
      begins = string.startswith(self._vocabulary.token_text(self.prefix_token_id))
      add_special_tokens = not begins and self.add_bos_token is not False
    return list(self._encode(string, add_special_tokens))

  def _encoded(self, text: str, with_specials: bool) -> tuple[int, ...]:
    ids = self._vocabulary.encode_as_transformers(text, with_specials)
    if not with_specials:
      return tuple(ids)
    bos = self.prefix_token_id if self.add_bos_token and self._vocabulary.bos_text else None
    return tuple(ids if bos is None or ids[:1] == [bos] else [bos, *ids])

  def _prompt_ids(self, context: str, longest: int) -> list[int]:
    """Ids of a context to continue, the last `longest` ones."""
    named = self._vocabulary.bos_text
    begins = named is not None and context.startswith(named)
    ids = self._encode(context, not begins and self.add_bos_token is not False)
    return list(ids[-longest:]) or [self.prefix_token_id]

  # Requests.

  def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether greedy decoding gives it) of each continuation."""
    arguments = [request.args for request in requests]
    keys, missing = self._missing('loglikelihood', arguments)
    pairs = {}
    for i in missing:
      context, continuation = arguments[i]
      pairs[i] = self._pair(context, continuation)
    progress = self._progress('loglikelihood', len(set(keys)), len(missing))
    for i, loss, greedy in self._scored(pairs, lambda i: repr(arguments[i][0][-60:])):
      self._add('loglikelihood', keys[i], arguments[i], [-loss, greedy], progress)
    return [(loglikelihood, greedy) for loglikelihood, greedy in map(self._known.__getitem__, keys)]

  def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    if context:
      return self._encode_pair(context, continuation)
    ids = self.tok_encode(continuation, add_special_tokens=False)
    if ids[:1] == [self.prefix_token_id]:
      return ids[:1], ids[1:]
    return [self.prefix_token_id], ids

  def _loglikelihood_tokens(self, requests, **kwargs: Any) -> list[tuple[float, bool]]:
    pairs = {i: (context, continuation) for i, (_, context, continuation) in enumerate(requests)}
    found = {i: (-loss, greedy) for i, loss, greedy in self._scored(pairs, str)}
    return [found[i] for i in range(len(requests))]

  def _scored(self, pairs: dict[Any, tuple[list[int], list[int]]], name):
    """Scores (context, continuation) of each key, contexts cut on the left.

    Yields:
      (key, loss, greedy).

    Raises:
      HarnessError: a continuation that is empty or longer than the model reads.
    """
    prefixes, options, keys = [], [], []
    for key, (context, continuation) in pairs.items():
      if not continuation or not context:
        raise HarnessError(
          f'the continuation of {name(key)} has no tokens to score; the options of a task must not '
          'be empty'
        )
      if len(continuation) > self.max_length:
        raise HarnessError(
          f'the continuation of {name(key)} has {len(continuation)} tokens, more than max_length = '
          f'{self.max_length}'
        )
      prefixes.append(context[-(self.max_length + 1 - len(continuation)) :])
      options.append([continuation])
      keys.append(key)
    if not keys:
      return
    with nonfinite.naming(lambda index: name(keys[index])):
      for score in self.engine.scores(prefixes, options):
        yield keys[score.prefix], score.loss, score.greedy

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """Log-probability of each text, in windows of `max_length` that share one token."""
    arguments = [request.args for request in requests]
    keys, missing = self._missing('loglikelihood_rolling', arguments)
    windows: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    left, totals = {}, dict.fromkeys(missing, 0.0)
    progress = self._progress('loglikelihood_rolling', len(set(keys)), len(missing))
    for i in missing:
      own = utils.get_rolling_token_windows(
        token_list=self.tok_encode(arguments[i][0]), prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length, context_len=1,
      )  # fmt: skip
      own = list(map(utils.make_disjoint_window, own))
      windows |= {(i, j): window for j, window in enumerate(own)}
      left[i] = len(own)
      if not own:
        self._add('loglikelihood_rolling', keys[i], arguments[i], 0.0, progress)
    for (i, _), loss, _ in self._scored(windows, lambda key: repr(arguments[key[0]][0][:60])):
      totals[i] -= loss
      left[i] -= 1
      if not left[i]:
        self._add('loglikelihood_rolling', keys[i], arguments[i], totals[i], progress)
    return [self._known[key] for key in keys]

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """The generated text of each request, without its stop text and what follows."""
    arguments = [request.args for request in requests]
    eos = self._vocabulary.token_text(self.eot_token_id)
    defaults = self.engine.source.generation_config
    settings = [
      generation_settings.read(kwargs, eos, defaults, self._seed) for _, kwargs in arguments
    ]
    keys, missing = self._missing('generate_until', arguments, [one.drawn for one in settings])
    progress = self._progress('generate_until', len(set(keys)), len(missing))
    prompts = {i: self._prompt(arguments[i][0], settings[i], keys[i]) for i in missing}
    for sampling in dict.fromkeys(settings[i].sampling for i in missing):
      own = [i for i in missing if settings[i].sampling == sampling]
      with nonfinite.naming(lambda index: repr(arguments[own[index]][0][-60:])):
        for answer in self.engine.answers([prompts[i] for i in own], sampling):
          i = own[answer.index]
          # Of a special token as stop text nothing is left to cut.
          text = self._vocabulary.decode_as_transformers(answer.tokens)
          text = postprocess_generated_text(text, stop=settings[i].until, think_end_token=None)
          self._add('generate_until', keys[i], arguments[i], text, progress)
    return [self._known[key] for key in keys]

  def _prompt(self, context: str, settings: GenerationSettings, key: Key) -> Prompt:
    longest = self.max_length - settings.max_gen_toks
    if longest <= 0:
      raise HarnessError(
        f'a task asks for {settings.max_gen_toks} new tokens, and the model reads '
        f'{self.max_length} in all; give fewer (--gen_kwargs max_gen_toks=...), or --max_length'
      )
    digest, sample = key
    return Prompt(
      self._prompt_ids(context, longest), int(digest[:7], 16), settings.max_gen_toks, [sample],
      tuple(settings.until),
    )  # fmt: skip

  # The answers.

  def _missing(
    self, kind: str, arguments: Sequence[tuple], drawn: Sequence[bool] | None = None
  ) -> tuple[list[Key], list[int]]:
    """The key of each request, and numbers of requests to ask: the first of each unknown key."""
    keys = answered.keys_of(kind, arguments, drawn or [False] * len(arguments))
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    return keys, sorted(i for key, i in first.items() if key not in self._known)

  def _progress(self, kind: str, total: int, missing: int):
    """A function that shows one more answer."""
    if not self._shows_progress:
      return lambda: None
    progress, done = Progress(total, f'harness {kind}: request'), total - missing
    progress.show(done, force=True)

    def step():
      nonlocal done
      done += 1
      progress.show(done)

    return step

  def _add(self, kind: str, key: Key, arguments: tuple, answer, progress) -> None:
    self._known.add(key, answer)
    value = tuple(answer) if isinstance(answer, list) else answer
    self.cache_hook.add_partial(kind, arguments, value)
    progress()
