"""The folder that `qx-supervisor exec` puts in front of `PYTHONPATH`.

Python imports `sitecustomize` whenever it starts, so every Python process of the tree imports the one in this folder.
The code here runs in any Python of any environment, and imports `qx_supervisor` only when the program imports
`qiskit_ibm_runtime`.
"""
