"""The pictures of the documentation: a module for each kind, whose `draw` writes them to a folder."""
