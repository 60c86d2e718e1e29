"""A real vLLM server on the CPU, with a tiny random model: what the simulator is held against.

environment makes what it needs once, in the cache; tiny makes the model; server runs it; `python -m tools.vllm` does
all and runs tests against it.
"""
