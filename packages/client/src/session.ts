import type {
  Change,
  Checkpoint,
  Conflict,
  ConnectOptions,
  DeepReadonly,
  Handoff,
  Imported,
  LocalValue,
  Outbox,
  RejectedChange,
  SessionTarget,
  Token,
} from "./api.js";
import { Connection } from "./connection.js";
import type { Effect, Input, TimerName } from "./core/effects.js";
import { isOutdated, ReattachError, text } from "./core/errors.js";
import { clone, type Json, type JsonObject } from "./core/json.js";
import type { Rejected } from "./core/outbox.js";
import { record } from "./core/record.js";
import { SessionCore, type Status } from "./core/session.js";
import type { Conflict as ConflictRecord, DeviceStatus, Operation } from "./core/wire.js";
import { Disk } from "./disk.js";
import { baseOf, browserEnvironment, type Environment, type PageMoment, uuid } from "./env.js";
import { Handles } from "./handles.js";
import { beside } from "./later.js";
import { joinTabs, type Tabs } from "./tabs.js";

/** What fits into one request that outlives its page (64 KiB; Fetch, "keepalive"), with its head. */
const BREATH_BYTES = 60_000;

/**
 * One session: its state here and now, and what became of each change. Made by `connect`.
 *
 * Reading is synchronous and cheap: every getter answers the same object until it changes, so that
 * `subscribe` and a getter are all that a framework needs.
 */
export class Session<
  State extends object = JsonObject,
