"""The cases of the Autobahn test suite, as far as they make sense where every message must be SIP: an echo
is a MESSAGE that the node behind the balancer answers with the same body.

Usage: websocket_conformance.py WS_PORT WSS_PORT CA_FILE MESSAGE_BYTES_MAX

Replies are read by wsproto and by websockets, which nobody here wrote; frames that no library would send
are put together by hand. Prints a line per case and fails if one fails. Numbers are Autobahn's.
"""

import asyncio
import os
import socket
import ssl
import struct
import sys
import traceback

import websockets
import wsproto
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    Request,
    TextMessage,
)

WS_PORT, WSS_PORT, CA_FILE, MESSAGE_BYTES_MAX = (
    int(sys.argv[1]),
    int(sys.argv[2]),
    sys.argv[3],
    int(sys.argv[4]),
)
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
serial = 0


def frame(opcode, payload=b"", fin=True, reserved=0, masked=True):
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    length, mask_bit = len(payload), 0x80 if masked else 0
    if length < 126:
        head = struct.pack("!BB", first, mask_bit | length)
    elif length < 65536:
        head = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, length)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def request(body):
    """A MESSAGE, whose answer has the same body."""
    global serial
    serial += 1
    name = f"{os.getpid()}-{serial}"
    head = (
        "MESSAGE sip:echo@example.com SIP/2.0\r\n"
        f"Via: SIP/2.0/WS conformance.invalid;branch=z9hG4bK{name}\r\n"
        "Max-Forwards: 70\r\n"
        f"From: <sip:tester@example.com>;tag={name}\r\nTo: <sip:echo@example.com>\r\n"
        f"Call-ID: {name}\r\nCSeq: 1 MESSAGE\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One connection: raw frames go out, wsproto reads what comes."""

    def __init__(self):
        self.socket = socket.create_connection(("127.0.0.1", WS_PORT), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        hello = Request(host=f"127.0.0.1:{WS_PORT}", target="/", subprotocols=["sip"])
        self.socket.sendall(self.reader.send(hello))
        self.waiting = []
        self.partial = b""
        accepted = self.next()
        assert isinstance(accepted, AcceptConnection), accepted
        assert accepted.subprotocol == "sip" and accepted.extensions == [], accepted

    def send(self, *frames, piece=None):
        data = b"".join(frames)
        for at in range(0, len(data), piece or len(data)):
            try:
                self.socket.sendall(data[at : at + (piece or len(data))])
            except (BrokenPipeError, ConnectionResetError):
                return  # it has seen enough; what it said is still to be read

    def next(self):
        """The next event; whole messages only."""
        while True:
            if not self.waiting:
                try:
                    data = self.socket.recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    return None
                self.reader.receive_data(data)
                self.waiting = list(self.reader.events())
                continue
            event = self.waiting.pop(0)
            if isinstance(event, (TextMessage, BytesMessage)):
                data = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
                self.partial += data
                if not event.message_finished:
                    continue
                whole, self.partial = self.partial, b""
                return type(event)(data=whole)
            return event

    def expect_echo(self, body):
        event = self.next()
        assert isinstance(event, (TextMessage, BytesMessage)), event
        head, _, echoed = event.data.partition(b"\r\n\r\n")
        assert head.startswith(b"SIP/2.0 200 "), head
        assert echoed == body, (len(echoed), len(body))
        is_text = isinstance(event, TextMessage)
        try:
            event.data.decode()
            assert is_text, "text should come as text"
        except UnicodeDecodeError:
            assert not is_text

    def expect_pong(self, payload):
        event = self.next()
        assert isinstance(event, Pong) and bytes(event.payload) == payload, event

    def expect_close(self, code):
        event = self.next()
        assert isinstance(event, CloseConnection) and event.code == code, (event, code)
        self.expect_end()

    def expect_end(self):
        """Nothing more, and the end of the connection."""
        try:
            rest = self.socket.recv(65536)
        except ConnectionResetError:
            rest = b""
        assert rest == b"", rest

    def echo(self, body, opcode=TEXT, **how):
        self.send(frame(opcode, request(body)), **how)
        self.expect_echo(body)


CASES = []


def case(number, *arguments):
    def add(test):
        CASES.append((number, test, arguments))
        return test

    return add


# 1: frames of every length, text and binary.
for number, length in enumerate([0, 125, 126, 127, 128, 1000, 16384, 60000], 1):
    for kind, opcode, filler in [(1, TEXT, b"*"), (2, BINARY, b"\xfe")]:

        def test(it, opcode=opcode, body=filler * length):
            it.echo(body, opcode)

        CASES.append((f"1.{kind}.{number}", test, ()))


@case("1.1.8")
def one_byte_at_a_time(it):
    it.echo(b"*" * 300, piece=1)


# 2: pings and pongs.
for number, payload in enumerate([b"", b"Hello", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125], 1):

    def test(it, payload=payload):
        it.send(frame(PING, payload))
        it.expect_pong(payload)
        it.echo(b"alive")

    CASES.append((f"2.{number}", test, ()))


@case("2.5")
def a_long_ping(it):
    it.send(frame(PING, b"\xfe" * 126))
    it.expect_close(1002)


@case("2.6")
def a_ping_in_pieces(it):
    it.send(frame(PING, b"\xfe" * 125), piece=1)
    it.expect_pong(b"\xfe" * 125)


@case("2.7")
def a_pong_that_nobody_asked_for(it):
    it.send(frame(PONG), frame(PONG, b"unsolicited"))
    it.echo(b"alive")


@case("2.9")
def a_pong_and_a_ping(it):
    it.send(frame(PONG, b"unsolicited"), frame(PING, b"ping"))
    it.expect_pong(b"ping")


@case("2.10")
def ten_pings(it):
    it.send(*[frame(PING, f"ping {at}".encode()) for at in range(10)])
    for at in range(10):
        it.expect_pong(f"ping {at}".encode())


@case("2.11")
def ten_pings_in_pieces(it):
    it.send(*[frame(PING, f"ping {at}".encode()) for at in range(10)], piece=1)
    for at in range(10):
        it.expect_pong(f"ping {at}".encode())


# 3: reserved bits.
for reserved in range(1, 8):

    def test(it, reserved=reserved):
        it.echo(b"before")
        it.send(frame(TEXT, request(b""), reserved=reserved))
        it.expect_close(1002)

    CASES.append((f"3.{reserved}", test, ()))

# 4: opcodes that do not exist.
for group, opcodes in [(1, range(3, 8)), (2, range(11, 16))]:
    for number, opcode in enumerate(opcodes, 1):

        def test(it, opcode=opcode, payload=b"reserved" if number % 2 else b""):
            it.echo(b"before")
            it.send(frame(opcode, payload))
            it.expect_close(1002)

        CASES.append((f"4.{group}.{number}", test, ()))


# 5: fragments.
@case("5.1")
def a_ping_in_fragments(it):
    it.send(frame(PING, b"one", fin=False), frame(CONTINUATION, b"two"))
    it.expect_close(1002)


@case("5.2")
def a_pong_in_fragments(it):
    it.send(frame(PONG, b"one", fin=False), frame(CONTINUATION, b"two"))
    it.expect_close(1002)


for number, piece in [("5.3", None), ("5.4", 64), ("5.5", 1)]:

    def test(it, piece=piece):
        message = request(b"fragments")
        it.send(frame(TEXT, message[:50], fin=False), frame(CONTINUATION, message[50:]), piece=piece)
        it.expect_echo(b"fragments")

    CASES.append((number, test, ()))

for number, piece in [("5.6", None), ("5.7", 64), ("5.8", 1)]:

    def test(it, piece=piece):
        message = request(b"fragments")
        it.send(
            frame(TEXT, message[:50], fin=False),
            frame(PING, b"ping"),
            frame(CONTINUATION, message[50:]),
            piece=piece,
        )
        it.expect_pong(b"ping")
        it.expect_echo(b"fragments")

    CASES.append((number, test, ()))

for number, fin, piece in [("5.9", True, None), ("5.11", True, 1), ("5.12", False, None), ("5.14", False, 1)]:

    def test(it, fin=fin, piece=piece):
        it.send(frame(CONTINUATION, b"of nothing", fin=fin), piece=piece)
        it.expect_close(1002)

    CASES.append((number, test, ()))


@case("5.15")
def a_continuation_behind_a_whole_message(it):
    message = request(b"whole")
    it.send(
        frame(TEXT, message[:50], fin=False),
        frame(CONTINUATION, message[50:]),
        frame(CONTINUATION, b"of nothing", fin=False),
    )
    # The echo may or may not have left before the violation was seen.
    event = it.next()
    while not isinstance(event, CloseConnection):
        assert isinstance(event, TextMessage), event
        event = it.next()
    assert event.code == 1002, event
    it.expect_end()


@case("5.18")
def a_message_within_another(it):
    it.send(frame(TEXT, b"first", fin=False), frame(TEXT, b"second"))
    it.expect_close(1002)


@case("5.19")
def many_fragments_and_pings(it):
    message = request(b"many")
    pieces = [message[at : at + 20] for at in range(0, len(message), 20)]
    frames = [frame(TEXT, pieces[0], fin=False)]
    for at, piece in enumerate(pieces[1:], 1):
        frames.append(frame(PING, f"{at}".encode()))
        frames.append(frame(CONTINUATION, piece, fin=at == len(pieces) - 1))
    it.send(*frames)
    for at in range(1, len(pieces)):
        it.expect_pong(f"{at}".encode())
    it.expect_echo(b"many")


@case("5.20")
def empty_fragments(it):
    message = request(b"empty")
    it.send(
        frame(TEXT, b"", fin=False),
        frame(CONTINUATION, b"", fin=False),
        frame(CONTINUATION, message, fin=False),
        frame(CONTINUATION, b""),
    )
    it.expect_echo(b"empty")


# 6: UTF-8.
GREEK = "κόσμε".encode()
for number, body in [
    ("6.2.1", b"Hello-" + GREEK),
    ("6.5.1", "\U00010000".encode()),
    ("6.7.1", "\U0010ffff".encode()),
    ("6.9.1", "\ud7ff".encode()),
    ("6.11.1", "\ue000".encode()),
    ("6.22.1", "\ufffe\uffff".encode()),
]:

    def test(it, body=body):
        it.echo(body)

    CASES.append((number, test, ()))


@case("6.2.4")
def a_letter_cut_by_every_fragment(it):
    message = request(GREEK)
    frames = [frame(TEXT, message[:1], fin=False)]
    frames += [frame(CONTINUATION, bytes([byte]), fin=False) for byte in message[1:]]
    it.send(*frames, frame(CONTINUATION))
    it.expect_echo(GREEK)


for number, broken in [
    ("6.3.1", GREEK + b"\xed\xa0\x80edited"),
    ("6.6.1", b"\xce"),
    ("6.8.1", b"\xf8\x88\x80\x80\x80"),
    ("6.10.1", b"\xf7\xbf\xbf\xbf"),
    ("6.12.1", b"\x80"),
    ("6.14.1", b"\xc0\x20"),
    ("6.18.1", b"\xc0\xaf"),
    ("6.20.1", b"\xed\xa0\x80"),
    ("6.21.1", b"\xed\xa0\x80\xed\xb0\x80"),
    ("6.23.1", b"\xff\xfe"),
]:

    def test(it, broken=broken):
        it.send(frame(TEXT, request(broken)))
        it.expect_close(1007)

    CASES.append((number, test, ()))


@case("6.4.1")
def a_broken_letter_in_the_last_fragment(it):
    message = request(b"\xce")
    it.send(frame(TEXT, message[:50], fin=False), frame(CONTINUATION, message[50:]))
    it.expect_close(1007)


@case("6.24")
def binary_need_not_be_text(it):
    it.echo(b"\xff\xfe", BINARY)


# 7: closing.
@case("7.1.1")
def a_close_behind_a_message(it):
    it.echo(b"before")
    it.send(frame(CLOSE, struct.pack("!H", 1000)))
    it.expect_close(1000)


for number, behind in [
    ("7.1.2", frame(CLOSE, struct.pack("!H", 1000))),
    ("7.1.3", frame(PING, b"too late")),
    ("7.1.4", frame(TEXT, request(b"too late"))),
]:

    def test(it, behind=behind):
        it.send(frame(CLOSE, struct.pack("!H", 1000)), behind)
        it.expect_close(1000)

    CASES.append((number, test, ()))


@case("7.1.5")
def a_close_within_a_message(it):
    it.send(frame(TEXT, b"half", fin=False), frame(CLOSE, struct.pack("!H", 1000)))
    it.expect_close(1000)


@case("7.3.1")
def a_close_that_says_nothing(it):
    it.send(frame(CLOSE))
    event = it.next()
    assert isinstance(event, CloseConnection) and event.code in (1000, 1005), event
    it.expect_end()


@case("7.3.2")
def half_a_code(it):
    it.send(frame(CLOSE, b"a"))
    it.expect_close(1002)


for number, reason in [("7.3.3", b""), ("7.3.4", b"Hello World!"), ("7.3.5", b"*" * 123)]:

    def test(it, reason=reason):
        it.send(frame(CLOSE, struct.pack("!H", 1000) + reason))
        it.expect_close(1000)

    CASES.append((number, test, ()))


@case("7.3.6")
def a_long_reason(it):
    it.send(frame(CLOSE, struct.pack("!H", 1000) + b"*" * 124))
    it.expect_close(1002)


@case("7.5.1")
def a_reason_that_is_no_text(it):
    it.send(frame(CLOSE, struct.pack("!H", 1000) + GREEK + b"\xed\xa0\x80edited"))
    it.expect_close(1007)


for number, code in enumerate([1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999], 1):

    def test(it, code=code):
        it.send(frame(CLOSE, struct.pack("!H", code)))
        it.expect_close(code)

    CASES.append((f"7.7.{number}", test, ()))

for number, code in enumerate([0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535], 1):

    def test(it, code=code):
        it.send(frame(CLOSE, struct.pack("!H", code)))
        it.expect_close(1002)

    CASES.append((f"7.9.{number}", test, ()))


# 9: limits. Autobahn measures up to 16 MiB; a SIP message has less.
@case("9.1")
def above_the_limit(it):
    it.send(frame(BINARY, request(b"*" * MESSAGE_BYTES_MAX))[:1000])
    refusal = it.next()
    assert refusal.data.startswith(b"SIP/2.0 513 "), refusal
    it.expect_close(1009)


@case("9.3")
def above_the_limit_in_fragments(it):
    half = b"*" * (MESSAGE_BYTES_MAX // 2 + 1)
    it.send(frame(BINARY, half, fin=False), frame(CONTINUATION, half)[:1000])
    it.expect_close(1009)


@case("9.7")
def a_thousand_echoes(it):
    for at in range(1000):
        it.echo(b"%d" % at)


@case("9.8")
def a_hundred_messages_in_one_write(it):
    bodies = [b"%d" % at for at in range(100)]
    it.send(*[frame(TEXT, request(body)) for body in bodies])
    for body in bodies:
        it.expect_echo(body)


# Not Autobahn's: what a server asks of its clients (RFC 6455 5.1).
@case("mask")
def a_client_that_does_not_mask(it):
    it.send(frame(TEXT, request(b""), masked=False))
    it.expect_close(1002)


async def library_session():
    """12, 13 and the library's own checks: compression is offered and declined, pings, a close."""
    context = ssl.create_default_context(cafile=CA_FILE)
    async with websockets.connect(
        f"wss://localhost:{WSS_PORT}/",
        host="127.0.0.1",
        server_hostname="lb.test",
        ssl=context,
        subprotocols=["sip"],
        compression="deflate",
    ) as client:
        assert client.subprotocol == "sip" and client.extensions == [], client.extensions
        for at in range(50):
            await client.send(request(b"%d" % at).decode())
            answer = await asyncio.wait_for(client.recv(), 20)
            assert answer.startswith("SIP/2.0 200 ") and answer.endswith(f"\r\n{at}"), answer
            await asyncio.wait_for(await client.ping(), 20)
        await client.send("\r\n\r\n")
        assert await asyncio.wait_for(client.recv(), 20) == "\r\n"
        await client.close(1001, "bye")
        assert client.close_code == 1001, client.close_code


def main():
    failed = 0
    for number, test, arguments in CASES:
        it = Connection()
        try:
            test(it, *arguments)
            print(f"ok {number}")
        except Exception:
            failed += 1
            print(f"FAILED {number}\n{traceback.format_exc()}")
        finally:
            it.socket.close()
    try:
        asyncio.run(library_session())
        print("ok 12, 13")
    except Exception:
        failed += 1
        print(f"FAILED 12, 13\n{traceback.format_exc()}")
    print(f"{len(CASES) + 1} cases, {failed} failed")
    sys.exit(failed > 0)


main()
