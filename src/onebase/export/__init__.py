"""Exporting tasks: to PEFT's format, merged into the base, or as GGUF."""
