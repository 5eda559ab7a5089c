/** A real server, started on a free port and killed at will. */

import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { WebSocket } from "ws";
import type { Environment } from "../../src/env";

const BIN =
  process.env.REATTACH_BIN ??
  fileURLToPath(new URL("../../../../.venv/bin/reattach", import.meta.url));

export class LiveServer {
  readonly #folder = mkdtempSync(`${tmpdir()}/reattach-live-`);
  #process: ChildProcess | null = null;
  #port = "0";

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Starts it, again on the port that it had before, and waits until it serves. */
  async start(): Promise<this> {
    const database = `sqlite:///${this.#folder}/live.db`;
    const child = spawn(BIN, ["serve", "--port", this.#port, "--database", database], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#process = child;
    let said = "";
    await new Promise<void>((resolve, reject) => {
      const read = (data: Buffer) => {
        said += data.toString();
        const port = /serves http:\/\/127\.0\.0\.1:(\d+)/.exec(said)?.[1];
        if (port === undefined) return;
        this.#port = port;
        resolve();
      };
      child.stdout?.on("data", read);
      child.stderr?.on("data", read);
      child.on("error", reject);
      child.on("exit", () => reject(new Error(`expected ${BIN} to serve, it said: ${said}`)));
    });
    return this;
  }

  /** SIGKILL: what it had not written is gone. */
  async kill(): Promise<void> {
    const child = this.#process;
    this.#process = null;
    if (!child || child.exitCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  async stop(): Promise<void> {
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}

/** Over what sessions go where a test does not say: `REATTACH_TEST_TRANSPORT=sse` for all of them. */
const REFUSES = process.env.REATTACH_TEST_TRANSPORT === "sse";

/** A line that can lose what the server says, and let no WebSocket through. */
export class Wire {
  deaf = false;
  /** WebSockets are refused before their upgrade. */
  refuses = REFUSES;
  /** How many WebSockets were tried. */
  tried = 0;
  readonly sockets = new Set<WebSocket>();
  readonly streams = new Set<AbortController>();

  /** Cuts every connection. */
  cut(): void {
    for (const socket of this.sockets) socket.terminate();
    for (const stream of this.streams) stream.abort(new TypeError("cut"));
  }

  env(): Partial<Environment> {
    const wire = this;
    return {
      random: () => 0.1,
      // Each session here is a profile of its own; newer Node.js has locks, for the whole process.
      locks: undefined,
      WebSocket: class extends WebSocket {
        constructor(url: string, protocols: string[]) {
          wire.tried++;
          // Without our subprotocol the server refuses the upgrade.
          super(url, wire.refuses ? ["another"] : protocols);
          wire.sockets.add(this);
          this.on("close", () => wire.sockets.delete(this));
        }
        override emit(event: string | symbol, ...rest: unknown[]): boolean {
          if (event === "message" && wire.deaf) return true;
          return super.emit(event, ...rest);
        }
      } as unknown as Environment["WebSocket"],
      fetch: async (input, init) => {
        const ended = new AbortController();
        const signal = AbortSignal.any([ended.signal, ...(init?.signal ? [init.signal] : [])]);
        wire.streams.add(ended);
        try {
          const answer = await fetch(input, { ...init, signal });
          if (!String(input).endsWith("/events") || !answer.body) return answer;
          const heard = new TransformStream<Uint8Array, Uint8Array>({
            transform: (part, controller) => {
              if (!wire.deaf) controller.enqueue(part);
            },
            flush: () => void wire.streams.delete(ended),
          });
          return new Response(answer.body.pipeThrough(heard), answer);
        } catch (reason) {
          wire.streams.delete(ended);
          throw reason;
        }
      },
    };
  }
}
