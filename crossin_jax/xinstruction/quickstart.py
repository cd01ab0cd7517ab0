"""`crossin xinstruction quickstart`: X-Instruction on the embedded world, where the right instruction of a text is known.

    world, vocabulary ── read (a base model that has read every language and answers in English) ── the pipeline, its candidates
    half spoiled ── the same model on a random set of the same size ── questions in English and in the output language ── page

A second start does only what is missing.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import json
import os
import sys
import time

from crossin_jax import config
from crossin_jax.data.prepared import read_json, write_json
from crossin_jax.jobs import Stopped
from crossin_jax.languages import code_of
from crossin_jax.metrics import duration
from crossin_jax.xinstruction import candidates
from crossin_jax.xinstruction import rows as rows_lib
from crossin_jax.xinstruction.pipeline import RESTART, Pipeline
from crossin_jax.xinstruction.settings import XInstruction

WIDTH = 192


class WorldPipeline(Pipeline):
  """The pipeline on texts of the world; of its candidates, half are spoiled."""

  def __init__(self, output_dir: str, settings: XInstruction, documents):
    """Args: see `Pipeline`; documents: `WorldDocuments`."""
    super().__init__(output_dir, settings)
    self._documents = documents
    steps = self.steps.steps
    steps['pairs'] = dataclasses.replace(steps['pairs'], run=self._spoiled_pairs)

  def _spoiled_pairs(self, folder: str) -> Mapping:
    counts, spoiled = dict(candidates.pair(self.run, folder)), 0
    for language in self.settings.languages:
      paths = rows_lib.chunks(folder, language)
      rows = self._documents.spoiled(list(rows_lib.read(paths)), language)
      by_id = {row['id']: row for row in rows}
      for path in paths:
        rows_lib.write(path, [by_id[row['id']] for row in rows_lib.read(path)])
      spoiled += sum(row['flaw'] is not None for row in rows)
    return counts | {'spoiled': spoiled}
