/** The cases that every client has to pass: `vectors/README.md` says how they read. */

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { OpError } from "../src/core/errors";
import { clone, type Json, type JsonObject } from "../src/core/json";
import { prepare } from "../src/core/ops";
import { applyPatch } from "../src/core/patch";
import { Replica } from "../src/core/replica";
import type { CoreOptions } from "../src/core/session";
import { carry, type Edit, plain, points, splice } from "../src/core/text";
import type {
  Commit,
  Conflict,
  Create,
  Operation,
  PatchOperation,
  ServerFrame,
  Welcome,
} from "../src/core/wire";
import type { Transaction } from "../src/kv/store";
import { Device, durableMemory } from "./support/device";
import { by, commit, rejected, welcome } from "./support/frames";

interface Case {
  readonly name: string;
  readonly rules?: readonly string[];
}

function cases<T extends Case>(file: string): T[] {
  const url = new URL(`../../../vectors/${file}.json`, import.meta.url);
  return (JSON.parse(readFileSync(url, "utf8")) as { cases: T[] }).cases;
}

// ── apply ────────────────────────────────────────────────────────────────────────────────────────

interface ApplyCase extends Case {
  readonly state: JsonObject;
  readonly ops: readonly Operation[];
  readonly patch?: readonly PatchOperation[];
  readonly after?: JsonObject;
  readonly refused?: string;
  readonly path?: string;
}

function made(given: ApplyCase): JsonObject {
  const replica = new Replica();
  replica.reset({ epoch: "E", version: 0, state: clone(given.state) as JsonObject });
  const view = prepare(given.ops, () => "new");
  const change = { seq: 0, epoch: "E", base: 0, at: 1, ops: view };
  replica.add({ ref: "r", change, view, stored: false });
  return replica.shown as JsonObject;
}

describe("vectors: apply", () => {
  test.each(cases<ApplyCase>("apply"))("$name", (given) => {
    if (given.refused === undefined) {
      expect(made(given)).toEqual(given.after);
      expect(applyPatch(clone(given.state), given.patch ?? [])).toEqual(given.after);
      return;
    }
    let refusal: unknown;
    try {
      made(given);
    } catch (error) {
      refusal = error;
    }
    expect(refusal).toBeInstanceOf(OpError);
    expect((refusal as OpError).code).toBe(given.refused);
    if (given.path !== undefined) expect((refusal as OpError).path).toBe(given.path);
  });
});

// ── transform ────────────────────────────────────────────────────────────────────────────────────

type VectorEdit =
  | { readonly pos: number; readonly str: string }
  | { readonly pos: number; readonly len: number };

interface CarryCase extends Case {
  readonly text: string;
  readonly first: readonly VectorEdit[];
  readonly then: readonly VectorEdit[];
  readonly first_after: readonly VectorEdit[];
  readonly then_after: readonly VectorEdit[];
  readonly result: string;
}

interface PlainCase extends Case {
  readonly before: string;
  readonly after: string;
  readonly edits: readonly VectorEdit[];
}

function read(edits: readonly VectorEdit[]): Edit[] {
  return edits.map((edit) => ("str" in edit ? { ...edit, len: points(edit.str) } : edit));
}

function edited(text: string, edits: readonly Edit[]): string {
  return edits.reduce((now, { pos, str, len }) => {
    return splice(now, pos, str === undefined ? len : 0, str ?? "");
  }, text);
}

describe("vectors: transform", () => {
  test.each(cases<CarryCase | PlainCase>("transform"))("$name", (given) => {
    if ("before" in given) {
      expect(plain(given.before, given.after)).toEqual(read(given.edits));
      return;
    }
    const { text, result } = given;
    const [first, then] = [read(given.first), read(given.then)];
    const [firstAfter, thenAfter] = carry(first, then);
    expect(firstAfter).toEqual(read(given.first_after));
    expect(thenAfter).toEqual(read(given.then_after));
    expect(edited(edited(text, first), thenAfter)).toBe(result);
    expect(edited(edited(text, then), firstAfter)).toBe(result);
  });
});

// ── merge ────────────────────────────────────────────────────────────────────────────────────────

interface Record {
  readonly id: string;
  readonly path: string;
  readonly policy: string;
  readonly status: Conflict["status"];
  readonly kept: RecordSide;
  readonly lost: RecordSide;
}

interface RecordSide {
  readonly value?: Json;
  readonly absent?: true;
  readonly by: string;
  readonly at: number;
}

interface Theirs {
  readonly by: string;
  readonly at: number;
  readonly ops: readonly Operation[];
  readonly patch: readonly PatchOperation[];
  readonly conflicts?: readonly Record[];
}

interface Mine {
  readonly base: number;
  readonly at: number;
  readonly ops: readonly Operation[];
  readonly patch?: readonly PatchOperation[];
  readonly conflicts?: readonly Record[];
  readonly refused?: string;
}

interface MergeCase extends Case {
  readonly state: JsonObject;
  readonly others: readonly Theirs[];
  readonly mine: readonly Mine[];
  readonly shown: readonly JsonObject[];
  readonly after: JsonObject;
}

