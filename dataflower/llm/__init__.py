"""The LLM runner: continuous batching over paged key-value blocks, adapters, sampling, token streams."""
