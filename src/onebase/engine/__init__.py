"""The one forward pass, and the engine that generates with it."""
