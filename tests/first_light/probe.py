"""What a machine tries on the network, and what it sees of what others try.

    listen              answers on port 7000 by TCP and UDP and watches the wire until /tmp/stop is there, then
                        prints the marks that came in from outside
    reach  TRIES UNTIL  tries each address by TCP, UDP and ICMP, and prints what came of it
    forge  SPEC         sends frames that are not its own to send

Whatever is sent carries a mark, <<sender|target|how>>, so that a listener knows it whatever its headers say.
"""

import errno
import json
import os
import re
import select
import socket
import struct
import sys
import time

PORT = 7000
MARK = re.compile(rb"<<[^<>]*>>")
EVERY_PROTOCOL = 3
OUTGOING = 4


def link():
    """The machine's one interface."""
    names = os.listdir("/sys/class/net")
    return next(name for name in names if os.path.exists(f"/sys/class/net/{name}/device"))


def wire():
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
    sock.bind((link(), 0))
    return sock


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# --- listen ---


def listen():
    if os.path.exists("/tmp/stop"):
        os.unlink("/tmp/stop")
    packets, udp = wire(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("", PORT))
    tcp = socket.create_server(("", PORT), backlog=64)
    seen, open_streams = set(), []
    print("listening", flush=True)
    while not os.path.exists("/tmp/stop"):
        ready, _, _ = select.select([packets, udp, tcp, *open_streams], [], [], 0.2)
        for sock in ready:
            if sock is packets:
                try:
                    frame, address = packets.recvfrom(65535)
                except OSError:
                    # The link was taken down, for another address; it comes up again.
                    continue
                if address[2] != OUTGOING:
                    seen.update(mark.decode() for mark in MARK.findall(frame))
            elif sock is udp:
                data, sender = udp.recvfrom(65535)
                udp.sendto(data, sender)
            elif sock is tcp:
                open_streams.append(tcp.accept()[0])
            else:
                try:
                    data = sock.recv(65535)
                except OSError:
                    data = b""
                if data:
                    sock.send(data)
                else:
                    open_streams.remove(sock)
                    sock.close()
    print(json.dumps(sorted(seen)), flush=True)


# --- reach ---


class Try:
    """One address, by one protocol: `ok` with an answer, else an error's name or `silence`."""

    def __init__(self, protocol, mark, ip, port):
        self.protocol, self.mark, self.outcome = protocol, mark, None
        kind = {
            "tcp": (socket.SOCK_STREAM, 0),
            "udp": (socket.SOCK_DGRAM, 0),
            "icmp": (socket.SOCK_RAW, socket.IPPROTO_ICMP),
        }
        self.sock = socket.socket(socket.AF_INET, *kind[protocol])
        self.sock.setblocking(False)
        self.connected = protocol != "tcp"
        try:
            self.sock.connect((ip, port))
            if protocol != "tcp":
                self.send()
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(error.errno)

    def send(self):
        data = self.mark.encode()
        if self.protocol == "icmp":
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
            head = head[:2] + struct.pack("!H", checksum(head + data)) + head[4:]
            data = head + data
        self.sock.send(data)

    def fail(self, code):
        self.outcome = errno.errorcode[code]

    def proceed(self):
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return self.fail(code)
        try:
            if not self.connected:
                self.connected = True
                return self.send()
            data = self.sock.recv(65535)
        except BlockingIOError:
            return None
        except OSError as error:
            return self.fail(error.errno)
        # Of ICMP only the echo reply is an answer, and of TCP and UDP what was sent.
        answered = data[20:21] == b"\0" if self.protocol == "icmp" else self.mark.encode() in data
        if answered:
            self.outcome = "ok"
        elif not data:
            self.outcome = "closed"
        return None


