/**
 * A line without a WebSocket: down by a stream of Server-Sent Events, read by `fetch` for its headers,
 * up by POSTs, one at a time. It says what a WebSocket would say.
 */

import type { Change, ClientFrame, Rejected, ServerFrame } from "./core/wire.js";
import type { Environment } from "./env.js";
import { type Line, type LineEvents, numberIn } from "./socket.js";

/** Bytes of changes (characters, rather) that go up at a time; a server takes 1 MiB. */
const BATCH = 262_144;

type Hello = ClientFrame & { type: "hello" };

/** Opens a line. `base` is the server's address, `id` the session's, encoded. */
export function openStream(env: Environment, base: string, id: string, events: LineEvents): Line {
  const sessions = `${base}/api/v0/session`;
  const line = new AbortController();
  let stream = new AbortController();
  let hello: Hello;
  /** Bytes came: when the last of them did, and how long none may. */
  let heard = 0;
  let patience = Number.POSITIVE_INFINITY;
  let beating = false;
  let posting = false;
  let changes: Change[] = [];
  /** The highest own number whose decision was told here. */
  let decided = 0;
  let refused: Rejected[] = [];
  const waiting: ServerFrame[] = [];
  let created = false;

  const end = (code: number, reason = "") => {
    if (line.signal.aborted) return;
    line.abort();
    stream.abort();
    events.closed(code, reason);
  };

  const request = (path: string, init: RequestInit) => {
    const { token } = hello;
    return env.fetch(sessions + path, {
      ...init,
      headers: { ...init.headers, ...(token != null && { Authorization: `Bearer ${token}` }) },
    });
  };

  const post = (path: string, body: object, headers = {}) =>
    request(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers },
      body: JSON.stringify(body),
      signal: line.signal,
    });

  /**
   * A problem of the server's own means what a close or an `error` does; anything else is a proxy's.
   * That this user may not, or that there is no such session, is the stream's to say (`down`): what
   * goes up may go with the cookie of somebody who signed in since.
   */
  const fail = async (answer: Response, down = false) => {
    const { status } = answer;
    const problem = await answer.json().catch(() => ({}));
    const { code, detail, retry_after_ms } = problem;
    if (line.signal.aborted) return;
    if (code === "seq_reused" || retry_after_ms) {
      changes = [];
      events.frame({ type: "error", code, message: detail, retry_after_ms });
    } else if (
      code &&
      status < 500 &&
      status !== 409 &&
      code !== "not_found" &&
      (down || (status !== 403 && status !== 404))
    ) {
      end(4000 + (status === 422 ? 400 : status), detail);
    } else end(1006, `the server answered ${status}`);
  };

  /** Where the server cannot be reached, that is the end; what was aborted, was so here. */
  const run = (work: () => Promise<unknown>) =>
    void work().catch(({ name, message }) => name === "AbortError" || end(1006, message));

  // ── Down ───────────────────────────────────────────────────────────────────────────────────────

  const read = async () => {
    stream.abort();
    const mine = new AbortController();
    stream = mine;
    const { client_id, device, epoch, version, seq, t, user_id, schema_version } = hello;
    const { id: deviceId, ...named } = device;
    const rest = JSON.stringify({ device: named, t, user_id, schema_version });
    const answer = await request(`/${id}/events`, {
      headers: {
        "Reattach-Client": client_id,
        "Reattach-Device": deviceId,
        "Reattach-Seq": String(seq ?? 0),
        // Headers are ASCII.
        "Reattach-Hello": rest.replace(
          /[^ -~]/g,
          (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
        ),
        ...(epoch != null && version != null && { "Last-Event-ID": `${epoch}.${version}` }),
      },
      cache: "no-store",
      signal: mine.signal,
    });
    const { create } = hello;
    if (answer.status === 404 && create && !created) {
      const made = await post("", { session_id: decodeURIComponent(id), ...create });
      if (!made.ok && made.status !== 409) return fail(made, true);
      created = made.ok;
      hello = { ...hello, create: null };
      return read();
    }
    if (!answer.ok || !answer.body) return fail(answer, true);
    const parts = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let held = "", last = ""; ; ) {
      const { done, value } = await parts.read();
      if (stream !== mine) return;
      if (done) return end(1006, "the stream ended");
      heard = env.now();
      held += value;
      // A long event is put together once, when its end has come.
      const ends = (last + value).includes("\n\n");
      last = value.slice(-1);
      if (!ends) continue;
      const found = held.split("\n\n");
      held = found.pop() ?? "";
      for (const event of found) take(event);
    }
  };

  const take = (event: string) => {
    const data = /^data: (.*)/m.exec(event)?.[1];
    if (data === undefined) {
      // A comment; while the other way is asked for a sign of life, this one's is not enough.
      if (!beating) alive(null);
      return;
    }
    const frame = JSON.parse(data);
    if (event.startsWith("event: close")) return end(frame.code, frame.reason);
    if (event.startsWith("event: initial_state") || event.startsWith("event: resumed")) {
      frame.created ||= created;
      patience = frame.heartbeat.timeout_ms - frame.heartbeat.interval_ms;
      decided = frame.seq;
      refused = [];
    }
    waiting.push(frame);
    drain();
  };

  const alive = (t: unknown) => {
    if (!line.signal.aborted) events.frame({ type: "heartbeat", t: t as number, server_time: 0 });
  };

  /** Tells what came in the order of this client's numbers: another node may have refused some. */
  const drain = () => {
    while (!line.signal.aborted) {
      let frame: ServerFrame | undefined = refused.find(({ seq }) => seq === decided + 1);
      if (!frame) {
        frame = waiting[0];
        if (!frame) return;
        if (numberOf(frame) > decided + 1) {
          // With nothing on its way up, what became of the number before is told by a welcome only.
          if (!posting) end(1006, "a decision is missing");
          return;
        }
        waiting.shift();
        if (frame.type === "rejected" && frame.seq <= decided) continue;
      }
      decided = Math.max(decided, numberOf(frame));
      events.frame(frame);
    }
  };

  const numberOf = (frame: ServerFrame) => numberIn(frame, hello.client_id);

  // ── Up ─────────────────────────────────────────────────────────────────────────────────────────

  const push = async () => {
    if (posting) return;
    posting = true;
    const { client_id, device } = hello;
    while (changes.length > 0 && !line.signal.aborted) {
      let size = 0;
      let count = 0;
      for (const change of changes) {
        size += JSON.stringify(change).length;
        if (count > 0 && size > BATCH) break;
        count++;
      }
      const batch = changes.splice(0, count);
      const body = { client_id, device, t: Math.floor(env.now()), changes: batch };
      const answer = await post(`/${id}/changes`, body);
      if (!answer.ok) await fail(answer);
      else refused.push(...(await answer.json()).rejected);
    }
    posting = false;
    drain();
  };

  /** The stream shows that it lives by itself; this asks for the way up. */
  const beat = async (t: unknown) => {
    beating = true;
    const answer = await post("/heartbeat", {
      session_id: decodeURIComponent(id),
      device: hello.device,
    });
    beating = false;
    if (!answer.ok) return fail(answer);
    if (env.now() - heard > patience) return end(1006, "the stream is silent");
    alive(t);
  };

  const mark = async ({ ref, name, data }: ClientFrame & { type: "save_checkpoint" }) => {
    const key = { "Idempotency-Key": `${hello.client_id}:${encodeURIComponent(ref)}` };
    const answer = await post(`/${id}/checkpoints`, { name, data }, key);
    const said = await answer.json();
    events.frame(
      answer.ok
        ? { type: "checkpoint_saved", checkpoint: said, ref }
        : { type: "error", code: said.code, message: said.detail, ref },
    );
  };

  queueMicrotask(() => line.signal.aborted || events.opened());
  return {
    send(frame) {
      switch (frame.type) {
        case "hello":
          hello = frame;
          return run(read);
        case "request_sync":
          hello = { ...hello, epoch: frame.epoch ?? null, version: frame.version ?? null };
          return run(read);
        case "change":
          changes.push(frame);
          return run(push);
        case "heartbeat":
          return run(() => beat(frame.t));
        case "presence": {
          const { client_id, device } = hello;
          return run(() => post(`/${id}/presence`, { client_id, device, data: frame.data }));
        }
        case "save_checkpoint":
          return run(() => mark(frame));
      }
    },
    stop() {
      line.abort();
      stream.abort();
    },
  };
}
