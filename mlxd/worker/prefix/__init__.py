"""Beginnings of prompts that were read, kept for later ones: the index, the store, its contents."""
