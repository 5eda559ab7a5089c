/**
 * As much of a server as the client can tell: sessions in memory, each change decided once and in
 * its client's order, commits to everybody. It merges nothing: the last to arrive wins.
 */

import { clone, type JsonObject } from "../../src/core/json";
import { applyAll } from "../../src/core/ops";
import type {
  By,
  ClientFrame,
  Commit,
  PatchOperation,
  Rejected,
  ServerFrame,
  Welcome,
} from "../../src/core/wire";
import type { SocketLike } from "../../src/env";
import { by, commit, rejected, welcome } from "./frames";

interface SessionRecord {
  state: JsonObject;
  commits: Commit[];
  clients: Map<string, { seq: number; at: number | null; rejected: Map<number, Rejected> }>;
  sockets: Map<string, FakeSocket>;
}

export class FakeServer {
  up = true;
  /** What is decided is not told: every acknowledgement is lost. */
  mute = false;
  /** What each welcome says beside what this server knows. */
  terms: Partial<Welcome> = {};
  hellos: (ClientFrame & { type: "hello" })[] = [];
  changes: [clientId: string, seq: number][] = [];
  /** Answers why a hello is turned away. */
  gate: (hello: ClientFrame & { type: "hello" }) => number | null = () => null;
  /** Answers why a change is refused. */
  judge: (frame: ClientFrame & { type: "change" }) => string | null = () => null;
  readonly sessions = new Map<string, SessionRecord>();
  /** When the client said that a commit's change was made; the server's own clock says otherwise. */
  readonly #sentAt = new WeakMap<Commit, number>();
  readonly sockets = new Set<FakeSocket>();

  create(id: string, state: object = {}): SessionRecord {
    const session: SessionRecord = {
      state: clone(state) as JsonObject,
      commits: [],
      clients: new Map(),
      sockets: new Map(),
    };
    this.sessions.set(id, session);
    return session;
  }

  session(id: string): SessionRecord {
    const session = this.sessions.get(id);
    if (!session) throw new Error(`expected a session ${id}`);
    return session;
  }

  /** The connections of all sessions. */
  get online(): number {
    return this.sockets.size;
  }

  /** The process is gone: connections end without a word, and none can be made. */
  kill(): void {
    this.up = false;
    for (const socket of [...this.sockets]) socket.end(1006);
  }

  socketClass(): new (url: string, protocols: string[]) => FakeSocket {
    const server = this;
    return class extends FakeSocket {
      constructor(url: string, protocols: string[]) {
        super(server, url, protocols);
      }
    };
  }

  /** What was posted: kept, and not looked at. */
  readonly posts: { url: URL; init: RequestInit }[] = [];

