"""A small HTTP service that remembers: a counter in memory, and a file on the data disk.

Every path answers {"hello": <tenant>, "count": <n>} and adds a line to the file, which is on disk
before the answer goes out. /state answers the count, the file's lines and the time without counting;
/healthz answers that the service is up.
"""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONFIG = "/etc/mvm-config/config.json"
MESSAGES = os.path.join(os.environ.get("HOME", "/data"), "messages")
PORT = int(os.environ.get("PORT", "8080"))


class Messages:
    """The counter and the file; safe to use from several threads."""

    def __init__(self, path):
        self._lock = threading.Lock()
        self._file = open(path, "ab", buffering=0)
        self._path = path
        self._count = 0

    def add(self, text):
        """Counts a message and returns its number, once its line is on disk."""
        with self._lock:
            self._count += 1
            self._file.write(f"{self._count} {text}\n".encode())
            os.fsync(self._file.fileno())
            return self._count

    def state(self):
        with self._lock, open(self._path, "rb") as file:
            return {"count": self._count, "lines": sum(1 for _ in file), "time": time.time()}


def tenant():
    """Whose machine this is. Read each time: the config may be given anew while the service runs."""
    with open(CONFIG, encoding="utf-8") as file:
        return json.load(file)["tenant_id"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body go out as one packet, at once.
    wbufsize = -1
    disable_nagle_algorithm = True
    messages = None

    def answer(self):
        self.skip_body()
        path = self.path.partition("?")[0]
        if path == "/healthz":
            body = {"status": "ok"}
        elif path == "/state":
            body = self.messages.state()
        else:
            count = self.messages.add(f"{self.command} {path}")
            body = {"hello": tenant(), "count": count}
        data = json.dumps(body).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def skip_body(self):
        """What was sent does not matter, but the next request comes after it."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            self.rfile.read(size + len(b"\r\n"))
        while self.rfile.readline().strip():
            pass

    do_GET = do_POST = do_PUT = answer

    def log_message(self, format, *args):
        """One line a message is enough; it is in the file."""


def main():
    Handler.messages = Messages(MESSAGES)
    server = ThreadingHTTPServer(("", PORT), Handler)
    server.daemon_threads = True
    print(f"listening on port {PORT}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
