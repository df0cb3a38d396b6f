"""The HTTP server: one process serves every task, with an OpenAI-compatible API."""
