"""Encodes what is submitted as bytes that are equal for equal things, in every process.

They contain nothing of an address, a salted hash, a uuid or a counter. The first byte of a piece says what it is, and
each piece has a known length or an end mark, so different sequences of pieces have different bytes. These modules
import Qiskit; import them late.
"""
