"""What tests, drill and bench share: drivers to kill, what they are forked from, and the places where they run."""