function records(version: number, given: readonly Record[] = []): { conflicts?: Conflict[] } {
  const side = ({ by: client, ...more }: RecordSide) => ({ ...more, by: by(client), version });
  const list = given.map((one) => ({
    ...one,
    kept: side(one.kept),
    lost: side(one.lost),
    version,
  }));
  return list.length > 0 ? { conflicts: list } : {};
}

/** What a client shows that makes the changes of `mine`, each as soon as it has heard of its base. */
async function* merging({
  state,
  others,
  mine,
}: MergeCase): AsyncGenerator<JsonObject | undefined> {
  const device = await new Device().join(state);
  let version = 0;
  for (const change of [...mine, null]) {
    while (version < (change ? change.base : others.length)) {
      const theirs = others[version++] as Theirs;
      await device.frame(
        commit(version, theirs.patch, by(theirs.by, version), records(version, theirs.conflicts)),
      );
      yield device.shown;
    }
    if (!change) break;
    device.now = change.at;
    await device.stored(...change.ops);
    yield device.shown;
  }
  expect(device.changes).toEqual(
    mine.map(({ base, at, ops }, index) => ({
      type: "change",
      seq: index + 1,
      epoch: "E",
      base,
      at,
      ops,
    })),
  );
  for (const [index, { patch, refused, conflicts }] of mine.entries()) {
    const seq = index + 1;
    await device.frame(
      patch
        ? commit(++version, patch, by(device.core.clientId, seq), records(version, conflicts))
        : rejected(seq, refused ?? ""),
    );
    yield device.shown;
  }
  expect(device.core.replica.pending).toEqual([]);
  const open = new Map<string, Record>();
  for (const record of [...others, ...mine].flatMap(({ conflicts = [] }) => conflicts)) {
    if (record.status === "resolved") open.delete(record.id);
    else open.set(record.id, record);
  }
  expect(device.core.conflicts.map(({ id }) => id)).toEqual([...open.keys()]);
}

describe("vectors: merge", () => {
  test.each(cases<MergeCase>("merge"))("$name", async (given) => {
    const shown: unknown[] = [];
    for await (const state of merging(given)) shown.push(state);
    expect(shown).toEqual(given.shown);
    expect(shown.at(-1)).toEqual(given.after);
  });
});

// ── rebase and outbox ────────────────────────────────────────────────────────────────────────────

interface StoryCommit {
  readonly patch: readonly PatchOperation[];
  readonly own?: number;
  readonly version?: number;
}

interface StoryWelcome extends Partial<Omit<Welcome, "rejected">> {
  readonly rejected?: readonly { readonly seq: number; readonly code: string }[];
}

interface Expected {
  readonly shown?: JsonObject | null;
  readonly views?: readonly (readonly Operation[])[];
  readonly sent?: readonly JsonObject[];
  readonly kept?: {
    readonly changes: readonly JsonObject[];
    readonly rejected: readonly JsonObject[];
  };
}

interface Step extends Expected {
  readonly start?: true;
  readonly change?: readonly Operation[];
  readonly at?: number;
  readonly commit?: StoryCommit;
  readonly rejected?: { readonly seq: number; readonly code: string; readonly path?: string };
  readonly welcome?: StoryWelcome & { readonly state: JsonObject };
  readonly resumed?: StoryWelcome & { readonly commits: readonly StoryCommit[] };
  readonly error?: Omit<ServerFrame & { type: "error" }, "type" | "message">;
  readonly close?: number;
  readonly reconnect?: true;
  readonly restart?: true;
  readonly wait?: number;
  readonly history?: readonly { readonly seq: number; readonly client_at: number }[];
  readonly disk?: "slow" | "works";
}

interface StoryCase extends Case {
  readonly options?: { readonly create?: Create; readonly schema_version?: number };
  readonly state?: JsonObject;
  readonly steps: readonly Step[];
}

/** A client that lives through the steps of a case, on one disk. */
class Story {
  readonly #store = slowStore();
  readonly #options: Partial<CoreOptions>;
  readonly #names: string[] = [];
  device: Device;

