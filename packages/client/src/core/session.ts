/**
 * The client's state machine: one session on one device. It takes inputs with the time given to it
 * and returns effects; it awaits nothing, reads no clock and draws no random number itself.
 *
 * Only the tab that leads has a line (`line.ts`); all tabs have the replica (`replica.ts`) and the
 * books of the outbox (`ledger.ts`). This is what a frame, a timer or a change means to them.
 */

import type { Effect, HistoryItem, Input, LineView, SessionEvent, TimerName } from "./effects.js";
import { OpError } from "./errors.js";
import { freeze, type Json } from "./json.js";
import { Ledger } from "./ledger.js";
import { Line } from "./line.js";
import { prepare } from "./ops.js";
import type { Found, Rejected, Terms, Write } from "./outbox.js";
import type { Pending, Replica } from "./replica.js";
import type {
  Change,
  ChangesBody,
  ClientFrame,
  Commit,
  Conflict,
  Create,
  DeviceStatus,
  HelloDevice,
  Operation,
  ServerFrame,
} from "./wire.js";

export interface CoreOptions {
  /** Unique ids: for clients and for inserted elements. */
  readonly newId: () => string;
  /** In [0, 1). */
  readonly random: () => number;
  readonly device?: Omit<HelloDevice, "id">;
  readonly create?: Create;
  readonly schemaVersion?: number;
}

export interface Status {
  /**
   * `connecting` until the first connection stands or fails, `online`, `reconnecting`, `offline`
   * (not online, and the browser says that there is no network), `closed` (for good: by `close()`,
   * or because the server has no such session for this user; see `error`).
   */
  readonly connection: LineView["connection"];
  /** How many changes the server has not decided. */
  readonly pending: number;
  /** Every change is on this device's disk, and would survive the end of the browser. */
  readonly savedOnDevice: boolean;
  /** Every change is in the server's database. Refused ones are in `rejected` instead. */
  readonly saved: boolean;
  /** `memory`: changes that the server has not taken are lost when this page closes. */
  readonly storage: "durable" | "memory";
  /**
   * Whether the browser has promised not to clear this device's copy when the disk is full
   * (`navigator.storage.persist()`, asked after the first change); null until it has answered.
   */
  readonly persisted: boolean | null;
  /** All tabs share one outbox and one connection. Not so without a secure context or storage. */
  readonly sharedTabs: boolean;
  /**
   * The session's schema has become too new for this application (see `schemaVersion`): the server
   * takes none of its changes. They stay on this device until a newer application sends them.
   */
  readonly readOnly: boolean;
  /** Why the session is not online, or not durable; null when all is well. */
  readonly error: { readonly code: string; readonly message: string } | null;
}

/** How many undecided changes may be on their way (the server reads no more than that). */
const IN_FLIGHT = 256;
const RETRY_STORE_MS = 5_000;
/** How often a shown page looks at the clock, and how late that is when the machine has slept. */
const WATCH_MS = 500;
const SLEPT_MS = 2_000;

/** What ends a session for good, whatever this device does (protocol, section 5). */
const ENDINGS: Readonly<Record<number, readonly [code: string, message: string]>> = {
  4403: ["forbidden", "this user may not use this session"],
  4404: ["session_not_found", "there is no such session for this user"],
  4410: ["session_ended", "the session was ended or erased"],
};

const REASONS: Readonly<Record<number, readonly [code: string, message: string]>> = {
  4400: ["bad_frame", "the server could not read a frame"],
  4401: ["not_authenticated", "the server wants a valid token"],
  4413: ["too_large", "a frame was too large for the server"],
};

export class SessionCore {
  devices: readonly DeviceStatus[] = [];

  readonly #options: CoreOptions;
  #out: Effect[] = [];
  #now = 0;
  readonly #ledger: Ledger;
  readonly #line: Line;

  #deviceId = "";
  #loaded = false;
  #leading = false;
  /** By a lock, not for want of locks. */
  #exclusive = false;
  /** What the leading tab says of the line. */
  #mirror: LineView | null = null;
  #error: LineView["error"] = null;
  /** Something was pending when the last step ended. */
  #busy = false;

