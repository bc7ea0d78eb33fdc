"""An echo node, made of a library that nobody here wrote. Prints its port, ends with its standard input."""

import asyncio
import sys

import websockets


async def echo(websocket, *_):
    async for message in websocket:
        await websocket.send(message)


async def main():
    server = await websockets.serve(
        echo, "127.0.0.1", 0, ping_interval=None, max_size=32 << 20, compression=None, close_timeout=5
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
