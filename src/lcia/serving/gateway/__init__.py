"""The router in front of vLLM servers."""