  // Of the present connection.
  /** The highest number that the server has, or is on its way there. */
  #sent = 0;
  /** A version was skipped; what comes before the answer is not applied. */
  #syncing = false;
  /** The server said when it wants to hear a change again. */
  #resendWaits = false;

  /** The server said so, and it has named no schema since that this application is made for. */
  #readOnly = false;
  #persisted: boolean | null = null;
  /** When the clock is looked at next; null while the page is hidden. */
  #watch: number | null = null;
  /** The name under which this page was welcomed: the server knows whose it is. */
  #welcomed = "";
  /** The highest number that went out in a last breath. */
  #breathed = 0;
  /** The patches did not fit: the next welcome brings the whole state. */
  #distrust = false;
  /** After a 4400 or 4413: up to this number, changes are sent one by one. */
  #suspects: number | null = null;
  #jitter = 1_000;

  constructor(options: CoreOptions) {
    this.#options = options;
    const emit = (effect: Effect) => void this.#out.push(effect);
    this.#ledger = new Ledger(options.newId, emit);
    this.#line = new Line(options.random, emit);
  }

  get replica(): Replica {
    return this.#ledger.replica;
  }

  get rejected(): ReadonlyMap<string, Rejected> {
    return this.#ledger.rejected;
  }

  get clientId(): string {
    return this.#ledger.clientId;
  }

  get leading(): boolean {
    return this.#leading;
  }

  /** What the store's reader already knows; null: nothing. */
  get mark(): Ledger["mark"] {
    return this.#ledger.mark;
  }

  get status(): Status {
    const { connection, error, readOnly } = this.view;
    const { disk, diskError, kept } = this.#ledger;
    const pending = this.replica.pending.length;
    // Before there is a state, what a form holds is not counted yet: nothing can be said of it.
    const here = this.#loaded && Boolean(this.replica.confirmed);
    const storage = diskError === "" ? null : { code: "storage", message: diskError };
    return {
      connection,
      pending,
      savedOnDevice: here && kept,
      saved: here && pending === 0,
      storage: disk === "works" ? "durable" : "memory",
      persisted: this.#persisted,
      sharedTabs: disk === "works" && this.#exclusive,
      readOnly,
      error: error ?? storage,
    };
  }

  /** What the server last said of the session's schema. */
  get terms(): Terms {
    return this.#ledger.terms;
  }

  /** This device's id; empty until the disk has answered. */
  get deviceId(): string {
    return this.#deviceId;
  }

