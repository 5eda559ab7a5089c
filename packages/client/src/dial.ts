/**
 * Which line is opened. A WebSocket; where something on the way lets none through, a stream
 * (`sse.ts`), and from there back, as soon as one gets its welcome.
 */

import type { ClientFrame } from "./core/wire.js";
import type { Environment } from "./env.js";
import { streams as load } from "./later.js";
import { type Line, type LineEvents, numberIn, openSocket } from "./socket.js";

/** So long a WebSocket may say nothing at first. */
const PATIENCE_MS = 7_000;
/** A stream tries for a WebSocket so often. */
const AGAIN_MS = 20_000;

/** A line that is not there yet. */
const SILENT: Line = { send() {}, stop() {} };

/**
 * Answers what opens a session's lines. `base` is the server's address, `id` the session's, encoded;
 * `bearer` answers a token of now: one that opened a stream may be over when a WebSocket is tried.
 * It remembers how the last ones went: after two WebSockets in a row that said nothing, a stream is
 * tried beside each; it says by itself whether HTTP works.
 */
export function dialer(
  env: Environment,
  base: string,
  id: string,
  bearer: () => Promise<string | undefined>,
): (events: LineEvents) => Line {
  const url = `${base.replace(/^http/, "ws")}/ws/session/${id}`;
  let silent = 0;
  let streams = false;

  return (events) => {
    let line: Line;
    let probe: Line | null = null;
    let hello: (ClientFrame & { type: "hello" }) | null = null;
    let timer: unknown;
    let first = true;
    let stopped = false;

    const wait = (ms: number, then: () => void) => {
      env.clearTimer(timer);
      timer = env.setTimer(then, ms);
    };
    const closed = (code: number, reason: string) => {
      env.clearTimer(timer);
      if (first) streams = false;
      events.closed(code, reason);
    };

    const socket = () => {
      line = openSocket(env, url, {
        opened: events.opened,
        frame(frame) {
          if (first) env.clearTimer(timer);
          first = false;
          silent = 0;
          events.frame(frame);
        },
        closed(code, reason) {
          // Codes of ours mean that the server was there.
          if (first && code < 1012 && ++silent > 1) stream();
          else closed(code, reason);
        },
      });
      wait(PATIENCE_MS, () => {
        if (++silent < 2) return;
        line.stop();
        stream();
      });
    };

    const stream = () => {
      env.clearTimer(timer);
      // Where the stream says nothing either, it is the way that is slow: a WebSocket gets all its time.
      silent = 0;
      let gone = false;
      /** A WebSocket of ours has said hello, and may have ended the stream by it. */
      let greeted = false;
      /** The highest own number whose decision the stream has told. */
      let told = 0;
      /** Tries for a WebSocket; the stream stays until that has its welcome. */
      const again = async () => {
        const token = await bearer().catch(() => null);
        if (gone || stopped) return;
        if (token === null) return wait(AGAIN_MS, again);
        const tried = openSocket(env, url, {
          opened() {
            if (!hello) return;
            greeted = true;
            tried.send({ ...hello, token: token ?? null, t: env.now() });
          },
          frame(frame) {
            if (line !== tried) {
              // A welcome of before what the stream has told since would look like another client's.
              if (!("epoch" in frame) || frame.seq < told) return give();
              env.clearTimer(timer);
              line.stop();
              line = tried;
              probe = null;
              streams = false;
              silent = 0;
            }
            events.frame(frame);
          },
          closed: (code, reason) => (line === tried ? closed(code, reason) : give()),
        });
        const give = () => {
          tried.stop();
          probe = null;
          if (gone) return closed(1006, "the stream ended");
          wait(AGAIN_MS, again);
        };
        probe = tried;
        wait(PATIENCE_MS, give);
      };
      const heard: LineEvents = {
        opened: () => (hello ? line.send({ ...hello, t: env.now() }) : events.opened()),
        frame(frame) {
          if (first && env.WebSocket) wait(AGAIN_MS, again);
          first = false;
          streams = true;
          if (hello) {
            if ("version" in frame) {
              const epoch = "epoch" in frame ? frame.epoch : (hello.epoch ?? null);
              hello = { ...hello, epoch, version: frame.version };
            }
            told = Math.max(told, "epoch" in frame ? frame.seq : numberIn(frame, hello.client_id));
            hello = { ...hello, seq: told };
          }
          events.frame(frame);
        },
        closed(code, reason) {
          gone = true;
          if (!probe) closed(greeted && code === 4409 ? 1006 : code, reason);
        },
      };
      line = SILENT;
      load().then(
        ({ openStream }) => {
          if (!stopped) line = openStream(env, base, id, heard);
        },
        // Then it is for a WebSocket to come through.
        () => stopped || closed(1006, "what opens a stream could not be loaded"),
      );
    };

    if (streams || !env.WebSocket) stream();
    else socket();
    return {
      send(frame) {
        if (frame.type === "hello") hello = frame;
        line.send(frame);
      },
      stop() {
        stopped = true;
        env.clearTimer(timer);
        if (first) streams = false;
        probe?.stop();
        line.stop();
      },
    };
  };
}
