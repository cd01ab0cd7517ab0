"""Names of modules in gin files and MODEL_DIR/config.gin of before December 2026, and theirs today.

Each line of the table is `folder: old ...`, with `old=new` where the file's name changed too. All
names are below crossin_jax, except those that begin with seqio_tasks; `-` is its root.
"""

import functools
import re

_TABLE = """
-: evaluation.language_id
checkpoints: checkpoints=manager data.saved_prompts digests models.conversion run_directory
data: seqio_tasks.readers seqio_tasks.source_errors
devices: devices=chips flops meshes partitioning
endpoint: endpoint=client endpoint_flags=flags ledger pace reply_cache=replies transport
evaluation.answers: evaluation.extraction evaluation.open_answers evaluation.predictions
evaluation.benchmarks: evaluation.benchmark_files=files evaluation.benchmarks=declarations
    evaluation.cross_xquad
evaluation.comparison: evaluation.compare evaluation.compare_page=page evaluation.pairs
evaluation.contamination: evaluation.contamination evaluation.text_fields evaluation.word_windows
evaluation.judging: evaluation.judge evaluation.judge_page=page evaluation.verdicts
evaluation.measures: evaluation.bootstrap evaluation.consistency evaluation.tables
evaluation.responses: evaluation.responses=measure
mixing_laws: mixing_forms=forms mixing_law=law mixing_proposal=proposal sweep_fit=fit
    sweep_fit_page=page sweep_fit_points=points sweep_fit_words=words
models.attention: models.attention models.attention_blockwise=blockwise
    models.attention_cudnn=cudnn models.attention_mask=mask models.attention_shards=shards
    models.attention_splash=splash models.attention_xla=xla
models.huggingface: models.architectures=families models.huggingface=weights models.peft
pages: evaluation.pages=page evaluation.plots
plan: plan=command plan_collectives=collectives plan_figures=costs plan_report=report
    plan_search=search plan_step=step plan_topology=topology
processes: distributed interruption roll_call
quickstart: quickstart
storage: evaluation.records mirror object_store=gcs remote seqio_tasks.json_rows
sweep: sweep=command sweep_points=points sweep_table=table
training: chunked_loss compiled losses metrics nonfinite optimizers train_state=state
translation: translate translate_masks=masks
workflow: jobs launchers xinstruction.forwarding xinstruction.handed_on=forwarding
    xinstruction.steps
world: seqio_tasks.world seqio_tasks.world_documents=documents seqio_tasks.world_sources=sources
xinstruction.baselines: xinstruction.distill
xinstruction.diversity: xinstruction.diversification xinstruction.embeddings
xinstruction.filtering: xinstruction.characters xinstruction.documents xinstruction.duplicates
    xinstruction.filtering=step xinstruction.filters xinstruction.parts
xinstruction.quickstart: xinstruction.quickstart xinstruction.quickstart_page=page
    xinstruction.quickstart_results=results
xinstruction.statistics: xinstruction.statistics xinstruction.statistics_page=page
    xinstruction.verbs
xinstruction.steps: xinstruction.candidates xinstruction.export xinstruction.rounds
    xinstruction.seed
"""
_IMPORT = re.compile(r'^(\s*import\s+)([\w.]+)', re.MULTILINE)


@functools.cache
def modules() -> dict[str, str]:
  """Old name -> name today."""
  names = {}
  for folder, olds in re.findall(r'^(\S+): (.*(?:\n    .*)*)', _TABLE, re.MULTILINE):
    for entry in olds.split():
      old, _, new = entry.partition('=')
      full = old if old.startswith('seqio_tasks.') else f'crossin_jax.{old}'
      names[full] = f'crossin_jax.{folder}.{new or old.split(".")[-1]}'.replace('.-.', '.')
  return names


def renamed(text: str) -> str:
  """A gin text with the module names of today in its imports.

  renamed('import crossin_jax.optimizers') == 'import crossin_jax.training.optimizers'
  """
  return _IMPORT.sub(lambda match: match[1] + modules().get(match[2], match[2]), text)
