"""Programs that speak OpenAI's protocol against `crossin serve`: the harness, our own commands."""

import json
import shutil

from conftest import TINY_GIN, init_params, tiny_config
import numpy as np
import pytest
import serving

pytest.importorskip('uvicorn', reason='the server needs the extra `serve`')
pytest.importorskip('openai', reason='the clients need the extra `test`')
torch = pytest.importorskip('torch', reason='the comparison needs the extra `test`')

from crossin_jax import cli  # noqa: E402
from crossin_jax.checkpoints import parameters  # noqa: E402
from crossin_jax.endpoint.client import Endpoint, Request  # noqa: E402
from crossin_jax.models.decoder import Decoder  # noqa: E402
from crossin_jax.storage.files import write_json  # noqa: E402


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('models') / 'nile'


@pytest.fixture(scope='module')
def reference(folder):
  model = serving.write_model(folder, length=1024)
  # Many tokens end an answer, so that a random model ends one.
  settings = json.loads((folder / 'generation_config.json').read_text())
  ends = [settings['eos_token_id'], *range(100, 160)]
  (folder / 'generation_config.json').write_text(json.dumps(settings | {'eos_token_id': ends}))
  return model


@pytest.fixture(scope='module')
def server(folder, reference):
  with serving.running([folder]) as running:
    yield running


@pytest.mark.parametrize('batch', [1, 4])
def test_the_harness_gets_the_log_probabilities_of_transformers(server, folder, reference, batch):
  pytest.importorskip('tenacity', reason='the harness needs the extra `test`')
  api = pytest.importorskip('lm_eval.models.openai_completions')
  from lm_eval.api.instance import Instance

  model = api.LocalCompletionsAPI(
    base_url=f'{server.url}/v1/completions', model=str(folder), tokenizer_backend='huggingface',
    batch_size=batch, max_retries=1,
  )  # fmt: skip
  pairs = [('The night ferry', ' leaves the port'), ('Name three', ' rivers.'), ('con đò', ' đêm'),
           ('Today is', ' noon'), ('The', ' night ferry leaves the port at noon')]  # fmt: skip
  encode = model.tokenizer.encode
  # The most likely continuation, so that one of them is greedy.
  with torch.no_grad():
    best = int(reference(torch.tensor([encode('ferry')])).logits[0, -1].argmax())
  requests = [Instance('loglikelihood', {}, pair, 0) for pair in pairs]
  found = model.loglikelihood(requests, disable_tqdm=True)
  found += model._loglikelihood_tokens([(('ferry', ''), encode('ferry'), [best])])
  for (context, more), (value, greedy) in zip([*pairs, ('ferry', None)], found):
    start = encode(context)
    ids = [*start, best] if more is None else encode(context + more)
    with torch.no_grad():
      logits = reference(torch.tensor([ids])).logits[0].double()
    rows = torch.log_softmax(logits, -1).numpy()[len(start) - 1 : -1]
    own = rows[np.arange(len(rows)), ids[len(start) :]]
    np.testing.assert_allclose(value, own.sum(), atol=1e-4)
    assert greedy == bool((own == rows.max(axis=1)).all())
  assert found[-1][1] and not found[0][1]
  asked = Instance('generate_until', {}, ('The night', {'until': ['zz'], 'max_gen_toks': 9}), 0)
  (text,) = model.generate_until([asked], disable_tqdm=True)
  create = server.client().completions.create
  wanted = create(model='nile', prompt='The night', max_tokens=9, temperature=0, stop=['zz'])
  assert text == wanted.choices[0].text


