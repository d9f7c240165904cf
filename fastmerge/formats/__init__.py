"""Files: safetensors headers, checkpoints, adapters, the Hub, output layouts, folders of tasks. Bytes only."""
