/** The changes of this page that are under way, and what their makers were promised of each. */

import type { Change } from "./api.js";
import { ReattachError } from "./core/errors.js";

interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(error: Error): void;
}

interface Handle {
  readonly stored: Deferred<boolean>;
  readonly acknowledged: Deferred<void>;
}

export class Handles {
  readonly #all = new Map<string, Handle>();

  open(ref: string): Change {
    const stored = deferred<boolean>();
    const acknowledged = deferred<void>();
    // Who does not wait for it finds a refusal in `session.rejected`.
    acknowledged.promise.catch(() => {});
    this.#all.set(ref, { stored, acknowledged });
    return { ref, stored: stored.promise, acknowledged: acknowledged.promise };
  }

  kept(ref: string, durable: boolean): void {
    this.#all.get(ref)?.stored.resolve(durable);
  }

  decided(ref: string, durable: boolean, error?: { code: string; message: string }): void {
    const handle = this.#all.get(ref);
    this.#all.delete(ref);
    handle?.stored.resolve(durable);
    if (error) handle?.acknowledged.reject(new ReattachError(error.code, error.message));
    else handle?.acknowledged.resolve();
  }
}

function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((done, refuse) => {
    resolve = done;
    reject = refuse;
  });
  return { promise, resolve, reject };
}