  /** What the server is told of this device. */
  get device(): HelloDevice {
    return { id: this.#deviceId, ...this.#options.device };
  }

  /** What the other tabs are told of the line. */
  get view(): LineView {
    if (!this.#leading && this.#mirror && this.#line.at !== "closed") return this.#mirror;
    const { connection } = this.#line;
    return { connection, error: this.#error, devices: this.devices, readOnly: this.#readOnly };
  }

  /** The conflicts that nobody has settled, without those whose settling is on its way. */
  get conflicts(): readonly Conflict[] {
    const { conflicts } = this.#ledger;
    if (conflicts.size === 0) return [];
    const settling = new Set(
      this.replica.pending.flatMap(({ view }) =>
        view.map((operation) => (operation.op === "resolve" ? operation.conflict_id : undefined)),
      ),
    );
    return [...conflicts.values()].filter(({ id }) => !settling.has(id));
  }

  step(input: Input, now: number): Effect[] {
    this.#now = now;
    if (this.#line.at !== "closed" || isOfDisk(input)) this.#on(input);
    const { pending, confirmed } = this.replica;
    if (this.#busy && pending.length === 0 && confirmed) {
      this.#event({ type: "saved", detail: { version: confirmed.version } });
    }
    return this.#effects();
  }

  /**
   * A change of this tab's user. `ref` names it; `replaces` names a refused change that it stands
   * for. Throws `OpError`, and does nothing, where the operations make no sense.
   */
  change(ops: readonly Operation[], ref: string, now: number, replaces?: string): Effect[] {
    const { confirmed } = this.replica;
    if (!confirmed) throw new OpError("not_ready", "expected a state: await session.ready first");
    const { newId, schemaVersion } = this.#options;
    const prepared = prepare(ops, newId);
    this.replica.add({
      ref,
      change: {
        seq: 0,
        epoch: confirmed.epoch,
        base: confirmed.version,
        at: Math.floor(now),
        ops: prepared,
        ...(schemaVersion !== undefined && { schema_version: schemaVersion }),
      },
      view: prepared,
      stored: false,
    });
    this.#now = now;
    if (replaces !== undefined) this.#ledger.setRejected(replaces, null);
    this.#ledger.save();
    if (this.#ledger.disk === "fails") this.#out.push({ type: "kept", ref, durable: false });
    this.#flush();
    this.#changed();
    return this.#effects();
  }

  /** Forgets a refused change for good. */
  discard(ref: string): Effect[] {
    this.#ledger.setRejected(ref, null);
    this.#ledger.save();
    this.#changed();
    return this.#effects();
  }

  /**
   * Within a transaction: applies what it found beyond `mark`, and answers what it shall write.
   * Numbers are given out here. `stored` or `store_failed` follows.
   */
  take(found: Found | null, now: number): Write[] {
    this.#now = now;
    const { writes, collided } = this.#ledger.take(found);
    // While the disk failed here, another tab gave out a number that this one had used.
    if (collided) this.#ask();
    if (found) this.#changed();
    return writes;
  }

  /**
   * What the server may not have when the page goes: this client's stored, undecided changes, oldest
   * first, up to the one that does not fit; null where all of them have gone this way before. Only a
   * name under which the server has welcomed this page is known there to be this user's.
   */
  lastBreath(fits: (change: Change) => boolean, now: number): ChangesBody | null {
    const { clientId, device } = this;
    if (!this.#leading || this.#readOnly || this.#welcomed !== clientId) return null;
    const changes: Change[] = [];
    for (const { change, stored, unsure } of this.replica.pending) {
      if (!stored || unsure || change.seq === 0 || change.epoch === null || !fits(change)) break;
      changes.push(change);
    }
    const last = changes.at(-1)?.seq ?? 0;
    if (last <= this.#breathed) return null;
    this.#breathed = last;
    return { client_id: clientId, device, t: Math.floor(now), changes };
  }

  /**
   * Of changes that were exported under this client's name: those that are pending or refused, by their
   * `ref` and with their number; null where an undecided one is not in this outbox.
   */
  ownOf(changes: readonly Change[]): ReadonlyMap<string, number> | null {
    const found = new Map<string, number>();
    const refused = [...this.rejected.values()];
    for (const { seq, at } of changes) {
      const past = seq <= this.#ledger.decided;
      const one = past
        ? refused.find(({ change }) => change.seq === seq && change.at === at)
        : this.#ledger.bySeq(seq);
      if (!past && one?.change.at !== at) return null;
      if (one) found.set(one.ref, seq);
    }
    return found;
  }

  #effects(): Effect[] {
    this.#busy = this.replica.pending.length > 0;
    const effects = this.#out;
    this.#out = [];
    return effects;
  }

  #on(input: Input): void {
    const ledger = this.#ledger;
    switch (input.type) {
      case "loaded":
        this.#loaded = true;
        this.#deviceId = input.deviceId;
        ledger.load(input.found, input.durable, input.error);
        if (this.replica.confirmed) {
          const { confirmed, pending } = this.replica;
          const detail = { version: confirmed.version, pending: pending.length };
          this.#event({ type: "stateRestored", detail });
        }
        if (input.outdated) {
          this.#event({ type: "upgradeRequired", detail: { message: input.error ?? "" } });
        }
        return this.#changed();
      case "lead":
        return this.#onLead(input.leading, input.exclusive);
      case "dialing":
        if (this.#line.at === "opening") this.#line.greet(this.#now);
        return;
      case "opened":
        return this.#hello(input.token, input.userId);
      case "frame":
        return this.#onFrame(input.frame);
      case "closed":
        return this.#onClosed(input.code, input.reason ?? "");
      case "timer":
        return this.#onTimer(input.name);
      case "network":
        this.#line.network = input.online;
        if (input.online) this.#line.attempts = 0;
        return this.#wake();
      case "page":
        return this.#onPage(input.visible, input.woken);
      case "persisted":
        this.#persisted = input.persisted;
        return this.#changed();
      case "stored":
        ledger.wrote();
        this.#start();
        this.#flush();
        return this.#changed();
      case "store_failed":
        return this.#onStoreFailed(input.message, input.outdated);
      case "history":
        return this.#onHistory(input.commits);
      case "presence":
        if (this.#line.at === "live") this.#send({ type: "presence", data: input.data as Json });
        return;
      case "mirror":
        if (input.line.readOnly) this.#outdated(input.line.error?.message ?? "");
        this.#readOnly = input.line.readOnly;
        this.#mirror = input.line;
        this.devices = input.line.devices;
        this.#line.again ||= input.line.connection === "online";
        return this.#changed();
      case "stop":
        return this.#end(null);
    }
  }

  // ── Leading and connecting ─────────────────────────────────────────────────────────────────────

  #onLead(leading: boolean, exclusive: boolean): void {
    this.#exclusive = exclusive;
    if (leading === this.#leading) return;
    this.#leading = leading;
    this.#ledger.heard = false;
    this.#mirror = null;
    // Read what the last leader wrote, then connect.
    if (leading) this.#out.push({ type: "store" });
    else this.#line.hangUp("idle", this.#now);
    this.#told();
  }

  /** Connects where that is this tab's to do and its name is on the disk. */
  #start(): void {
    if (this.#line.at === "idle" && this.#leading && this.#loaded && this.#ledger.named) {
      this.#connect();
    }
  }

  #connect(): void {
    this.#line.connect();
    this.#told();
  }

  #hello(token: string | undefined, userId: string | undefined): void {
    if (this.#line.at !== "opening") return;
    this.#line.at = "greeting";
    this.#line.greet(this.#now);
    this.#resendWaits = this.#syncing = false;
    const { create, schemaVersion } = this.#options;
    const { confirmed } = this.replica;
    const epoch = this.#distrust ? null : (confirmed?.epoch ?? null);
    this.#send({
      type: "hello",
      client_id: this.clientId,
      device: this.device,
      t: Math.floor(this.#now),
      epoch,
      version: epoch === null ? null : (confirmed?.version ?? null),
      seq: this.#ledger.decided,
      ...(token !== undefined && { token }),
      ...(userId !== undefined && { user_id: userId }),
      ...(schemaVersion !== undefined && { schema_version: schemaVersion }),
      // Only who never saw the session asks to create it: it may have been erased since.
      ...(create && confirmed?.epoch == null && { create }),
    });
  }

  #backOff(): void {
    this.#line.backOff(this.#now);
    this.#told();
  }

  #end(error: LineView["error"]): void {
    this.#onPage(false, false);
    this.#line.hangUp("closed", this.#now);
    // What the server ended is kept here all the same.
    if (!error) this.#line.timer("store", null);
    this.#error = error;
    this.#told();
  }

  #onClosed(code: number, reason: string): void {
    const { at } = this.#line;
    if (at !== "opening" && at !== "greeting" && at !== "live") return;
    this.#line.hangUp("waiting", this.#now, true);
    const error = ([name, message]: readonly [string, string]) => {
      return { code: name, message: reason || message };
    };
    const ending = ENDINGS[code];
    if (ending) return this.#end(error(ending));
    const known = REASONS[code];
    if (known) this.#error = error(known);
    switch (code) {
      case 4400:
      case 4413:
        if (at === "live") this.#blame(code);
        break;
      case 4401:
        break;
      case 4409:
        // Without a lock nobody can tell whose the name is.
        if (!this.#exclusive) return this.#ask();
        break;
      case 4429:
        this.#line.attempts = Math.max(this.#line.attempts, 3);
        break;
      case 1012:
        this.#line.wait(this.#options.random() * this.#jitter, this.#now);
        return this.#told();
      default:
        this.#startOffline();
    }
    this.#backOff();
  }

  /**
   * The server could not take a frame. The first time, the changes in flight are suspects and go one
   * by one; the one that closes the connection again is refused here, and `ops: []` takes its number.
   */
  #blame(code: number): void {
    const first = this.replica.pending[0];
    if (!first || first.change.seq === 0 || first.change.seq > this.#sent) return;
    if (this.#suspects === null) {
      this.#suspects = this.#sent;
      return;
    }
    this.#suspects = null;
    const [name] = REASONS[code] ?? ["bad_frame"];
    const message = `the server closed the connection twice over this change (${code})`;
    this.#ledger.replaceByNothing(first, name, message);
    this.#ledger.save();
  }

  #onTimer(name: TimerName): void {
    const line = this.#line;
    switch (name) {
      case "connect":
        if (line.at === "waiting") this.#connect();
        return;
      case "greet":
        if (line.at === "opening" || line.at === "greeting") this.#lost();
        if (line.at === "asking") this.#backOff();
        return;
      case "beat":
        if (line.at === "live" && !line.beat(this.#now)) this.#lost();
        return;
      case "resend":
        this.#resendWaits = false;
        this.#sent = this.#ledger.decided;
        return this.#flush();
      case "watch":
        return this.#onWatch();
      case "store":
        this.#out.push({ type: "store" });
    }
  }

  /** The other side says nothing: that it is gone is the likeliest. */
  #lost(): void {
    this.#startOffline();
    this.#backOff();
  }

  /** What stands is doubted, and what waits is tried at once. */
  #wake(): void {
    const line = this.#line;
    const waits = line.at === "waiting";
    if (!line.wake(this.#now)) {
      line.hangUp("waiting", this.#now);
      line.attempts = 0;
      this.#connect();
    } else if (waits && line.network) {
      line.attempts = 0;
      this.#connect();
    }
    this.#told();
  }

  #onPage(visible: boolean, woken: boolean): void {
    this.#watch = visible ? this.#now + WATCH_MS : null;
    this.#line.timer("watch", visible ? WATCH_MS : null);
    if (woken) this.#wake();
  }

  /** Timers stand still while a machine sleeps, its clock does not. */
  #onWatch(): void {
    if (this.#watch === null) return;
    this.#onPage(true, this.#now - this.#watch > SLEPT_MS);
  }

  /** The session does not exist yet, as far as anybody here knows: begin with what it will be. */
  #startOffline(): void {
    const state = this.#options.create?.state;
    if (this.replica.confirmed || !state) return;
    this.#ledger.reset({ epoch: null, version: 0, state });
    this.#ledger.save();
  }

  // ── Frames ─────────────────────────────────────────────────────────────────────────────────────

  #onFrame(frame: ServerFrame): void {
    const { at } = this.#line;
    const { type } = frame;
    const first = type === "initial_state" || type === "resumed" || type === "error";
    if (at !== "live" && !(at === "greeting" && first)) return;
    this.#line.heard(this.#now);
    switch (type) {
      case "initial_state":
      case "resumed":
        return this.#onWelcome(frame);
      case "state_update":
      case "session_restored":
        if (!this.#syncing && this.#onCommit(frame, Math.max(this.#sent, this.#breathed))) {
          this.#decided();
        }
        return;
      case "rejected": {
        const { seq, code, message, path } = frame;
        const pending = this.#ledger.bySeq(seq);
        if (pending) this.#ledger.refuse(pending, code, message, path);
        this.#ledger.decide(seq, pending?.change.at);
        return this.#decided();
      }
      case "devices":
        this.devices = freeze(frame.devices);
        return this.#told();
      case "presence":
        return this.#event({ type: "presence", detail: frame });
      case "checkpoint_saved":
        return this.#event({ type: "checkpointSaved", detail: frame });
      case "error":
        return this.#onError(frame);
    }
  }

