"""What is submitted, as bytes that are the same in every process for the same thing.

Nothing in them comes from an address, a salted hash, a uuid or a counter. A piece says by its first byte what it is,
and has a known length or an end, so two sequences of pieces that differ never make the same bytes. These modules
import Qiskit; whoever wants to start fast imports them late.
"""
