"""The frozen base model: downloading, converting, loading and quantizing."""
