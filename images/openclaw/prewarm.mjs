// Runs OpenClaw once, for nobody, so that what it loads is compiled in memory of which clones are made. What it made for
// itself is removed: each machine makes its own. A start that takes too long fills less and is no failure.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";

const CACHE = "/var/tmp/node-compile-cache";
const PORT = 18789;
const PATIENCE_MS = 420_000;

const folder = mkdtempSync("/tmp/prewarm-");
const config = {
  gateway: { mode: "local", bind: "loopback", port: PORT, auth: { mode: "none" }, controlUi: { enabled: false } },
  logging: { file: `${folder}/openclaw.log` },
  plugins: {
    allow: ["admin-http-rpc", "anthropic", "memory-core", "telegram"],
    entries: { "admin-http-rpc": { enabled: true } },
  },
};
writeFileSync(`${folder}/openclaw.json`, JSON.stringify(config));

const gateway = spawn(process.execPath, ["/usr/bin/openclaw", "gateway", "run"], {
  stdio: ["ignore", "inherit", "inherit"],
  env: {
    ...process.env,
    HOME: folder,
    TMPDIR: folder,
    NODE_COMPILE_CACHE: CACHE,
    OPENCLAW_STATE_DIR: folder,
    OPENCLAW_CONFIG_PATH: `${folder}/openclaw.json`,
    OPENCLAW_WORKSPACE_DIR: `${folder}/workspace`,
    OPENCLAW_DISABLE_BONJOUR: "1",
    OPENCLAW_NO_RESPAWN: "1",
    OPENCLAW_NO_AUTO_UPDATE: "1",
  },
});
const ended = new Promise((resolve) => gateway.once("exit", resolve));
const deadline = Date.now() + PATIENCE_MS;

while (Date.now() < deadline && gateway.exitCode === null) {
  const answer = await fetch(`http://127.0.0.1:${PORT}/readyz`).catch(() => undefined);
  if (answer?.ok) break;
  await new Promise((resolve) => setTimeout(resolve, 500));
}
// At its end node writes the cache.
gateway.kill("SIGTERM");
const killed = setTimeout(() => gateway.kill("SIGKILL"), 60_000);
await ended;
clearTimeout(killed);
for (const left of [folder, `/tmp/openclaw-state-locks-${process.getuid()}`]) {
  rmSync(left, { recursive: true, force: true });
}
