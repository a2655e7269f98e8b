"""Composition root: the event loop that alone holds state, and the edges that feed it."""
