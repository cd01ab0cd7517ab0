"""X-Instruction: an instruction set from raw text, and a model tuned on it."""
