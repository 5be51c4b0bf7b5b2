"""Everything that runs a model: a child process, and the parent's end of the line to it."""
