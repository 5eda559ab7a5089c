/** A WebSocket that feeds, sends, dispatches and stops; nothing of it is heard after `stop`. */

import type { ClientFrame, ServerFrame } from "./core/wire.js";
import type { Environment, SocketLike } from "./env.js";

export const SUBPROTOCOL = "reattach.v1";

export interface LineEvents {
  opened(): void;
  frame(frame: ServerFrame): void;
  closed(code: number, reason: string): void;
}

export interface Line {
  send(frame: ClientFrame): void;
  stop(): void;
}

/** The number of a client's change that a frame decides; 0 where it decides none of its. */
export function numberIn(frame: ServerFrame, clientId: string): number {
  if (frame.type === "rejected") return frame.seq;
  if (!("by" in frame) || frame.by.client_id !== clientId) return 0;
  return frame.by.seq ?? 0;
}

/** Opens a line. `closed` comes once, also where it could not be opened. */
export function openSocket(env: Environment, url: string, events: LineEvents): Line {
  let socket: SocketLike | null = null;
  const end = (code: number, reason: string) => {
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    socket = null;
    events.closed(code, reason);
  };
  if (!env.WebSocket) throw new Error("expected a WebSocket: this environment has none");
  const opened = new env.WebSocket(url, [SUBPROTOCOL]);
  socket = opened;
  opened.onopen = () => events.opened();
  opened.onmessage = ({ data }: MessageEvent) => {
    let frame: ServerFrame;
    try {
      frame = JSON.parse(String(data)) as ServerFrame;
    } catch {
      // What is not JSON is from no server of ours: a proxy's, perhaps.
      opened.close(4400, "expected JSON");
      return end(1006, "expected JSON");
    }
    events.frame(frame);
  };
  opened.onclose = ({ code, reason }: CloseEvent) => end(code, reason);
  // A close event follows every error event.
  opened.onerror = () => {};
  return {
    send: (frame) => opened.send(JSON.stringify(frame)),
    stop() {
      if (!socket) return;
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket = null;
      opened.close(1000);
    },
  };
}