def reach(tries, until):
    """`tries` are lists of name, address, port and mark. `until` is "all" answered, or just "tcp": what is not even
    delivered is told for TCP only."""
    pending = {
        (name, protocol): Try(protocol, f"{mark[:-2]}-{protocol}>>", ip, port)
        for name, ip, port, mark in tries
        for protocol in ("tcp", "udp", "icmp")
    }
    begun = time.monotonic()
    while time.monotonic() < begun + 30:
        waiting = [t for t in pending.values() if t.outcome is None]
        told = until == "tcp" and not any(t.protocol == "tcp" for t in waiting)
        if not waiting or told and time.monotonic() > begun + 2:
            break
        readers = [t.sock for t in waiting if t.connected]
        writers = [t.sock for t in waiting if not t.connected]
        ready = select.select(readers, writers, [], 0.5)
        for attempt in waiting:
            if attempt.sock in ready[0] or attempt.sock in ready[1]:
                attempt.proceed()
    outcomes = {}
    for (name, protocol), attempt in pending.items():
        outcomes.setdefault(name, {})[protocol] = attempt.outcome or "silence"
    print(json.dumps(outcomes), flush=True)


# --- forge ---


def hardware(text):
    return bytes.fromhex(text.replace(":", ""))


def packet(protocol, source, target, mark):
    """An IPv4 packet that a router takes."""
    source, target, data = socket.inet_aton(source), socket.inet_aton(target), mark.encode()
    if protocol == "udp":
        number, body = 17, struct.pack("!HHHH", PORT, PORT, 8 + len(data), 0) + data
    elif protocol == "icmp":
        head = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
        number, body = 1, head[:2] + struct.pack("!H", checksum(head + data)) + head[4:] + data
    else:
        number, body = 6, struct.pack("!HHIIBBHHH", 41000, PORT, 1, 0, 0x50, 0x02, 1024, 0, 0) + data
        pseudo = source + target + struct.pack("!HH", number, len(body))
        body = body[:16] + struct.pack("!H", checksum(pseudo + body)) + body[18:]
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, number, 0, source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def frames(me, target, others, router):
    """Every frame that might slip through, from `me` to `target`; `others` are whom one may claim to be."""
    mark = lambda how: f"<<{me['name']}|{target['name']}|{how}>>"
    broadcast = {"name": "all", "mac": "ff:ff:ff:ff:ff:ff"}
    claims = [me, router, target, *others]
    for to in (target, broadcast, router):
        for mac in claims:
            ends = hardware(to["mac"]) + hardware(mac["mac"])
            for ip in claims:
                how = f"to-{to['name']}-as-{mac['name']}-{ip['name']}"
                for protocol in ("udp", "icmp", "tcp"):
                    sent = packet(protocol, ip["ip"], target["ip"], mark(f"{how}-{protocol}"))
                    yield ends + b"\x08\x00" + sent
                for operation in (1, 2):
                    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
                    arp += hardware(mac["mac"]) + socket.inet_aton(ip["ip"])
                    arp += hardware(to["mac"]) + socket.inet_aton(target["ip"])
                    yield ends + b"\x08\x06" + arp + mark(f"{how}-arp{operation}").encode()
            how = f"to-{to['name']}-as-{mac['name']}"
            tagged = packet("udp", me["ip"], target["ip"], mark(f"{how}-vlan"))
            yield ends + b"\x81\x00\x00\x01\x08\x00" + tagged
            yield ends + b"\x86\xdd" + bytes(40) + mark(f"{how}-ipv6").encode()
            yield ends + b"\x88\xb5" + mark(f"{how}-experimental").encode()


def forge(spec):
    sock, sent = wire(), 0
    for target in spec["targets"]:
        for frame in frames(spec["me"], target, spec["others"], spec["router"]):
            sock.send(frame.ljust(60, b"\0"))
            sent += 1
    print(sent, flush=True)


def main():
    verb, arguments = sys.argv[1], [json.loads(text) for text in sys.argv[2:]]
    {"listen": listen, "reach": reach, "forge": forge}[verb](*arguments)


main()
