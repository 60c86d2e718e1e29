"""Which model fits on which GPU, and how many conversations at once: `python -m tools.sizing`.

figures.py holds what models, quantisations and GPUs are; memory.py the arithmetic, which is vLLM's; deployed.py reads
the arguments of our own Deployments; machines.py tells whether a node holds their pods; published.py holds the
arithmetic against lines that vLLM printed elsewhere; tables.py writes it all down for docs/sizing.md. Everything is
computed: no figure was measured on a GPU of ours.
"""
