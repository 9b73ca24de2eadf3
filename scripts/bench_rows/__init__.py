"""What `scripts/bench` measures: a module for each kind of measure, the programs that are measured in `programs`."""
