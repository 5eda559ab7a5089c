/**
 * One outbox for all tabs of a profile. The store is the truth that they share; the channel only
 * says "look", and what the leading tab knows of the line. Who holds the lock leads.
 */

import type { LineView, SessionEvent } from "./core/effects.js";
import { type ChannelLike, type Environment, uuid } from "./env.js";

type Message =
  | { readonly type: "poke"; readonly alone: boolean }
  | { readonly type: "line"; readonly line: LineView }
  | { readonly type: "event"; readonly event: SessionEvent }
  | { readonly type: "presence"; readonly data: unknown }
  /** The outbox is another user's now, who is let in by `token` where that is new. */
  | { readonly type: "claimed"; readonly userId: string; readonly token?: string | undefined }
  /** A new tab asks what the line does. */
  | { readonly type: "hi" };

export interface TabsEvents {
  lead(leading: boolean): void;
  message(message: Message): void;
}

export interface Tabs {
  post(message: Message): void;
  stop(): void;
}

const AGAIN_MS = 1_000;

/** Joins the tabs that share `name`: waits for its lock, and hears what the others post. */
export function joinTabs(
  env: Environment,
  locks: Pick<LockManager, "request">,
  name: string,
  events: TabsEvents,
): Tabs {
  const channel = env.channel?.(name);
  const stopped = new AbortController();
  let release = () => {};
  if (channel) channel.onmessage = ({ data }) => events.message(data as Message);

  const queue = async () => {
    while (!stopped.signal.aborted) {
      try {
        await locks.request(name, { signal: stopped.signal }, () => {
          events.lead(true);
          return new Promise<void>((resolve) => {
            release = resolve;
          });
        });
      } catch {
        if (stopped.signal.aborted) return;
        // Another tab took the lock from this one, which seemed frozen: stand in line again, but
        // not at once, whatever the reason was.
        events.lead(false);
        await new Promise<void>((resolve) => env.setTimer(resolve, AGAIN_MS));
      }
    }
  };
  void queue();
  channel?.postMessage({ type: "hi" } satisfies Message);
  return {
    post: (message) => channel?.postMessage(message),
    stop() {
      stopped.abort();
      release();
      channel?.close();
    },
  };
}

/** How long a tab has to say that an outbox is its own. Messages are not throttled as timers are. */
const CLAIM_MS = 100;

/**
 * Without locks, each tab is a client of its own: finds the first outbox that no open tab claims,
 * those in `waiting` before the others. Two that claim one at the same time: the one with the lower
 * id has it. Should a frozen tab wake up to find its outbox taken, the server tells the two apart
 * (protocol, "The outbox").
 */
export async function claimSlot(
  env: Environment,
  name: string,
  waiting: readonly number[],
): Promise<{ slot: number; release: () => void }> {
  const channel: ChannelLike | undefined = env.channel?.(`${name}slots`);
  if (!channel) return { slot: waiting[0] ?? 0, release: () => {} };
  const me = uuid(env);
  const first = [...waiting];
  let next = 0;
  let slot = 0;
  let mine = false;
  let taken = false;
  channel.onmessage = ({ data }: { data: { slot: number; from: string; held: boolean } }) => {
    if (data.slot !== slot) return;
    if (data.held || (!mine && data.from < me)) taken = true;
    else channel.postMessage({ slot, from: me, held: true });
  };
  do {
    slot = first.shift() ?? next++;
    taken = false;
    channel.postMessage({ slot, from: me, held: false });
    await new Promise<void>((resolve) => env.setTimer(resolve, CLAIM_MS));
  } while (taken);
  mine = true;
  return { slot, release: () => channel.close() };
}
