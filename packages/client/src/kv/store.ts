/**
 * Where a device keeps things: an ordered map from string keys to values that structured clone can
 * copy.
 *
 * The law that every store keeps:
 *
 * 1. Transactions that write run one after another, in every tab that has the store open: each sees
 *    all that those before it wrote, and nothing of those after it.
 * 2. A transaction takes effect whole when its promise resolves, and not at all when it rejects.
 *    What its body throws is what it rejects with.
 * 3. Where `durable` is true, what a resolved transaction wrote survives the end of the process.
 * 4. A body awaits nothing but the transaction's own reads.
 * 5. A value comes back as it went in, and later changes to either copy do not show in the other.
 */
export interface Store {
  readonly durable: boolean;
  transaction<T>(mode: "readonly" | "readwrite", body: (tx: Transaction) => Promise<T>): Promise<T>;
  close(): void;
}

export interface Transaction {
  get(key: string): Promise<unknown>;
  /** The values with `from` ≤ key < `to`, in the order of their keys (by UTF-16 units). */
  range(from: string, to: string): Promise<unknown[]>;
  put(key: string, value: unknown): void;
  delete(key: string): void;
  /** Deletes all with `from` ≤ key < `to`. */
  deleteRange(from: string, to: string): void;
}
