"""The names of the benchmarks; `declarations` has what each of them is."""

BENCHMARKS = (
  'cross_mmlu',
  'cross_logiqa',
  'cross_xquad',
  'xcopa',
  'xnli',
  'xstorycloze',
  'indocloze',
  'belebele',
  'pawsx',
  'mgsm',
  'xquad',
  'global_mmlu',
  'include',
  'xcsqa',
  'bmlama',
  'klar',
  'polymath',
  'mlqa',
)
