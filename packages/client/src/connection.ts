/**
 * One session's server: who asks it, the line to it, and what is asked of it beside the line. It
 * feeds what comes, and decides nothing.
 */

import type { Token } from "./api.js";
import type { HistoryItem, Input } from "./core/effects.js";
import { text } from "./core/errors.js";
import type { ChangesBody, ClientFrame } from "./core/wire.js";
import { dialer } from "./dial.js";
import type { Environment } from "./env.js";
import { ask } from "./http.js";
import { prefetch } from "./later.js";
import type { Line, LineEvents } from "./socket.js";

export class Connection {
  /** Who is signed in here, and how the server is told. */
  user: string | undefined;
  token: Token | undefined;
  /** Until then it is not known whose the line will be. */
  claimed: Promise<void> = Promise.resolve();
  readonly #env: Environment;
  readonly #base: string;
  readonly sessionId: string;
  readonly #id: string;
  readonly #feed: (input: Input) => void;
  readonly #open: (events: LineEvents) => Line;
  #line: Line | null = null;
  #attempt = 0;
  #asking = new AbortController();
  /** The server has said something. */
  #reached = false;
  /** What the last line was opened with. */
  #bearer: string | undefined;

  /** `base`: the server's address with the prefix it is mounted under; `id`: the session's. */
  constructor(env: Environment, base: string, id: string, feed: (input: Input) => void) {
    this.#env = env;
    this.#base = base;
    this.sessionId = id;
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
        frame: (frame) => {
          if (!this.#reached) prefetch();
          this.#reached = true;
          this.#feed({ type: "frame", frame });
        },
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
    ask(this.#env, `${this.#address}/changes`, this.#bearer, body, { keepalive: true }).catch(
      () => {},
    );
  }

  /**
   * Asks for something of the session beside the line: posts `body`, or reads where there is none.
   * `bearer`: not the token of now. `key`: to have it done once. Rejects as `http.ask` does.
   */
  async ask(
    path: string,
    body?: object,
    more: { bearer?: string | undefined; key?: string } = {},
  ): Promise<unknown> {
    const bearer = "bearer" in more ? more.bearer : await this.bearer();
    return ask(this.#env, this.#address + path, bearer, body, { key: more.key });
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

  /** The token of now: `given`, else the one that the application gave. */
  async bearer(given: Token | undefined = this.token): Promise<string | undefined> {
    return typeof given === "function" ? await given() : given;
  }

  get #address(): string {
    return `${this.#base}/api/v0/session/${this.#id}`;
  }
}
