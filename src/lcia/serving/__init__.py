"""An OpenAI-compatible server that routes each request to what the assistant learned."""
