"""Settings common to all tests."""

from hypothesis import settings

# Shared machines are slow at times; a failure must come again when the test is run again.
settings.register_profile("fastmerge", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastmerge")
