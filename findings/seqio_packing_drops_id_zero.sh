#!/usr/bin/env bash
# SeqIO 0.0.20: the decoder feature converter with packing takes every token of id 0 for padding.
# Vocabularies in which 0 is a real token (many tokenizer.json files) lose it without a message.
# Expected: targets 5 0 7 and 8 0 keep their five tokens and have five positions in all.
# Seen: the packed row has 3 tokens of 5, and loss weights of 0 at the places of id 0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet 'seqio==0.0.20' 'tensorflow-cpu==2.21.0' 'tensorflow-text==2.20.1' 'jax==0.10.2' 2>&1 | grep -v WARNING || true
TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'P'
import numpy as np, seqio, tensorflow as tf
data = tf.data.Dataset.from_generator(
  lambda: iter([{'targets': [5, 0, 7]}, {'targets': [8, 0]}]),
  output_signature={'targets': tf.TensorSpec([None], tf.int32)},
)
converter = seqio.DecoderFeatureConverter(pack=True)
batch = next(converter(data, {'targets': 8}).as_numpy_iterator())
for name, value in sorted(batch.items()):
  print(name, value.tolist())
assert batch['decoder_loss_weights'].sum() == 3, 'SeqIO counts tokens of id 0 now'
P
echo 'as described'
