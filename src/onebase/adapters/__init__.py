"""Adapters: the training methods, PEFT's file format, and the versioned store."""
