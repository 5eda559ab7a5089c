/**
 * The line to the server: when to connect, when to ask for a sign of life, when to give up and for
 * how long.
 *
 *     idle ──► opening ──► greeting ──► live
 *                 ▲            │          │
 *                 └─ waiting ◄─┴──────────┤
 *                       asking ◄──────────┘
 *
 * - `idle`: not leading, or the client's name is not on the disk yet
 * - `opening`: a connection is being made; `greeting`: `hello` was sent
 * - `live`: welcomed; frames flow
 * - `waiting`: for the next attempt
 * - `asking`: the history is being read for what became of this client's changes
 * - `closed`: for good
 */

import { delay } from "./backoff.js";
import type { Connection, Effect, TimerName } from "./effects.js";
import type { ClientFrame } from "./wire.js";

const GREETING_MS = 15_000;
/** How long a page that woke up waits for a sign of life: on most lines an answer is there long before. */
const WAKE_MS = 900;
/** A line whose answers took longer than a part of that is given more time. */
const TIMES_SLOWER = 4;
/** An attempt that was under way for this long when its page woke up is made anew. */
const STALE_MS = 3_000;
/** After this many failed attempts the user is told, and the next ones come more slowly. */
export const MANY_ATTEMPTS = 10;
/** A connection that stood this long was a good one: the next attempt is a first one. */
const GOOD_MS = 5_000;

export class Line {
  at: "idle" | "opening" | "greeting" | "live" | "waiting" | "asking" | "closed" = "idle";
  network = true;
  /** It was live once, on this page or another, or an attempt failed: the next one is one more. */
  again = false;
  heartbeat = { interval_ms: 5_000, timeout_ms: 15_000 };
  /** How many attempts failed one after another. */
  attempts = 0;
  #since = 0;
  #lastIn = 0;
  #lastOut = 0;
  /** When a sign of life was first asked for; null when one has come since. */
  #probed: number | null = null;
  /** How long an answer to that is waited for, in milliseconds. */
  #patience = 0;
  /** How long the last answer took. */
  #took = 0;
  /** When the attempt began that is under way. */
  #dialed: number | null = null;

  readonly #random: () => number;
  readonly #emit: (effect: Effect) => void;

  constructor(random: () => number, emit: (effect: Effect) => void) {
    this.#random = random;
    this.#emit = emit;
  }

  get connection(): Connection {
    if (this.at === "live") return "online";
    if (this.at === "closed") return "closed";
    if (!this.network) return "offline";
    return this.again ? "reconnecting" : "connecting";
  }

  timer(name: TimerName, ms: number | null): void {
    this.#emit({ type: "timer", name, ms });
  }

  send(frame: ClientFrame, now: number): void {
    this.#lastOut = now;
    this.#emit({ type: "send", frame });
  }

  connect(): void {
    this.at = "opening";
    this.timer("connect", null);
    this.#emit({ type: "connect" });
  }

  /** From here on it is the other side that is waited for. */
  greet(now: number): void {
    this.#dialed ??= now;
    this.timer("greet", GREETING_MS);
  }

  welcomed(now: number): void {
    this.timer("greet", null);
    this.timer("beat", this.heartbeat.interval_ms);
    this.again = true;
    if (this.at === "live") return;
    this.at = "live";
    this.#dialed = null;
    this.#since = this.#lastIn = this.#lastOut = now;
    this.#probed = null;
  }

  /** Ends the connection, or the asking, where there is one. `closed`: it ended by itself. */
  hangUp(at: "idle" | "waiting" | "asking" | "closed", now: number, closed = false): void {
    const { at: before } = this;
    if (!closed && before !== "idle" && before !== "waiting" && before !== "closed") {
      this.#emit({ type: "disconnect" });
    }
    if (before === "live" && now - this.#since >= GOOD_MS) this.attempts = 0;
    for (const name of ["connect", "greet", "beat", "resend"] as const) this.timer(name, null);
    this.#dialed = null;
    this.at = at;
  }

  wait(ms: number, now: number): void {
    this.again ||= this.attempts > 0;
    this.hangUp("waiting", now);
    this.timer("connect", ms);
  }

  backOff(now: number): void {
    this.hangUp("waiting", now);
    this.again = true;
    this.timer("connect", delay(this.attempts++, this.#random(), this.attempts > MANY_ATTEMPTS));
    if (this.attempts === MANY_ATTEMPTS) {
      const detail = { attempts: this.attempts };
      this.#emit({ type: "event", event: { type: "maxReconnectAttemptsReached", detail } });
    }
  }

  /** Any frame is a sign of life. */
  heard(now: number): void {
    this.#lastIn = now;
    if (this.#probed === null) return;
    this.#took = Math.max(0, now - this.#probed);
    this.#probed = null;
    // Browsers hold back timers that timers of a hidden page have set, not those that a message has.
    if (this.at === "live") this.timer("beat", this.heartbeat.interval_ms);
  }

  /**
   * The page woke up, or its network changed: whatever stands is doubted, and known within a second.
   * False: what was under way is not to be waited for.
   */
  wake(now: number): boolean {
    if (this.at === "live") {
      const { interval_ms, timeout_ms } = this.heartbeat;
      this.#setBack(now);
      const most = timeout_ms - interval_ms;
      const patience = Math.min(most, Math.max(WAKE_MS, this.#took * TIMES_SLOWER));
      if (this.#probed === null || this.#probed + this.#patience > now + patience) {
        this.#probed = now;
        this.#patience = patience;
        this.#probe(now);
      }
      this.timer("beat", Math.max(1, this.#probed + this.#patience - now));
      return true;
    }
    return this.#dialed === null || now - this.#dialed < STALE_MS;
  }

  #probe(now: number): void {
    this.send({ type: "heartbeat", t: Math.floor(now) }, now);
  }

  /** Looks at the line; false: it is dead. */
  beat(now: number): boolean {
    const { interval_ms, timeout_ms } = this.heartbeat;
    this.#setBack(now);
    // A page whose timers were held back has asked for no sign of life: its silence proves nothing.
    if (this.#probed !== null && now - this.#probed >= this.#patience) return false;
    if (now - this.#quiet() >= interval_ms) {
      if (this.#probed === null) this.#patience = timeout_ms - interval_ms;
      this.#probed ??= now;
      this.#probe(now);
    }
    const due = Math.min(
      this.#quiet() + interval_ms,
      (this.#probed ?? Number.POSITIVE_INFINITY) + this.#patience,
    );
    this.timer("beat", Math.max(1, due - now));
    return true;
  }

  /** A clock that was set back must not make the line look fresh until it is that late again. */
  #setBack(now: number): void {
    this.#lastIn = Math.min(this.#lastIn, now);
    this.#lastOut = Math.min(this.#lastOut, now);
    if (this.#probed !== null) this.#probed = Math.min(this.#probed, now);
  }

  /** Since when one side has said nothing; while an answer is due, only this side counts. */
  #quiet(): number {
    return this.#probed === null ? Math.min(this.#lastIn, this.#lastOut) : this.#lastOut;
  }
}
