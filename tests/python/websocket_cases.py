"""What an echo server does in the cases of the Autobahn test suite: a line per case, to be compared with
the lines of the same server seen through something else.

Usage: websocket_cases.py PORT [CA_FILE]

Frames are put together by hand, since no library would send most of them. Numbers are Autobahn's.
"""

import socket
import ssl
import struct
import sys
import threading

PORT = int(sys.argv[1])
CA_FILE = sys.argv[2] if len(sys.argv) > 2 else None
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
# What the server has sent before this comes back is not lost by what is sent after it.
MARK, MARK_SHOWN = b"~", "8107e"
MASK = b"\x11\x22\x33\x44"


def frame(opcode, payload=b"", fin=True, reserved=0, masked=True):
    length = len(payload)
    first, bit = (0x80 if fin else 0) | reserved << 4 | opcode, 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first, bit | length)
    elif length < 65536:
        head = struct.pack("!BBH", first, bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, bit | 127, length)
    if not masked:
        return head + payload
    whole = (MASK * (length // 4 + 1))[:length]
    number = int.from_bytes(payload, "big") ^ int.from_bytes(whole, "big")
    return head + MASK + number.to_bytes(length, "big")


def close(code=1000, reason=b""):
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Connection:
    def __init__(self, extensions=""):
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if CA_FILE:
            context = ssl.create_default_context(cafile=CA_FILE)
            self.socket = context.wrap_socket(self.socket, server_hostname="lb.test")
        self.socket.sendall(
            b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            + extensions.encode()
            + b"\r\n"
        )
        self.received = b""
        while b"\r\n\r\n" not in self.received:
            data = self.socket.recv(65536)
            assert data, self.received
            self.received += data
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        accept = [it for it in head.split(b"\r\n") if it.lower().startswith(b"sec-websocket-accept:")]
        assert accept[0].split(b": ")[1] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", head

    def take(self, count):
        while len(self.received) < count:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError
            self.received += data
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def frame(self):
        """The next frame, as it is shown; `end` for the end."""
        try:
            first, second = self.take(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", self.take(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self.take(8))
            payload = self.take(length)
        except (EOFError, OSError):
            return "end"
        if first & 15 == CLOSE:
            payload = payload[:2]
        shown = payload.hex() if length < 64 else f"{length}:{hash_of(payload):x}"
        return f"{first:02x}{second >> 7}{shown}"

    def frames(self, last):
        """All frames up to this one, or the end."""
        out = []
        while not out or out[-1] not in (last, "end"):
            out.append(self.frame())
        return out


def hash_of(data):
    return int.from_bytes(data[:16] + data[-16:], "big") ^ len(data) ^ sum(data)


def cases():
    end = close()
    for minor, kind in ((1, TEXT), (2, BINARY)):
        for at, size in enumerate((0, 125, 126, 127, 128, 65535, 65536), 1):
            yield f"1.{minor}.{at}", frame(kind, b"*" * size) + end, None
        yield f"1.{minor}.8", frame(kind, b"*" * 65536) + end, 997
    yield "2.1", frame(PING) + end, None
    yield "2.2", frame(PING, b"hello") + end, None
    yield "2.3", frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff") + end, None
    yield "2.4", frame(PING, b"\xfe" * 125) + end, None
    yield "2.5", frame(PING, b"\xfe" * 126) + end, None
    yield "2.6", frame(PING, b"\xfe" * 125) + end, 1
    yield "2.7", frame(PONG) + end, None
    yield "2.8", frame(PONG, b"unasked") + end, None
    yield "2.9", frame(PONG, b"unasked") + frame(PING, b"p") + end, None
    yield "2.10", b"".join(frame(PING, b"%d" % it) for it in range(10)) + end, None
    yield "2.11", b"".join(frame(PING, b"%d" % it) for it in range(10)) + end, 1
    for reserved in range(1, 8):
        yield f"3.{reserved}", frame(TEXT, b"b", reserved=reserved) + frame(PING), None
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield f"4.{opcode}", frame(opcode, b"x") + frame(PING), None
    yield "5.1", frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b") + end, None
    yield "5.2", frame(PONG, b"a", fin=False) + frame(CONTINUATION, b"b") + end, None
    for at, piece in ((3, None), (4, 5), (5, 1)):
        yield f"5.{at}", frame(TEXT, b"one", fin=False) + frame(CONTINUATION, b"two") + end, piece
    for at, piece in ((6, None), (7, 5), (8, 1)):
        parts = frame(TEXT, b"one", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"two")
        yield f"5.{at}", parts + end, piece
    yield "5.9", frame(CONTINUATION, b"none") + frame(TEXT, b"x") + end, None
    yield "5.10", frame(CONTINUATION, b"none", fin=False) + frame(TEXT, b"x") + end, None
    yield "5.15", frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b") + frame(CONTINUATION, b"c", fin=False) + end, None
    yield "5.18", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b") + end, None
    five = b"".join(frame(CONTINUATION, b"%d" % it, fin=it == 4) for it in range(1, 5))
    yield "5.19", frame(TEXT, b"0", fin=False) + frame(PING, b"in between") + five + end, None
    texts = {
        "6.2.1": "Hello-µ@ßöäüàá-UTF-8!!".encode(),
        "6.3.1": b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        "6.5": b"\xce\xba\xe1\xbd\xb9",
        "6.6.1": b"\xce",
        "6.7": b"\x00",
        "6.8": b"\xf8\x88\x80\x80\x80",
        "6.10": b"\xf7\xbf\xbf\xbf",
        "6.12": b"\x80",
        "6.14": b"\xc0",
        "6.16": b"\xe0\x80",
        "6.20": b"\xfe\xff",
        "6.21": b"\xed\xa0\x80",
        "6.22": b"\xef\xbf\xbe",
    }
    for name, text in texts.items():
        yield name, frame(TEXT, text) + end, None
        half = len(text) // 2
        yield name + "f", frame(TEXT, text[:half], fin=False) + frame(CONTINUATION, text[half:]) + end, None
    yield "7.1.1", frame(TEXT, b"a") + end, None
    yield "7.1.2", end + end, None
    yield "7.1.3", end + frame(PING), None
    yield "7.1.4", end + frame(TEXT, b"late"), None
    yield "7.1.5", frame(TEXT, b"a", fin=False) + end + frame(CONTINUATION, b"b"), None
    yield "7.3.1", frame(CLOSE), None
    yield "7.3.2", frame(CLOSE, b"a"), None
    yield "7.3.3", close(), None
    yield "7.3.4", close(1000, b"Hello World!"), None
    yield "7.3.5", close(1000, b"*" * 123), None
    yield "7.3.6", close(1000, b"*" * 124), None
    yield "7.5.1", close(1000, b"\xce\xba\xed\xa0\x80"), None
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield f"7.7.{code}", close(code), None
    for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535):
        yield f"7.9.{code}", close(code), None
    yield "unmasked", frame(TEXT, b"a", masked=False) + end, None
    for minor, kind in ((1, TEXT), (2, BINARY)):
        for size in (64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20):
            yield f"9.{minor}.{size}", frame(kind, b"*" * size) + end, None
    for size in (64, 256, 1024, 4096, 16384):
        count = (1 << 18) // size
        parts = [frame(CONTINUATION, b"*" * size, fin=it == count - 1) for it in range(1, count)]
        yield f"9.3.{size}", frame(TEXT, b"*" * size, fin=False) + b"".join(parts) + end, None
    for size in (64, 128, 256, 512):
        yield f"9.5.{size}", frame(TEXT, b"*" * (1 << 18)) + end, size
    for size in (0, 16, 64, 256, 1024):
        yield f"9.7.{size}", frame(TEXT, b"*" * size) * 1000 + end, None
    yield "10.1", frame(TEXT, b"*" * 65536) + end, 1300


def run(name, data, piece):
    connection = Connection("Sec-WebSocket-Extensions: permessage-deflate\r\n" if name == "10.1" else "")
    end = close()
    # First what the case is about, then the end, except where the end is what it is about.
    parts = [data]
    if data.endswith(end) and not name.startswith("7.1."):
        parts = [data[: -len(end)] + frame(TEXT, MARK), end]
    elif name[0] in "34":
        parts = [frame(TEXT, MARK), data]
    seen = []
    for part in parts:
        if seen[-1:] != ["end"]:
            seen += exchange(connection, part, piece or 65536, None if part is parts[-1] else MARK_SHOWN)
    connection.socket.close()
    return " ".join(seen)


def exchange(connection, data, size, last):
    """Sends in pieces while what comes is read: a server that gives a connection up stops reading."""

    def send():
        try:
            for at in range(0, len(data), size):
                connection.socket.sendall(data[at : at + size])
        except OSError:
            pass

    if len(data) < 60_000:
        send()
        return connection.frames(last)
    thread = threading.Thread(target=send)
    thread.start()
    frames = connection.frames(last)
    thread.join()
    return frames


for name, data, piece in cases():
    # Objects of TLS are not for two threads.
    if not CA_FILE or len(data) < 60_000:
        print(name, run(name, data, piece), flush=True)
