"""Preference tuning across languages, behind each arm of finished quickstarts.

    python benchmarks/evidence/consistency.py --quickstarts runs/world.0,runs/world.1 \\
      --output_dir runs/consistency

Every start (an arm of the quickstart) is followed by more steps of its own mixture (`more`), by
DPO on pivot pairs, by direct consistency (`DCO`), and by both. Prompts are the questions about half
of the test's territories, in a phrasing that the test does not use and without right answers; the
other half of the test is about territories that no prompt names. Results: OUT/consistency.json and
.md. A second start does what is missing.
"""

import argparse
import dataclasses
import functools
import itertools
import os
import sys

import compare
import numpy as np
import scipy.stats

from crossin_jax.evaluation.answers.predictions import read_predictions
from crossin_jax.evaluation.measures import bootstrap, consistency
from crossin_jax.quickstart.quickstart import ARMS, REPLAY
from crossin_jax.storage.files import read_json, write_bytes, write_json, write_jsonl, write_text
from crossin_jax.workflow.jobs import Jobs
from crossin_jax.workflow.steps import Task, run_missing
from crossin_jax.world.world import World

HERE = 'benchmarks/evidence'
STAGES = ('more', 'DPO', 'DCO', 'both')
HALVES = ('all', 'asked', 'not asked')
POOLED = {'Mono', 'x2x', 'Mono + x2x'}  # the starts that answer in other languages
POINTS = ('English', 'elsewhere', 'C_3', 'AC3_3', 'all right')
OPTIONS = 10  # of a prompt, the most that answers are compared with
DCO_DRAWS = 3  # instances of each prompt


