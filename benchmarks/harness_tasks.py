"""Tasks of lm-evaluation-harness on invented items, in the layouts in which the data are published.

`write_tasks` writes JSON Lines and YAML files that include the harness' own definitions, so prompts
and metrics are the real ones: XCOPA, XNLI, Belebele, Global-MMLU, MGSM, INCLUDE and XWinograd, with
wikitext for rolling likelihoods. Items are the same in all languages, as the published ones are.
"""

import json
import os
from pathlib import Path
import random

WORDS = (
  'river port night ferry leaves noon name three house bread walks seven slow bright under garden '
  'con đò đêm rời bến mười trưa phố kell maja leib seitse aeglane aed sild öö laev sadam Fluss '
  'Brot sieben Haus langsam hell Garten Brücke Nacht Schiff 河流 渡轮 夜晚 面包 七 房子 花园 桥 '
  'แม่น้ำ เรือ คืน ขนมปัง สะพาน sungai roti malam kapal jembatan tujuh rumah taman cepat'
).split()
# Task, the file of the harness that it includes, and its kind.
TASKS = {
  'xcopa_et': ('xcopa/default_et.yaml', 'xcopa'),
  'xcopa_id': ('xcopa/default_id.yaml', 'xcopa'),
  'xcopa_th': ('xcopa/default_th.yaml', 'xcopa'),
  'xnli_en': ('xnli/xnli_en.yaml', 'xnli'),
  'xnli_de': ('xnli/xnli_de.yaml', 'xnli'),
  'belebele_eng_Latn': ('belebele/belebele_eng_Latn.yaml', 'belebele'),
  'belebele_est_Latn': ('belebele/belebele_est_Latn.yaml', 'belebele'),
  'belebele_zho_Hant': ('belebele/belebele_zho_Hant.yaml', 'belebele'),
  'global_mmlu_en_stem': ('global_mmlu/default/en/global_mmlu_en_stem.yaml', 'global_mmlu'),
  'global_mmlu_de_stem': ('global_mmlu/default/de/global_mmlu_de_stem.yaml', 'global_mmlu'),
  'mgsm_direct_en': ('mgsm/direct/mgsm_direct_en.yaml', 'mgsm'),
  'mgsm_direct_de': ('mgsm/direct/mgsm_direct_de.yaml', 'mgsm'),
  'include_base_44_albanian_stem': (
    'include/default/Albanian/include_base_44_albanian_stem.yaml', 'include',
  ),
  'include_base_44_estonian_stem': (
    'include/default/Estonian/include_base_44_estonian_stem.yaml', 'include',
  ),
  'xwinograd_en': ('xwinograd/xwinograd_en.yaml', 'xwinograd'),
  'xwinograd_fr': ('xwinograd/xwinograd_fr.yaml', 'xwinograd'),
  'wikitext': ('wikitext/wikitext.yaml', 'wikitext'),
}  # fmt: skip
LIKELIHOOD = [name for name in TASKS if not name.startswith(('mgsm', 'wikitext'))]
GENERATION = [name for name in TASKS if name.startswith('mgsm')]


class Texts:
  """Invented texts."""

  def __init__(self, seed):
    self._random = random.Random(seed)

  def words(self, least: int, most: int) -> str:
    return ' '.join(self._random.choices(WORDS, k=self._random.randint(least, most)))

  def sentence(self, least: int = 4, most: int = 9) -> str:
    return f'{self.words(least, most).capitalize()}.'

  def number(self, below: int) -> int:
    return self._random.randrange(below)


