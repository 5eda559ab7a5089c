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

/** Whether the leading tab lives: the same in every release, so that they believe each other. */
type Sign = { readonly type: "there?" } | { readonly type: "here" };

/**
 * Tabs of two releases share the channel. One that sends a message which others could take for
 * something else counts this up; whatever has another number is not for this release.
 */
const RELEASE = 1;

export interface TabsEvents {
  lead(leading: boolean): void;
  message(message: Message): void;
  /** Somebody waits here for what the leading tab has to do. */
  waits(): boolean;
}

export interface Tabs {
  post(message: Message): void;
  /** Takes the lead where the tab that has it gives no sign of life: it is frozen, or hangs. */
  urge(): void;
  stop(): void;
}

/** How long the leading tab has for a sign of life. Messages are not throttled as timers are. */
const SIGN_MS = 700;
const AGAIN_MS = 1_000;

/** Joins the tabs that share `name`: waits for its lock, and hears what the others post. */
export function joinTabs(
  env: Environment,
  locks: Pick<LockManager, "request">,
  name: string,
  events: TabsEvents,
): Tabs {
  const channel = env.channel?.(name);
  let stopped = false;
  let leads = false;
  let steal = false;
  let queued = new AbortController();
  let release = () => {};
  let asked: number | null = null;
  let timer: unknown;

  const say = (message: Message | Sign) => channel?.postMessage({ ...message, release: RELEASE });

  const later = (ms: number, body: () => void) => {
    env.clearTimer(timer);
    timer = env.setTimer(() => {
      if (!stopped) body();
    }, ms);
  };

  const urge = () => {
    if (leads || stopped || asked !== null || !channel) return;
    asked = env.now();
    say({ type: "there?" });
    later(SIGN_MS, () => {
      if (asked === null || leads) return;
      const late = env.now() - asked > 2 * SIGN_MS;
      asked = null;
      // A tab that stood still itself has not heard what was said meanwhile.
      if (late) return urge();
      steal = true;
      queued.abort();
    });
  };

  const hear = (message: (Message | Sign) & { release: number }) => {
    if (message.type === "there?") {
      if (leads) say({ type: "here" });
      return;
    }
    if (message.type === "here" || message.type === "line") {
      asked = null;
      steal = leads;
      later(AGAIN_MS, () => {
        if (events.waits()) urge();
      });
    }
    if (message.type !== "here" && message.release === RELEASE) events.message(message);
  };
  if (channel) channel.onmessage = ({ data }) => hear(data);

  const hold = () => {
    if (stopped) return;
    leads = true;
    events.lead(true);
    return new Promise<void>((resolve) => {
      release = resolve;
    });
  };
  const queue = async () => {
    while (!stopped) {
      const { signal } = queued;
      try {
        await locks.request(name, steal ? { steal } : { signal }, hold);
      } catch {
        if (stopped) return;
        if (signal.aborted) {
          queued = new AbortController();
          continue;
        }
        // Another tab took the lock from this one, which seemed frozen: stand in line again, but
        // not at once, whatever the reason was.
        leads = steal = false;
        events.lead(false);
        // What the line does is the other tab's to say, and it may have said so already.
        say({ type: "hi" });
        await new Promise<void>((resolve) => env.setTimer(resolve, AGAIN_MS));
      }
    }
  };
  void queue();
  say({ type: "hi" });
  return {
    post: say,
    urge,
    stop() {
      stopped = true;
      env.clearTimer(timer);
      queued.abort();
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
