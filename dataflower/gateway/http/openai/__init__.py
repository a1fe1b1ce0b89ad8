"""OpenAI's API: a workflow with a chat stage or an embedder is a model (docs/reference/http.md)."""
