import type { Effect, HistoryItem, Input, TimerName } from "./core/effects.js";
import { ReattachError } from "./core/errors.js";
import { clone, type Json, type JsonObject } from "./core/json.js";
import type { Rejected } from "./core/outbox.js";
import { record } from "./core/record.js";
import { SessionCore, type Status } from "./core/session.js";
import type {
  Conflict as ConflictRecord,
  DeviceStatus,
  Operation,
  Change as SentChange,
} from "./core/wire.js";
import { browserEnvironment, type Environment, uuid } from "./env.js";
import { ask } from "./http.js";
import { idbStore } from "./kv/idb.js";
import { memoryStore } from "./kv/memory.js";
import type { Store, Transaction } from "./kv/store.js";
import { read, transact } from "./outbox.js";
import { type Line, openLine } from "./socket.js";
import { claimSlot, joinTabs, type Tabs } from "./tabs.js";
import { deviceOf, outboxOf, passOn } from "./users.js";

/** What is read of a state: frozen all the way down. Change it with `session.update`. */
export type DeepReadonly<T> = T extends readonly (infer Item)[]
  ? number extends T["length"]
    ? readonly DeepReadonly<Item>[]
    : { readonly [At in keyof T]: DeepReadonly<T[At]> }
  : T extends object
    ? { readonly [Key in keyof T]: DeepReadonly<T[Key]> }
    : T;

/**
 * A bearer token, or how to get a fresh one: called for each connection, also after a 4401. Where it
 * answers undefined, a cookie says who is there.
 */
export type Token = string | (() => string | undefined | Promise<string | undefined>);

/** A link that lets one other device in. */
export interface Handoff {
  readonly link: string;
  /** Until when it can be opened, in milliseconds since 1970. */
  readonly expiresAt: number;
}

export interface ConnectOptions {
  /** Where the server is, with the prefix it is mounted under. The page's origin by default. */
  url?: string;
  /** The session's id: `[A-Za-z0-9._:~-]{1,128}`. */
  session: string;
  /**
   * The id of who is signed in, as the server knows it. Keeps what users of one browser profile have
   * on it apart: nobody sees or sends what another one typed, and it is there when they come back. A
   * token or a cookie of somebody else gets no line (`not_authenticated`). Left out, whatever is kept
   * without a user is taken: that of whoever uses the profile, where nobody signs in.
   */
  user?: string;
  token?: Token;
  /** How this device is shown to the session's other devices. */
  device?: { name?: string; info?: JsonObject };
  /**
   * Creates the session where it is not there. With a `state`, and no server to be reached, work
   * begins on that.
   */
  create?: { state?: object; schema?: string };
  /** The version of the session's schema that this application was written for. */
  schemaVersion?: number;
  /** Parts of the environment to replace: for tests, workers, old browsers. */
  env?: Partial<Environment>;
  /** Where to keep things, in place of IndexedDB. */
  store?: Store;
}

/** A change on its way. Ignoring it is fine: a refusal is also listed in `session.rejected`. */
export interface Change {
  /** Names the change on this device. */
  readonly ref: string;
  /**
   * Resolves with true when the change is on this device's disk, with false when this device
   * cannot keep it (`status.storage` is `"memory"`). Never rejects.
   */
  readonly stored: Promise<boolean>;
  /**
   * Resolves when the change is in the server's database; that can take until the network is back.
   * Rejects with a `ReattachError` whose `code` is the server's when it was refused for good.
   */
  readonly acknowledged: Promise<void>;
}

/** A value that a merge did not keep, and how to have it back. */
export interface Conflict extends ConflictRecord {
  /** Settles it on all devices: `"kept"`, `"lost"`, or another `{ value }`. */
  resolve(keep: "kept" | "lost" | { value: Json }): Change;
}

