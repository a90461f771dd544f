"""Keeps OpenClaw's contract with whoever hosts it, and does the least behind it: takes messages durably, asks the model, and
answers. What it is told is in the config file that the guest makes of OPENCLAW_CONFIG_PATH.

Beside that file: `journal.jsonl`, in which every update is before it is acknowledged, and `updates.log`, with a line for
each in the order in which they were taken: `<update_id> <chat> <text>`.
"""

import http.client
import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONFIG_PATH = os.environ["OPENCLAW_CONFIG_PATH"]
FOLDER = os.path.dirname(CONFIG_PATH)
LEASE = 120.0
RETRY_PAUSE = 0.5
BAD_CONFIG = 78
# What has changed counts only so long after it was seen first. OpenClaw waits for a file to settle and begins its channels anew.
RELOADS_AFTER = 3.0


class Config:
    """The config file, with what its references lead to. It is read again some time after it has changed."""

    def __init__(self):
        self.stamp, self.seen = None, (None, 0.0)
        self.refresh()

    def refresh(self):
        found = os.stat(CONFIG_PATH)
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self.seen[0]:
            self.seen = (stamp, time.monotonic())
        is_due = self.stamp is None or time.monotonic() - self.seen[1] >= RELOADS_AFTER
        if stamp == self.stamp or not is_due:
            return
        with open(CONFIG_PATH) as file:
            self.whole = json.load(file)
        gateway, telegram = self.whole["gateway"], self.whole["channels"]["telegram"]
        if gateway["mode"] != "local" or (telegram["dmPolicy"] == "allowlist" and not telegram["allowFrom"]):
            sys.exit(BAD_CONFIG)
        self.token = self.resolve(gateway["auth"]["token"])
        self.bot_token = self.resolve(telegram["botToken"])
        self.webhook_secret = self.resolve(telegram["webhookSecret"])
        self.telegram = telegram
        self.senders = telegram["allowFrom"] if telegram["dmPolicy"] == "allowlist" else []
        self.provider = self.whole["models"]["providers"]["anthropic"]
        self.model_key = self.resolve(self.provider["apiKey"])
        self.model = self.whole["agents"]["defaults"]["model"]["primary"].split("/", 1)[1]
        self.has_admin = self.whole["plugins"]["entries"]["admin-http-rpc"]["enabled"]
        self.stamp = stamp

    def resolve(self, reference):
        provider = self.whole["secrets"]["providers"][reference["provider"]]
        if os.path.islink(provider["path"]) or os.stat(provider["path"]).st_mode & 0o077:
            sys.exit(BAD_CONFIG)
        with open(provider["path"]) as file:
            return file.read().rstrip("\n")


class Refusal(Exception):
    """An error of the admin RPC."""

    def __init__(self, code, message, retry_after_ms=None):
        super().__init__(message)
        self.status = {"INVALID_REQUEST": 400, "UNAVAILABLE": 503}[code]
        self.error = {"code": code, "message": message}
        if retry_after_ms is not None:
            self.error.update(retryable=True, retryAfterMs=retry_after_ms)