  #onWelcome(frame: ServerFrame & { type: "initial_state" | "resumed" }): void {
    const ledger = this.#ledger;
    const { replica } = ledger;
    const { epoch, seq, seq_at } = frame;
    const before = replica.confirmed;
    const lost = before && before.epoch !== null && before.epoch !== epoch ? before : null;
    if (!lost && !ledger.agrees(seq, seq_at)) return this.#ask();

    for (const { seq: refused, code, message, path } of frame.rejected) {
      const pending = ledger.bySeq(refused);
      if (pending) ledger.refuse(pending, code, message, path);
    }
    if (frame.type === "initial_state") {
      ledger.reset({ epoch, version: frame.version, state: freeze(frame.state) }, seq);
    } else {
      for (const commit of frame.commits) if (!this.#onCommit(commit, seq)) return;
    }
    // What is decided and was neither refused nor among the commits is in the state.
    for (const pending of replica.pending.filter(({ change }) => change.seq > 0)) {
      if (pending.change.seq > seq) break;
      ledger.accept(pending);
    }
    ledger.decide(seq, seq_at);
    ledger.heard = true;
    ledger.setConflicts(frame.conflicts, frame.type === "initial_state");
    const { schema = null, policies } = frame;
    ledger.setTerms({ schema, policies });
    this.#readOnly &&= schema !== null && schema.version > (this.#options.schemaVersion ?? 0);
    this.devices = freeze(frame.devices);
    this.#line.heartbeat = frame.heartbeat;
    this.#jitter = frame.reconnect_jitter_ms;
    this.#distrust = this.#syncing = false;
    if (!this.#readOnly) this.#error = null;

    if (lost) {
      this.#rename();
      this.#event({ type: "historyLost", detail: { lost } });
      return;
    }
    ledger.adopt(epoch);
    this.#welcomed = this.clientId;
    this.#breathed = 0;
    this.#line.welcomed(this.#now);
    this.#sent = seq;
    if (frame.type === "initial_state") {
      const { version, created } = frame;
      this.#event({ type: "initialStateReceived", detail: { version, created } });
    }
    this.#decided();
    this.#told();
  }

  /**
   * Applies a commit; false where it could not be, and the line was given up or asked again. The
   * server can have decided this client's numbers up to `sent`.
   */
  #onCommit(frame: Commit, sent: number): boolean {
    const ledger = this.#ledger;
    const { epoch = null, version = -1 } = this.replica.confirmed ?? {};
    if (frame.version <= version) return true;
    if (frame.version > version + 1) {
      if (this.#line.at !== "live" || this.#syncing) return this.#mistrust();
      this.#syncing = true;
      this.#send({ type: "request_sync", epoch, version });
      return false;
    }
    const { client_id, seq } = frame.by;
    let own: Pending | undefined;
    if (client_id === this.clientId && seq != null && seq > ledger.decided) {
      own = ledger.bySeq(seq);
      if (!own || seq > sent) {
        // Somebody else uses this client's name and numbers.
        this.#ask();
        return false;
      }
    }
    try {
      ledger.commit(frame, own);
    } catch (error) {
      if (!(error instanceof OpError)) throw error;
      return this.#mistrust();
    }
    ledger.mergeConflicts(frame.conflicts ?? []);
    const restored = frame.type === "session_restored";
    this.#event({ type: restored ? "sessionRestored" : "stateUpdateReceived", detail: frame });
    return true;
  }

  /** The copy here cannot be right: ask for the whole state. */
  #mistrust(): false {
    this.#distrust = true;
    this.#backOff();
    return false;
  }

