/**
 * Where one session is kept on this device: its store and the outbox in it, the lock-free tabs'
 * slots, and the values that are this device's alone. Goes on in memory where there is no store.
 */

import type { LocalValue } from "./api.js";
import type { Input } from "./core/effects.js";
import { isOutdated, text } from "./core/errors.js";
import type { SessionCore } from "./core/session.js";
import { type Environment, uuid } from "./env.js";
import { idbStore } from "./kv/idb.js";
import { memoryStore } from "./kv/memory.js";
import type { Store, Transaction } from "./kv/store.js";
import { read, transact } from "./outbox.js";
import { claimSlot } from "./tabs.js";
import { deviceOf, outboxOf, type Place, passOn } from "./users.js";

type Loaded = Input & { type: "loaded" };

export class Disk {
  /** Where the store has this outbox. */
  prefix = "";
  readonly #env: Environment;
  readonly #place: Place;
  #store: Store = memoryStore();
  /** This tab's part of the outbox. */
  #rows = "";
  #releaseSlot = () => {};

  readonly #local = new Map<string, unknown>();
  readonly #listeners = new Map<string, Set<() => void>>();
  readonly #dirty = new Set<string>();
  #opened: Promise<unknown> = Promise.resolve();
  #writing: Promise<void> | null = null;

  constructor(env: Environment, place: Place) {
    this.#env = env;
    this.#place = place;
  }

  /** Opens the store (`given`, else the browser's) and reads what it holds of a user's outbox. */
  open(
    user: string | undefined,
    given: Store | undefined,
  ): Promise<{ loaded: Loaded; slot: number | null }> {
    const opened = this.#open(user, given);
    this.#opened = opened;
    return opened;
  }

  /** One transaction of the core's. */
  transact(core: SessionCore): Promise<void> {
    return transact(this.#store, this.#rows, core, () => this.#env.now());
  }

  /** Makes the outbox that of another user, who has signed in. */
  passOn(from: string | undefined, to: string, deviceId: string): Promise<void> {
    return this.#store.transaction("readwrite", (tx) =>
      passOn(tx, this.#place, this.prefix, { from, to, deviceId, newId: () => uuid(this.#env) }),
    );
  }

  /** Leaves the shared store to the other tabs. */
  detach(): void {
    this.#store.close();
    this.#store = memoryStore();
  }

  /** Writes what is left to write, and closes. */
  async close(): Promise<void> {
    await this.#writing;
    this.#releaseSlot();
    this.#store.close();
  }

  local<T>(key: string): LocalValue<T> {
    return {
      get: () => this.#local.get(key) as T | undefined,
      set: (value) => {
        if (value === undefined) this.#local.delete(key);
        else this.#local.set(key, value);
        this.#dirty.add(key);
        this.#writing ??= this.#writeLocal();
        this.#tell(key);
      },
      subscribe: (listener) => {
        const listeners = this.#listeners.get(key) ?? new Set();
        this.#listeners.set(key, listeners.add(listener));
        return () => listeners.delete(listener);
      },
    };
  }

  async #open(
    user: string | undefined,
    given: Store | undefined,
  ): Promise<{ loaded: Loaded; slot: number | null }> {
    const env = this.#env;
    let slot: number | null = null;
    let error: string | undefined;
    try {
      if (given) this.#store = given;
      else if (env.indexedDB) this.#store = await idbStore("reattach");
      else error = "this browser has no IndexedDB";
      await this.#find(user);
      if (this.#store.durable && !env.locks) slot = await this.#takeSlot();
      return { loaded: await this.#load(user, error), slot };
    } catch (reason) {
      this.#releaseSlot();
      this.#store = memoryStore();
      await this.#find(user);
      const loaded = await this.#load(user, text(reason));
      return { loaded: { ...loaded, outdated: isOutdated(reason) }, slot: null };
    }
  }

  /** Finds the outbox of who is signed in. */
  async #find(user: string | undefined): Promise<void> {
    this.prefix = await this.#store.transaction("readonly", (tx) =>
      outboxOf(tx, this.#place, user),
    );
    this.#rows = this.prefix;
  }

  /** Takes an outbox for this tab alone: one that a tab left with changes in it, or a free one. */
  async #takeSlot(): Promise<number> {
    const { prefix } = this;
    const count = async (tx: Transaction) => ((await tx.get(`${prefix}tabs`)) ?? 0) as number;
    const waiting = await this.#store.transaction("readonly", async (tx) => {
      const left: number[] = [];
      for (let slot = 0, all = await count(tx); slot < all; slot++) {
        const changes = `${prefix}tab/${slot}/change/`;
        if ((await tx.range(changes, `${changes}\uffff`)).length > 0) left.push(slot);
      }
      return left;
    });
    const { slot, release } = await claimSlot(this.#env, `reattach:${prefix}`, waiting);
    this.#releaseSlot = release;
    this.#rows = `${prefix}tab/${slot}/`;
    await this.#store.transaction("readwrite", async (tx) => {
      tx.put(`${prefix}tabs`, Math.max(await count(tx), slot + 1));
    });
    return slot;
  }

  async #load(user: string | undefined, error: string | undefined): Promise<Loaded> {
    const store = this.#store;
    const here = `${this.prefix}local/`;
    const { deviceId, found, local } = await store.transaction("readwrite", async (tx) => {
      const deviceId = await deviceOf(tx, this.prefix, user, () => uuid(this.#env));
      const found = await read(tx, this.#rows, null);
      const local = (await tx.range(here, `${here}\uffff`)) as { key: string; value: unknown }[];
      return { deviceId, found, local };
    });
    for (const { key, value } of local) {
      if (this.#dirty.has(key)) continue;
      this.#local.set(key, value);
      this.#tell(key);
    }
    return {
      type: "loaded",
      deviceId,
      found,
      durable: store.durable,
      ...(error !== undefined && { error }),
    };
  }

  async #writeLocal(): Promise<void> {
    await this.#opened;
    while (this.#dirty.size > 0) {
      const keys = [...this.#dirty];
      this.#dirty.clear();
      await this.#store
        .transaction("readwrite", async (tx) => {
          for (const key of keys) {
            const row = `${this.prefix}local/${key}`;
            if (this.#local.has(key)) tx.put(row, { key, value: this.#local.get(key) });
            else tx.delete(row);
          }
        })
        // A caret that is not kept is no loss that anybody must be told of.
        .catch(() => {});
    }
    this.#writing = null;
  }

  #tell(key: string): void {
    for (const listener of this.#listeners.get(key) ?? []) listener();
  }
}