  fetch: typeof fetch = async (input, init = {}) => {
    const url = new URL(String(input));
    if (init.method === "POST") this.posts.push({ url, init });
    if (!this.up) throw new TypeError("fetch failed");
    if (init.method === "POST") return new Response("{}");
    const [, id = ""] = /\/api\/v0\/session\/([^/]+)\/history$/.exec(url.pathname) ?? [];
    const client = url.searchParams.get("client_id");
    const session = this.session(decodeURIComponent(id));
    const items = session.commits
      .filter(({ by }) => by.client_id === client)
      .map((commit) => ({ ...commit, client_at: this.#sentAt.get(commit) ?? null }));
    return new Response(JSON.stringify({ items, next: null }));
  };

  receive(socket: FakeSocket, frame: ClientFrame): void {
    if (frame.type === "hello") return this.#greet(socket, frame);
    const session = this.session(socket.id);
    if (frame.type === "heartbeat")
      return socket.tell({ type: "heartbeat", t: frame.t ?? null, server_time: 0 });
    if (frame.type === "presence") {
      for (const other of session.sockets.values()) {
        if (other !== socket)
          other.tell({ type: "presence", device_id: socket.device, data: frame.data ?? null });
      }
    }
    if (frame.type === "change") this.#decide(socket, session, frame);
  }

  commit(
    id: string,
    patch: PatchOperation[],
    state: JsonObject,
    author: By,
    clientAt: number,
  ): void {
    const session = this.session(id);
    session.state = state;
    const version = session.commits.length + 1;
    const made = commit(version, patch, author, { at: clientAt - 7 });
    this.#sentAt.set(made, clientAt);
    session.commits.push(made);
    if (!this.mute) for (const socket of session.sockets.values()) socket.tell(made);
  }

  #greet(socket: FakeSocket, hello: ClientFrame & { type: "hello" }): void {
    this.hellos.push(hello);
    const refused = this.gate(hello);
    if (refused !== null) return socket.end(refused);
    let session = this.sessions.get(socket.id);
    const created = !session && hello.create != null;
    if (created) session = this.create(socket.id, hello.create?.state ?? {});
    if (!session) return socket.end(4404);
    session.sockets.get(hello.client_id)?.end(4409);
    session.sockets.set(hello.client_id, socket);
    socket.client = hello.client_id;
    socket.device = hello.device.id;
    const client = session.clients.get(hello.client_id) ?? {
      seq: 0,
      at: null,
      rejected: new Map(),
    };
    session.clients.set(hello.client_id, client);
    const common = welcome({
      session_id: socket.id,
      version: session.commits.length,
      seq: client.seq,
      seq_at: client.at,
      rejected: [...client.rejected]
        .filter(([seq]) => seq > (hello.seq ?? 0))
        .map(([, frame]) => frame),
      created,
      reconnect_jitter_ms: 20,
      ...this.terms,
    });
    const { version = null } = hello;
    socket.tell(
      hello.epoch === "E" && version !== null
        ? { type: "resumed", ...common, commits: session.commits.slice(version) }
        : { type: "initial_state", ...common, state: session.state },
    );
  }

  #decide(
    socket: FakeSocket,
    session: SessionRecord,
    frame: ClientFrame & { type: "change" },
  ): void {
    const client = session.clients.get(socket.client);
    if (!client || session.sockets.get(socket.client) !== socket) return;
    this.changes.push([socket.client, frame.seq]);
    if (frame.seq <= client.seq) return;
    if (frame.seq > client.seq + 1) {
      const expected = client.seq + 1;
      return socket.tell({ type: "error", code: "sequence_gap", message: "", expected });
    }
    client.seq = frame.seq;
    client.at = frame.at;
    const author = { ...by(socket.client, frame.seq), device_id: socket.device };
    const code = this.judge(frame);
    if (code !== null) {
      const refusal = rejected(frame.seq, code);
      client.rejected.set(frame.seq, refusal);
      if (!this.mute) socket.tell(refusal);
      return;
    }
    const state = applyAll(session.state, frame.ops) as JsonObject;
    this.commit(socket.id, [{ op: "replace", path: "", value: state }], state, author, frame.at);
  }
}

export class FakeSocket implements SocketLike {
  onopen: ((event: never) => void) | null = null;
  onmessage: ((event: never) => void) | null = null;
  onclose: ((event: never) => void) | null = null;
  onerror: ((event: never) => void) | null = null;
  readonly id: string;
  client = "";
  device = "";
  #open = true;

  constructor(
    readonly server: FakeServer,
    readonly url: string,
    readonly protocols: string[],
  ) {
    this.id = decodeURIComponent(/\/ws\/session\/([^/]+)$/.exec(url)?.[1] ?? "");
    setImmediate(() => {
      if (!server.up) return this.end(1006);
      if (!this.#open) return;
      server.sockets.add(this);
      this.onopen?.({} as never);
    });
  }

  send(data: string): void {
    setImmediate(() => {
      if (this.#open) this.server.receive(this, JSON.parse(data) as ClientFrame);
    });
  }

  tell(frame: ServerFrame): void {
    const data = JSON.stringify(frame);
    setImmediate(() => {
      if (this.#open) this.onmessage?.({ data } as never);
    });
  }

  /** The server's side ends it. */
  end(code: number): void {
    this.#gone();
    setImmediate(() => this.onclose?.({ code, reason: "" } as never));
  }

  close(): void {
    this.#gone();
  }

  #gone(): void {
    this.#open = false;
    this.server.sockets.delete(this);
    const sockets = this.server.sessions.get(this.id)?.sockets;
    if (sockets?.get(this.client) === this) sockets.delete(this.client);
  }
}
