"""The mistakes that people make most: one message of at most three lines with the remedy, exit status
1 or 2, no traceback.
"""

import os
import re
import shlex

from conftest import REPOSITORY
import pytest
import small_models

from crossin_jax import cli

ROWS = {'en': 'What is {} plus one?', 'vi': 'Số {} cộng một?', 'zh': '数字{}加一?'}
PREPARE = (
  'prepare gin_configs/mixtures/alpaca.gin parallel/ParallelFiles.name=sums PARALLEL=data/sums '
  'LANGUAGES=en,vi VOCABULARY=model/tokenizer.json MixtureSettings.template=plain '
  'MixtureSettings.max_length=64 --output_dir prepared'
)
MIXTURE = 'sums.base_x2x.all.en_vi.default'
TRAIN = (
  f'train gin_configs/runs/crossin_full.gin HF_DIR=model DATA_DIR=prepared BATCH_SIZE=4 LENGTH=64 '
  f'MIXTURE_OR_TASK_NAME={MIXTURE} MODEL_DIR=run DecoderConfig.dtype=float32 TRAIN_STEPS=1 '
  'train.epochs=None'
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A model, rows and a prepared mixture."""
  folder, before = tmp_path_factory.mktemp('mistakes'), os.getcwd()
  os.chdir(folder)
  try:
    small_models.write_tokenizer(
      'model', ['<s>', '</s>'], {'bos_token': '<s>', 'eos_token': '</s>'}
    )
    small_models.write_model('model')
    os.makedirs('data')
    for language, text in ROWS.items():
      rows = [{'instruction': text.format(n), 'output': str(n + 1)} for n in range(40)]
      small_models.write_json(f'data/sums.{language}.json', rows)
    small_models.write_json('data/other.en.json', [{'question': 'Why?', 'reply': 'So.'}])
    small_models.write_json('data/other.vi.json', [{'question': 'Why?', 'reply': 'So.'}])
    texts = [f'{a}{b}{c} ' for a in 'qxz' for b in 'jkw' for c in 'vfp']
    small_models.write_tokenizer('small', ['<s>', '</s>'], {'eos_token': '</s>'}, texts=texts)
    with open('broken.gin', 'w', encoding='utf-8') as f:
      f.write("include 'gin_configs/runs/crossin_full.gin'\nBATCH_SIZE = (4\n")
    with open('bad.jsonl', 'w', encoding='utf-8') as f:
      f.write('{"prompt": "a"}\n{"prompt": \n')
    assert cli.main(shlex.split(f'{PREPARE} --mixture {MIXTURE}')) == 0
    other = f'{PREPARE} --mixture {MIXTURE} --output_dir other VOCABULARY=small/tokenizer.json'
    assert cli.main(shlex.split(other)) == 0
  finally:
    os.chdir(before)
  return folder


# name: (words, exit status, the message)
MISTAKES: dict[str, tuple[str, int, str]] = {
  'a command that is misspelt': (
    'trian x.gin',
    2,
    "crossin: no command 'trian'; did you mean train?",
  ),
  'a gin file that is not there': (
    'train gin_configs/runs/crossin_fool.gin',
    2,
    "crossin train: gin file 'gin_configs/runs/crossin_fool.gin' does not exist (searched: "
    'current folder, REPOSITORY); the nearest are gin_configs/runs/crossin_full.gin, '
    'gin_configs/runs/crossin_lora.gin, gin_configs/runs/crossin_60m.gin',
  ),
  'a folder in place of a gin file': (
    'train data',
    2,
    "crossin train: error: 'data' is not understood; settings are given as FILE.gin or "
    'NAME=VALUE (see crossin train --help)',
  ),
  'a gin file with an open bracket': (
    'train broken.gin',
    2,
    "crossin train: an unclosed bracket or quotation mark in broken.gin (('EOF in "
    "multi-line statement', (3, 0)))",
  ),
  'a macro that is misspelt': (
    f'{TRAIN} BATCHSIZE=2',
    2,
    'crossin train: BATCHSIZE=2: nothing uses BATCHSIZE here; the nearest is BATCH_SIZE',
  ),
  'a parameter that is misspelt': (
    f'{TRAIN} schedule.paek=1e-3',
    2,
    'crossin train: schedule has no parameter paek; the nearest is peak',
  ),
  'a configurable that is misspelt': (
    f'{TRAIN} scedule.peak=1e-3',
    2,
    'crossin train: scedule is no configurable; the nearest is schedule',
  ),
  'a text where a number belongs': (
    f'{TRAIN} BATCH_SIZE=four',
    2,
    "crossin train: train.batch_size = 'four' is a str, it must be int",
  ),
  'a setting without a value': (
    f'{TRAIN} BATCH_SIZE',
    2,
    "crossin train: error: 'BATCH_SIZE' is not understood; settings are given as FILE.gin "
    'or NAME=VALUE (see crossin train --help)',
  ),
  'spaces around the equals sign': (
    f'{TRAIN} BATCH_SIZE = 8',
    2,
    "crossin train: error: 'BATCH_SIZE' is not understood; settings are given as FILE.gin "
    'or NAME=VALUE (see crossin train --help)',
  ),
  "forgotten quotes in gin's syntax": (
    f'{TRAIN} --gin.MODEL_DIR=runs/a',
    2,
    "crossin train: --gin.MODEL_DIR=runs/a is not in gin's syntax, where a text has quotes "
    'of its own; write MODEL_DIR=runs/a without --gin',
  ),
  'settings that are missing': (
    'train gin_configs/runs/world_tune.gin',
    2,
    'crossin train: MODEL_DIR is not set (checkpoints and metrics): give it, for example '
    'MODEL_DIR=runs/x2x\n'
    'DATA_DIR is not set (--output_dir of `crossin prepare`): give it, for example '
    'DATA_DIR=prepared_tuning\n'
    'MIXTURE_OR_TASK_NAME is not set (a prepared mixture): give it, for example '
    'MIXTURE_OR_TASK_NAME=world.tested_shared_base_x2x.all.en_zh_vi_es.every',
  ),
  'no gin file at all': (
    'train MODEL_DIR=run',
    2,
    'crossin train: MODEL_DIR=run: nothing uses MODEL_DIR here, where no gin file is '
    'given; the nearest is MODEL',
  ),
  'a flag of another tool': (
    f'{TRAIN} --learning_rate 1e-4',
    2,
    'crossin train: error: unrecognized arguments: --learning_rate 1e-4 (see crossin train --help)',
  ),
  'a model directory that is not there': (
    f'{TRAIN} HF_DIR=models/none',
    1,
    'crossin train: models/none: no such folder here; on the hub: model models/none is not '
    'in the cache CACHE, and huggingface.co cannot be asked: HF_HUB_OFFLINE is set.\n'
    'Fetch it where there is a network, `hf download models/none`, or give the path of a '
    'local copy',
  ),
  'a directory without a model': (
    f'{TRAIN} HF_DIR=data',
    1,
    'crossin train: data has no config.json; give a Hugging Face model directory, or '
    'ORG/NAME on the hub',
  ),
  'a hub name offline': (
    f'{TRAIN} HF_DIR=Qwen/Qwen3-0.6B',
    1,
    'crossin train: Qwen/Qwen3-0.6B: no such folder here; on the hub: model '
    'Qwen/Qwen3-0.6B is not in the cache CACHE, and huggingface.co cannot be asked: '
    'HF_HUB_OFFLINE is set.\n'
    'Fetch it where there is a network, `hf download Qwen/Qwen3-0.6B`, or give the path of '
    'a local copy',
  ),
  'a mixture that was not prepared': (
    f'{TRAIN} MIXTURE_OR_TASK_NAME=sums.base.all.en_vi.default',
    1,
    'crossin train: prepared/mixtures/sums.base.all.en_vi.default.json does not exist; run '
    '`crossin prepare FILE.gin --mixture sums.base.all.en_vi.default --output_dir prepared`',
  ),
  'a mixture name with a part too few': (
    f'{TRAIN} MIXTURE_OR_TASK_NAME=sums.base.en_vi.default',
    1,
    'crossin train: prepared/mixtures/sums.base.en_vi.default.json does not exist; run '
    '`crossin prepare FILE.gin --mixture sums.base.en_vi.default --output_dir prepared`',
  ),
  'another DATA_DIR': (
    f'{TRAIN} DATA_DIR=data',
    1,
    'crossin train: data/mixtures/sums.base_x2x.all.en_vi.default.json does not exist; run '
    '`crossin prepare FILE.gin --mixture sums.base_x2x.all.en_vi.default --output_dir data`',
  ),
  'rows longer than LENGTH': (
    f'{TRAIN} LENGTH=8',
    1,
    'crossin train: mixture sums.base_x2x.all.en_vi.default was prepared with max_length '
    '64 and has an example of 31 tokens, rows have 8; increase the row length or prepare '
    'with a smaller max_length',
  ),
  'a batch that does not divide': (
    f'{TRAIN} BATCH_SIZE=3 train.microbatches=2',
    1,
    "crossin train: batch_size = 3 does not divide into 4 parts of the mesh {'data': 1, "
    "'fsdp': 4, 'tensor': 1} times 2 microbatches; use a multiple of 8",
  ),
  'a mesh that does not fit': (
    f'{TRAIN} MESH_SHAPE=3,1,1',
    1,
    'crossin train: Partitioner.mesh_shape = (3, 1, 1) does not fit 4 cpu devices; the '
    'sizes of data, fsdp, tensor must multiply to that number',
  ),
  'steps and epochs together': (
    f'{TRAIN} train.epochs=1.0',
    1,
    'crossin train: set one of train.total_steps (TRAIN_STEPS, now 1) and train.epochs '
    '(now 1.0), and the other to None',
  ),
  'another template than there is': (
    f'{PREPARE} --mixture {MIXTURE} MixtureSettings.template=lama',
    1,
    "crossin prepare: template 'lama' is not one of alpaca, cl_boost, llama, gemma, "
    'xinstruction, xins, xrate, plain, chat',
  ),
  'a chat template that is not there': (
    f'{PREPARE} --mixture {MIXTURE} MixtureSettings.template=chat',
    1,
    'crossin prepare: no chat template beside model/tokenizer.json (chat_template.jinja, '
    'or tokenizer_config.json); set Vocabulary.chat_template, or choose another '
    'MixtureSettings.template',
  ),
  'rows that are not there': (
    f'{PREPARE} --mixture {MIXTURE} PARALLEL=data/none',
    1,
    "crossin prepare: data/none: no file for language 'en', looked for none_en and none.en "
    'with .json, .json.gz, .jsonl, .jsonl.gz, .parquet, found beside it: other.en.json, '
    "other.vi.json, sums.en.json, sums.vi.json, sums.zh.json; add the file, or remove 'en' "
    'from languages',
  ),
  'rows in a language that is not there': (
    f'{PREPARE} --mixture sums.base_x2x.all.en_es.default LANGUAGES=en,es',
    1,
    "crossin prepare: data/sums: no file for language 'es', looked for sums_es and sums.es "
    'with .json, .json.gz, .jsonl, .jsonl.gz, .parquet, found beside it: sums.en.json, '
    'sums.vi.json, sums.zh.json, other.en.json, other.vi.json; add the file, or remove '
    "'es' from languages",
  ),
  'a language of the name that the rows lack': (
    f'{PREPARE} --mixture sums.base_x2x.all.en_zh.default',
    1,
    'crossin prepare: source sums has no rows in zh; it has en, vi. Add the language to '
    'those of the source (LANGUAGES), or take it out of the name of the mixture',
  ),
  'an unknown language': (
    f'{PREPARE} --mixture sums.base_x2x.all.en_xx.default LANGUAGES=en,xx',
    1,
    "crossin prepare: ParallelFiles.languages = ('en', 'xx'): unknown language 'xx'. Add "
    "it with languages.added=\"{'CODE': {'name': 'English name'}}\"; known codes: af, "
    'am, ar, as, az, be, bg, bn, bo, bs, ca, ceb, cs, cy, da, de, el, en, es, et, eu, fa, '
    'fi, fil, fr, ga, gl, gn, gu, ha, he, hi, hr, ht, hu, hy, id, ig, is, it, ja, jv, ka, '
    'kk, km, kn, ko, ku, ky, lb, lg, ln, lo, lt, lv, mg, mi, mk, ml, mn, mr, ms, mt, my, '
    'ne, nl, no, ny, om, or, pa, pl, ps, pt, qu, ro, ru, rw, sa, sd, si, sk, sl, sn, so, '
    'sq, sr, st, su, sv, sw, ta, te, tg, th, ti, tk, tn, tr, tt, ug, uk, ur, uz, vi, wo, '
    'xh, yi, yo, yue, zh, zu',
  ),
  'English not first': (
    f'{PREPARE} --mixture sums.base_x2x.all.vi_en.default',
    1,
    "crossin prepare: mixture name 'sums.base_x2x.all.vi_en.default': languages must begin "
    'with en, each once',
  ),
  'another source name': (
    f'{PREPARE} --mixture alpaca.base_x2x.all.en_vi.default',
    1,
    "crossin prepare: mixture alpaca.base_x2x.all.en_vi.default is over source 'alpaca', "
    "MixtureSettings.parallel is 'sums'",
  ),
  'an unknown part of a mixture': (
    f'{PREPARE} --mixture sums.base_x2y.all.en_vi.default',
    1,
    "crossin prepare: mixture sums.base_x2y.all.en_vi.default: component 'x2y' is none of "
    'base, mono, en2x, x2en, x2x, x2en2x, trans; sources of text and of preference pairs '
    'are components too (MixtureSettings.texts and pairs; of X-Instruction: set ROWS, '
    'SEED_ROWS, TRANSLATED or DISTILLED)',
  ),
  'more rows than there are': (
    f'{PREPARE} --mixture sums.base_x2x.5000.en_vi.default',
    1,
    'crossin prepare: mixture sums.base_x2x.5000.en_vi.default: volume 5000 is more than '
    "the 38 examples that sums gives for x2x; use 'all' or a smaller volume",
  ),
  'fields of other names': (
    f'{PREPARE} --mixture other.base_x2x.all.en_vi.default PARALLEL=data/other parallel/ParallelFiles.name=other --output_dir prepared2',
    1,
    "crossin prepare: data/other.en.json, row 0 (counted from 0): field 'instruction' is "
    "missing, found 'question', 'reply'; add it, or rename another field",
  ),
  'a tokenizer that is not there': (
    f'{PREPARE} --mixture {MIXTURE} VOCABULARY=tokenizer.model',
    1,
    "crossin prepare: vocabulary 'tokenizer.model' is not a file; set Vocabulary.path to a "
    'SentencePiece .model, a tokenizer.json, or ORG/NAME on the Hugging Face hub',
  ),
  'tokens of another tokenizer': (
    f'{TRAIN} DATA_DIR=other',
    1,
    'crossin train: mixture sums.base_x2x.all.en_vi.default was prepared with another '
    'tokenizer (382 ids) than that of ./model (356 ids): 145 of 200 ids have the same text.\n'
    'Prepare it again with VOCABULARY=./model/tokenizer.json, or set '
    'train.check_tokenizer=False to replace the tokenizer on purpose',
  ),
  'stale prepared rows': (
    f'{PREPARE} --mixture {MIXTURE} MixtureSettings.validation_rows=3',
    1,
    'crossin prepare: prepared/tasks/sums.base.en.en.default is stale: validation_rows was '
    '200, now 3. Give --overwrite to write it again, or another --output_dir',
  ),
  'evaluate without a run': (
    'evaluate --checkpoint runs/none --output_dir out',
    1,
    'crossin evaluate: runs/none: no such folder here; on the hub: model runs/none is not '
    'in the cache CACHE, and huggingface.co cannot be asked: HF_HUB_OFFLINE is set.\n'
    'Fetch it where there is a network, `hf download runs/none`, or give the path of a '
    'local copy',
  ),
  'a benchmark without a path': (
    'evaluate --checkpoint model --benchmark cross_xquad --output_dir out',
    2,
    "crossin evaluate: --benchmark 'cross_xquad': write NAME=PATH, NAME one of cross_mmlu, "
    'cross_logiqa, cross_xquad, xcopa, xnli, xstorycloze, indocloze, belebele, pawsx, '
    'mgsm, xquad, global_mmlu, include, xcsqa, bmlama, klar, polymath, mlqa',
  ),
  'an unknown benchmark': (
    'evaluate --checkpoint model --benchmark cross_quad=x.json --output_dir out',
    2,
    "crossin evaluate: --benchmark 'cross_quad=x.json': write NAME=PATH, NAME one of "
    'cross_mmlu, cross_logiqa, cross_xquad, xcopa, xnli, xstorycloze, indocloze, belebele, '
    'pawsx, mgsm, xquad, global_mmlu, include, xcsqa, bmlama, klar, polymath, mlqa',
  ),
  'a benchmark file that is not there': (
    'evaluate --checkpoint model --benchmark cross_xquad=x.json --output_dir out',
    1,
    'crossin evaluate: x.json does not exist; give the downloaded folder or file of the benchmark',
  ),
  'a question file with a broken line': (
    'generate --checkpoint model --input bad.jsonl --output out.jsonl',
    1,
    'crossin generate: bad.jsonl, line 2: not valid JSON at column 13: Expecting value; '
    'fix the line, or copy the file again if it is cut off',
  ),
  'evaluate without its output': (
    'evaluate --checkpoint model',
    2,
    'crossin evaluate: error: the following arguments are required: --output_dir (see '
    'crossin evaluate --help)',
  ),
  'export into a folder that is in use': (
    'export-hf model --output_dir data',
    1,
    'crossin export-hf: data is not empty; give another --output_dir, or remove it',
  ),
  'compare what was not evaluated': (
    'compare data model',
    1,
    'crossin compare: data holds no predictions/*.jsonl; give an --output_dir of `crossin '
    'evaluate`, or two files',
  ),
  'run without a file': (
    'run',
    2,
    'crossin run: give the file of the job: crossin run mine.gin; `crossin new` writes one',
  ),
  'a port that is none': (
    'serve --checkpoint model --port http',
    2,
    "crossin serve: error: argument --port: invalid int value: 'http' (see crossin serve --help)",
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_has_one_message(folder, monkeypatch, capfd, name):
  monkeypatch.chdir(folder)
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  words, status, wanted = MISTAKES[name]
  try:
    found = cli.main(shlex.split(words))
  except SystemExit as usage:
    found = usage.code
  said = capfd.readouterr().err
  assert 'Traceback' not in said and found == status, said
  message = said[re.search(r'(?m)^crossin', said).start() :].rstrip('\n')
  assert len(message.splitlines()) <= 3, message
  message = message.replace(str(folder), '.').replace(str(REPOSITORY), 'REPOSITORY')
  assert re.sub(r'/\S*/huggingface/hub', 'CACHE', message) == wanted
