"""crossin_jax: teach English-centred language models to know and to answer in other languages.

Importing this package, or any module of it, loads neither TensorFlow, SeqIO, torch nor
transformers; `seqio_tasks` beside it is the only package that does.
"""

__version__ = '0.1.0'
