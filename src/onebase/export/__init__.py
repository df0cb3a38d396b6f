"""Leaving with what is yours: an adapter in PEFT's format, merged into its base, or as GGUF."""