> extends (EventTarget as new () => SessionTarget) {
  /**
   * Resolves when there is a state to show: from this device, from the server, or from `create`
   * where neither can be had. Rejects with a `ReattachError` when the server said that there is no
   * such session for this user, and this device has nothing of it either.
   */
  readonly ready: Promise<void>;

  readonly #env: Environment;
  readonly #options: ConnectOptions;
  readonly #core: SessionCore;
  readonly #disk: Disk;
  readonly #connection: Connection;
  readonly #booted: Promise<void>;

  #tabs: Tabs | null = null;
  /** The tabs of this profile share the outbox, and this page has not left them for good. */
  #shares = false;
  readonly #stops: (() => void)[] = [];
  #closed = false;
  #guarded = false;
  #askedToPersist = false;
  readonly #timers = new Map<TimerName, unknown>();
  readonly #effects: Effect[] = [];
  #running = false;
  #storing: Promise<void> | null = null;
  #storeAgain = false;

  readonly #handles = new Handles();
  readonly #listeners = new Set<() => void>();
  #notifying = false;
  #settleReady: (error?: ReattachError) => void = () => {};

  #status: Status;
  #was: Status["connection"] = "connecting";
  #conflicts: readonly Conflict[] = [];
  #conflictsOf: readonly ConflictRecord[] = [];
  #rejected: readonly RejectedChange[] = [];
  #rejectedOf: ReadonlyMap<string, Rejected> | null = null;

  constructor(options: ConnectOptions) {
    super();
    const env: Environment = { ...browserEnvironment(), ...options.env };
    const base = baseOf(env, options.url);
    this.#env = env;
    this.#options = options;
    this.#disk = new Disk(env, { base, session: options.session });
    this.#connection = new Connection(env, base, options.session, (input) => this.#feed(input));
    this.#connection.user = options.user;
    this.#connection.token = options.token;
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

  /** Whether it is online, and where the work is. */
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

  /**
   * Makes the state that of a checkpoint, or of a version (`checkpoint_id: "latest"`: the newest checkpoint).
   * It shows when the server has made it, and another restore undoes it.
   */
  restore(
    to: number | Checkpoint | { readonly version: number } | { readonly checkpoint_id: string },
  ): Change {
    if (typeof to === "number") return this.restore({ version: to });
    return this.change([{ op: "restore", ...("id" in to ? { checkpoint_id: to.id } : to) }]);
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
    return this.#disk.local(key);
  }

  /**
   * All that is on this device and not on the server, to be saved elsewhere. Plain JSON: another device
   * can `import` it. Changes of a moment ago are in it without a number, and cannot be imported: await
   * their `stored` first.
   */
  export(): Outbox {
    return {
      session_id: this.#options.session,
      client_id: this.#core.clientId,
      device: this.#core.device,
      changes: this.#core.replica.pending.map(({ change }) => change),
      rejected: [...this.#core.rejected.values()],
    };
  }

  /**
   * Sends what another device of this user exported, under the name and numbers that it has there. So
   * it takes effect once, imported twice or sent by that device, too.
   *
   * Rejects with a `ReattachError`, and may be repeated: `bad_outbox` for what no `export` of this
   * session has made, `forbidden` for an outbox of another user, `unreachable` where the server does
   * not answer.
   */
  async import(outbox: Outbox): Promise<Imported> {
    await this.ready;
    const { importOutbox } = await beside();
    const now = Math.floor(this.#env.now());
    return importOutbox(this.#connection, this.#core, this, { outbox, now });
  }

  /**
   * Saves a checkpoint: a mark, with a name (256 characters) and data (4 KiB of JSON) if you like, on a
   * version that has all that was changed here before. `restore` can always come back to it. Resolves when
   * it is in the server's database, which can take until the network is back.
   *
   * Rejects with a `ReattachError`: `too_large`, `forbidden`, `session_ended`, `closed`, and
   * `unreachable` where the server's answer was lost.
   */
  async saveCheckpoint(name?: string, data?: unknown): Promise<Checkpoint> {
    await this.ready;
    const { saveCheckpoint } = await beside();
    return saveCheckpoint(this.#connection, this.#core, this, {
      ref: uuid(this.#env),
      ...(name !== undefined && { name }),
      ...(data !== undefined && { data: clone(data) }),
    });
  }

  /**
   * The session's checkpoints, newest version first: saved by people (`kind` is `"named"`), by the server
   * when the last device left or a step was done (`"automatic"`), and before each restore
   * (`"before_restore"`). Rejects with a `ReattachError`, `unreachable` where the server does not answer.
   */
  async checkpoints(): Promise<readonly Checkpoint[]> {
    return (await beside()).checkpoints(this.#connection);
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
    this.#connection.claimed = claimed.catch(() => {});
    return claimed;
  }

  /**
   * Makes a link that lets one other device in on this session, as who is here, within ten minutes.
   * It leads to `url` (this page), with a secret in its fragment, `#handoff=…`, for `redeem`.
   * Rejects with a `ReattachError`.
   */
  async handOff(url = this.#env.page): Promise<Handoff> {
    return (await beside()).handOff(this.#connection, url);
  }

  /** Hangs up and lets another tab lead. What is pending stays on this device. Changes throw after. */
  async close(): Promise<void> {
    if (this.#closed) return this.#booted;
    this.#closed = true;
    this.#settleReady(new ReattachError("closed", "the session was closed before it was ready"));
    await this.#booted;
    await this.#persist();
    this.#feed({ type: "stop" });
    for (const stop of this.#stops) stop();
    this.#tabs?.stop();
    await this.#disk.close();
  }

  // ── Inside ─────────────────────────────────────────────────────────────────────────────────────

  async #claim(claimSecret: string, token: Token | undefined): Promise<void> {
    await this.#booted;
    const connection = this.#connection;
    const bearer = await connection.bearer(token);
    const userId = await (await beside()).claim(connection, claimSecret, bearer);
    await this.#disk.passOn(connection.user, userId, this.#core.deviceId);
    this.#tabs?.post({ type: "claimed", userId, ...(token !== undefined && { token: bearer }) });
    this.#belongTo(userId, token);
  }

  #belongTo(userId: string, token: Token | undefined): void {
    this.#connection.user = userId;
    if (token !== undefined) this.#connection.token = token;
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
    const change = this.#handles.open(ref);
    this.#run(effects);
    return change;
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
    const { loaded, slot } = await this.#disk.open(this.#connection.user, this.#options.store);
    if (this.#closed) return;
    this.#feed(loaded);
    this.#feed({ type: "network", online: env.online() });
    this.#stops.push(
      env.onNetwork((online) => this.#feed({ type: "network", online })),
      env.onPage((moment) => this.#onPage(moment)),
    );
    this.#feed({ type: "page", visible: env.visible(), woken: false });
    this.#shares = loaded.durable && slot === null && env.locks !== undefined;
    this.#feed({ type: "lead", leading: !this.#shares, exclusive: this.#shares });
    this.#join();
  }

  /** Shares the outbox with the profile's other tabs. */
  #join(): void {
    const env = this.#env;
    const { locks } = env;
    if (!locks || !this.#shares || this.#tabs || this.#closed) return;
    this.#tabs = joinTabs(env, locks, `reattach:${this.#disk.prefix}`, {
      lead: (leading) => this.#feed({ type: "lead", leading, exclusive: true }),
      waits: () => this.#waits,
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

  /** Somebody is here, whose changes another tab is to send. */
  get #waits(): boolean {
    return !this.#core.leading && this.#core.replica.pending.length > 0 && this.#env.visible();
  }

  #onPage(moment: PageMoment): void {
    // A frozen page still answers other tabs, and does nothing of what it leads for.
    const gone = moment === "hide" || moment === "freeze";
    if (gone || moment === "hidden") this.#breathe();
    if (gone && this.#tabs) {
      // What is being written as it goes: nobody here will say so any more. Who looks now comes after it.
      if (this.#storing) this.#tabs.post({ type: "poke", alone: false });
      // A page that holds a lock is not kept for going back to it.
      this.#tabs.stop();
      this.#tabs = null;
      this.#feed({ type: "lead", leading: false, exclusive: true });
    }
    if ((moment === "show" || moment === "resume") && !this.#tabs && this.#shares) {
      this.#join();
      this.#run([{ type: "store" }]);
    }
    const visible = !gone && this.#env.visible();
    if (visible && !this.#core.leading) this.#tabs?.urge();
    this.#feed({ type: "page", visible, woken: !gone && moment !== "hidden" });
  }

  /** Sends what the server may not have yet: this page may not come to it any more. */
  #breathe(): void {
    let room = BREATH_BYTES;
    const fits = (change: object) => {
      room -= new TextEncoder().encode(JSON.stringify(change)).length + 1;
      return room >= 0;
    };
    const body = this.#core.lastBreath(fits, this.#env.now());
    if (body) this.#connection.breathe(body);
  }

  /** Asks the browser to keep what is stored here, once there is something. */
  #askToPersist(): void {
    if (this.#askedToPersist || this.#options.store) return;
    this.#askedToPersist = true;
    this.#env.persist?.().then(
      (persisted) => this.#feed({ type: "persisted", persisted }),
      // Who cannot say promises nothing.
      () => this.#feed({ type: "persisted", persisted: false }),
    );
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
        return void this.#connection.dial();
      case "send":
        return this.#connection.send(effect.frame);
      case "disconnect":
        return this.#connection.hangUp();
      case "store":
        return void this.#persist();
      case "timer":
        return this.#setTimer(effect.name, effect.ms);
      case "history":
        return void this.#connection.history(effect.clientId, effect.from);
      case "event":
        this.#dispatch(effect.event.type, effect.event.detail);
        if (effect.event.type === "presence") this.#tabs?.post(effect);
        return;
      case "kept":
        if (effect.durable) this.#askToPersist();
        return this.#handles.kept(effect.ref, effect.durable);
      case "decided": {
        const durable = this.#core.status.storage === "durable";
        return this.#handles.decided(effect.ref, durable, effect.error);
      }
      case "poke":
        this.#tabs?.post({ type: "poke", alone: effect.alone ?? false });
        if (this.#waits) this.#tabs?.urge();
        return;
      case "tell":
        if (this.#core.leading) this.#tabs?.post({ type: "line", line: this.#core.view });
        return;
      case "detach":
        this.#shares = false;
        this.#tabs?.stop();
        this.#tabs = null;
        return this.#disk.detach();
      case "changed":
        return this.#changed();
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
          await this.#disk.transact(this.#core);
        } catch (reason) {
          const outdated = isOutdated(reason);
          outcome = { type: "store_failed", message: text(reason), outdated };
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

  #dispatch(type: string, detail: unknown): void {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #changed(): void {
    const { connection, error, pending, savedOnDevice } = this.status;
    const risky = pending > 0 && !savedOnDevice && !this.#closed;
    if (risky !== this.#guarded) this.#env.guard(risky);
    this.#guarded = risky;
    if (this.#core.replica.confirmed) this.#settleReady();
    else if (connection === "closed" && error) {
      this.#settleReady(new ReattachError(error.code, error.message));
    }
    const before = this.#was;
    if (connection !== before) {
      this.#was = connection;
      this.#dispatch("connectionStatusChanged", { connection });
      if (before === "online") this.#dispatch("disconnectionDetected", { connection });
      if (before !== "connecting" && connection === "online") {
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

function sameError(one: Status["error"], other: Status["error"]): boolean {
  return one?.code === other?.code && one?.message === other?.message;
}
