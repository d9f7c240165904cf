"""Streaming checkpoints through methods: reading ahead, computing, writing behind. No arithmetic here."""
