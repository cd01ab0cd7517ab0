"""From prepared token files to batches: vocabulary, prompts, mixing, packing, loading. No
TensorFlow.
"""