  constructor({ options = {} }: StoryCase) {
    const { create, schema_version: schemaVersion } = options;
    this.#options = {
      ...(create && { create }),
      ...(schemaVersion !== undefined && { schemaVersion }),
    };
    this.device = this.#device();
  }

  #device(): Device {
    return new Device(this.#store, this.#options);
  }

  async take(step: Step): Promise<void> {
    const { device } = this;
    if (step.at !== undefined) device.now = step.at;
    device.sent = [];
    if (step.start) await device.start();
    if (step.change) {
      device.change(...step.change);
      await this.#settle();
    }
    if (step.commit) await device.frame(this.#commit(step.commit));
    if (step.rejected) {
      await device.frame({ type: "rejected", message: "no", ...step.rejected });
    }
    if (step.welcome) {
      const { state, ...given } = step.welcome;
      await device.frame({ type: "initial_state", ...this.#welcome(given), state });
    }
    if (step.resumed) {
      const { commits, ...given } = step.resumed;
      const list = this.#commits(commits);
      const version = list.at(-1)?.version ?? this.#version;
      await device.frame({
        type: "resumed",
        ...this.#welcome({ version, ...given }),
        commits: list,
      });
    }
    if (step.error) await device.frame({ type: "error", message: "no", ...step.error });
    if (step.close !== undefined) await device.close(step.close);
    if (step.restart) {
      this.device = this.#device();
      this.device.now = device.now;
      await this.device.start();
    }
    if (step.reconnect) {
      if (this.device.connected) this.device.open();
      else await this.device.reopen();
    }
    if (step.wait !== undefined) await device.advance(step.wait);
    if (step.history) {
      const name = device.asked?.clientId ?? "";
      const commits = step.history.map(({ seq, client_at }) => {
        return { by: by(name, seq), at: client_at, client_at };
      });
      device.feed({ type: "history", commits });
      await device.settle();
    }
    if (step.disk === "slow") this.#store.hold();
    if (step.disk === "works") {
      this.#store.release();
      await device.settle();
    }
  }

  async #settle(): Promise<void> {
    // While the disk is slow, nothing ends: give it the time that it would need.
    if (this.#store.held) for (let i = 0; i < 50; i++) await null;
    else await this.device.settle();
  }

  get #version(): number {
    return this.device.core.replica.confirmed?.version ?? 0;
  }

  #commit({ patch, own, version = this.#version + 1 }: StoryCommit): Commit {
    return commit(
      version,
      patch,
      own === undefined ? by("other", version) : by(this.device.core.clientId, own),
    );
  }

  #commits(commits: readonly StoryCommit[]): Commit[] {
    const first = this.#version + 1;
    return commits.map((one, at) => this.#commit({ version: first + at, ...one }));
  }

  #welcome({ rejected: refused = [], ...given }: StoryWelcome): Welcome {
    return welcome({ ...given, rejected: refused.map(({ seq, code }) => rejected(seq, code)) });
  }

  /** Ids as the case names them: `$1` is the first client id that was ever sent, and so on. */
  #named<T>(value: T): T {
    const { clientId } = this.device.core;
    if (!this.#names.includes(clientId)) this.#names.push(clientId);
    let text = JSON.stringify(value);
    this.#names.forEach((name, at) => {
      text = text.replaceAll(JSON.stringify(name), `"$${at + 1}"`);
    });
    return JSON.parse(text) as T;
  }

  async seen(): Promise<Required<Expected>> {
    const { core, sent } = this.device;
    const kept = await new Device(this.#store.behind).start(false);
    return {
      shown: core.replica.shown ?? null,
      views: core.replica.pending.map(({ view }) => view),
      sent: this.#named(sent) as unknown as JsonObject[],
      kept: {
        changes: kept.core.replica.pending.map(({ change }) => change as unknown as JsonObject),
        rejected: [...kept.core.rejected.values()].map(({ change, code, path }) => ({
          seq: change.seq,
          code,
          ...(path !== undefined && { path }),
        })),
      },
    };
  }
}

/** A disk whose transactions end when it is let go. */
function slowStore() {
  const behind = durableMemory();
  let held = false;
  let release = () => {};
  let free = Promise.resolve();
  return {
    ...behind,
    behind,
    get held() {
      return held;
    },
    hold() {
      held = true;
      free = new Promise((resolve) => {
        release = resolve;
      });
    },
    release() {
      held = false;
      release();
    },
    async transaction<T>(mode: "readonly" | "readwrite", body: (tx: Transaction) => Promise<T>) {
      await free;
      return behind.transaction(mode, body);
    },
  };
}

/** `known`: what the case does not say again is as it was. */
async function lives(given: StoryCase, known: Expected): Promise<void> {
  let expected = known;
  const story = new Story(given);
  if (given.state) {
    await story.take({ start: true });
    await story.take({ reconnect: true });
    await story.take({ welcome: { state: given.state } });
  }
  for (const [index, step] of given.steps.entries()) {
    await story.take(step);
    const { shown, views, sent, kept } = await story.seen();
    const at = `step ${index + 1}`;
    expected = { ...expected, ...step };
    if (expected.shown !== undefined) expect(shown, at).toEqual(expected.shown);
    if (expected.views) expect(views, at).toEqual(expected.views);
    if (expected.kept) expect(kept, at).toEqual(expected.kept);
    if (!step.sent) continue;
    expect(sent.length, at).toBe(step.sent.length);
    for (const [nth, frame] of step.sent.entries()) {
      // Of a hello a case says what it is about, of anything else all.
      if (frame.type === "hello") expect(sent[nth], at).toMatchObject(frame);
      else expect(sent[nth], at).toEqual(frame);
    }
  }
}

describe("vectors: rebase", () => {
  test.each(cases<StoryCase>("rebase"))("$name", (given) =>
    lives(given, { shown: given.state ?? null, views: [] }),
  );
});

describe("vectors: outbox", () => {
  test.each(cases<StoryCase>("outbox"))("$name", (given) =>
    lives(given, { kept: { changes: [], rejected: [] } }),
  );
});
