"""A generator of load on one thread: connections that copy prepared requests, and the loops that drive them.

Connections are non-blocking sockets. Each carries one sequence, whose requests are answered in order. HTTP connections
and unary gRPC calls have one request at a time under way, a gRPC stream as many as are due.
"""

import collections
import select
import socket
import struct
import time

from bench import serve_messages as messages
from bench.serve_messages import RefusedError

READ = 2**18
WINDOW = 2**16 - 1  # of HTTP/2, until a server says otherwise
PATIENCE = 10.0  # seconds until answers that have not come are lost


class Http:
    """A connection over HTTP/1.1."""

    one_at_a_time = True

    def __init__(self, port):
        self.port, self.socket, self.received = port, connected(port), b""

    def renew(self):
        """Connect again, since servers close connections that were silent for some seconds."""
        self.socket.close()
        self.socket, self.received = connected(self.port), b""

    def send(self, request):
        self.socket.send(request)

    def close(self):
        self.socket.close()

    def receive(self):
        """Return the answers that have come, as (status, header lines, body)."""
        data = self.received + read(self.socket)
        answers = []
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            at = head.find(b"\r\ncontent-length:")
            if at < 0:
                raise RefusedError(f"an answer without Content-Length: {head[:200]!r}")
            stop = head.find(b"\r\n", at + 2)
            size = int(head[at + 17 : stop if stop >= 0 else end])
            if len(data) < end + 4 + size:
                break
            answers.append((int(head[9:12]), head, data[end + 4 : end + 4 + size]))
            data = data[end + 4 + size :]
        self.received = data
        return [self._checked(*answer) for answer in answers]

    def _checked(self, status, head, body):
        if status != 200:
            raise RefusedError(f"{status} {body[:300].decode(errors='replace')}")
        return head, body

    @staticmethod
    def request(data):
        return data

    @staticmethod
    def outputs(answer):
        head, body = answer
        lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
        headers = {name.decode(): value.strip().decode() for name, _, value in lines}
        return messages.http_outputs(200, headers, body)

    @staticmethod
    def body(answer):
        """Return the bytes of an answer that follow from its outputs."""
        return answer[1]


class _Http2:
    """A connection over HTTP/2."""

    def __init__(self, port):
        self.socket = connected(port)
        self.received, self.consumed, self.waiting = b"", 0, collections.deque()
        # What the server takes before it asks for more, over the connection and over the stream.
        self.window = self.stream_window = self.initial = WINDOW
        # Answers may come without this side having to ask for more.
        settings = struct.pack(">HIHI", 2, 0, 4, messages.LARGEST)
        more = struct.pack(">I", messages.LARGEST - 2**16 + 1)
        self.socket.send(
            messages.PREFACE
            + messages.frame(messages.SETTINGS, 0, 0, settings)
            + messages.frame(messages.WINDOW_UPDATE, 0, 0, more)
        )

    def renew(self):
        """Do nothing: servers keep connections of gRPC."""

    def close(self):
        self.socket.close()

    def _write(self, data, size):
        """Send bytes of which `size` count against the windows, as soon as these are large enough."""
        if self.waiting or self.window < size or self.stream_window < size:
            self.waiting.append((data, size))
        else:
            self.window -= size
            self.stream_window -= size
            self.socket.send(data)

    def _frames(self):
        """Yield (kind, flags, stream, payload) of the frames that matter to calls, and answer the others."""
        data, at = self.received + read(self.socket), 0
        while len(data) - at >= 9:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if len(data) - at - 9 < size:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & messages.LARGEST
            payload, at = data[at + 9 : at + 9 + size], at + 9 + size
            if kind == messages.DATA:
                self._consume(size)
            if kind in (messages.DATA, messages.HEADERS):
                yield kind, flags, stream, payload
            elif kind == messages.WINDOW_UPDATE:
                self._more(stream, int.from_bytes(payload, "big"))
            elif kind == messages.PING and not flags & messages.ACK:
                self.socket.send(messages.frame(messages.PING, messages.ACK, 0, payload))
            elif kind == messages.SETTINGS and not flags & messages.ACK:
                self.socket.send(messages.frame(messages.SETTINGS, messages.ACK, 0))
                self._settle(payload)
            elif kind in (messages.RST_STREAM, messages.GOAWAY):
                raise RefusedError(f"the server ended {'a call' if kind == messages.RST_STREAM else 'the connection'}")
        self.received = data[at:]

    def _consume(self, size):
        """Give the server's window of the connection back where half of it is used."""
        self.consumed += size
        if self.consumed > 2**30:
            more = struct.pack(">I", self.consumed)
            self.socket.send(messages.frame(messages.WINDOW_UPDATE, 0, 0, more))
            self.consumed = 0

    def _more(self, stream, size):
        if stream == 0:
            self.window += size
        elif stream == self.stream:
            self.stream_window += size
        waiting, self.waiting = self.waiting, collections.deque()
        for data, needed in waiting:
            self._write(data, needed)

    def _settle(self, payload):
        """Note the window that the server gives each stream."""
        for key, value in struct.iter_unpack(">HI", payload):
            if key == 4:
                self._more(self.stream, value - self.initial)
                self.initial = value

    outputs = staticmethod(messages.grpc_outputs)

    @staticmethod
    def body(answer):
        """Return the bytes of an answer that follow from its outputs."""
        return answer


