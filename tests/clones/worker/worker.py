"""A service that does in its own memory, and on its data disk, what it is told.

/do/<hex of Python code> evaluates an expression and answers its value in JSON; what is assigned stays. Every other path
but /healthz counts: it answers {"count": <n>} from memory and {"lines": <n>} from a file on the data disk, which has a
line for each.
"""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VERSION = 1
SCOPE = {"version": VERSION, "memory": {}, "os": os}
LOCK = threading.Lock()
LINES = os.open("/data/lines", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
COUNT = [0]


def count():
    with LOCK:
        COUNT[0] += 1
        os.write(LINES, b"%7d\n" % COUNT[0])
        os.fsync(LINES)
        return {"count": COUNT[0], "lines": os.fstat(LINES).st_size // 8}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/healthz":
            body = {}
        elif self.path.startswith("/do/"):
            code = bytes.fromhex(self.path[len("/do/"):]).decode()
            try:
                *before, last = code.strip().split("\n;;\n")
                for part in before:
                    exec(part, SCOPE)
                body = eval(last, SCOPE)
            except Exception as error:
                body = {"error": repr(error)}
        else:
            body = count()
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("", 8080), Handler)
server.daemon_threads = True
server.serve_forever()
