"""A model that is served: its name, its prompts, its engine."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import json
import os
import time

from crossin_jax import config
from crossin_jax.checkpoints.saved_model import SavedModel
from crossin_jax.checkpoints.saved_prompts import Prompts
from crossin_jax.data import conversations
from crossin_jax.data.chat import ChatTemplateError
from crossin_jax.data.prompts import CHAT
from crossin_jax.decoding.generate import check_vocabulary
from crossin_jax.decoding.generation import Generator
from crossin_jax.decoding.sampling import Sampling
from crossin_jax.devices.partitioning import Partitioner
from crossin_jax.serve import fields
from crossin_jax.serve.engine import Engine
from crossin_jax.serve.refusal import invalid
from crossin_jax.storage import remote

LONGEST = 4096  # tokens of a row where neither the model nor a flag says less


@dataclasses.dataclass
class Served:
  """A model behind the API.

  Attributes:
    name: in the API.
    path: as it was given on the command line; a name as well.
    prompts: template and tokenizer.
    engine: started by the server.
    sampling: of the server: what requests cannot set.
    max_length: maximum tokens of prompt and answer.
    created: Unix seconds.
  """

  name: str
  path: str
  prompts: Prompts
  engine: Engine
  sampling: Sampling
  max_length: int
  created: int = dataclasses.field(default_factory=lambda: int(time.time()))

  def __post_init__(self):
    # Tokenizers are switched between two modes: one thread at a time.
    self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix='tokenize')

  @property
  def takes_turns(self) -> bool:
    """Whether the model has a chat template; others take one question in their own template."""
    return self.prompts.template == CHAT

  async def tokens(self, asked: fields.Asked) -> list[list[int]]:
    """The token ids of each prompt, with BOS as `crossin generate` puts it.

    Raises:
      Refusal: 400.
    """
    loop = asyncio.get_running_loop()
    work = self._chat_tokens if asked.kind == 'chat' else self._text_tokens
    return await loop.run_in_executor(
      self._tokenizing, lambda: [work(prompt) for prompt in asked.prompts]
    )

  def _text_tokens(self, prompt: str | list[int]) -> list[int]:
    if isinstance(prompt, str):
      return self.prompts.plain(prompt)
    fields.check_ids(prompt, self.prompts.vocabulary.size)
    return prompt

  def _chat_tokens(self, messages: list) -> list[int]:
    _check_turns(messages)
    try:
      found = conversations.question(messages)
      if self.takes_turns:
        return self.prompts.tokens({'messages': found})
    except ChatTemplateError as error:
      raise invalid('messages', f'the chat template refuses these messages: {error}') from None
    except ValueError as error:
      raise invalid('messages', str(error).replace("field 'messages'", 'messages')) from None
    system = [one['content'] for one in found if one['role'] == 'system']
    asked = [one['content'] for one in found if one['role'] != 'system']
    if len(asked) > 1:
      raise invalid(
        'messages',
        f'{self.name} has no chat template: it is asked with its template '
        f'{self.prompts.template!r}, which has one question. Send one turn of the user',
      )
    if not asked[0].strip():
      raise invalid('messages', 'the question is empty; write it into content')
    return self.prompts.tokens({'instruction': '\n\n'.join([*system, *asked]), 'input': ''})

  def close(self) -> None:
    """Ends the thread of the tokenizer."""
    self._tokenizing.shutdown(wait=False, cancel_futures=True)


def _check_turns(messages: list) -> None:
  """Raises Refusal for what OpenAI's protocol has and no prompt here holds."""
  for turn in messages:
    if not isinstance(turn, dict):
      continue  # `conversations.question` says what a turn is
    role, content = turn.get('role'), turn.get('content')
    if role in ('tool', 'function') or turn.get('tool_calls') or turn.get('function_call'):
      raise invalid('messages', 'tools and functions are not supported; send text', 'unsupported')
    for part in content if isinstance(content, list) else []:
      kind = part.get('type', 'text') if isinstance(part, dict) else type(part).__name__
      if kind != 'text' or not isinstance(part.get('text'), str):
        raise invalid(
          'messages', f'a part of type {kind!r} is not supported; send parts of type text with a '
          'string', 'unsupported',
        )  # fmt: skip
    if content is None or content == []:
      raise invalid('messages', f'the turn of {role!r} has no content; give a string')


@dataclasses.dataclass(frozen=True)
class Limits:
  """Flags of `crossin serve` that bound a model.

  Attributes:
    queue: answers that may wait.
    max_length: tokens of prompt and answer; None = what the model says, at most `LONGEST`.
  """

  queue: int
  max_length: int | None


def load(
  path: str, name: str | None, module: Callable[[SavedModel], object], limits: Limits
) -> Served:
  """Opens a checkpoint and puts its parameters on the devices.

  Args:
    path: see `SavedModel.open`.
    name: in the API; None = the last part of the folder.
    module: configures the Linen module of a saved model.
    limits: of the server.
  """
  source = SavedModel.open(path)
  model = module(source)
  prompts = source.prompts
  check_vocabulary(model, prompts.vocabulary)
  partition = Partitioner()
  partition.suit(model, training=False)
  sampling = Sampling()
  with partition.activate():
    generator = Generator(
      model, source.params(model, partition), partition, bos_id=None, stop_ids=source.stop_ids,
      sampling=dataclasses.replace(sampling, samples=1, stop=()), decode=prompts.vocabulary.decode,
      by_row=True,
    )  # fmt: skip
  name = name or source.name
  max_length = limits.max_length or min(_own_length(source) or LONGEST, LONGEST)
  return Served(
    name, path, prompts, Engine(name, generator, limits.queue), generator.sampling, max_length
  )


def _own_length(source: SavedModel) -> int | None:
  """`max_position_embeddings` of config.json; None where there is none."""
  path = source.companions and os.path.join(source.companions, 'config.json')
  if not path or not remote.exists(path):
    return None
  with open(remote.fetched(path), encoding='utf-8') as f:
    described = json.load(f)
  text = described.get('text_config')
  described = described | (text if isinstance(text, dict) else {})
  length = described.get('max_position_embeddings')
  return length if isinstance(length, int) and length > 0 else None


def load_all(paths: list[str], names: list[str | None], args, limits: Limits) -> dict[str, Served]:
  """All models by name, each with its own configuration on top of the flags.

  Args:
    paths, names: of the models.
    args: flags of `config.add_flags`.
    limits: of the server.
  """
  import argparse

  import gin

  models: dict[str, Served] = {}
  for path, name in zip(paths, names):
    # Each is configured alone: nothing of one model's configuration reaches the other.
    gin.clear_config()
    own = argparse.Namespace(**{key: list(v) if isinstance(v, list) else v for key, v in
                                vars(args).items()})  # fmt: skip
    served = load(path, name, lambda source: source.module(own), limits)
    if served.name in models:
      raise config.ConfigError(
        f'two models are called {served.name!r}; name them with --name and --compare_name'
      )
    models[served.name] = served
  return models
