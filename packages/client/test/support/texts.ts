/**
 * A server for one text, `/t`, as short as its rules allow (protocol, section 4, TX1 to TX6): whole
 * writes end as `latest` says, splices are carried. For each client it keeps what was committed and
 * not seen by it, as it reads after that client's own changes.
 */

import { carry, type Edit, plain, points, splice, spliced } from "../../src/core/text";
import type { Change, Commit, Operation, PatchOperation } from "../../src/core/wire";
import { by, commit } from "./frames";

interface Seat {
  seq: number;
  at: number | null;
  unseen: { version: number; edits: readonly Edit[] }[];
}

export class TextServer {
  text = "";
  readonly commits: Commit[] = [];
  readonly seats = new Map<string, Seat>();
  /** When each whole write, or splice, was made that stands in the text now. */
  #at = 0;

  seat(client: string): Seat {
    let seat = this.seats.get(client);
    if (!seat) {
      // Who comes first with a base of 0 has seen nothing.
      const unseen = this.commits.map(({ version }) => ({
        version,
        edits: this.#edits[version] ?? [],
      }));
      seat = { seq: 0, at: null, unseen };
      this.seats.set(client, seat);
    }
    return seat;
  }

  readonly #edits: Record<number, readonly Edit[]> = {};

  /** Decides a change; answers its commit, or null where its number was decided before. */
  decide(client: string, change: Change): Commit | null {
    const seat = this.seat(client);
    if (change.seq <= seat.seq) return null;
    if (change.seq !== seat.seq + 1) throw new Error(`expected ${seat.seq + 1}`);
    seat.seq = change.seq;
    seat.at = change.at;
    seat.unseen = seat.unseen.filter(({ version }) => version > change.base);
    const version = this.commits.length + 1;
    const before = this.text;
    const [op] = change.ops;
    const { patch, edits } =
      op === undefined || op.op === "splice"
        ? this.#splices(seat, change)
        : this.#whole(seat, change, op, version);
    this.#edits[version] = edits;
    for (const [name, other] of this.seats) {
      if (name !== client) other.unseen.push({ version, edits });
    }
    if (before !== this.text) this.#at = Math.max(this.#at, change.at);
    const made = commit(version, patch, by(client, change.seq), { at: change.at });
    this.commits.push(made);
    return made;
  }

  #splices(seat: Seat, change: Change): { patch: PatchOperation[]; edits: readonly Edit[] } {
    let mine: readonly Edit[] = change.ops.flatMap((op) =>
      op.op === "splice" ? spliced(op.index, op.delete, op.insert) : [],
    );
    for (const one of seat.unseen) [one.edits, mine] = carry(one.edits, mine);
    const patch = mine.map(({ pos, str, len }): PatchOperation => {
      if (pos + (str === undefined ? len : 0) > points(this.text)) {
        throw new Error(`expected an edit within ${points(this.text)}, got ${pos}`);
      }
      this.text = splice(this.text, pos, str === undefined ? len : 0, str ?? "");
      return str === undefined
        ? { op: "str_del", path: "/t", pos, len }
        : { op: "str_ins", path: "/t", pos, str };
    });
    return { patch, edits: mine };
  }

  #whole(
    seat: Seat,
    change: Change,
    op: Operation,
    version: number,
  ): { patch: PatchOperation[]; edits: readonly Edit[] } {
    const wanted = written(op);
    const loses = seat.unseen.length > 0 && change.at < this.#at;
    seat.unseen = [];
    if (loses) {
      seat.unseen.push({ version, edits: plain(wanted, this.text) });
      return { patch: [], edits: [] };
    }
    const edits = plain(this.text, wanted);
    this.text = wanted;
    const above = op.op === "set" && op.path === "";
    const step: PatchOperation = above
      ? { op: "replace", path: "", value: op.value }
      : { op: "replace", path: "/t", value: wanted };
    return { patch: [step], edits };
  }
}

function written(op: Operation): string {
  if (op.op === "set" && op.path === "/t") return String(op.value);
  if (op.op === "set" && op.path === "") return String((op.value as { t: string }).t);
  throw new Error(`expected a write of the text, got ${op.op}`);
}