  #onError(frame: ServerFrame & { type: "error" }): void {
    const { code, message, retry_after_ms, expected } = frame;
    const live = this.#line.at === "live";
    if (code === "seq_reused") return this.#ask();
    if (code === "sequence_gap" && live) {
      // What was to be heard again later is what is missing.
      if (this.#resendWaits) return;
      const from = expected ?? this.#ledger.decided + 1;
      if (!this.#ledger.bySeq(from)) return this.#ask();
      this.#sent = from - 1;
      return this.#flush();
    }
    if (code === "upgrade_required") this.#outdated(message);
    this.#error = { code, message };
    if (retry_after_ms !== undefined && live) {
      this.#resendWaits = true;
      this.#line.timer("resend", retry_after_ms);
    } else if (retry_after_ms !== undefined) {
      this.#line.attempts++;
      this.#line.wait(retry_after_ms * (1 + this.#options.random()), this.#now);
    }
    this.#told();
  }

  /** The application is too old: what it changes is kept here, and not sent. */
  #outdated(message: string): void {
    if (this.#readOnly) return;
    this.#readOnly = true;
    this.#event({ type: "upgradeRequired", detail: { message } });
  }

  /** After a decision: keeps it, and sends what may follow. */
  #decided(): void {
    if (this.#suspects !== null && this.#ledger.decided >= this.#suspects) this.#suspects = null;
    this.#ledger.save();
    this.#flush();
    this.#changed();
  }

  #flush(): void {
    if (this.#line.at !== "live" || this.#syncing || this.#readOnly || this.#resendWaits) return;
    this.#ledger.surely();
    const { decided, disk } = this.#ledger;
    const most = this.#suspects === null ? IN_FLIGHT : 1;
    const { pending } = this.replica;
    const first = pending.findIndex(({ change }) => change.seq > this.#sent);
    if (first < 0) return;
    for (let next = pending[first], i = first; next; next = pending[++i]) {
      const { seq, epoch } = next.change;
      // What was made before the session had an epoch gets the welcome's before it is sent.
      if (seq === 0 || epoch === null || this.#sent - decided >= most) return;
      if (next.unsure === "change") return;
      // A change is sent only after it is stored, where anything can be.
      if (!next.stored && disk !== "fails") return;
      this.#sent = seq;
      this.#send({ type: "change", ...next.change, epoch });
    }
  }

  // ── The outbox ─────────────────────────────────────────────────────────────────────────────────

  #onStoreFailed(message: string, outdated = false): void {
    const ledger = this.#ledger;
    ledger.failed(message);
    if (outdated) this.#event({ type: "upgradeRequired", detail: { message } });
    if (this.#leading && !outdated) {
      ledger.goWithout();
      this.#line.timer("store", RETRY_STORE_MS);
    } else {
      // Without the store a follower hears nothing, and what a newer release wrote is not this one's
      // to change: it goes on as a client of its own.
      if (this.#leading) this.#line.hangUp("idle", this.#now);
      ledger.detach();
      this.#leading = true;
      this.#exclusive = this.#busy = false;
      this.#mirror = null;
      this.#out.push({ type: "detach" });
      ledger.save();
    }
    this.#start();
    this.#flush();
    this.#changed();
  }

  /** Finds out which of the pending changes were committed under this name, by whomever. */
  #ask(): void {
    this.#line.hangUp("asking", this.#now);
    this.#line.greet(this.#now);
    // Until the next welcome the name is in doubt: no last breath under it.
    this.#welcomed = "";
    const { pending, confirmed } = this.replica;
    const seen = pending.reduce(
      (least, { change }) => Math.min(least, change.base),
      confirmed?.version ?? 0,
    );
    this.#out.push({ type: "history", clientId: this.clientId, from: seen + 1 });
    this.#told();
  }

  #onHistory(items: readonly HistoryItem[] | null): void {
    if (this.#line.at !== "asking") return;
    if (items === null) return this.#backOff();
    const committed = new Set(items.map(({ by, at, client_at }) => `${by.seq} ${client_at ?? at}`));
    this.#rename(({ ref, change: { seq, at } }) => {
      if (seq === 0 || !committed.has(`${seq} ${at}`)) return true;
      this.#out.push({ type: "decided", ref });
      return false;
    });
  }

  /** Goes on under another name, with the changes that `keep` keeps; connects when it is stored. */
  #rename(keep?: (pending: Pending) => boolean): void {
    this.#ledger.renumber(keep);
    this.#suspects = null;
    this.#line.hangUp("idle", this.#now);
    this.#ledger.save();
    if (this.#ledger.disk === "fails") this.#start();
    this.#told();
  }

  // ── Telling ────────────────────────────────────────────────────────────────────────────────────

  #send(frame: ClientFrame): void {
    this.#line.send(frame, this.#now);
  }

  #event(event: SessionEvent): void {
    this.#out.push({ type: "event", event });
  }

  #changed(): void {
    this.#out.push({ type: "changed" });
  }

  #told(): void {
    this.#out.push({ type: "tell" });
    this.#changed();
  }
}

/** Goes on when the line is at its end for good. */
function isOfDisk(input: Input): boolean {
  const { type } = input;
  return (
    type === "stored" || type === "store_failed" || (type === "timer" && input.name === "store")
  );
}
