// Sets values on a server and reads them back, as a browser would. One JSON text a line comes in; what
// each came to goes out: {"refused": code} or {"seen": …, "live": …, "resumed": …, "history": …}.
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { connect, memoryStore } from "../../packages/client/dist/index.js";

const [url, session] = process.argv.slice(2);

/** A line that can be cut. */
const sockets = new Set();
class Line extends WebSocket {
  constructor(...given) {
    super(...given);
    sockets.add(this);
    this.on("close", () => sockets.delete(this));
  }
}

const join = async () => {
  const env = { WebSocket: Line, locks: undefined, random: () => 0 };
  const joined = connect({ url, session, store: memoryStore(), env });
  await joined.ready;
  return joined;
};

/** Resolves when a session has a version. */
const reached = (joined, version) =>
  new Promise((resolve) => {
    const look = () => {
      if (joined.version < version) return;
      stop();
      resolve();
    };
    const stop = joined.subscribe(look);
    look();
  });

const writer = await join();
const reader = await join();
const sleeper = await join();
const results = [];
let number = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const path = `/values/${number++}`;
  try {
    await writer.set(path, JSON.parse(line)).acknowledged;
    const { version } = writer;
    await reached(reader, version);
    results.push({ at: version, seen: reader.state.values[path.slice(8)] });
  } catch (error) {
    results.push({ refused: error.code ?? String(error) });
  }
  if (number % 10 === 0) for (const socket of [...sockets]) socket.terminate();
}
await reached(sleeper, writer.version);
const newcomer = await join();
for (const [index, result] of results.entries()) {
  if ("refused" in result) continue;
  result.live = sleeper.state.values[index];
  result.fresh = newcomer.state.values[index];
  const history = `${url}/api/v0/session/${session}/history?from=${result.at}&to=${result.at}`;
  const { items } = await (await fetch(history)).json();
  result.history = items[0].patch[0].value;
}
for (const result of results) process.stdout.write(`${JSON.stringify(result)}\n`);
process.exit(0);
