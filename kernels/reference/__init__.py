"""Plain PyTorch: the definition of every op, and the oracle of every test. Not written for speed."""