/** A change that the server refused for good. It stays in this list until it is dealt with. */
export interface RejectedChange {
  readonly ref: string;
  /** The protocol's code, such as `forbidden`, `test_failed`, `schema_changed`. */
  readonly code: string;
  readonly message: string;
  /** The JSON Pointer of the operation that was the reason, where one was. */
  readonly path: string | undefined;
  readonly ops: readonly Operation[];
  /** When its user acted, in milliseconds since 1970. */
  readonly at: number;
  /** Makes the change anew, over the state of now. Throws `OpError` where it makes no sense there. */
  sendAgain(): Change;
  /** Makes another change in its place. Throws as `sendAgain` does. */
  edit(ops: readonly Operation[]): Change;
  /** Forgets it. */
  discard(): void;
}

/** A value of this device alone: kept with the session, never sent. */
export interface LocalValue<T> {
  get(): T | undefined;
  /** Any value that structured clone can copy; `undefined` removes it. */
  set(value: T | undefined): void;
  /** Calls back after each `set` in this tab, and once when the device's value has been read. */
  subscribe(listener: () => void): () => void;
}

/** What `addEventListener` offers, each as a `CustomEvent` with this `detail`. */
export interface SessionEvents {
  connectionStatusChanged: { connection: Status["connection"] };
  disconnectionDetected: { connection: Status["connection"] };
  reconnectionDetected: { connection: Status["connection"] };
  initialStateReceived: { version: number; created: boolean };
  stateUpdateReceived: unknown;
  sessionRestored: unknown;
  changeRejected: { ref: string; code: string; message: string };
  conflictDetected: ConflictRecord;
  /** The application is too old for the session's schema: see `status.readOnly`. Reload it. */
  upgradeRequired: { message: string };
  /**
   * The server's history was lost (a backup was restored). `lost.state` is what this device had
   * confirmed before; what the server had not decided has been sent again.
   */
  historyLost: { lost: { epoch: string | null; version: number; state: JsonObject } };
  /** The server has every change of this device. */
  saved: { version: number };
  checkpointSaved: { checkpoint: unknown };
  presence: { device_id: string; data: unknown };
}

interface Handle {
  readonly stored: Deferred<boolean>;
  readonly acknowledged: Deferred<void>;
}

/**
 * One session: its state here and now, and what became of each change. Made by `connect`.
 *
 * Reading is synchronous and cheap: every getter answers the same object until it changes, so that
 * `subscribe` and a getter are all that a framework needs.
 */
export class Session<State extends object = JsonObject> extends EventTarget {
  /**
   * Resolves when there is a state to show: from this device, from the server, or from `create`
   * where neither can be had. Rejects with a `ReattachError` when the server said that there is no
   * such session for this user, and this device has nothing of it either.
   */
  readonly ready: Promise<void>;

  readonly #options: ConnectOptions;
  readonly #env: Environment;
  readonly #core: SessionCore;
  readonly #base: string;
  readonly #booted: Promise<void>;
  #user: string | undefined;
  #token: Token | undefined;
  /** Until then it is not known whose the line will be. */
  #claimed: Promise<void> = Promise.resolve();
  #store: Store = memoryStore();
  /** Where the store has this outbox, and this tab's part of it. */
  #prefix = "";
  #rows = "";

  #line: Line | null = null;
  #attempt = 0;
  #tabs: Tabs | null = null;
  #stopNetwork = () => {};
  #releaseSlot = () => {};
  #closed = false;
  readonly #timers = new Map<TimerName, unknown>();
  readonly #effects: Effect[] = [];
  #running = false;
  #storing: Promise<void> | null = null;
  #storeAgain = false;

  readonly #handles = new Map<string, Handle>();
  readonly #listeners = new Set<() => void>();
  #notifying = false;
  #settleReady: (error?: ReattachError) => void = () => {};

  readonly #local = new Map<string, unknown>();
  readonly #localListeners = new Map<string, Set<() => void>>();
  readonly #localDirty = new Set<string>();
  #localWriting: Promise<void> | null = null;

  #status: Status;
  #connection: Status["connection"] = "connecting";
  #conflicts: readonly Conflict[] = [];
  #conflictsOf: readonly ConflictRecord[] = [];
  #rejected: readonly RejectedChange[] = [];
  #rejectedOf: ReadonlyMap<string, Rejected> | null = null;

