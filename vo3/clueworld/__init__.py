"""ClueWorld: the embedded synthetic world, its questions, and the model trained on it."""
