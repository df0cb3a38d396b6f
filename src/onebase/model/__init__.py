"""The frozen base model: finding, converting, loading."""
