# Goes before the programs that `Lab::serve` runs in machines.
import os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

def serve(port, handler):
    server = ThreadingHTTPServer(("", port), handler)
    server.daemon_threads = True
    # It listens. Who began this program may go on; nothing of it ends with them.
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    server.serve_forever()

