"""The drill's rows: each a fault, what is expected of it, and how it is tried."""
