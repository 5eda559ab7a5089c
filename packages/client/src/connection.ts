/**
 * One session's server: who asks it, the line to it, and what is asked of it beside the line. It
 * feeds what comes, and decides nothing.
 */

import type { Handoff, Imported, Token } from "./api.js";
import type { HistoryItem, Input } from "./core/effects.js";
import { text } from "./core/errors.js";
import type { ChangesBody, ClientFrame, Rejected } from "./core/wire.js";
import { dialer } from "./dial.js";
import type { Environment } from "./env.js";
import { ask } from "./http.js";
import type { Line, LineEvents } from "./socket.js";

/** What a part of an outbox may weigh, but for its last change, in characters of JSON. */
const PART = 256 * 1024;

interface Answer {
  readonly version: number;
  readonly rejected: readonly Rejected[];
}

export class Connection {
  /** Who is signed in here, and how the server is told. */
  user: string | undefined;
  token: Token | undefined;
  /** Until then it is not known whose the line will be. */
  claimed: Promise<void> = Promise.resolve();
  readonly #env: Environment;
  readonly #base: string;
  readonly #id: string;
  readonly #feed: (input: Input) => void;
  readonly #open: (events: LineEvents) => Line;
  #line: Line | null = null;
  #attempt = 0;
  #asking = new AbortController();
  /** What the last line was opened with. */
  #bearer: string | undefined;

  /** `base`: the server's address with the prefix it is mounted under; `id`: the session's. */
  constructor(env: Environment, base: string, id: string, feed: (input: Input) => void) {
    this.#env = env;
    this.#base = base;
    this.#id = encodeURIComponent(id);
    this.#feed = feed;
    this.#open = dialer(env, base, this.#id, async () => {
      this.#bearer = await this.bearer();
      return this.#bearer;
    });
  }

  /** Opens a line; what becomes of it is fed. */
  async dial(): Promise<void> {
    const attempt = ++this.#attempt;
    let token: string | undefined;
    await this.claimed;
    try {
      token = await this.bearer();
    } catch (reason) {
      if (attempt === this.#attempt)
        this.#feed({ type: "closed", code: 4401, reason: text(reason) });
      return;
    }
    if (attempt !== this.#attempt) return;
    this.#bearer = token;
    this.#feed({ type: "dialing" });
    try {
      this.#line = this.#open({
        opened: () => this.#feed({ type: "opened", token, userId: this.user }),
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

  send(frame: ClientFrame): void {
    this.#line?.send(frame);
  }

  /** Nothing is heard of the line, of the attempt at one, or of the history, from here on. */
  hangUp(): void {
    this.#attempt++;
    this.#asking.abort();
    this.#line?.stop();
    this.#line = null;
  }

  /** Sends changes so that they arrive after the page is gone. Whether they do is not known. */
  breathe(body: ChangesBody): void {
    ask(this.#env, `${this.#address}/changes`, this.#bearer, body, true).catch(() => {});
  }

  /** Sends another client's outbox, in parts that the server reads. */
  async outbox(body: ChangesBody): Promise<Imported> {
    const bearer = await this.bearer();
    let version = 0;
    const refused: Rejected[] = [];
    for (let first = 0; first === 0 || first < body.changes.length; ) {
      let last = first;
      for (let room = PART; room > 0 && last < body.changes.length; last++) {
        room -= JSON.stringify(body.changes[last]).length;
      }
      const changes = body.changes.slice(first, last);
      const url = `${this.#address}/changes`;
      const answer = (await ask(this.#env, url, bearer, { ...body, changes })) as Answer;
      version = answer.version;
      refused.push(...answer.rejected);
      first = Math.max(1, last);
    }
    return { version, refused };
  }

  /** Feeds what a client's changes became. */
  async history(clientId: string, from: number): Promise<void> {
    let commits: HistoryItem[] | null = [];
    this.#asking = new AbortController();
    const { signal } = this.#asking;
    try {
      const token = await this.bearer();
      let next: string | null = null;
      do {
        const query: URLSearchParams = new URLSearchParams({
          client_id: clientId,
          from: String(from),
        });
        if (next !== null) query.set("next", next);
        const answer = await this.#env.fetch(`${this.#address}/history?${query}`, {
          headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
          signal,
        });
        if (!answer.ok) throw new Error(`expected the history, got ${answer.status}`);
        const page = (await answer.json()) as { items: HistoryItem[]; next?: string | null };
        commits.push(...page.items);
        next = page.next ?? null;
      } while (next !== null);
    } catch {
      commits = null;
    }
    if (!signal.aborted) this.#feed({ type: "history", commits });
  }

  /** Makes a session that nobody had signed in for that of `token`'s user, and answers who that is. */
  async claim(claimSecret: string, bearer: string | undefined): Promise<string> {
    const answer = await ask(this.#env, `${this.#address}/claim`, bearer, {
      claim_secret: claimSecret,
    });
    return (answer as { user_id: string }).user_id;
  }

  /** A link for another device, to `url`. */
  async handOff(url: string | undefined): Promise<Handoff> {
    const bearer = await this.bearer();
    const to = url?.split("#", 1)[0];
    const body = to === undefined ? {} : { url: to };
    const answer = await ask(this.#env, `${this.#address}/handoff`, bearer, body);
    const { link, expires_at: expiresAt } = answer as { link: string; expires_at: number };
    return { link, expiresAt };
  }

  /** The token of now: `given`, else the one that the application gave. */
  async bearer(given: Token | undefined = this.token): Promise<string | undefined> {
    return typeof given === "function" ? await given() : given;
  }

  get #address(): string {
    return `${this.#base}/api/v0/session/${this.#id}`;
  }
}
