"""Files: safetensors headers, checkpoint folders, output layouts, the EMR artefact. Bytes only, no arithmetic."""
