"""`python -m extproc.sim --model NAME --port PORT`."""

import argparse
import sys

from extproc.sim import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m extproc.sim", description="A vLLM server without the model.")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