class GrpcUnary(_Http2):
    """Calls of ModelInfer, one at a time, on one connection."""

    one_at_a_time, stream = True, -1

    def __init__(self, port):
        super().__init__(port)
        headers = messages.grpc_headers("ModelInfer")
        self.head = messages.frame(messages.HEADERS, messages.END_HEADERS, 0, headers)
        self.answer = b""

    @staticmethod
    def request(data):
        return messages.frame(messages.DATA, messages.END_STREAM, 0, messages.grpc_message(data))

    def send(self, request):
        self.stream += 2
        self.stream_window = self.initial
        stream, head = self.stream.to_bytes(4, "big"), self.head
        data = b"".join((head[:5], stream, head[9:], request[:5], stream, request[9:]))
        self._write(data, len(request) - 9)

    def receive(self):
        answers = []
        for kind, flags, stream, payload in self._frames():
            if stream != self.stream:
                continue
            if kind == messages.DATA:
                self.answer += payload
            if flags & messages.END_STREAM:
                if not self.answer:
                    raise RefusedError(f"a call failed; trailers: {payload[:300]!r}")
                answers.append(self.answer[5:])
                self.answer = b""
        return answers


class GrpcStream(_Http2):
    """One call of ModelStreamInfer."""

    one_at_a_time, stream = False, 1

    def __init__(self, port):
        super().__init__(port)
        headers = messages.grpc_headers("ModelStreamInfer")
        self.socket.send(messages.frame(messages.HEADERS, messages.END_HEADERS, 1, headers))
        self.answer = b""

    @staticmethod
    def request(data):
        return messages.frame(messages.DATA, 0, 1, messages.grpc_message(data))

    def send(self, request):
        self._write(request, len(request) - 9)

    def receive(self):
        answers = []
        for kind, flags, stream, payload in self._frames():
            if stream != self.stream:
                continue
            if flags & messages.END_STREAM:
                raise RefusedError(f"the stream ended; trailers: {payload[:300]!r}")
            if kind == messages.DATA:
                data = self.answer + payload if self.answer else payload
                while len(data) >= 5 and len(data) >= 5 + (size := int.from_bytes(data[1:5], "big")):
                    answers.append(self._checked(data[5 : 5 + size]))
                    data = data[5 + size :]
                self.answer = data
        return answers

    def _checked(self, answer):
        """Return an answer that begins with its field infer_response; anything else is looked at."""
        if answer[:1] != b"\x12":
            messages.stream_answer(answer)
        return answer

    @staticmethod
    def outputs(answer):
        return messages.grpc_outputs(messages.stream_answer(answer))

    @staticmethod
    def number(answer):
        """Return the number that is the id of an answer's request."""
        return int(next(value for key, value in messages.fields(messages.stream_answer(answer)) if key == 3))


PROTOCOLS = {"HTTP binary": Http, "HTTP JSON": Http, "gRPC": GrpcUnary, "gRPC stream": GrpcStream}


def connected(port):
    """Return a socket that is connected to a port of this machine and does not block."""
    found = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    found.setblocking(False)
    return found


def read(source):
    """Return the bytes that have come to a socket.

    Raises:
        RefusedError: The server closed the connection.
    """
    try:
        data = source.recv(READ)
    except BlockingIOError:
        return b""
    if not data:
        raise RefusedError("the server closed the connection")
    return data


# ------------------------------------------------------------------------------------------------ loops
class Client:
    """A connection and the requests that it sends one after the other, again and again.

    Attributes:
        requests: Prepared requests.
        right: For each request bytes that its answer must hold; None where any answer that is no error will do.
        numbered: Whether the ids of requests are their places in `requests`. A server may answer requests of different
            sequences on one stream in another order, and ids tell which is answered.
        due: (place, time at which it was to be sent) of each request that is not answered.
    """

    def __init__(self, connection, requests, right=None, numbered=False):
        self.connection, self.requests, self.right, self.numbered = connection, requests, right, numbered

    def begin(self):
        """Let the next request be the first one again."""
        self.asked = self.sent = self.answered = 0
        self.due = collections.deque()
        self.connection.renew()

    def send(self, due):
        """Send the next request, or let it wait for the answer before; its waiting time counts from `due`."""
        self.due.append((self.asked % len(self.requests), due))
        self.asked += 1
        if not self.connection.one_at_a_time or self.sent == self.answered:
            self._send()

    def _send(self):
        self.connection.send(self.requests[self.sent % len(self.requests)])
        self.sent += 1

    def receive(self, seconds):
        """Append the waiting times of answers that have come to `seconds`; return how many came and were wrong."""
        answers, wrong, now = self.connection.receive(), 0, time.perf_counter()
        for answer in answers:
            place, due = self._answered(answer)
            wrong += self.right is not None and self.right[place] not in self.connection.body(answer)
            self.answered += 1
            seconds.append(now - due)
            if self.connection.one_at_a_time and self.due:
                self._send()
        return len(answers), wrong

    def _answered(self, answer):
        """Return the entry of `due` whose answer has come, which has it no more."""
        if self.numbered:
            number = self.connection.number(answer)
            for i, (place, _) in enumerate(self.due):
                if place == number:
                    found = self.due[i]
                    del self.due[i]
                    return found
        return self.due.popleft()


