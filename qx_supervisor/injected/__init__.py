"""The folder that `qx-supervisor exec` puts in front of `PYTHONPATH`.

Python imports a `sitecustomize` at every start: this folder's, in every Python process of the tree. What is here runs
in any Python of any environment, and does not import `qx_supervisor` before the program imports `qiskit_ibm_runtime`.
"""