def test_the_endpoint_client(server):
  """What the judge and the teacher send."""
  turns = [[{'role': 'system', 'content': 'You judge.'}, {'role': 'user', 'content': f'Text {i}'}]
           for i in range(6)]  # fmt: skip
  parameters = {'temperature': 0, 'top_p': 1, 'max_tokens': 40}
  with Endpoint(f'{server.url}/v1', 'nile', concurrency=6) as endpoint:
    replies = list(endpoint.complete([Request(m, parameters) for m in turns], progress=None))
    assert not any(reply.error for reply in replies)
    create = server.client().chat.completions.create
    for reply in replies:
      wanted = create(model='nile', messages=turns[reply.index], **parameters)
      assert reply.text == wanted.choices[0].message.content
      assert reply.usage['completion_tokens'] == wanted.usage.completion_tokens
      assert reply.finish_reason == wanted.choices[0].finish_reason
    assert endpoint.counts().sent == 6


def test_translate(server, tmp_path):
  """The texts are those of a random model; what is tested is that every field gets a reply."""
  rows = [{'instruction': f'Name {n} rivers.', 'input': '', 'output': f'Nile {n}.'} for n in 'abcd']
  (tmp_path / 'rows.en.json').write_text(json.dumps(rows))
  assert cli.main([
    'translate', '--input', str(tmp_path / 'rows.en.json'), '--languages', 'vi,ur', '--model', 'nile',
    '--output_dir', str(tmp_path / 'out'), '--endpoint', f'{server.url}/v1', '--length_ratio', '0,999',
    '--parameter', 'max_tokens=200',
  ]) == 0  # fmt: skip
  manifest = json.loads((tmp_path / 'out' / 'rows_translate.json').read_text())
  assert manifest['rows'] == 4 and 'no reply' not in manifest['fields_by_reason']
  assert manifest['kept'] >= 1, manifest
  translated = json.loads((tmp_path / 'out' / 'rows_ur.json').read_text())
  assert len(translated) == manifest['kept'] and all(row['output'] for row in translated)


def test_a_model_without_a_chat_template(tmp_path, tiny_vocabulary):
  """A MODEL_DIR with a SentencePiece tokenizer and BOS: one question, in the template of training."""
  import openai

  folder = tmp_path / 'run'
  model = Decoder(tiny_config(vocab_size=1216))
  parameters.save_params(str(folder), init_params(model, 2))
  (folder / 'config.gin').write_text(TINY_GIN)
  shutil.copyfile(tiny_vocabulary.path, folder / 'words.model')
  words = {'file': 'words.model', 'bos_token': None, 'eos_token': None}
  prompts = {'template': 'alpaca', 'tags': True}
  write_json(str(folder / 'prompts.json'), {'prompts': prompts, 'vocabulary': words})
  rows = [{'instruction': 'Be brief.\n\nWhat is radio?'}, {'prompt': 'Radio is'}]
  (tmp_path / 'in.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  paths = ['--input', str(tmp_path / 'in.jsonl'), '--output', str(tmp_path / 'out.jsonl')]
  flags = ['--gin.Partitioner.mesh_shape=(-1,1,1)', '--gin.Sampling.max_new_tokens=9']
  assert cli.main(['generate', '--checkpoint', str(folder), *paths, *flags]) == 0
  wanted = [
    json.loads(line)['output'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()
  ]
  with serving.running([folder]) as server:
    client, options = server.client(), {'model': 'run', 'temperature': 0, 'max_tokens': 9}
    turns = [
      {'role': 'system', 'content': 'Be brief.'},
      {'role': 'user', 'content': 'What is radio?'},
    ]
    reply = client.chat.completions.create(messages=turns, **options)
    assert reply.choices[0].message.content == wanted[0]
    reply = client.completions.create(prompt='Radio is', logprobs=1, echo=True, **options)
    assert reply.choices[0].text == 'Radio is' + wanted[1]
    assert reply.choices[0].logprobs.text_offset[:2] == [0, 0], 'BOS is a token without a text'
    turns += [{'role': 'assistant', 'content': 'Air.'}, {'role': 'user', 'content': 'More.'}]
    with pytest.raises(openai.BadRequestError, match='run has no chat template'):
      client.chat.completions.create(messages=turns, **options)
