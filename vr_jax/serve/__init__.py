"""Serves a trained policy over HTTP, as OpenAI's chat completions (docs/serving.md)."""
