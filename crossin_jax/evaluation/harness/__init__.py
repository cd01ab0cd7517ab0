"""lm-evaluation-harness on this project's scorer and decoder (`crossin harness`)."""
