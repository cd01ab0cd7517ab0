"""`crossin judge` against `crossin serve`: a judge that can score, and one that cannot."""

import json

import pytest
import serving

pytest.importorskip('uvicorn', reason='the server needs the extra `serve`')
pytest.importorskip('openai', reason='the clients need the extra `test`')
torch = pytest.importorskip('torch', reason='the comparison needs the extra `test`')

from crossin_jax import cli  # noqa: E402
from crossin_jax.evaluation.judging import judge  # noqa: E402
from crossin_jax.evaluation.judging.verdicts import Pair  # noqa: E402
from crossin_jax.storage.files import write_jsonl  # noqa: E402

# id -> language, the answers of A and B with what each is worth, what the one shown first gets more
# (so that the orders of one pair disagree), and the verdict.
PAIRS = {
  '0': ('en', ('Nile, Niger, Volta.', 9), ('A river.', 2), 1, 'win'),
  '1': ('en', ('I do not know.', 1), ('Rhine, Elbe, Oder.', 8), 0, 'loss'),
  '2': ('en', ('Red, green, blue.', 4), ('Nothing.', 4), 2, 'tie'),
  '3': ('ur', ('سندھ، جہلم، چناب', 10), ('دریا', 3), 0, 'win'),
}
NO_ANSWER = -100  # the label of torch that has no loss


def question(id_):
  return f'Name three rivers ({id_}).'


def wanted(id_, order):
  _, a, b, bonus, _ = PAIRS[id_]
  first, second = (a, b) if order == 'ab' else (b, a)
  return {'score1': first[1] + bonus, 'score2': second[1]}


def cases():
  """The messages of each request, and the reply that a judge with these scores gives."""
  for id_, (language, a, b, *_) in PAIRS.items():
    pair = Pair(id_, language, None, '', question(id_), a[0], b[0])
    for order in judge.ORDERS:
      one, two = wanted(id_, order).values()
      reply = f'<score1>{one}</score1>\n<score2>{two}</score2>'
      yield list(judge.request(pair, order, 'judge').messages), reply


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('answers')
  for name, side in (('a', 1), ('b', 2)):
    write_jsonl(
      folder / f'{name}.jsonl',
      [
        {'id': id_, 'language': row[0], 'instruction': question(id_), 'output': row[side][0]}
        for id_, row in PAIRS.items()
      ],
    )
  return [str(folder / 'a.jsonl'), str(folder / 'b.jsonl')]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  """Serves 'judge', which torch taught the replies of `cases`, and 'random'; with the number of
  tokens that transformers has for all prompts.
  """
  import transformers

  folder = tmp_path_factory.mktemp('models')
  texts = [judge.SYSTEM, judge.PROMPT, *(reply for _, reply in cases())]
  for name in ('random', 'judge'):
    model = serving.write_model(folder / name, texts=texts)
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / 'judge'))
  rows = []
  for messages, reply in cases():
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    rows.append((prompt, tokenizer(reply + serving.IM)['input_ids']))
  teach(model, rows)
  model.save_pretrained(str(folder / 'judge'))
  with serving.running([folder / 'judge', folder / 'random']) as running:
    yield running, sum(len(prompt) for prompt, _ in rows)


def teach(model, rows):
  """Trains until each answer follows its prompt; `rows` has token ids of both."""
  shape = len(rows), max(len(prompt) + len(answer) for prompt, answer in rows)
  ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, NO_ANSWER)
  for i, (prompt, answer) in enumerate(rows):
    end = len(prompt) + len(answer)
    ids[i, :end] = torch.tensor([*prompt, *answer])
    labels[i, len(prompt) : end] = torch.tensor(answer)
  optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
  for _ in range(400):
    loss = model(input_ids=ids, labels=labels).loss
    if loss.item() < 0.01:
      return
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
  raise AssertionError(f'the judge has not learned its replies: loss {loss.item():.3f}')


def run(files, url, model, out, *more):
  settings = ['--judge_model', model, '--endpoint', f'{url}/v1', '--json', *more]
  return cli.main(['judge', *files, '--output_dir', str(out), *settings])


def test_a_judge_that_scores(server, files, tmp_path, capsys):
  running, prompt_tokens = server
  assert run(files, running.url, 'judge', tmp_path) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found['endpoint']['prompt_tokens'] == prompt_tokens, 'another prompt than transformers has'
  rows = [json.loads(line) for line in (tmp_path / 'judgements.jsonl').read_text().splitlines()]
  scores = {(row['id'], order): row[order] for row in rows for order in judge.ORDERS}
  assert scores == {(id_, order): wanted(id_, order) for id_ in PAIRS for order in judge.ORDERS}
  assert {row['id']: row['verdict'] for row in rows} == {id_: row[-1] for id_, row in PAIRS.items()}
  overall = found['judges'][0]['overall']
  assert (overall['judged'], overall['win_rate']) == (4, 0.625)


def test_a_judge_without_a_score_fails(server, files, tmp_path, capsys):
  """A random model speaks, but gives no scores: nothing is judged, and the status says so."""
  running, _ = server
  assert run(files, running.url, 'random', tmp_path) == 1
  said = capsys.readouterr()
  found = json.loads(said.out.splitlines()[-1])
  unjudged = found['judges'][0]['overall']['unjudged']
  assert unjudged['no_reply'] == 0 and sum(unjudged.values()) == len(PAIRS)
  assert 'No pair of a and b was judged.' in said.out


def test_a_prompt_that_does_not_fit_is_named(server, files, tmp_path, capsys):
  running, _ = server
  assert run(files, running.url, 'judge', tmp_path, '--max_tokens', '500') == 1
  said = capsys.readouterr().err
  assert "this model's context is 512 tokens here" in said and 'lower max_tokens' in said
  assert not (tmp_path / 'judge.json').exists()