class Journal:
    """What must outlive the process, one JSON line each, on the disk before anything depends on it."""

    def __init__(self):
        self.taken, self.pending, self.jobs, self.lines = set(), [], {}, []
        path = os.path.join(FOLDER, "journal.jsonl")
        if os.path.exists(path):
            with open(path, "rb") as file:
                whole = file.read()
            # A line that is not whole was never acknowledged.
            lines = whole[: whole.rfind(b"\n") + 1]
            for line in lines.splitlines():
                self.apply(json.loads(line))
            if len(lines) < len(whole):
                os.truncate(path, len(lines))
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        log = os.path.join(FOLDER, "updates.log")
        self.log = os.open(log + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(self.log, b"".join(self.lines))
        os.rename(log + ".new", log)

    def apply(self, entry):
        if "update" in entry:
            update = entry["update"]
            self.taken.add(update["update_id"])
            self.pending.append(update)
            message = update.get("message", {})
            chat, text = message.get("chat", {}).get("id"), message.get("text", "")
            self.lines.append(f"{update['update_id']} {chat} {text!r}\n".encode())
        elif "answered" in entry:
            self.pending = [update for update in self.pending if update["update_id"] != entry["answered"]]
        elif "job" in entry:
            self.jobs[entry["job"]["id"]] = entry["job"]
        elif "ran" in entry:
            self.jobs.pop(entry["ran"], None)

    def write(self, entry):
        os.write(self.fd, json.dumps(entry).encode() + b"\n")
        os.fsync(self.fd)
        count = len(self.lines)
        self.apply(entry)
        os.write(self.log, b"".join(self.lines[count:]))


class Assistant:
    """The work, and whether any may begin."""

    def __init__(self, config):
        self.config = config
        self.changed = threading.Condition(threading.RLock())
        self.journal = Journal()
        self.active = []
        self.lease = None
        self.is_ending = False
        self.connected, self.last_error = False, None
        self.last_activity_ms = 0

    # Suspension

    def expire(self):
        if self.lease and time.monotonic() > self.lease["until"]:
            self.lease = None
            self.changed.notify_all()

    def blockers(self):
        counts = {"embedded-run": len(self.active), "queue": len(self.journal.pending)}
        return [
            {"kind": kind, "count": count, "message": f"{count} {kind} operation(s)"}
            for kind, count in counts.items()
            if count
        ]

    def standing(self, **more):
        blockers = self.blockers()
        left = int((self.lease["until"] - time.monotonic()) * 1000) if self.lease else 0
        answer = {"expiresAtMs": now_ms() + left, "activeCount": len(blockers), "blockers": blockers, **more}
        answer["status"] = "draining" if blockers else "ready"
        if blockers:
            answer["retryAfterMs"] = 20000
        return answer

    def prepare(self, params):
        with self.changed:
            self.expire()
            request = (params["requestId"], bool(params.get("drain")))
            if self.lease and self.lease["request"] != request:
                left = int((self.lease["until"] - time.monotonic()) * 1000)
                raise Refusal("UNAVAILABLE", "a different gateway suspension is prepared", left)
            blockers = self.blockers()
            if blockers and not self.lease and not params.get("drain"):
                answer = {"status": "busy", "reason": "active-work", "retryAfterMs": 20000}
                return {**answer, "activeCount": len(blockers), "blockers": blockers}
            identity = self.lease["id"] if self.lease else str(uuid.uuid4())
            self.lease = {"id": identity, "request": request, "until": time.monotonic() + LEASE}
            return self.standing(suspensionId=identity)

    def suspension_status(self, params):
        with self.changed:
            self.expire()
            if not self.lease:
                return {"status": "running"}
            if self.lease["id"] != params["suspensionId"]:
                raise Refusal("UNAVAILABLE", "a different gateway suspension is prepared", 1000)
            return self.standing()

    def resume(self, params):
        with self.changed:
            self.expire()
            if self.lease and self.lease["id"] != params["suspensionId"]:
                raise Refusal("INVALID_REQUEST", "another suspension is in force")
            resumed, self.lease = self.lease is not None, None
            self.changed.notify_all()
            return {"ok": True, "status": "running", "resumed": resumed}

    def is_open(self):
        with self.changed:
            self.expire()
            return self.lease is None

    # Work

    def begin(self, what):
        with self.changed:
            self.active.append(what)
            self.last_activity_ms = now_ms()

    def end(self, what):
        with self.changed:
            self.active.remove(what)
            self.last_activity_ms = now_ms()
            self.changed.notify_all()

    def take(self, update):
        """Durable when it returns; the same update again changes nothing."""
        with self.changed:
            if update["update_id"] not in self.journal.taken:
                self.journal.write({"update": update})
                self.changed.notify_all()

    def answer_updates(self):
        while True:
            with self.changed:
                while self.lease or not self.journal.pending:
                    self.expire()
                    if self.is_ending and not self.journal.pending:
                        return
                    self.changed.wait(0.2)
                if self.is_ending:
                    return
                update = self.journal.pending[0]
                self.begin("turn")
            self.answer(update)
            with self.changed:
                self.journal.write({"answered": update["update_id"]})
                self.end("turn")

    def answer(self, update):
        message = update.get("message", {})
        sender, text = str(message.get("from", {}).get("id")), message.get("text", "")
        if sender not in self.config.senders or not text:
            return
        wanted = re.search(r"remind me in (\d+) s", text)
        if wanted:
            with self.changed:
                key = f"update-{update['update_id']}"
                if key not in self.journal.jobs:
                    at = now_ms() + int(wanted.group(1)) * 1000
                    self.add_job({"id": key, "chat": message["chat"]["id"], "message": text}, at, None)
        self.send(message["chat"]["id"], self.ask([{"role": "user", "content": text}]))

    def ask(self, messages):
        """The model's answer; what is wrong with the question where it refuses it."""
        body = {"model": self.config.model, "max_tokens": 1024, "stream": True, "messages": messages}
        while True:
            headers = {"x-api-key": self.config.model_key, "anthropic-version": "2023-06-01"}
            answer = post(self.config.provider["baseUrl"] + "/v1/messages", body, headers)
            if answer and answer[0] == 200:
                text = streamed_text(answer[1])
                if text is not None:
                    return text
            elif answer and answer[0] != 429 and answer[0] < 500:
                return error_message(answer[1])
            time.sleep(RETRY_PAUSE)

    def send(self, chat, text):
        """Again and again until it was taken: only an answer says that it was."""
        while True:
            answer = self.call_bot("sendMessage", {"chat_id": str(chat), "text": text})
            if answer and answer[0] != 429 and answer[0] < 500:
                return
            pause = RETRY_PAUSE
            if answer and answer[0] == 429:
                pause = json.loads(answer[1]).get("parameters", {}).get("retry_after", pause)
            time.sleep(pause)

    def call_bot(self, method, body):
        return post(f"{self.config.telegram['apiRoot']}/bot{self.config.bot_token}/{method}", body, {})

    def announce(self):
        """What OpenClaw calls at its start, in its order."""
        webhook = {"url": self.config.telegram["webhookUrl"], "secret_token": self.config.webhook_secret}
        commands = [{"command": "help", "description": "Show available commands."}]
        calls = [("getMe", {}), ("setWebhook", webhook), ("deleteMyCommands", {}), ("setMyCommands", {"commands": commands})]
        for method, body in calls:
            while True:
                answer = self.call_bot(method, body)
                if answer and answer[0] == 200:
                    break
                self.last_error = f"{method}: {answer[0] if answer else 'no answer'}"
                time.sleep(RETRY_PAUSE)
        self.connected, self.last_error = True, None

    # Jobs

    def add_job(self, job, next_run_ms, every_ms):
        with self.changed:
            job = {**job, "enabled": True, "everyMs": every_ms, "state": {"nextRunAtMs": next_run_ms}}
            self.journal.write({"job": job})
            return job

    def next_run(self):
        return min((job["state"]["nextRunAtMs"] for job in self.journal.jobs.values()), default=None)

    def run_jobs(self):
        while not self.is_ending:
            time.sleep(0.2)
            with self.changed:
                self.expire()
                due = [job for job in self.journal.jobs.values() if job["state"]["nextRunAtMs"] <= now_ms()]
                if self.lease or not due:
                    continue
                job = due[0]
                self.begin("job")
            self.send(job["chat"], f"reminder: {job['message']}")
            with self.changed:
                if job["everyMs"]:
                    self.add_job(job, now_ms() + job["everyMs"], job["everyMs"])
                else:
                    self.journal.write({"ran": job["id"]})
                self.end("job")


def now_ms():
    return int(time.time() * 1000)


def post(url, body, headers):
    """Status and body of the answer; nothing where the connection broke before there was all of it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=120)
    try:
        headers = {"Content-Type": "application/json", **headers}
        connection.request("POST", parts.path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def streamed_text(body):
    """The text of an event stream that came to its end."""
    events = [json.loads(line[5:]) for line in body.decode().splitlines() if line.startswith("data:")]
    if not any(event["type"] == "message_stop" for event in events):
        return None
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    return "".join(delta.get("text", "") for delta in deltas)


def error_message(body):
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return "the model refused"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", headers=()):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))


class Control(Handler):
    def do_GET(self):
        assistant = self.server.assistant
        if self.path == "/healthz":
            return self.reply(200, {"ok": True})
        if self.path in ("/readyz", "/startupz"):
            is_open = assistant.is_open()
            failing = [] if is_open else ["gateway-draining"]
            return self.reply(200 if is_open else 503, {"ready": is_open, "failing": failing})
        self.reply(404)

    def do_POST(self):
        assistant, body = self.server.assistant, self.body()
        assistant.config.refresh()
        if self.headers.get("Authorization") != f"Bearer {assistant.config.token}":
            return self.reply(401, {"error": {"message": "Unauthorized", "type": "unauthorized"}})
        if self.path == "/api/v1/admin/rpc" and assistant.config.has_admin:
            return self.rpc(json.loads(body))
        if self.path == "/v1/chat/completions":
            return self.complete(json.loads(body))
        self.reply(404)

    def rpc(self, request):
        identity = request.get("id", str(uuid.uuid4()))
        try:
            payload = self.call(request["method"], request.get("params") or {})
            self.reply(200, {"id": identity, "ok": True, "payload": payload})
        except Refusal as refusal:
            self.reply(refusal.status, {"id": identity, "ok": False, "error": refusal.error})

    def call(self, method, params):
        assistant = self.server.assistant
        suspension = {
            "gateway.suspend.prepare": assistant.prepare,
            "gateway.suspend.status": assistant.suspension_status,
            "gateway.suspend.resume": assistant.resume,
        }
        if method in suspension:
            return suspension[method](params)
        if not assistant.is_open():
            raise Refusal("UNAVAILABLE", f"{method} unavailable during gateway suspension", 1000)
        with assistant.changed:
            jobs = list(assistant.journal.jobs.values())
            if method == "status":
                return {"sessions": {"recent": [{"updatedAt": assistant.last_activity_ms}]}}
            if method == "channels.status":
                account = {"accountId": "default", "running": True, "connected": assistant.connected}
                account["lastError"] = assistant.last_error
                return {"channelAccounts": {"telegram": [account]}}
            if method == "cron.status":
                next_run = assistant.next_run()
                more = {"nextWakeAtMs": next_run} if next_run is not None else {}
                return {"enabled": True, "jobs": len(jobs), **more}
            if method == "cron.list":
                return {"jobs": jobs, "total": len(jobs)}
            if method == "cron.add":
                schedule, every = params["schedule"], None
                if schedule["kind"] == "at":
                    moment = datetime.fromisoformat(schedule["at"].replace("Z", "+00:00"))
                    at = int(moment.astimezone(timezone.utc).timestamp() * 1000)
                else:
                    every = schedule["everyMs"]
                    at = now_ms() + every
                job = {"id": str(uuid.uuid4()), "name": params["name"], "schedule": schedule}
                job.update(chat=params["delivery"]["to"], message=params["payload"]["message"])
                return assistant.add_job(job, at, every)
        raise Refusal("INVALID_REQUEST", f"unknown method: {method}")

    def complete(self, request):
        assistant = self.server.assistant
        if not assistant.is_open():
            return self.reply(503, {"error": {"code": "gateway_unavailable"}})
        assistant.begin("completion")
        try:
            text = assistant.ask(request["messages"])
        finally:
            assistant.end("completion")
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        answer = {"id": str(uuid.uuid4()), "object": "chat.completion", "created": int(time.time())}
        self.reply(200, {**answer, "model": request["model"], "choices": [choice]})


class Webhook(Handler):
    def do_GET(self):
        self.reply(200 if self.path == "/healthz" else 404)

    def do_POST(self):
        assistant, body = self.server.assistant, self.body()
        assistant.config.refresh()
        if self.path != assistant.config.telegram["webhookPath"]:
            return self.reply(404)
        if self.headers.get("X-Telegram-Bot-Api-Secret-Token") != assistant.config.webhook_secret:
            return self.reply(401)
        try:
            update = json.loads(body)
            update["update_id"] + 0
        except (ValueError, KeyError, TypeError):
            return self.reply(400)
        assistant.take(update)
        self.reply(200, headers=[("x-openclaw-delivery-accepted", "durable")])


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, handler, assistant):
        self.assistant = assistant
        super().__init__(address, handler)

    def server_bind(self):
        # Without the look-up of a name, which takes long where there is no resolver.
        self.socket.setsockopt(1, 2, 1)  # SOL_SOCKET, SO_REUSEADDR
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address


def main():
    config = Config()
    assistant = Assistant(config)
    gateway, telegram = config.whole["gateway"], config.telegram
    control_host = "127.0.0.1" if gateway["bind"] == "loopback" else "0.0.0.0"
    servers = [
        Server((control_host, gateway["port"]), Control, assistant),
        Server((telegram["webhookHost"], telegram["webhookPort"]), Webhook, assistant),
    ]
    turns = threading.Thread(target=assistant.answer_updates)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    for task in (assistant.announce, assistant.run_jobs):
        threading.Thread(target=task, daemon=True).start()

    def end(*_):
        assistant.is_ending = True

    signal.signal(signal.SIGTERM, end)
    turns.start()
    # The turn in hand is finished; those that wait are there at the next start.
    turns.join()


main()