  constructor(options: ConnectOptions) {
    super();
    const env: Environment = { ...browserEnvironment(), ...options.env };
    const url = options.url ?? env.origin;
    if (url === undefined) {
      throw new ReattachError("bad_url", 'expected a url: there is no page here, pass "url"');
    }
    this.#options = options;
    this.#env = env;
    this.#base = new URL(url).href.replace(/\/+$/, "");
    this.#user = options.user;
    this.#token = options.token;
    const { device, create, schemaVersion } = options;
    this.#core = new SessionCore({
      newId: () => uuid(env),
      random: () => env.random(),
      ...(device && { device: clone(device) as { name?: string; info?: JsonObject } }),
      ...(create && { create: clone(create) as { state?: JsonObject; schema?: string } }),
      ...(schemaVersion !== undefined && { schemaVersion }),
    });
    this.#status = this.#core.status;
    this.ready = new Promise((resolve, reject) => {
      this.#settleReady = (error) => (error ? reject(error) : resolve());
    });
    // Who does not wait for it hears of it in `status`.
    this.ready.catch(() => {});
    this.#booted = this.#boot();
  }

  // ── Reading ────────────────────────────────────────────────────────────────────────────────────

  /**
   * The state as this device's user left it: confirmed, with the pending changes over it. Frozen;
   * what did not change is the same object as before. Throws before `ready`.
   */
  get state(): DeepReadonly<State> {
    return this.#must(this.#core.replica.shown) as DeepReadonly<State>;
  }

  /** The state of `version`, without pending changes. Throws before `ready`. */
  get confirmed(): DeepReadonly<State> {
    return this.#must(this.#core.replica.confirmed?.state) as DeepReadonly<State>;
  }

  /** The version that the server confirmed last. Throws before `ready`. */
  get version(): number {
    return this.#must(this.#core.replica.confirmed?.version);
  }

  get status(): Status {
    const now = this.#core.status;
    const before = this.#status;
    const same = (Object.keys(now) as (keyof Status)[]).every(
      (key) => now[key] === before[key] || (key === "error" && sameError(now.error, before.error)),
    );
    if (!same) this.#status = Object.freeze(now);
    return this.#status;
  }

  /** The conflicts that nobody has settled. */
  get conflicts(): readonly Conflict[] {
    const now = this.#core.conflicts;
    const before = this.#conflictsOf;
    // By record, not by id: the loser's later write replaces what a record calls lost.
    if (now.length !== before.length || now.some((conflict, at) => before[at] !== conflict)) {
      this.#conflictsOf = now;
      this.#conflicts = Object.freeze(
        now.map((conflict) => ({
          ...conflict,
          resolve: (keep: "kept" | "lost" | { value: Json }) =>
            this.change([{ op: "resolve", conflict_id: conflict.id, keep }]),
        })),
      );
    }
    return this.#conflicts;
  }

  /** The changes that the server refused for good, oldest first. */
  get rejected(): readonly RejectedChange[] {
    const { rejected } = this.#core;
    if (this.#rejectedOf !== rejected) {
      this.#rejectedOf = rejected;
      const list = [...rejected.values()].sort((a, b) => a.change.at - b.change.at);
      this.#rejected = Object.freeze(list.map((one) => this.#rejectedChange(one)));
    }
    return this.#rejected;
  }

  /**
   * How concurrent writes of a field merge, by its path with `*` for any token: `latest` where
   * nothing is said. As the server last said, offline too; empty without a schema.
   */
  get policies(): Readonly<Record<string, string>> {
    return this.#core.terms.policies;
  }

  /** The session's schema, as the server last said; null without one. */
  get schema(): { readonly name: string; readonly version: number } | null {
    return this.#core.terms.schema;
  }

  /** The session's devices, as the server last said. */
  get devices(): readonly DeviceStatus[] {
    return this.#core.devices;
  }

  /** The id of this device among them; empty until `ready`. */
  get deviceId(): string {
    return this.#core.deviceId;
  }

  /** Calls back, once a turn, after anything that can be read here has changed. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  override addEventListener<Name extends keyof SessionEvents>(
    type: Name,
    listener: (event: CustomEvent<SessionEvents[Name]>) => void,
    options?: AddEventListenerOptions | boolean,
  ): void;
  override addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: AddEventListenerOptions | boolean,
  ): void;
  override addEventListener(
    type: string,
    listener: unknown,
    options?: AddEventListenerOptions | boolean,
  ): void {
    super.addEventListener(type, listener as EventListener | null, options);
  }

  override removeEventListener<Name extends keyof SessionEvents>(
    type: Name,
    listener: (event: CustomEvent<SessionEvents[Name]>) => void,
    options?: EventListenerOptions | boolean,
  ): void;
  override removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: EventListenerOptions | boolean,
  ): void;
  override removeEventListener(
    type: string,
    listener: unknown,
    options?: EventListenerOptions | boolean,
  ): void {
    super.removeEventListener(type, listener as EventListener | null, options);
  }

  // ── Changing ───────────────────────────────────────────────────────────────────────────────────

  /**
   * Edits a draft of the state; what was done to it becomes one atomic change. In a list of objects
   * with ids, elements put in become `insert`s (one without an id gets a UUIDv7), elements taken out
   * `unset`s, moved ones `move`s. An assignment is a `set`, also `+=`: for counters use `inc`, for
   * text that others edit too `splice`.
   *
   * Throws `OpError` for what is no JSON, and does nothing then.
   */
  update(recipe: (draft: State) => void): Change {
    const state = this.#must(this.#core.replica.shown);
    return this.change(record(state, recipe, () => uuid(this.#env)));
  }

  /** Creates or replaces the value at a path (a JSON Pointer; list elements as `#id`). */
  set(path: string, value: unknown): Change {
    return this.change([{ op: "set", path, value: value as Json }]);
  }

  /** Removes a key or an element. */
  unset(path: string): Change {
    return this.change([{ op: "unset", path }]);
  }

  /** Inserts into a list: after the element with this id, at the front (null), at the end (left out). */
  insert(path: string, value: unknown, after?: string | null): Change {
    return this.change([
      { op: "insert", path, value: value as Json, ...(after !== undefined && { after }) },
    ]);
  }

  /** Moves an element within its list; `after` as in `insert`. */
  move(path: string, after?: string | null): Change {
    return this.change([{ op: "move", path, ...(after !== undefined && { after }) }]);
  }

  /** Adds to a number. Increments by several devices add up. */
  inc(path: string, by = 1): Change {
    return this.change([{ op: "inc", path, by }]);
  }

  /** Edits text: `index` and `remove` count Unicode code points. Edits by several devices merge. */
  splice(path: string, index: number, remove: number, insert: string): Change {
    return this.change([{ op: "splice", path, index, delete: remove, insert }]);
  }

  /** Makes any operations of the protocol one atomic change. Throws `OpError`; see its `code`. */
  change(ops: readonly Operation[]): Change {
    return this.#change(ops);
  }

  /** Tells the session's other devices something that nobody stores; at most 4 KiB of JSON. */
  presence(data: unknown): void {
    if (this.#core.leading) this.#feed({ type: "presence", data: clone(data) });
    else this.#tabs?.post({ type: "presence", data: clone(data) });
  }

  /** A value of this device alone, such as a caret or half-typed text: kept, never sent. */
  local<T>(key: string): LocalValue<T> {
    return {
      get: () => this.#local.get(key) as T | undefined,
      set: (value) => {
        if (value === undefined) this.#local.delete(key);
        else this.#local.set(key, value);
        this.#localDirty.add(key);
        this.#localWriting ??= this.#writeLocal();
        for (const listener of this.#localListeners.get(key) ?? []) listener();
      },
      subscribe: (listener) => {
        const listeners = this.#localListeners.get(key) ?? new Set();
        this.#localListeners.set(key, listeners.add(listener));
        return () => listeners.delete(listener);
      },
    };
  }

  /** All that is on this device and not on the server, to be saved elsewhere. Plain JSON. */
  export(): {
    session_id: string;
    client_id: string;
    changes: readonly SentChange[];
    rejected: readonly Rejected[];
  } {
    return {
      session_id: this.#options.session,
      client_id: this.#core.clientId,
      changes: this.#core.replica.pending.map(({ change }) => change),
      rejected: [...this.#core.rejected.values()],
    };
  }

  /**
   * Makes a session that nobody had signed in for that of who has signed in now, with all that this
   * device has of it, sent or not; `claimSecret` came with the session. `token` says who it is, from
   * now on in place of the one that `connect` was given (left out: the same function, or the page's
   * cookie). Pass `user` to `connect` the next time. Repeat it where its answer was lost. Called right
   * after `connect`, it comes before the line.
   *
   * Rejects with a `ReattachError`: `session_not_found` for a wrong secret and for what somebody
   * else has claimed, `unreachable` where the server does not answer.
   */
  claim(claimSecret: string, token?: Token): Promise<void> {
    const claimed = this.#claim(claimSecret, token);
    this.#claimed = claimed.catch(() => {});
    return claimed;
  }

  /**
   * Makes a link that lets one other device in on this session, as who is here, within ten minutes.
   * It leads to `url` (this page), with a secret in its fragment, `#handoff=…`, for `redeem`.
   * Rejects with a `ReattachError`.
   */
  async handOff(url = this.#env.page): Promise<Handoff> {
    const bearer = await tokenOf(this.#token);
    const to = url?.split("#", 1)[0];
    const answer = await ask(
      this.#env,
      `${this.#address}/handoff`,
      bearer,
      to === undefined ? {} : { url: to },
    );
    const { link, expires_at: expiresAt } = answer as { link: string; expires_at: number };
    return { link, expiresAt };
  }

  /** Hangs up and lets another tab lead. What is pending stays on this device. Changes throw after. */
  async close(): Promise<void> {
    if (this.#closed) return this.#booted;
    this.#closed = true;
    this.#settleReady(new ReattachError("closed", "the session was closed before it was ready"));
    await this.#booted;
    await this.#persist();
    await this.#localWriting;
    this.#feed({ type: "stop" });
    this.#stopNetwork();
    this.#tabs?.stop();
    this.#releaseSlot();
    this.#store.close();
  }

  // ── Inside ─────────────────────────────────────────────────────────────────────────────────────

  get #address(): string {
    return `${this.#base}/api/v0/session/${encodeURIComponent(this.#options.session)}`;
  }

  async #claim(claimSecret: string, token: Token | undefined): Promise<void> {
    await this.#booted;
    const bearer = await tokenOf(token ?? this.#token);
    const answer = await ask(this.#env, `${this.#address}/claim`, bearer, {
      claim_secret: claimSecret,
    });
    const { user_id: userId } = answer as { user_id: string };
    const { session } = this.#options;
    await this.#store.transaction("readwrite", (tx) =>
      passOn(tx, { base: this.#base, session }, this.#prefix, {
        from: this.#user,
        to: userId,
        deviceId: this.#core.deviceId,
        newId: () => uuid(this.#env),
      }),
    );
    this.#tabs?.post({ type: "claimed", userId, ...(token !== undefined && { token: bearer }) });
    this.#belongTo(userId, token);
  }

  #belongTo(userId: string, token: Token | undefined): void {
    this.#user = userId;
    if (token !== undefined) this.#token = token;
    // What waits for another attempt need not wait any more.
    this.#feed({ type: "network", online: this.#env.online() });
  }

  #must<T>(value: T | undefined): T {
    if (value !== undefined) return value;
    throw new ReattachError("not_ready", "expected a state: await session.ready first");
  }

  #change(ops: readonly Operation[], replaces?: string): Change {
    if (this.#closed)
      throw new ReattachError("closed", "expected an open session: this one was closed");
    const ref = uuid(this.#env);
    if (ops.length === 0) {
      return {
        ref,
        stored: Promise.resolve(this.status.savedOnDevice),
        acknowledged: Promise.resolve(),
      };
    }
    // Before anything else happens: a change that makes no sense throws here.
    const effects = this.#core.change(ops, ref, this.#env.now(), replaces);
    const stored = deferred<boolean>();
    const acknowledged = deferred<void>();
    acknowledged.promise.catch(() => {});
    this.#handles.set(ref, { stored, acknowledged });
    this.#run(effects);
    return { ref, stored: stored.promise, acknowledged: acknowledged.promise };
  }

  #rejectedChange({ ref, change, code, message, path }: Rejected): RejectedChange {
    const edit = (ops: readonly Operation[]) => this.#change(ops, ref);
    return {
      ref,
      code,
      message,
      path,
      ops: change.ops,
      at: change.at,
      sendAgain: () => edit(change.ops),
      edit,
      discard: () => this.#run(this.#core.discard(ref)),
    };
  }

  async #boot(): Promise<void> {
    const env = this.#env;
    const { loaded, slot } = await this.#open();
    if (this.#closed) return;
    this.#feed(loaded);
    this.#feed({ type: "network", online: env.online() });
    this.#stopNetwork = env.onNetwork((online) => this.#feed({ type: "network", online }));
    const { locks } = env;
    if (!loaded.durable || slot !== null || !locks) {
      this.#feed({ type: "lead", leading: true, exclusive: false });
      return;
    }
    this.#feed({ type: "lead", leading: false, exclusive: true });
    this.#tabs = joinTabs(env, locks, `reattach:${this.#prefix}`, {
      lead: (leading) => this.#feed({ type: "lead", leading, exclusive: true }),
      message: (message) => {
        switch (message.type) {
          case "poke":
            if (!message.alone) this.#run([{ type: "store" }]);
            else if (!this.#core.leading) {
              this.#feed({ type: "store_failed", message: "another tab could not write" });
            }
            return;
          case "line":
            return this.#feed({ type: "mirror", line: message.line });
          case "event":
            return this.#dispatch(message.event.type, message.event.detail);
          case "presence":
            return this.#feed({ type: "presence", data: message.data });
          case "claimed":
            return this.#belongTo(message.userId, message.token);
          case "hi":
            if (this.#core.leading) this.#tabs?.post({ type: "line", line: this.#core.view });
        }
      },
    });
  }

  /** Opens the store and reads what it holds; goes on in memory where there is none. */
  async #open(): Promise<{ loaded: Input & { type: "loaded" }; slot: number | null }> {
    const env = this.#env;
    let slot: number | null = null;
    let error: string | undefined;
    try {
      const { store } = this.#options;
      if (store) this.#store = store;
      else if (env.indexedDB) this.#store = await idbStore("reattach");
      else error = "this browser has no IndexedDB";
      await this.#find();
      if (this.#store.durable && !env.locks) slot = await this.#takeSlot();
      return { loaded: { ...(await this.#load()), ...(error !== undefined && { error }) }, slot };
    } catch (reason) {
      this.#releaseSlot();
      this.#store = memoryStore();
      await this.#find();
      return { loaded: { ...(await this.#load()), error: text(reason) }, slot: null };
    }
  }

  /** Finds the outbox of who is signed in. */
  async #find(): Promise<void> {
    const { session } = this.#options;
    const place = { base: this.#base, session };
    this.#prefix = await this.#store.transaction("readonly", (tx) =>
      outboxOf(tx, place, this.#user),
    );
    this.#rows = this.#prefix;
  }

  /** Takes an outbox for this tab alone: one that a tab left with changes in it, or a free one. */
  async #takeSlot(): Promise<number> {
    const prefix = this.#prefix;
    const count = async (tx: Transaction) => ((await tx.get(`${prefix}tabs`)) ?? 0) as number;
    const waiting = await this.#store.transaction("readonly", async (tx) => {
      const left: number[] = [];
      for (let slot = 0, all = await count(tx); slot < all; slot++) {
        const changes = `${prefix}tab/${slot}/change/`;
        if ((await tx.range(changes, `${changes}\uffff`)).length > 0) left.push(slot);
      }
      return left;
    });
    const { slot, release } = await claimSlot(this.#env, `reattach:${prefix}`, waiting);
    this.#releaseSlot = release;
    this.#rows = `${prefix}tab/${slot}/`;
    await this.#store.transaction("readwrite", async (tx) => {
      tx.put(`${prefix}tabs`, Math.max(await count(tx), slot + 1));
    });
    return slot;
  }

  async #load(): Promise<Input & { type: "loaded" }> {
    const store = this.#store;
    const here = `${this.#prefix}local/`;
    const { deviceId, found, local } = await store.transaction("readwrite", async (tx) => {
      const deviceId = await deviceOf(tx, this.#prefix, this.#user, () => uuid(this.#env));
      const found = await read(tx, this.#rows, null);
      const local = (await tx.range(here, `${here}\uffff`)) as { key: string; value: unknown }[];
      return { deviceId, found, local };
    });
    for (const { key, value } of local) {
      if (this.#localDirty.has(key)) continue;
      this.#local.set(key, value);
      for (const listener of this.#localListeners.get(key) ?? []) listener();
    }
    return { type: "loaded", deviceId, found, durable: store.durable };
  }

  async #writeLocal(): Promise<void> {
    await this.#booted;
    while (this.#localDirty.size > 0) {
      const keys = [...this.#localDirty];
      this.#localDirty.clear();
      await this.#store
        .transaction("readwrite", async (tx) => {
          for (const key of keys) {
            const row = `${this.#prefix}local/${key}`;
            if (this.#local.has(key)) tx.put(row, { key, value: this.#local.get(key) });
            else tx.delete(row);
          }
        })
        // A caret that is not kept is no loss that anybody must be told of.
        .catch(() => {});
    }
    this.#localWriting = null;
  }

  #feed(input: Input): void {
    this.#run(this.#core.step(input, this.#env.now()));
  }

  /** Carries out effects in the order in which they came, also those that they themselves cause. */
  #run(effects: readonly Effect[]): void {
    this.#effects.push(...effects);
    if (this.#running) return;
    this.#running = true;
    for (let next = this.#effects.shift(); next; next = this.#effects.shift()) this.#carryOut(next);
    this.#running = false;
  }

  #carryOut(effect: Effect): void {
    switch (effect.type) {
      case "connect":
        return void this.#connect(++this.#attempt);
      case "send":
        return this.#line?.send(effect.frame);
      case "disconnect":
        this.#attempt++;
        this.#line?.stop();
        this.#line = null;
        return;
      case "store":
        return void this.#persist();
      case "timer":
        return this.#setTimer(effect.name, effect.ms);
      case "history":
        return void this.#history(effect.clientId, effect.from);
      case "event":
        this.#dispatch(effect.event.type, effect.event.detail);
        if (effect.event.type === "presence") this.#tabs?.post(effect);
        return;
      case "kept":
        return this.#handles.get(effect.ref)?.stored.resolve(effect.durable);
      case "decided": {
        const handle = this.#handles.get(effect.ref);
        this.#handles.delete(effect.ref);
        const { error } = effect;
        handle?.stored.resolve(this.#core.status.storage === "durable");
        if (error) handle?.acknowledged.reject(new ReattachError(error.code, error.message));
        else handle?.acknowledged.resolve();
        return;
      }
      case "poke":
        return this.#tabs?.post({ type: "poke", alone: effect.alone ?? false });
      case "tell":
        if (this.#core.leading) this.#tabs?.post({ type: "line", line: this.#core.view });
        return;
      case "detach":
        this.#tabs?.stop();
        this.#tabs = null;
        this.#store.close();
        this.#store = memoryStore();
        return;
      case "changed":
        return this.#changed();
    }
  }

  async #connect(attempt: number): Promise<void> {
    let token: string | undefined;
    await this.#claimed;
    try {
      token = await tokenOf(this.#token);
    } catch (reason) {
      if (attempt === this.#attempt)
        this.#feed({ type: "closed", code: 4401, reason: text(reason) });
      return;
    }
    if (attempt !== this.#attempt) return;
    this.#feed({ type: "dialing" });
    const path = `/ws/session/${encodeURIComponent(this.#options.session)}`;
    try {
      this.#line = openLine(this.#env, this.#base.replace(/^http/, "ws") + path, {
        opened: () => this.#feed({ type: "opened", token, userId: this.#user }),
        frame: (frame) => this.#feed({ type: "frame", frame }),
        closed: (code, reason) => {
          this.#line = null;
          this.#feed({ type: "closed", code, reason });
        },
      });
    } catch (reason) {
      this.#feed({ type: "closed", code: 1006, reason: text(reason) });
    }
  }

  /** One transaction after the other; what is to be stored meanwhile waits for the next. */
  #persist(): Promise<void> {
    this.#storeAgain = true;
    this.#storing ??= (async () => {
      await null;
      while (this.#storeAgain) {
        this.#storeAgain = false;
        let outcome: Input = { type: "stored" };
        try {
          await transact(this.#store, this.#rows, this.#core, () => this.#env.now());
        } catch (reason) {
          outcome = { type: "store_failed", message: text(reason) };
        }
        this.#feed(outcome);
      }
      this.#storing = null;
    })();
    return this.#storing;
  }

  #setTimer(name: TimerName, ms: number | null): void {
    this.#env.clearTimer(this.#timers.get(name));
    this.#timers.delete(name);
    if (ms === null) return;
    const timer = this.#env.setTimer(() => {
      if (this.#timers.get(name) !== timer) return;
      this.#timers.delete(name);
      this.#feed({ type: "timer", name });
    }, ms);
    this.#timers.set(name, timer);
  }

  async #history(clientId: string, from: number): Promise<void> {
    const commits: HistoryItem[] = [];
    try {
      const token = await tokenOf(this.#token);
      const path = `${this.#address}/history`;
      let next: string | null = null;
      do {
        const query: URLSearchParams = new URLSearchParams({
          client_id: clientId,
          from: String(from),
        });
        if (next !== null) query.set("next", next);
        const answer = await this.#env.fetch(`${path}?${query}`, {
          headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
        });
        if (!answer.ok) throw new Error(`expected the history, got ${answer.status}`);
        const page = (await answer.json()) as { items: HistoryItem[]; next?: string | null };
        commits.push(...page.items);
        next = page.next ?? null;
      } while (next !== null);
      this.#feed({ type: "history", commits });
    } catch {
      this.#feed({ type: "history", commits: null });
    }
  }

  #dispatch(type: string, detail: unknown): void {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #changed(): void {
    const { connection, error } = this.status;
    if (this.#core.replica.confirmed) this.#settleReady();
    else if (connection === "closed" && error) {
      this.#settleReady(new ReattachError(error.code, error.message));
    }
    const before = this.#connection;
    if (connection !== before) {
      this.#connection = connection;
      this.#dispatch("connectionStatusChanged", { connection });
      if (before === "online") this.#dispatch("disconnectionDetected", { connection });
      if (before === "reconnecting" && connection === "online") {
        this.#dispatch("reconnectionDetected", { connection });
      }
    }
    if (this.#notifying) return;
    this.#notifying = true;
    queueMicrotask(() => {
      this.#notifying = false;
      for (const listener of [...this.#listeners]) {
        try {
          listener();
        } catch (error) {
          // One listener's mistake is neither ours nor the others'.
          queueMicrotask(() => {
            throw error;
          });
        }
      }
    });
  }
}

async function tokenOf(given: Token | undefined): Promise<string | undefined> {
  return typeof given === "function" ? await given() : given;
}

interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: Error): void;
}

function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((done, refuse) => {
    resolve = done;
    reject = refuse;
  });
  return { promise, resolve, reject };
}

function sameError(one: Status["error"], other: Status["error"]): boolean {
  return one?.code === other?.code && one?.message === other?.message;
}

function text(reason: unknown): string {
  return reason instanceof Error ? reason.message : String(reason);
}