class Worlds:
  """The quickstarts, and what is made behind them."""

  def __init__(self, quickstarts, output_dir, starts, stages, steps, more_steps, bindings):
    self.quickstarts, self.out = quickstarts, output_dir
    self.starts, self.stages = starts, stages
    self.steps, self.more_steps, self.bindings = steps, more_steps, bindings
    cores = len(os.sched_getaffinity(0))
    self.commands = Jobs(output_dir, cores, {'JAX_PLATFORMS': 'cpu'})

  def run(self) -> None:
    """Runs what is missing."""
    tasks = []
    for source in self.quickstarts:
      prompts, options = self.folder(source, 'prompts'), self.folder(source, 'options')
      make = functools.partial(self.prompts, source)
      tasks.append(Task(prompts, make, exists(prompts, 'prompts.jsonl')))
      make = functools.partial(self.options, source)
      tasks.append(Task(options, make, exists(options, 'round_1', 'pairs.jsonl'), (prompts,)))
      for start, stage in itertools.product(self.starts, self.stages):
        folder = self.folder(source, start, stage)
        needs = (options, self.folder(source, start, 'DPO')) if stage == 'both' else (options,)
        make = functools.partial(self.stage, source, start, stage)
        tasks.append(Task(folder, make, exists(folder, 'evaluation', 'results.json'), needs))
    run_missing(tasks, self.commands.jobs)

  def folder(self, source: str, *parts: str) -> str:
    return os.path.join(self.out, os.path.basename(source), *(p.replace(' ', '') for p in parts))

  def command(self, folder: str, step: str, words, values=None, bindings=()) -> None:
    name = os.path.relpath(folder, self.out).replace(os.sep, '.')
    self.commands.run(f'{name}.{step}', words, values, bindings)

  # ---- prompts ----

  def prompts(self, source: str) -> None:
    """Questions about half of the test's territories, with values as options."""
    world = world_of(source)
    asked = set(asked_territories(world))
    names = lambda fact, language: [
      world.name(fact.kind, key, language) for key in world.values[fact.kind][:OPTIONS]
    ]
    rows = [
      {
        'id': fact.id,
        'language': language,
        'instruction': world.questions_about(fact, language)[1],
        'choices': names(fact, language),
      }
      for fact in world.facts
      if fact.entity in asked
      for language in world.languages
    ]
    write_jsonl(os.path.join(self.folder(source, 'prompts'), 'prompts.jsonl'), rows)

  def pairs(self, source: str, folder: str, *flags: str) -> None:
    self.command(folder, 'pairs', [
        'pairs', f'--prompts={self.folder(source, "prompts")}/prompts.jsonl',
        f'--languages={",".join(world_of(source).languages)}', f'--output_dir={folder}', *flags,
    ])  # fmt: skip

  def options(self, source: str) -> None:
    self.pairs(source, self.folder(source, 'options'), '--by=options', f'--draws={DCO_DRAWS}')

  # ---- tuning ----

  def stage(self, source: str, start: str, stage: str) -> None:
    """One stage behind one start: its data, its training, its evaluation."""
    folder, model = self.folder(source, start, stage), start_of(source, start)
    if stage == 'more':
      self.train(folder, model, {
          'DATA_DIR': f'{source}/data/tuning_{slug(start)}',
          'MIXTURE_OR_TASK_NAME': mixture_of(source, start), 'TRAIN_STEPS': self.more_steps,
      }, 'gin_configs/runs/world_tune.gin')  # fmt: skip
    else:
      if stage == 'both':
        model = self.folder(source, start, 'DPO')
      if stage == 'DPO':
        pairs = os.path.join(folder, 'pairs')
        self.pairs(source, pairs, '--by=pivot', f'--checkpoint={model}', '--chunk=256',
                   '--gin.Sampling.max_new_tokens=16')  # fmt: skip
      else:
        pairs = self.folder(source, 'options')
      mixture = f'tuned.pairs.all.{"_".join(world_of(source).languages)}.default'
      self.command(folder, 'prepare', [
          'prepare', '--gin_file=gin_configs/mixtures/pairs.gin', f'--mixture={mixture}',
          f'--output_dir={folder}/data', f'--reference={model}',
      ], {
          'PAIRS': f'{pairs}/round_1/pairs.jsonl', 'VOCABULARY': f'{source}/world/world.model',
          'MixtureSettings.template': 'plain', 'MixtureSettings.max_length': 64,
      })  # fmt: skip
      objective = '@Preference()' if stage == 'DPO' else '@DirectConsistency()'
      bindings = [f'--gin_bindings=OBJECTIVE = {objective}', *self.bindings]
      self.train(folder, model, {
          'DATA_DIR': f'{folder}/data', 'MIXTURE_OR_TASK_NAME': mixture, 'TRAIN_STEPS': self.steps,
      }, f'{HERE}/consistency.gin', bindings)  # fmt: skip
    world = f'{source}/world'
    self.command(folder, 'evaluate', [
        'evaluate', f'--checkpoint={folder}', f'--questions={world}/questions.untagged.jsonl',
        f'--output_dir={folder}/evaluation', f'--variant={start} {stage}',
    ])  # fmt: skip

  def train(self, folder, model, values, gin, bindings=()) -> None:
    values = {'MODEL_DIR': folder, 'INITIAL_CHECKPOINT_PATH': model, **values}
    self.command(folder, 'train', ['train', f'--gin_file={gin}'], values, bindings)

  # ---- figures ----

  def arms(self, method: str, half: str) -> dict[str, dict]:
    """Arm -> world -> its predictions about a half of the test."""
    found: dict[str, dict] = {}
    for source in self.quickstarts:
      kept = half_of(world_of(source), half)
      folders = {start: start_of(source, start) for start in self.starts}
      folders |= {
        f'{start}, {stage}': self.folder(source, start, stage)
        for start, stage in itertools.product(self.starts, self.stages)
      }
      for arm, folder in folders.items():
        path = f'{folder}/evaluation/predictions/questions.untagged.{method}.jsonl'
        run = compare.about(read_predictions(path), kept.__contains__)
        found.setdefault(arm, {})[source, 0] = run
    return found

  def write(self) -> None:
    """All figures: likelihood and free answers, of all questions and of both halves."""
    path, texts, figures = os.path.join(self.out, 'consistency.json'), [], {}
    for method, half in itertools.product(('likelihood', 'generate'), HALVES):
      arms = self.arms(method, half)
      against = [arm for arm in arms if arm.endswith(', more')]
      table, gaps = compare.figures(arms), compare.differences(arms, against)
      for arm, by_world in arms.items():
        table[arm] |= agreement(by_world)
      same_start = {
        name: gap for name, gap in gaps.items()
        if name.split(' - ')[0].split(', ')[0] == name.split(' - ')[1].split(', ')[0]
        or name.endswith(' - Mono, more')
      }  # fmt: skip
      figures[f'{method}, {half}'] = {'arms': table, 'differences': same_start}
      if (method, half) == ('likelihood', 'all'):
        write_bytes(f'{os.path.splitext(path)[0]}.png', compare.plot(table))
      texts.append(f'## {method}, {half}\n\n{compare.markdown(table, same_start)}')
      if POOLED <= set(self.starts):
        figures[f'{method}, {half}']['pooled'] = pooled = self.pooled(arms)
        texts.append(pooled_markdown(pooled))
    write_json(path, figures)
    write_text(f'{os.path.splitext(path)[0]}.md', '\n'.join(texts))

  def pooled(self, arms: dict[str, dict]) -> dict[str, dict]:
    """Stage -> figure -> its mean difference to `more` over the starts POOLED, by a paired t over
    the worlds.
    """
    found: dict[str, dict] = {}
    for stage in self.stages:
      if stage == 'more':
        continue
      of = lambda stage: [
        np.mean([point_figures(arms[f'{start}, {stage}'][key]) for start in sorted(POOLED)], axis=0)
        for key in arms[f'Mono, {stage}']
      ]
      gaps = np.array(of(stage)) - np.array(of('more'))
      half = scipy.stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(0, ddof=1) / len(gaps) ** 0.5
      found[stage] = {
        name: {'estimate': float(m), 'low': float(m - h), 'high': float(m + h)}
        for name, m, h in zip(POINTS, gaps.mean(0), half)
      }
    return found


