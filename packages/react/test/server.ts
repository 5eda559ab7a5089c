/** The least of a server that a session connects to: it welcomes, and commits what it is sent. */

import { type ConnectOptions, connect, memoryStore, type Session } from "reattach";

export interface Draft {
  title: string;
  count: number;
  steps: { id: string; text: string }[];
}

const WELCOME = {
  epoch: "e",
  seq: 0,
  seq_at: null,
  created: false,
  devices: [{ id: "d1", name: "A phone", online: true, is_primary: true, last_activity: 0 }],
  conflicts: [],
  rejected: [],
  heartbeat: { interval_ms: 5_000, timeout_ms: 15_000 },
  reconnect_jitter_ms: 1_000,
};

export const FIRST: Draft = { title: "One", count: 0, steps: [{ id: "s1", text: "Welcome" }] };

/** Each test's own; `refuse` has it refuse what it is sent, `silent` never answer. */
export class Server {
  refuse = false;
  silent = false;
  known = true;
  /** What came of `presence`. */
  readonly present: unknown[] = [];
  #version = 1;
  readonly #state = structuredClone(FIRST) as unknown as Record<string, unknown>;
  #say: (frame: unknown) => void = () => {};
  #cut: () => void = () => {};

  connect(options: Partial<ConnectOptions> = {}): Session<Draft> {
    const server = this;
    class Socket {
      onopen: ((event: never) => void) | null = null;
      onmessage: ((event: never) => void) | null = null;
      onclose: ((event: never) => void) | null = null;
      onerror: ((event: never) => void) | null = null;
      constructor() {
        server.#say = (frame) => this.onmessage?.({ data: JSON.stringify(frame) } as never);
        server.#cut = () => this.onclose?.({ code: 1006, reason: "" } as never);
        queueMicrotask(() => this.onopen?.({} as never));
      }
      send(data: string): void {
        queueMicrotask(() => server.#hear(JSON.parse(data), this));
      }
      close(): void {}
    }
    return connect<Draft>({
      url: "http://server.test",
      session: "s",
      store: memoryStore(),
      ...options,
      env: { WebSocket: Socket },
    });
  }

  /** What another device did. */
  commit(path: keyof Draft, value: unknown, extra: object = {}): void {
    this.#state[path] = value;
    this.#commit(path, value, extra);
  }

  /** Another device is there, or not, and says something of itself. */
  device(id: string, online: boolean, data?: unknown): void {
    const here = { id, name: null, online, is_primary: false, last_activity: 0 };
    this.#say({ type: "devices", devices: [...WELCOME.devices, here] });
    if (data !== undefined) this.say(id, data);
  }

  /** What another device says of itself. */
  say(id: string, data: unknown): void {
    this.#say({ type: "presence", device_id: id, data });
  }

  /** The line breaks, and can be opened again. */
  cut(): void {
    this.#cut();
  }

  #commit(path: string, value: unknown, extra: object): void {
    this.#say({
      type: "state_update",
      version: ++this.#version,
      patch: [{ op: "replace", path: `/${path}`, value }],
      by: { device_id: "d1", source: "device" },
      at: 1,
      ...extra,
    });
  }

  #hear(frame: { type: string; client_id?: string; [key: string]: unknown }, socket: object): void {
    if (this.silent) return;
    if (frame.type === "hello") {
      this.#client = frame.client_id;
      if (!this.known) {
        const { onclose } = socket as { onclose: ((event: unknown) => void) | null };
        return onclose?.({ code: 4404, reason: "there is no such session" });
      }
      return this.#say({
        ...WELCOME,
        type: "initial_state",
        version: this.#version,
        state: this.#state,
      });
    }
    if (frame.type === "presence") this.present.push(frame.data);
    if (frame.type !== "change") return;
    const { seq, ops } = frame as unknown as {
      seq: number;
      ops: { path: string; value: unknown }[];
    };
    if (this.refuse) {
      return this.#say({ type: "rejected", seq, code: "forbidden", message: "you may not" });
    }
    const [op] = ops;
    if (!op) return;
    const name = op.path.slice(1);
    this.#state[name] = op.value;
    this.#commit(name, op.value, { by: { client_id: this.#client, seq, source: "device" } });
  }

  #client: string | undefined;
}
