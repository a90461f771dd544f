// What OpenClaw 2026.9.6 needs to start where everything takes dozens of times as long: it gives up a start at which one of
// its threads is not ready within 5 s, and then one that does not answer within 1 s. While these modules are loaded, the
// two limits are made longer. Given to node by `--import`, and for `scripts/e2e-openclaw` only.

import { registerHooks } from "node:module";

const LIMITS = [
  { file: /\/openclaw-state-lease-heartbeat-shared-[^/]*\.mjs$/, name: "LEASE_HEARTBEAT_START_TIMEOUT_MS", from: "5e3", to: "9e5" },
  { file: /\/openclaw-state-lease-heartbeat-(?!shared-)[^/]*\.mjs$/, name: "WORKER_RESPONSE_TIMEOUT_MS", from: "1e3", to: "12e4" },
];

registerHooks({
  load(url, context, nextLoad) {
    const loaded = nextLoad(url, context);
    const limit = LIMITS.find(({ file }) => file.test(url));
    if (!limit) return loaded;
    const [before, after] = [limit.from, limit.to].map((value) => `const ${limit.name} = ${value};`);
    const source = loaded.source.toString();
    if (!source.includes(before)) throw new Error(`patience.mjs: ${url} does not say \`${before}\` any more`);
    console.error(`patience.mjs: ${limit.name} is ${limit.to} instead of ${limit.from}`);
    return { ...loaded, source: source.replace(before, after) };
  },
});