class Poll:
    """Waits for sockets, with a timeout of microseconds, which epoll's own does not have."""

    def __init__(self, clients):
        self.epoll = select.epoll()
        self.clients = {client.connection.socket.fileno(): client for client in clients}
        for number in self.clients:
            self.epoll.register(number, select.EPOLLIN)

    def ready(self, timeout):
        """Return the clients to which something has come, after `timeout` seconds at most."""
        if timeout > 0:
            select.select([self.epoll], [], [], timeout)
        return [self.clients[number] for number, _ in self.epoll.poll(0)]

    def close(self):
        self.epoll.close()


def begun_poll(clients):
    """Return a Poll of clients whose next request is the first one."""
    for client in clients:
        client.begin()
    return Poll(clients)


def ask(clients):
    """Send each request of each client once, all clients side by side, and return [client][request] -> answer."""
    poll, answers = begun_poll(clients), [[] for _ in clients]
    end = time.perf_counter() + PATIENCE
    for client in clients:
        client.connection.send(client.requests[0])
    while any(len(found) < len(client.requests) for found, client in zip(answers, clients)):
        if (now := time.perf_counter()) > end:
            raise RefusedError(f"no answer within {PATIENCE:g} s")
        for client in poll.ready(end - now):
            found = answers[clients.index(client)]
            for answer in client.connection.receive():
                found.append(answer)
                if len(found) < len(client.requests):
                    client.connection.send(client.requests[len(found)])
    poll.close()
    return answers


def closed_loop(clients, seconds):
    """Let each client send its next request as soon as the last is answered.

    Returns a dict: "rate", answers a second; "seconds", the waiting times; "wrong", the number of answers that were not
    the right ones; "cpu", this process's share of a core.
    """
    poll, waits, wrong = begun_poll(clients), [], 0
    cpu, begun = time.process_time(), time.perf_counter()
    end = begun + seconds
    for client in clients:
        client.send(begun)
    while (now := time.perf_counter()) < end:
        for client in poll.ready(end - now):
            came, mistaken = client.receive(waits)
            wrong += mistaken
            for _ in range(came):
                client.send(time.perf_counter())
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    rate = len(waits) / took
    wrong += finish(poll, clients, waits)
    poll.close()
    return {"rate": rate, "seconds": waits, "wrong": wrong, "cpu": cpu / took}


def open_loop(clients, rate, seconds):
    """Let the clients together send `rate` requests a second in turn, whether or not there are answers.

    Waiting times count from the time at which a request was to be sent. Returns a dict as `closed_loop`, with "lost",
    the number of requests without an answer, and "late", the seconds by which 99 % of the requests were sent at most
    after they were due.
    """
    poll, waits, wrong, late = begun_poll(clients), [], 0, []
    cpu, begun = time.process_time(), time.perf_counter()
    total, sent = int(rate * seconds), 0
    while sent < total:
        now = time.perf_counter()
        while sent < total and (due := begun + sent / rate) <= now:
            clients[sent % len(clients)].send(due)
            late.append(now - due)
            sent += 1
        for client in poll.ready(max(due - time.perf_counter(), 0) if sent < total else 0):
            wrong += client.receive(waits)[1]
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    wrong += finish(poll, clients, waits)
    poll.close()
    return {
        "rate": len(waits) / took,
        "seconds": waits,
        "wrong": wrong,
        "cpu": cpu / took,
        "lost": total - len(waits),
        "late": percentile(late, 99),
    }


def finish(poll, clients, waits):
    """Wait for the answers that are still to come, and return how many of them were wrong."""
    wrong, end = 0, time.perf_counter() + PATIENCE
    while any(client.due for client in clients) and (now := time.perf_counter()) < end:
        for client in poll.ready(end - now):
            wrong += client.receive(waits)[1]
    return wrong


def percentile(values, percent):
    """Return a percentile of numbers: the smallest that as many are not above."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
