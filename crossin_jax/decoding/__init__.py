"""Running a trained model: log-likelihood of given text, and generation with a cache."""