def point_figures(run) -> list[float]:
  """POINTS of one run."""
  choices, answers, languages = run.extract('strict'), run.answers, run.languages
  right = consistency.correctness(choices, answers)
  home = languages.index('en')
  alike = consistency.consistency(choices, 3)
  return [
    float(right[:, home].mean()), float(np.delete(right, home, axis=1).mean()), alike,
    consistency.ac3(float(right.mean()), alike), float(right.all(axis=1).mean()),
  ]  # fmt: skip


def pooled_markdown(pooled: dict[str, dict]) -> str:
  """A row for each stage."""
  lines = [
    f'| stage - more, mean of the starts | {" | ".join(POINTS)} |',
    '|---|' + '---|' * len(POINTS),
  ]
  lines += [
    f'| {stage} | {" | ".join(compare.told(one, sign=True) for one in row.values())} |'
    for stage, row in pooled.items()
  ]
  return '\n'.join(lines) + '\n'


def agreement(by_world: dict) -> dict:
  """Shares of the questions that are right in all languages, and wrong alike in all of them."""
  choices, answers, _ = compare.parts_of(by_world)
  right = [consistency.correctness(c, a).all(axis=1) for c, a in zip(choices, answers)]
  alike = [(c == c[:, :1]).all(axis=1) & (c[:, 0] >= 0) & ~r for c, r in zip(choices, right)]
  share = lambda flags: dataclasses.asdict(
    # Option 0 stands for yes: intervals over questions of each world's own.
    bootstrap.interval([1 - one[:, None] for one in flags], [0 * one for one in flags])
  )
  as_int = lambda flags: [one.astype(int) for one in flags]
  return {'all right': share(as_int(right)), 'wrong alike': share(as_int(alike))}


def exists(*parts: str):
  """Whether the file exists, as a function."""
  return lambda: os.path.exists(os.path.join(*parts))


def world_of(source: str) -> World:
  """The world of a quickstart."""
  made = read_json(f'{source}/world/world.json', 'run the quickstart first')
  return World(**made)


def asked_territories(world: World) -> tuple[str, ...]:
  return world.entities['test'][::2]


def half_of(world: World, half: str) -> set[str]:
  """Ids of the test questions about territories that the prompts name, or do not."""
  asked = set(asked_territories(world))
  return {
    question.id for question in world.questions
    if half == 'all' or (question.fact.entity in asked) == (half == 'asked')
  }  # fmt: skip


def slug(arm: str) -> str:
  return arm.lower().replace(' + ', '_')


def start_of(source: str, arm: str) -> str:
  return f'{source}/models/{slug(arm)}.0'


def mixture_of(source: str, arm: str) -> str:
  parts = '_'.join([*REPLAY, *ARMS[arm]])
  return f'world.{parts}.all.{"_".join(world_of(source).languages)}.every'


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--quickstarts', required=True, help='their folders, separated by commas')
  parser.add_argument('--output_dir', default='runs/consistency')
  parser.add_argument('--starts', default='Base,Mono,x2x,Mono + x2x', help='arms of them')
  parser.add_argument('--stages', default=','.join(STAGES), help='of: %(default)s')
  parser.add_argument('--steps', type=int, default=100, help='of preference tuning')
  parser.add_argument(
    '--more_steps', type=int, default=240, help='of `more`: the arithmetic of `both`'
  )
  args, bindings = parser.parse_known_args(argv)
  worlds = Worlds(args.quickstarts.split(','), args.output_dir, args.starts.split(','),
                  args.stages.split(','), args.steps, args.more_steps, bindings)  # fmt: skip
  with worlds.commands.stopping_on_signals():
    worlds.run()
  worlds.write()
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
