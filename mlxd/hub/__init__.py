"""The process that fetches a model from a hub; the only place that knows huggingface_hub."""