def write_tasks(
  folder: str, items: int, *, passage: int = 40, max_gen_toks: int | None = None, stops=None
) -> list[str]:
  """Writes data and YAML files.

  Args:
    folder: for `--include_path`.
    items: of each task.
    passage: words of a passage of Belebele, at most.
    max_gen_toks: of MGSM; None = the harness' own.
    stops: task -> stop texts, with max_gen_toks; None = the harness' own.

  Returns:
    The names of the tasks.
  """
  import lm_eval

  definitions = Path(lm_eval.__file__).parent / 'tasks'
  os.makedirs(os.path.join(folder, 'data'), exist_ok=True)
  for name, (included, kind) in TASKS.items():
    split = 'validation' if kind == 'xnli' else 'test'
    splits = {
      one: _write(folder, name, one, [_row(kind, name, one, i, passage) for i in range(count)])
      for one, count in ((_SHOTS.get(kind), 6), (split, items))
      if one
    }
    if kind == 'wikitext':
      splits |= {one: splits['test'] for one in ('train', 'validation')}
    if kind in ('xcopa', 'xnli'):
      splits |= {one: splits[split] for one in ('validation', 'train')}
    task = {
      'include': str(definitions / included), 'task': f'local_{name}', 'dataset_path': 'json',
      'dataset_name': None,
      'dataset_kwargs': {'data_files': splits, 'cache_dir': os.path.join(folder, 'cache')},
    }  # fmt: skip
    if kind == 'mgsm' and max_gen_toks:
      usual = {'mgsm_direct_en': 'Question:', 'mgsm_direct_de': 'Frage:'}
      until = [usual[name], '</s>', '<|im_end|>', *(stops or {}).get(name, ())]
      task['generation_kwargs'] = {
        'do_sample': False, 'max_gen_toks': max_gen_toks, 'until': until,
      }  # fmt: skip
    # JSON is YAML.
    Path(folder, f'local_{name}.yaml').write_text(json.dumps(task), encoding='utf-8')
  return [f'local_{name}' for name in TASKS]


_SHOTS = {'global_mmlu': 'dev', 'mgsm': 'train'}


def _write(folder: str, name: str, split: str, rows: list[dict]) -> str:
  path = Path(folder, 'data', f'{name}.{split}.jsonl')
  path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
  return str(path)


def _row(kind: str, name: str, split: str, i: int, passage: int) -> dict:
  """One item: its correct answer is the same in all languages, its texts are not. INCLUDE has other
  items in each language.
  """
  same, texts = Texts(f'{kind} {split} {i}'), Texts(f'{name} {split} {i}')
  options = lambda: {f'option_{letter}': texts.words(1, 5) for letter in 'abcd'}
  if kind == 'xcopa':
    return {
      'premise': texts.sentence(), 'choice1': texts.sentence(), 'choice2': texts.sentence(),
      'question': ('cause', 'effect')[same.number(2)], 'label': same.number(2), 'idx': i,
      'changed': False,
    }  # fmt: skip
  if kind == 'xnli':
    return {
      'premise': texts.sentence(6, 16), 'hypothesis': texts.sentence(), 'label': same.number(3),
    }  # fmt: skip
  if kind == 'belebele':
    return {
      'link': f'https://example.org/{i // 2}', 'question_number': 1 + i % 2,
      'flores_passage': texts.sentence(passage // 2, passage), 'question': texts.sentence(),
      **{f'mc_answer{k}': texts.words(1, 6) for k in range(1, 5)},
      'correct_answer_num': str(1 + same.number(4)), 'dialect': name, 'ds': '2023-05-03',
    }  # fmt: skip
  if kind == 'global_mmlu':
    return {
      'sample_id': f'{split}/{i}', 'subject': 'physics', 'subject_category': 'STEM',
      'question': texts.sentence(6, 20), **options(), 'answer': 'ABCD'[same.number(4)],
    }  # fmt: skip
  if kind == 'mgsm':
    number = same.number(90)
    shot = {'answer': f'Step-by-Step Answer: {number}'} if split == 'train' else {'answer': None}
    return {
      'question': texts.sentence(8, 24), **shot, 'answer_number': number,
      'equation_solution': None,
    }  # fmt: skip
  if kind == 'include':
    return {
      'language': name, 'domain': 'STEM', 'question': texts.sentence(6, 20), **options(),
      'answer': texts.number(4),
    }  # fmt: skip
  if kind == 'xwinograd':
    return {
      'sentence': f'{texts.words(5, 12)} _ {texts.words(3, 9)}.', 'option1': texts.words(1, 2),
      'option2': texts.words(1, 2), 'answer': str(1 + same.number(2)),
    }  # fmt: skip
  return {'page': '\n'.join(texts.sentence(8, 20) for _ in range(1 + i))}
