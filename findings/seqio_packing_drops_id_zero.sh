#!/usr/bin/env bash
# SeqIO 0.0.20: packing in the decoder feature converter takes a token of id 0 for the end of an
# example. What stands behind it is overwritten by the next example, without a message. In many
# tokenizer.json vocabularies 0 is a real token.
# Expected: targets 5 0 7 and 8 0 in one row of eight, 5 0 7 8 0.
# Seen: 5 0 8 0 0 0 0 0: the 7 is gone, and no 0 has a loss weight.
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
assert batch['decoder_target_tokens'].tolist() == [5, 0, 8, 0, 0, 0, 0, 0]
assert batch['decoder_loss_weights'].tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
P
echo 'as described'
