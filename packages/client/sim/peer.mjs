/**
 * The built client's core for the simulator (`reattach.testing.simulator`): any number of clients in
 * one process. A line of JSON on stdin is a request, its answer is a line on stdout.
 *
 * A client's disk is its rows as the client's own transactions left them. Here they are begun and
 * ended by requests, so that a client can be killed in the middle, and come back with its rows of
 * now or of then.
 */

import { createInterface } from "node:readline";
import { SessionCore } from "../dist/core/session.js";
import { read } from "../dist/outbox.js";

/** @typedef {Map<string, unknown>} Rows */

/** By name: rows, a core, and the transaction under way. */
const clients = new Map();

class Client {
  /** @param {string} name @param {object} options */
  constructor(name, options) {
    this.name = name;
    this.options = options;
    /** @type {Rows} */
    this.rows = new Map();
    /** @type {Map<string, Rows>} */
    this.copies = new Map();
    this.ids = 0;
    this.seed = options.seed;
    this.writing = null;
    this.sent = null;
    this.boots = 0;
  }

  newId() {
    return `${this.name}.${this.boots}.${++this.ids}`;
  }

  /** The numbers of mulberry32 (Tommy Ettinger, public domain): small, and good enough to wait by. */
  random() {
    this.seed = (this.seed + 0x6d2b79f5) | 0;
    let t = Math.imul(this.seed ^ (this.seed >>> 15), 1 | this.seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  async boot(now) {
    this.boots++;
    this.ids = 0;
    this.writing = null;
    this.sent = null;
    this.core = new SessionCore({
      newId: () => this.newId(),
      random: () => this.random(),
      create: this.options.create,
    });
    const found = await read(transaction(this.rows), "", null);
    const deviceId = this.options.device;
    return [
      ...this.core.step({ type: "loaded", found, deviceId, durable: true }, now),
      ...this.core.step({ type: "lead", leading: true, exclusive: true }, now),
    ];
  }

  async take(now) {
    const found = await read(transaction(this.rows), "", this.core.mark);
    this.writing = structuredClone(this.core.take(found, now));
  }

  commit() {
    for (const { key, to, value } of this.writing ?? []) {
      if (to !== undefined) {
        for (const one of [...this.rows.keys()]) if (key <= one && one < to) this.rows.delete(one);
      } else if (value === undefined) this.rows.delete(key);
      else this.rows.set(key, value);
    }
    this.writing = null;
  }

  /** What the simulator looks at after each step; a state only where it is another one. */
  view() {
    const { core } = this;
    const { confirmed, pending } = core.replica;
    const view = {
      client_id: core.clientId,
      connection: core.status.connection,
      epoch: confirmed?.epoch ?? null,
      version: confirmed?.version ?? null,
      pending: pending.map(({ ref, change, stored }) => [ref, change.seq, stored]),
      rejected: [...core.rejected.keys()],
    };
    if (confirmed && confirmed.state !== this.sent) {
      this.sent = confirmed.state;
      view.state = confirmed.state;
    }
    return view;
  }
}

function transaction(rows) {
  return {
    get: async (key) => structuredClone(rows.get(key)),
    range: async (from, to) =>
      [...rows.keys()]
        .filter((key) => from <= key && key < to)
        .sort()
        .map((key) => structuredClone(rows.get(key))),
  };
}

async function answer({ name, act, now, ...more }) {
  if (act === "clear") {
    clients.clear();
    return {};
  }
  if (act === "new") clients.set(name, new Client(name, more.options));
  const client = clients.get(name);
  const { core } = client;
  let effects = [];
  switch (act) {
    case "new":
      return {};
    case "boot":
      effects = await client.boot(now);
      break;
    case "step":
      effects = core.step(more.input, now);
      break;
    case "change":
      try {
        effects = core.change(more.ops, more.ref, now);
      } catch (error) {
        if (error.code === undefined) throw error;
        return { refused: error.code };
      }
      break;
    case "take":
      await client.take(now);
      return {};
    case "commit":
      client.commit();
      return {};
    case "save":
      client.copies.set(more.copy, structuredClone(client.rows));
      return {};
    case "put back":
      client.rows = structuredClone(client.copies.get(more.copy));
      return {};
    case "look":
      return { shown: core.replica.shown ?? null, conflicts: core.conflicts };
  }
  for (const effect of effects) {
    if (effect.type === "send" && effect.frame.type === "change") {
      const { seq } = effect.frame;
      effect.ref = core.replica.pending.find(({ change }) => change.seq === seq)?.ref;
    }
  }
  return { effects, view: client.view() };
}

for await (const line of createInterface({ input: process.stdin })) {
  let result;
  try {
    result = await answer(JSON.parse(line));
  } catch (error) {
    result = { failed: String(error?.stack ?? error) };
  }
  process.stdout.write(`${JSON.stringify(result)}\n`);
}
