"""A vLLM 0.32 OpenAI server without the model: the same routes, shapes, errors, metrics and timing, made-up text.

For the local stack, for tests and for benches, where no GPU can be. `x-sim-*` request headers script faults
(faults.py), GET /sim/requests shows what arrived, POST /sim/down {"seconds": s} resets all and comes back.

The rooms, in the order of a request: http (one connection), service (which path does what), bodies (JSON to values),
asks (values to one `Ask`), choices and text (what is said), engine (who runs when), exchange and outlet (what is due
goes out), chat, completions, responses, embeddings on answers (the bytes), metrics.
"""

import argparse
import asyncio
import signal

import uvloop

from extproc.sim.engine import Timing
from extproc.sim.http import Connection
from extproc.sim.service import Service, Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the simulator's arguments, named as `vllm serve` names them where it has them."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one and prints it")
    parser.add_argument("--model", required=True, help="name on Hugging Face")
    parser.add_argument("--served-model-name", nargs="+", metavar="NAME", help="default: the model's name")
    parser.add_argument("--max-model-len", type=int, default=4096, metavar="TOKENS")
    parser.add_argument("--max-num-seqs", type=int, default=256, metavar="N", help="sequences that run at a time")
    parser.add_argument(
        "--max-num-queued-reqs", type=int, default=0, metavar="N", help="503 beyond; waiting + running; 0 = no limit"
    )
    parser.add_argument(
        "--num-gpu-blocks-override", type=int, default=8192, metavar="N", help="prefix cache, 16 tokens each"
    )
    parser.add_argument("--runner", choices=("generate", "pooling"), default="generate")
    parser.add_argument("--prefill-us-per-token", type=float, default=0.0, metavar="US", help="simulated")
    parser.add_argument("--decode-ms-per-token", type=float, default=0.0, metavar="MS", help="simulated")
    parser.add_argument("--enable-prompt-tokens-details", action="store_true")
    parser.add_argument("--tool-call-parser", default="hermes", metavar="NAME", help='"" refuses tools, as without it')
    parser.add_argument("--enable-auto-tool-choice", action="store_true", help="accepted; --tool-call-parser decides")
    parser.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--typical-completion-tokens",
        type=int,
        default=128,
        metavar="N",
        help="answers without max_tokens: half to 1.5 times",
    )
    parser.add_argument("--seed", type=int, default=0)


def settings(args: argparse.Namespace) -> Settings:
    return Settings(
        model=args.model,
        served=tuple(args.served_model_name or [args.model]),
        max_model_len=args.max_model_len,
        pooling=args.runner == "pooling",
        prompt_tokens_details=args.enable_prompt_tokens_details,
        tools=bool(args.tool_call_parser),
        typical_completion_tokens=args.typical_completion_tokens,
        seed=args.seed,
        timing=Timing(
            prefill_s_per_token=args.prefill_us_per_token / 1e6,
            decode_s=args.decode_ms_per_token / 1e3,
            max_num_seqs=args.max_num_seqs,
            max_num_queued_reqs=args.max_num_queued_reqs,
            num_gpu_blocks=args.num_gpu_blocks_override,
            prefix_caching=args.enable_prefix_caching,
        ),
    )


class Server:
    """The listener around a service. Can be closed for a while and come back on the same port."""

    def __init__(self, of: Settings) -> None:
        self.service = Service(of)
        self.service.take_down = self._take_down
        self._listener: asyncio.AbstractServer | None = None
        self._host = ""
        self._stopped = False
        self._tasks: set[asyncio.Task[int]] = set()
        self.port = 0

    async def listen(self, host: str, port: int) -> int:
        """Listen; return the port."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self.service), host, port, backlog=4096)
        self._host = host
        self.port = self._listener.sockets[0].getsockname()[1]
        return self.port

    async def stop(self) -> None:
        """Accept nothing more, finish what runs."""
        self._stopped = True
        if self._listener is not None:
            self._listener.close()
        await self.service.drained()

    def _take_down(self, seconds: float) -> None:
        if self._listener is not None:
            self._listener.close()
        asyncio.get_running_loop().call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        if not self._stopped:
            task = asyncio.get_running_loop().create_task(self.listen(self._host, self.port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _serve(args: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    server = Server(settings(args))
    port = await server.listen(args.host, args.port)
    names = ", ".join(args.served_model_name or [args.model])
    print(f"simulated vLLM: {names} on http://{args.host}:{port}", flush=True)  # noqa: T201  the one line it says
    await asked_to_stop.wait()
    await server.stop()
    return 0


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, finish what runs, return 0."""
    return uvloop.run(_serve(args))
