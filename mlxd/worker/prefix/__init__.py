"""What was read before: beginnings of prompts, in memory and on disk."""
