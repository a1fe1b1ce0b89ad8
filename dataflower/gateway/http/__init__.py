"""The front door over HTTP: our own API, the Open Inference Protocol, OpenAI's API, health, metrics, a description."""
