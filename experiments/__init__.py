"""One short script an experiment: settings -> run -> files."""
